"""Rules about scores of skills say what planted scores deserve, and stay open without any."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from homunculi.experiments.claims.evidence import Evidence
from homunculi.experiments.claims.skilled import battery, generalises_further, reaches_beyond_ngrams

RULE = reaches_beyond_ngrams("eight", "one", "homunculi skills …")
TASK = {"name": "recall", "values": [2, 9], "ngram": [0.3, 0.1]}


def point(name: str, scores: list[float], value: int = 9) -> dict[str, Any]:
    mean, spread = sum(scores) / len(scores), max(scores) - min(scores)
    found = {"architecture": name, "task": "recall", "value": value, "score": mean}
    return found | {
        "low": mean - spread,
        "high": mean + spread,
        "accuracies": {str(i): s for i, s in enumerate(scores)},
    }


def of_hops(eight: list[float], one: list[float], easy: list[float]) -> Evidence:
    points = [point("eight", eight), point("one", one), point("eight", easy, 2), point("one", easy, 2)]
    return Evidence({}, {"tasks": [TASK], "points": points})


@pytest.mark.parametrize(
    ("eight", "one", "verdict"),
    [
        ([0.80, 0.82, 0.81, 0.80, 0.82], [0.11, 0.10, 0.12, 0.11, 0.10], "supported"),
        ([0.11, 0.10, 0.12, 0.11, 0.10], [0.80, 0.82, 0.81, 0.80, 0.82], "refuted"),
        ([0.80, 0.82, 0.81], [0.11, 0.10, 0.12], "inconclusive"),  # three seeds are a first look
        ([0.90, 0.10, 0.50], [0.11, 0.10, 0.12], "inconclusive"),
        ([0.09, 0.10, 0.095], [0.01, 0.02, 0.015], "inconclusive"),  # above one step, not above n-grams
        ([0.8], [0.1], "inconclusive"),
    ],
)
def test_hops_are_judged_at_the_hardest_value(eight: list[float], one: list[float], verdict: str) -> None:
    assert RULE(of_hops(eight, one, easy=[1.0, 1.0, 1.0])).verdict == verdict


def test_the_gain_over_one_step_is_shown() -> None:
    found = RULE(of_hops([0.80, 0.82, 0.81], [0.10, 0.12, 0.11], [1.0, 1.0, 1.0]))
    assert found.difference == pytest.approx(0.7) and found.n == 3 and found.figures["n-grams on recall"] == 0.1


def row(name: str, score: float, width: float = 0.02) -> dict[str, Any]:
    return {"architecture": name, "score": score, "low": score - width, "high": score + width, "n": 5}


@pytest.mark.parametrize(
    ("own", "plain", "verdict"),
    [(0.9, 0.5, "supported"), (0.5, 0.9, "refuted"), (0.50, 0.51, "inconclusive")],
)
def test_lengths_beyond_training_are_judged_by_intervals_that_part(own: float, plain: float, verdict: str) -> None:
    rule = generalises_further(("own", "other"), ("gpt",), "homunculi skills …")
    rows = [row("own", own), row("other", 0.1), row("gpt", plain), row("own", own), row("gpt", plain)]
    found = rule(Evidence({}, {"beyond": rows}))
    assert found.verdict == verdict and found.difference == pytest.approx(own - plain)


def test_without_scores_the_command_is_named(tmp_path: Path) -> None:
    for rule in (RULE, generalises_further(("own",), ("gpt",), "homunculi skills …")):
        found = rule(Evidence({}, battery("none")(tmp_path / "claims")))
        assert found.verdict == "not run" and "homunculi skills" in found.reason


def test_scores_lie_beside_the_folder_of_results(tmp_path: Path) -> None:
    kept = {"points": [1], "beyond": [2], "tasks": [3], "folder": "elsewhere"}
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "hops.json").write_text(json.dumps(kept))
    assert battery("hops")(tmp_path / "claims") == {"points": [1], "beyond": [2], "tasks": [3]}
    (tmp_path / "results" / "hops.json").write_text("{}")
    assert battery("hops")(tmp_path / "claims") == {} == battery("hops")(None)
