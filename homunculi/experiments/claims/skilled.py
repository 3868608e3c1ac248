"""Rules about scores of skills: batteries that lie beside the folder of results, as ``results/NAME.json``.

A battery is what `homunculi skills … --json` prints. It is read whenever the table is shown; without it a claim stays
open. Pure functions of the evidence otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from homunculi.evals.statistics import Interval, paired_interval
from homunculi.experiments.claims.evidence import (
    INCONCLUSIVE,
    NOT_RUN,
    REFUTED,
    SUPPORTED,
    Evidence,
    Finding,
    Json,
    Rule,
    first_look,
)
from homunculi.experiments.claims.verdicts import said

LEVEL = 0.95


def record(results: Path | None, name: str) -> Any:
    """What lies as ``results/NAME.json`` beside the folder of stored results; empty without such a folder.

    Raises:
        OSError, ValueError: it is missing or no JSON.
    """
    return {} if results is None else json.loads((results.resolve().parent / "results" / f"{name}.json").read_bytes())


def battery(name: str) -> Callable[[Path | None], Json]:
    """What counts a battery's points: it reads ``results/NAME.json`` beside the folder of stored results."""

    def count(results: Path | None) -> Json:
        try:
            found = record(results, name)
            return {"points": found["points"], "beyond": found["beyond"], "tasks": found["tasks"]}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    return count


def reaches_beyond_ngrams(several: str, one: str, command: str) -> Rule:
    """On every task, at the hardest value of its dial, the side with several steps answers more than any reader of two
    tokens can, and more than itself with one step.

    What is shown is the smallest of the gains over one step.
    """

    def rule(evidence: Evidence) -> Finding:
        hardest: dict[str, tuple[Json, Json, float]] = {}
        for task in evidence.measured.get("tasks", ()):
            a, b = (
                _point(evidence.measured["points"], who, task["name"], task["values"][-1]) for who in (several, one)
            )
            if a is not None and b is not None:
                hardest[task["name"]] = a, b, task["ngram"][-1]
        if not hardest:
            return Finding(NOT_RUN, f"no scores lie beside the results; {command}")
        figures: Json = {}
        gains: list[tuple[Interval, bool]] = []
        for name, (a, b, ngram) in hardest.items():
            gain = _paired(a, b)
            if gain is None:
                return Finding(INCONCLUSIVE, f"{several} and {one} share fewer than 2 seeds on {name}")
            gains.append((gain, a["low"] > ngram))
            figures |= {f"{several} on {name}": a["score"], f"{one} on {name}": b["score"], f"n-grams on {name}": ngram}
        least = min((gain for gain, _ in gains), key=lambda gain: gain.difference)
        if all(beyond and gain.low > 0 for gain, beyond in gains):
            verdict, reason = SUPPORTED, f"{several} answers more than n-grams and than {one} on every task"
        elif any(gain.high <= 0 for gain, _ in gains):
            verdict, reason = REFUTED, f"{several} answers no more than {one} on some task"
        else:
            verdict, reason = (
                INCONCLUSIVE,
                f"{several} is not shown to answer more than n-grams and {one} on every task",
            )
        return first_look(said(verdict, reason, least, least.n, figures, "accuracy"))

    return rule


def generalises_further(sides: Sequence[str], over: Sequence[str], command: str) -> Rule:
    """Averaged over tasks and lengths beyond those of training, a side answers more than every one of the others: its
    interval lies above theirs. All of the sides below one of the others refute it.
    """

    def rule(evidence: Evidence) -> Finding:
        rows = evidence.measured.get("beyond", ())
        means = {name: _mean_beyond(rows, name) for name in (*sides, *over)}
        known = {name: mean for name, mean in means.items() if mean is not None}
        if not known.keys() & set(sides) or not set(over) <= known.keys():
            return Finding(NOT_RUN, f"no scores lie beside the results; {command}")
        figures: Json = {f"accuracy of {name} beyond training": list(mean) for name, mean in known.items()}
        best = max((name for name in sides if name in known), key=lambda name: known[name][0])
        rival = max(over, key=lambda name: known[name][0])
        difference = known[best][0] - known[rival][0]
        n = min(int(row["n"]) for row in rows)
        low, high = known[best][1] - known[rival][2], known[best][2] - known[rival][1]
        if low > 0:
            verdict, reason = SUPPORTED, f"{best} answers more than {rival} at lengths beyond those of training"
        elif high < 0:
            verdict, reason = REFUTED, f"{rival} answers more than {best} at lengths beyond those of training"
        else:
            verdict, reason = INCONCLUSIVE, f"no difference shown between {best} and {rival} beyond training"
        return first_look(Finding(verdict, reason, difference, low, high, n, figures, "accuracy"))

    return rule


def _point(points: Iterable[Any], name: str, task: str, value: Any) -> Json | None:
    return next((p for p in points if (p["architecture"], p["task"], p["value"]) == (name, task, value)), None)


def _paired(a: Json, b: Json) -> Interval | None:
    """Of a − b, over seeds that both have."""
    seeds = sorted(a["accuracies"].keys() & b["accuracies"].keys())
    if len(seeds) < 2:
        return None
    return paired_interval([b["accuracies"][s] for s in seeds], [a["accuracies"][s] for s in seeds], LEVEL)


def _mean_beyond(rows: Iterable[Any], name: str) -> tuple[float, float, float] | None:
    """Mean score over tasks and values, and means of the ends of their intervals."""
    own = [row for row in rows if row["architecture"] == name]
    if not own:
        return None
    return fmean(row["score"] for row in own), fmean(row["low"] for row in own), fmean(row["high"] for row in own)
