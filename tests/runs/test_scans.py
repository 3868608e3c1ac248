"""A scan's JSON gives back the scan, and what is damaged is refused with the field named."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from homunculi.errors import InputError
from homunculi.runs.scans import (
    Attention,
    Lens,
    Panel,
    Scan,
    Token,
    numbers,
    read_scan,
    scaled_like,
    scaled_to,
    scan_from_json,
    scan_to_json,
    with_panels,
    write_scan,
)
from homunculi.runs.shades import LEVELS, colours, level


def made() -> Scan:
    values = np.array([[0.5, np.nan, 1.5], [1.0, 1.25, 0.123456789]])
    return Scan(
        run="a run",
        step=60,
        text="one two",
        tokens=(Token(0, "⟨start⟩", None), Token(5, "one", 2.5), Token(6, "␣two", float("inf"))),
        panels=(
            Panel("gain", "Gain", "factor", ("layer 1", "layer 2"), values, 0.5, 1.5, 1.0),
            Panel("depth", "Passes taken", "passes", ("passes",), np.array([[1.0, 2.0, 3.0]]), 0, 3),
        ),
        attention=(Attention("steps.0.attn.pattern", "layer 1", np.tril(np.ones((2, 3, 3)) / 3)),),
        lens=(
            Lens(0, "layer 1", ((("a", 0.5),), (("b", 0.25),), ()), (1, 7, None)),
            Lens(
                1, "layer 2", ((("a", 0.6),), (), ()), (1, 7, None), ((("a", 0.1),), (), ()), ((("b", -0.2),), (), ())
            ),
        ),
        changes=("depth=2",),
        notes=("a note",),
        measures=({"instrument": "activation"},),
    )


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    write_scan(tmp_path / "scan.json", made())
    back = read_scan(tmp_path / "scan.json")
    assert scan_to_json(back) == scan_to_json(made())
    assert back.tokens[2].surprisal is None and back.panels[0].neutral == 1.0
    np.testing.assert_allclose(back.panels[0].values, made().panels[0].values, rtol=1e-4)
    assert back.panel("depth") is back.panels[1] and back.panel("nothing") is None


def test_words_that_steps_moved_are_written_only_where_somebody_looked_and_old_scans_are_read() -> None:
    first, second = scan_to_json(made())["lens"]
    assert "up" not in first and "down" not in first
    assert second["up"] == [[["a", 0.1]], [], []] and second["down"] == [[["b", -0.2]], [], []]
    back = scan_from_json(scan_to_json(made()))
    assert back.lens == made().lens and back.lens[0].up == ()


def test_numbers_keep_five_figures_whatever_their_size() -> None:
    assert numbers([0.0, -1.2345678, 1.2345678e-9, 9.87654321e12, np.nan, np.inf]) == [
        *(0.0, -1.2346, 1.2346e-09, 9876500000000.0, None, None)
    ]


def _without(key: str) -> Any:
    return lambda value: value.pop(key)


def _without_in(path: tuple[Any, ...], key: str) -> Any:
    def change(value: Any) -> None:
        for part in path:
            value = value[part]
        value.pop(key)

    return change


def _set(path: tuple[Any, ...], new: Any) -> Any:
    def change(value: Any) -> None:
        for part in path[:-1]:
            value = value[part]
        value[path[-1]] = new

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_set(("format",), 2), "format 2, this version reads 1"),
        (_without("tokens"), "lacks tokens"),
        (_set(("tokens",), []), "0 tokens"),
        (_set(("tokens", 1, "text"), 4), "is no text"),
        (_set(("panels", 0, "values"), [[1.0], [2.0]]), "panel gain: 1 values a row for 3 tokens"),
        (_set(("panels", 0, "values", 0, 0), "many"), "could not convert"),
        (_set(("panels", 0, "low"), 2.0), "a scale from 2.0 to 1.5"),
        (_set(("panels", 0, "neutral"), float("nan")), "no finite number"),
        (_set(("attention", 0, "values"), [[[1.0]]]), r"shape \(1, 1, 1\) for 3 tokens"),
        (_set(("lens", 0, "rank"), [1]), "1 ranks for 3 tokens"),
        (_set(("lens", 1, "up"), [[]]), "1 up and 3 down for 3 tokens"),
        (_without_in(("lens", 1), "down"), "3 up and 0 down for 3 tokens"),
        (_set(("lens", 1, "up", 0), [["a", float("inf")]]), "inf is no finite number"),
        (_set(("lens", 1, "down", 0), [[3, 0.5]]), "'3' is no text"),
        (_set(("panels",), 3), "not iterable"),
    ],
)
def test_what_is_no_scan_is_refused_with_the_field(change: Any, said: str) -> None:
    value = copy.deepcopy(scan_to_json(made()))
    change(value)
    with pytest.raises(InputError, match=said):
        scan_from_json(value)


def test_files_that_are_missing_or_no_json_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_scan(tmp_path / "scan.json")
    (tmp_path / "scan.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match=r"scan\.json: cannot be read"):
        read_scan(tmp_path / "scan.json")
    (tmp_path / "scan.json").write_text(json.dumps([]))
    with pytest.raises(InputError, match="is no scan"):
        read_scan(tmp_path / "scan.json")


def test_scales_are_set_or_taken_from_another_scan() -> None:
    wide = scaled_to(made(), 0.0, 2.0)
    assert (wide.panels[0].low, wide.panels[0].high) == (0.0, 2.0)
    assert (wide.panels[1].low, wide.panels[1].high) == (0, 3)  # without a neutral value
    assert scaled_to(made(), None, 4.0).panels[0].low == 0.5
    again = scaled_like(made(), wide)
    assert again.panels[0].high == 2.0 and again.panels[0].values is not wide.panels[0].values
    assert [panel.name for panel in with_panels(made(), ["depth", "gain"]).panels] == ["depth", "gain"]
    with pytest.raises(InputError, match="spin: no such panel; there are gain, depth"):
        with_panels(made(), ["spin"])
    with pytest.raises(InputError, match="let --low be below --high"):
        scaled_to(made(), 3.0, 1.0)


def test_colours_go_from_neutral_outwards_and_every_level_has_one() -> None:
    gain, depth = made().panels
    assert [level(gain, value) for value in (1.0, 1.5, 9.0, 0.5, float("nan"))] == ["p0", "p8", "p8", "n8", None]
    assert [level(depth, value) for value in (0.0, 1.5, 3.0)] == ["s0", "s8", "s16"]
    for dark in (False, True):
        known = colours(dark)
        assert len(known) == 2 * (LEVELS + 1) + 2 * LEVELS + 1
        lightness = [sum(int(known[f"s{i}"][k : k + 2], 16) for k in (1, 3, 5)) for i in range(2 * LEVELS + 1)]
        assert lightness == sorted(lightness, reverse=not dark)  # readable without hue
