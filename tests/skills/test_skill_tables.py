"""Tables from the record of a battery: scores with intervals, and paired differences judged together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import skills_table
from homunculi.errors import InputError

SEEDS = {"a": (0.9, 0.92, 0.91, 0.93, 0.9), "b": (0.5, 0.55, 0.5, 0.52, 0.49)}


def score(side: str, task: str, values: tuple[float, ...]) -> dict[str, Any]:
    mean = sum(values) / len(values)
    interval = {"score": mean, "low": mean - 0.1, "high": mean + 0.1, "n": len(values)}
    seeds = {str(i): value for i, value in enumerate(values)}
    return {"architecture": side, "task": task, "chance": 0.25, "seeds": seeds} | interval


def record() -> dict[str, Any]:
    apart = [score(side, "recall", values) for side, values in SEEDS.items()]
    return {"scores": [*apart, score("a", "sort", (0.3, 0.5, 0.4)), score("b", "sort", (0.4, 0.4, 0.3))]}


def test_differences_are_paired_by_seed_and_judged_together() -> None:
    recall, sort = skills_table.pairs(record(), ["a"], "b")
    assert recall.interval.difference == pytest.approx(0.4)
    assert (recall.said, sort.said) == ("better", "no difference shown")
    assert recall.p == pytest.approx(2 * recall.interval.p)  # the smaller of two
    assert sort.interval.n == 3
    assert next(iter(skills_table.pairs(record(), ["b"], "a"))).said == "worse"


def test_tables_say_scores_intervals_few_seeds_and_what_differs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "skills.json"
    path.write_text(json.dumps(record()))
    skills_table.main([str(path)])
    table = capsys.readouterr().out
    assert "| recall | **0.91** (0.81 … 1.01) | 0.51 (0.41 … 0.61) | 0.25 |" in table
    assert "3 seeds" in table
    skills_table.main([str(path), "--whole", "a"])
    assert "| recall | **-0.40** (" in capsys.readouterr().out
    skills_table.main([str(path), "--pair", "a", "b"])
    assert capsys.readouterr().out.splitlines()[2].startswith("| recall | +0.40 | ")


def test_a_side_without_scores_is_refused() -> None:
    with pytest.raises(InputError, match="there are a, b"):
        skills_table.pairs(record(), ["c"], "a")
