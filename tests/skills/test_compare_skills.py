"""Skills beside the loss of a comparison: paired over seeds, judged apart, and better where they are higher."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from homunculi.experiments.comparison import NOTHING, Comparison, Side, pairs, written
from homunculi.experiments.skills import beside
from homunculi.experiments.skills.cells import Cell, Store
from homunculi.experiments.skills.plan import Settings
from homunculi.experiments.skills.pool import train_all
from homunculi.experiments.skills.sizing import Frame
from tests.cli.conftest import cli, recipe  # noqa: F401
from tests.cli.test_compare_verb import QUICK, Cli, inside  # noqa: F401
from tests.experiments.inside import Inside

TINY = Settings(seeds=1, steps=2, rows=2, eval_rows=8, lrs=(1e-3,), wds=(0.0,), frame=Frame(16, 1, "none"), quick=True)


def side(name: str) -> Side:
    certificate = {"causal": True, "checks": []}
    return Side(name, name, [], {}, {}, {"parameters": 10}, {"parameters": 1.0}, 0.01, certificate)


def run(name: str, seed: int) -> dict[str, Any]:
    curve = [3.0, 2.0 + 0.1 * seed]
    named = {"side": name, "seed": seed, "run": f"runs/{name}-s{seed}", "tokens": [1, 2], "stream": "s"}
    return named | {"val_loss": curve, "val_bpb": curve}


def with_skills(folder: Path, **scores: Sequence[float]) -> Comparison:
    """Two sides of equal losses; b has these scores above those of a."""
    runs = [run(name, seed) for name in ("a", "b") for seed in range(4)]
    skills = [
        {"side": name, "task": task, "seed": seed, "score": 0.4 + 0.05 * seed + (gain if name == "b" else 0.0)}
        for task, gains in scores.items()
        for seed, gain in enumerate(gains)
        for name in ("a", "b")
    ]
    return Comparison(folder, ["tokens"], list(range(4)), [], [side("a"), side("b")], runs=runs, skills=skills)


def test_a_higher_accuracy_is_better_and_chance_is_nothing(tmp_path: Path) -> None:
    up, noise = [0.2, 0.21, 0.19, 0.2], [0.01, -0.01, 0.02, -0.02]
    comparison = with_skills(tmp_path, recall=up, copy=noise, sort=[-value for value in up])
    found = {pair["metric"]: pair for pair in pairs(comparison)}
    assert list(found) == ["val/bpb", "skill/recall", "skill/copy", "skill/sort"]
    assert found["val/bpb"]["verdict"] == NOTHING
    assert found["skill/recall"]["verdict"] == "better"
    assert found["skill/copy"]["verdict"] == NOTHING
    assert found["skill/sort"]["verdict"] == "worse"
    assert found["skill/recall"]["differences"] == pytest.approx(up)
    assert found["skill/recall"]["adjusted_p"] > found["skill/recall"]["p"]
    said = "\n".join(written(comparison))
    assert "b is better than a at recall: +0.200 accuracy" in said
    assert "b is worse than a at sort" in said


def test_only_seeds_that_both_sides_have_are_paired(tmp_path: Path) -> None:
    comparison = with_skills(tmp_path, recall=[0.2, 0.2])
    comparison.skills = [one for one in comparison.skills if (one["side"], one["seed"]) != ("a", 1)]
    pair = pairs(comparison)[-1]
    assert (pair["seeds"], pair["n"], pair["verdict"]) == ([0], 1, None)


def test_a_comparison_scores_small_models_of_its_sides(
    cli: Cli,  # noqa: F811
    recipe: str,  # noqa: F811
    inside: Inside,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def here(cells: Sequence[Cell], store: Store, devices: Sequence[str], at_once: int) -> Any:
        return train_all(cells, store, devices, 0)

    monkeypatch.setattr(beside, "train_all", here)
    monkeypatch.setattr(beside, "QUICK", TINY)
    words = ["compare", f"a={recipe}", f"b={recipe};model.activation=gelu", "steps=4", "--seeds", "2", *QUICK]
    done = cli(*words, "--skills", "parity,copy", "--folder", tmp_path / "c", "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert [(pair["metric"], pair["n"]) for pair in result["pairs"]] == [
        ("val/bpb", 2),
        ("skill/parity", 2),
        ("skill/copy", 2),
    ]
    page = (tmp_path / "c" / "report.html").read_text()
    assert "skill/parity" in page
    assert "skill/copy" in page
    refused = cli(*words, "--skills", "parrity", "--folder", tmp_path / "d")
    assert refused.code == 2
    assert "did you mean parity" in refused.err
