"""What instruments measured stands on the page as their views say, with numbers, and inert."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from homunculi.report.heatmap import heatmap
from homunculi.report.page import render
from homunculi.runs.directory import RunDirectory
from homunculi.runs.measures import Measurement, Stored, write_measurement
from tests.report.test_page import HOSTILE, Reader, check_self_contained

Make = Callable[..., RunDirectory]


def put(run: RunDirectory, view: str, found: Measurement, step: int = 40, name: str = "", title: str = "") -> None:
    name = name or f"a_{view}"
    write_measurement(run.path, Stored(name, view, title or f"Title of {name}", "What is it?", step, step * 9, found))


def section(text: str) -> Reader:
    return Reader(text[text.index('<section id="inside">') : text.index("</section>", text.index('id="inside"')) + 10])


def shown(run: RunDirectory) -> Reader:
    text = render([run])
    check_self_contained(text)
    return section(text)


def test_without_measurements_there_is_no_such_part(make_run: Make) -> None:
    assert 'id="inside"' not in render([make_run()])


def test_the_latest_measurement_is_shown_and_numbers_alone_over_all_steps(make_run: Make) -> None:
    run = make_run()
    for step in (0, 1, 2, 40):
        found = Measurement(
            {"table": np.array([[step, 2.5]]), "loss_here": np.array(float(step) if step else np.nan)},
            {"table": ("part", "measure")},
            {"part": ("attn",), "measure": ("norm", "ratio")},
            {"loss_here": "nats"},
            ("of a few tokens",),
        )
        put(run, "table", found, step)
    reader = shown(run)
    assert "At step 40, the last of 4 measurements (a_table). of a few tokens." in reader.text
    assert "Title of a_table" in reader.text and "What is it?" in reader.text
    cells = [text for text in reader.texts if text.strip()]
    assert cells.index("attn") < cells.index("40") < cells.index("2.5")
    assert "loss here: 40" in reader.text
    (points,) = [p for p in reader.attributes("points") if len(p.split()) == 3]
    assert points, "the step without a number is left out of the line"
    assert "nats against steps. loss here: from 1 at 1 to 40 at 40" in reader.text


def test_a_small_heat_map_prints_its_numbers(make_run: Make) -> None:
    run = make_run()
    values = np.array([[0.125, np.nan], [0.5, 1.0]])
    labels = {"pass": ("one", "two"), "token": (" the", "cat")}
    put(run, "heatmap", Measurement({"share": values}, {"share": ("pass", "token")}, labels))
    reader = shown(run)
    for word in ("0.125", "–", "0.5", "one", "two", " the", "cat", "pass ↓  token →"):
        assert word in reader.texts, word
    cells = [attrs for tag, attrs in reader.elements if tag == "rect"]
    opacity = [float(cell["fill-opacity"] or 0) for cell in cells[:4] if "fill-opacity" in cell]
    assert opacity == sorted(opacity) and len(opacity) == 3
    assert sum(cell.get("class") == "none" for cell in cells) == 1
    assert "0.125 to 1, the highest at two, cat" in reader.text


def test_a_large_heat_map_is_averaged_and_has_a_legend_of_numbers() -> None:
    values = np.zeros((100, 200))
    values[:, 100:] = 4.0
    values[0, 0] = np.nan
    reader = Reader(heatmap(values, ("from", "to"), [str(i) for i in range(100)], [str(i) for i in range(200)], "t"))
    assert "A cell is the mean of 3 by 3 values." in reader.text
    assert [text.strip() for text in reader.texts if re.fullmatch(r" [\d.]+", text)] == ["0", "1", "2", "3", "4"]
    assert sum(tag == "rect" for tag, _ in reader.elements) == 34 * 67 + 5


def test_rows_of_different_quantities_are_shaded_each_by_itself(make_run: Make) -> None:
    run = make_run()
    values = np.array([[1.0, 2.0], [1000.0, 2000.0]])
    put(run, "heatmap", Measurement({"v": values}, {"v": ("measure", "step")}, {"measure": ("small", "large")}))
    reader = shown(run)
    opacity = [attrs["fill-opacity"] for tag, attrs in reader.elements if tag == "rect" and "fill-opacity" in attrs]
    assert opacity[:2] == opacity[2:4] and opacity[0] != opacity[1]
    assert "Each row is shaded from its lowest to its highest." in reader.text


def test_panels_beyond_the_first_open_on_request(make_run: Make) -> None:
    run = make_run()
    values = np.random.default_rng(0).random((20, 3, 3))
    put(run, "heatmap", Measurement({"pattern": values}, {"pattern": ("head", "to", "from")}))
    reader = shown(run)
    assert "head 0" in reader.texts and "head 15" in reader.texts and "head 16" not in reader.texts
    assert sum(tag == "details" for tag, _ in reader.elements) == 12 + 1  # the instrument itself is folded too
    assert "4 more are in the run's measures." in reader.text


def test_lines_have_names_and_values(make_run: Make) -> None:
    run = make_run()
    values = np.array([[3.0, 2.0, np.nan], [3.0, 2.5, 2.25]])
    labels = {"lens": ("plain", "tuned"), "share": ("0.1", "0.5", "0.9")}
    put(run, "line", Measurement({"loss": values}, {"loss": ("lens", "share")}, labels, {"loss": "nats"}))
    reader = shown(run)
    assert "nats against share. plain: from 3 at 0.1 to 2 at 0.5" in reader.text
    assert "tuned: from 3 at 0.1 to 2.25 at 0.9" in reader.text
    assert {"plain", "tuned"} <= set(reader.texts)


def test_text_shows_its_labels(make_run: Make) -> None:
    run = make_run()
    put(run, "text", Measurement({"share": np.array([0.5, 0.25])}, {"share": ("word",)}, {"word": ("the", "cat")}))
    assert [text for text in shown(run).texts if text in ("the", "0.5", "cat", "0.25")] == ["the", "0.5", "cat", "0.25"]


@pytest.mark.parametrize("view", ["line", "heatmap", "table", "text"])
@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 2, 3), (1, 2, 2, 3), (0,), (0, 3)])
def test_every_shape_is_shown_in_every_view(view: str, shape: tuple[int, ...], make_run: Make) -> None:
    run = make_run()
    axes = tuple(f"axis{i}" for i in range(len(shape)))
    put(run, view, Measurement({"v": np.arange(float(np.prod(shape))).reshape(shape)}, {"v": axes}))
    assert "Title of" in shown(run).text


@pytest.mark.parametrize("view", ["line", "heatmap", "table", "text"])
@pytest.mark.parametrize("hostile", HOSTILE)
def test_words_of_a_measurement_stay_words(view: str, hostile: str, make_run: Make) -> None:
    run = make_run()
    found = Measurement(
        {hostile: np.ones((2, 2)), "one": np.array(1.0)},
        {hostile: (hostile, "x")},
        {hostile: (hostile, "b"), "x": (hostile, "d")},
        {hostile: hostile, "one": hostile},
        (hostile,),
    )
    put(run, view, found, title=hostile)
    text = render([run])
    check_self_contained(text)
    assert "<img" not in text and "\x1b" not in text


def test_damage_is_told_in_its_place(make_run: Make) -> None:
    run = make_run()
    put(run, "table", Measurement({"v": np.ones(2)}, {"v": ("x",)}), name="whole")
    put(run, "table", Measurement({"v": np.ones(2)}, {"v": ("x",)}), name="broken")
    (run.path / "measures/broken/step-00000040.safetensors").write_bytes(b"\x00")
    reader = shown(run)
    assert "cannot be read" in reader.text and "Title of whole" in reader.text
    assert str(run.path) not in reader.text


def test_two_runs_show_theirs_side_by_side(make_run: Make, tmp_path: Path) -> None:
    runs: list[Any] = [make_run("one-0a1b2c"), make_run("two-0a1b2c")]
    for run in runs:
        put(run, "line", Measurement({"v": np.ones(3), "n": np.array(1.0)}, {"v": ("x",)}))
    check_self_contained(render(runs))
