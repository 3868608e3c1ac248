"""Ladders: rungs of equal size, laws and trends that were planted are found, and what stands goes on."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from homunculi.cli.recipes import configured
from homunculi.errors import InputError
from homunculi.experiments import certifying
from homunculi.experiments.compare import Wanted
from homunculi.experiments.comparison import Comparison, Side
from homunculi.experiments.costs import cost_of
from homunculi.experiments.ladder import analyse, written
from homunculi.experiments.scale import Ladder, climb, default_folder, describe, make_rungs
from homunculi.report.scaling import render_scaling
from tests.experiments.inside import TINY, Inside, Listener

SIZES = (0.25, 1.0, 2.25, 4.0)  # of a width of 16: 8, 16, 24 and 32


def planted(
    baseline: Callable[[float], float], gap: Callable[[float], float], n_seeds: int = 4, noise: float = 0.002
) -> dict[str, Any]:
    """What a ladder says whose losses follow these functions of size, up to noise."""
    chance = random.Random(0)
    found, rungs = [], []
    for place in range(4):
        size = 10_000 * 2**place
        sides = [_side("plain", size), _side("idea", size)]
        comparison = Comparison(Path(), ["parameters"], list(range(n_seeds)), [], sides)
        for seed in comparison.seeds:
            common = baseline(size) + chance.gauss(0, 10 * noise)
            ends = {"plain": common, "idea": common + gap(size) + chance.gauss(0, noise)}
            for name, end in ends.items():
                run = {"side": name, "seed": seed, "run": "", "tokens": [1, 2], "val_loss": [2 * end, end]}
                comparison.runs.append(run | {"val_bpb": [2 * end, end]})
        found.append(comparison)
        rungs.append((2.0**place, f"size-{2**place}"))
    return analyse(found, rungs)


def _side(name: str, size: int) -> Side:
    causal = {"causal": True, "checks": []}
    return Side(name, name, [], {}, {}, {"non_embedding_parameters": size}, {}, lr=0.1, certificate=causal)


def falling(size: float) -> float:
    return 5 * size**-0.1


def doublings(size: float) -> float:
    return math.log2(size / 10_000)


def test_a_law_that_was_planted_is_found_with_its_interval() -> None:
    result = planted(falling, lambda size: 4 * size**-0.2 - falling(size))
    for one, exponent in zip(result["laws"], (0.1, 0.2), strict=True):
        assert one["law"]["low"] < exponent < one["law"]["high"]
        assert one["law"]["high"] - one["law"]["low"] < 0.1 and one["law"]["n"] == 16
        assert all(point["low"] < point["loss"] < point["high"] for point in one["band"])
        widths = [point["high"] / point["low"] for point in one["band"]]
        assert widths[0] > widths[16] < widths[-1]  # least sure at the ends


@pytest.mark.parametrize(
    ("gap", "said"),
    [
        (lambda size: -0.1 + 0.02 * doublings(size), "narrows"),
        (lambda size: 0.1 - 0.02 * doublings(size), "narrows"),
        (lambda size: -0.05 - 0.02 * doublings(size), "widens"),
        (lambda size: 0.05 - 0.04 * doublings(size), "changes sign"),
        (lambda size: -0.1, "no trend shown"),
        (lambda size: 0.0, "no trend shown"),
    ],
)
def test_a_trend_of_the_gap_is_found_where_there_is_one(gap: Callable[[float], float], said: str) -> None:
    result = planted(falling, gap)
    trend = result["trend"]
    assert trend["verdict"] == said and trend["n"] == 4
    assert trend["low"] <= gap(20_000) - gap(10_000) <= trend["high"]
    first = written(result)[0]
    assert said in first and "bits/byte a doubling" in first


def test_noise_that_both_sides_share_does_not_hide_the_gap() -> None:
    result = planted(falling, lambda size: -0.02, noise=0.001)
    assert [size["gap"]["verdict"] for size in result["sizes"]] == ["better"] * 4
    assert all(size["gap"]["adjusted_p"] >= size["gap"]["p"] for size in result["sizes"])
    assert sum("idea is better than plain" in line for line in written(result)) == 4


def test_no_law_and_no_trend_from_too_little() -> None:
    result = planted(falling, lambda size: 0.0)
    comparisons = [Comparison(Path(), ["parameters"], [0], [], [_side("plain", 9), _side("idea", 9)])]
    little = analyse(comparisons, [(1.0, "size-1")])
    assert little["trend"] is None and [one["law"] for one in little["laws"]] == [None, None]
    assert "no trend can be fitted" in written(little)[0] and "no law" in written(little)[1]
    assert "no trend can be fitted" in render_scaling(little)
    assert render_scaling(result | {"recipe": "<script>alert(1)</script>"}).count("<script>alert") == 0


def test_the_page_draws_both_axes_by_ratio() -> None:
    page = render_scaling(planted(falling, lambda size: -0.1 + 0.02 * doublings(size)))
    drawings = page.split("<svg")[1:]
    laws = next(one for one in drawings if "laws-t" in one)
    assert 'data-x="' in laws and laws.split('data-x="')[1].split('"')[0].split("|")[2] == "log"
    assert laws.split('data-y="')[1].split('"')[0].split("|")[2] == "log"
    assert "narrows" in page and "idea, law" in laws and 'href="./size-1/report.html"' in page


# Rungs.


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("recipes") / "tiny.py"
    path.write_text(TINY)
    return str(path)


def wanted(recipe: str, name: str, *words: str) -> Wanted:
    return Wanted(name, f"{recipe}:tiny", words, configured(f"{recipe}:tiny", words)[0])


def test_both_sides_have_the_same_size_at_every_rung(recipe: str) -> None:
    rungs = make_rungs(wanted(recipe, "idea"), wanted(recipe, "plain", "model.activation=gelu"), SIZES)
    own = cost_of(wanted(recipe, "idea").config).parameters
    for rung, factor in zip(rungs, SIZES, strict=True):
        plain, idea = rung.sides
        sizes = [cost_of(side.config).parameters for side in (plain, idea)]
        assert (plain.name, idea.name) == ("plain", "idea")
        assert sizes[0] == pytest.approx(sizes[1], rel=0.01) and rung.parameters == sizes[1]
        assert sizes[1] == pytest.approx(factor * own, rel=0.25)
        assert plain.config.steps == idea.config.steps == 24
        assert configured(idea.recipe, idea.assignments)[0] == idea.config
    assert [rung.sides[1].config.model.d_model for rung in rungs] == [8, 16, 24, 32]


def test_a_width_that_is_given_grows_with_the_model_and_tokens_with_its_size(recipe: str) -> None:
    side = wanted(recipe, "idea", "model.d_mlp=32")
    rungs = make_rungs(side, wanted(recipe, "plain", "model.d_mlp=32"), SIZES, tokens_per_parameter=2.0)
    assert [rung.sides[1].config.model.d_mlp for rung in rungs] == [16, 32, 48, 64]
    for rung in rungs:
        tokens = [one.config.steps * one.config.batch_tokens for one in rung.sides]
        assert tokens[0] == tokens[1] and 0 <= tokens[0] - 2 * rung.parameters < 256
    assert all(a.parameters < b.parameters for a, b in pairwise(rungs))


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ((0.5, 1, 2), "--sizes: 3 different sizes show no law; give at least 4"),
        ((1, 1, 1, 2), "--sizes: 2 different sizes"),
        ((0.5, 1, 2, -1), "--sizes: -1 is no factor"),
        ((1, 1.01, 2, 4), "--sizes: 1 and 1.01 come to"),
        ((0.001, 1, 2, 4), "no d_model comes near"),
        ((1, 2, 4, 10_000), "no d_model comes near"),
    ],
)
def test_sizes_that_make_no_ladder_are_refused(recipe: str, sizes: tuple[float, ...], said: str) -> None:
    with pytest.raises(InputError, match=said) as refused:
        make_rungs(wanted(recipe, "idea"), wanted(recipe, "plain"), sizes)
    assert "\n" not in str(refused.value)


def test_sides_that_cannot_be_compared_are_refused_before_anything(recipe: str) -> None:
    with pytest.raises(InputError, match="batch_tokens: 256 on side 1 and 512 on side 2"):
        make_rungs(wanted(recipe, "idea"), wanted(recipe, "plain", "batch_tokens=512"), SIZES)


def test_a_ladder_broken_off_goes_on_and_leaves_its_page(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("homunculi.experiments.side_by_side._LOOK_SECONDS", 0.01)
    monkeypatch.setattr(certifying, "make_certificate", lambda certified: {"causal": True, "checks": []})
    sides = [wanted(recipe, name, "steps=3", *more) for name, more in (("idea", ()), ("plain", ("lr=1e-7",)))]
    options = {"seeds": 2, "factors": (), "at_once": 1, "baselines": False}
    ladder = Ladder(tmp_path / "ladder", make_rungs(sides[0], sides[1], SIZES), options)
    with pytest.raises(KeyboardInterrupt):
        climb(ladder, Listener, Inside(6))
    half = json.loads((ladder.folder / "scale.json").read_text())
    assert len(half["sizes"]) == 1 and half["trend"] is None
    assert "1 of 4 sizes" in (ladder.folder / "report.html").read_text()
    launch = Inside()
    result, found = climb(ladder, Listener, launch)
    assert len(launch.folders) == 10 and len(found) == 4
    assert json.loads((ladder.folder / "scale.json").read_text()) == json.loads(json.dumps(result))
    assert [size["gap"]["difference"] < 0 for size in result["sizes"]] == [True] * 4  # the other side learns nothing
    assert all((ladder.folder / size["folder"] / "report.html").exists() for size in result["sizes"])
    assert "4 of 4 sizes" in (ladder.folder / "report.html").read_text()
    launch = Inside(0)
    assert climb(ladder, Listener, launch)[0]["sizes"] == result["sizes"]


def test_the_folder_and_the_plan_follow_from_the_sides(recipe: str, tmp_path: Path) -> None:
    sides = wanted(recipe, "idea"), wanted(recipe, "plain")
    folder = default_folder(*sides, 0.0, (1.0,))
    assert folder.name.startswith("scale-idea-plain-") and default_folder(*sides, 20.0, (1.0,)) != folder
    lines = describe(Ladder(tmp_path, make_rungs(*sides, SIZES), {}))
    assert lines[0] == "scale       idea against plain, 4 sizes" and lines[1].startswith("size        ×0.25: ")
