"""The rule about states that are read out directly: results of `benchmarks.readings`, beside the stored results.

The result is read whenever the table is shown; without it the claim stays open. Pure functions of the evidence
otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean

from homunculi.evals.statistics import Interval, holm, paired_interval
from homunculi.experiments.claims.evidence import (
    ALPHA,
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
_PARTS = ("control", "without_context", "sides")


def readings(name: str) -> Callable[[Path | None], Json]:
    """What counts the losses of states: it reads ``results/NAME.json`` beside the folder of stored results."""

    def count(results: Path | None) -> Json:
        path = None if results is None else results.resolve().parent / "results" / f"{name}.json"
        try:
            found = json.loads(path.read_bytes()) if path else {}
            return {part: found[part] for part in _PARTS}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    return count


@dataclass(frozen=True, slots=True)
class _Shown:
    """What the states of a side have to show, bits per byte gained over seeds.

    Attributes:
        above: state between start and answer → its gain over the best reading without context.
        falls: step → what it takes off the loss.
    """

    above: Mapping[int, Interval]
    falls: Mapping[int, Interval]

    @property
    def intervals(self) -> list[Interval]:
        return [*self.above.values(), *self.falls.values()]

    @property
    def holds(self) -> bool:
        return all(one.low > 0 for one in self.intervals)


def reads_as_words(command: str) -> Rule:
    """Of every readable side, each state after a step and before the last, read out directly, is better than the best
    reading without context, and each step, the first and the last included, takes off loss.

    Supported where the intervals of all these gains lie above 0. Refuted where one of them, their p adjusted together,
    lies below. The state at the start is the token itself and need not forecast. The plain transformer's lens is put to
    the same questions; it decides nothing, and is named beside.
    """

    def rule(evidence: Evidence) -> Finding:
        measured = evidence.measured
        if not measured:
            return Finding(NOT_RUN, f"no readings lie beside the results; {command}")
        control, floor = measured["control"], measured["without_context"]["bpb"]
        runs = {side["name"]: [run for run in side["runs"] if "bpb" in run] for side in measured["sides"]}
        n = min(len(own) for own in runs.values())
        if n < 2 or len(runs) < 2:
            return Finding(INCONCLUSIVE, "some side has fewer than 2 runs that ended, or there is no readable side")
        shown = {name: _shown([run["bpb"] for run in own], floor) for name, own in runs.items()}
        lens, sides = shown[control], {name: one for name, one in shown.items() if name != control}
        figures: Json = {"bits/byte without context": floor}
        for name, own in runs.items():
            figures[f"bits/byte after each step of {name}"] = _row([run["bpb"] for run in own], 3)
            figures[f"top word is the final one, {name}"] = _row([run["kept"] for run in own], 2)
        above = [gain for one in sides.values() for gain in one.above.values()]
        if not above:
            return Finding(INCONCLUSIVE, "no readable side has a state between its first step and its last", n=n)
        least = min(above, key=lambda gain: gain.difference)
        verdict, reason = _judged(sides)
        reason += f"; so does {control}, by a lens" if lens.holds else f"; {control}, by a lens, does not throughout"
        diverged = [side["name"] for side in measured["sides"] if len(runs[side["name"]]) < len(side["runs"])]
        if verdict == SUPPORTED and diverged:
            verdict, reason = INCONCLUSIVE, f"{reason}; but runs of {', '.join(diverged)} diverged"
        return first_look(said(verdict, reason, least, n, figures))

    return rule


def _judged(sides: Mapping[str, _Shown]) -> tuple[str, str]:
    every = [(name, one) for name, shown in sides.items() for one in shown.intervals]
    adjusted = holm([one.p for _, one in every])
    lost = [one.difference < 0 and p < ALPHA for (_, one), p in zip(every, adjusted, strict=True)]
    worse = dict.fromkeys(name for (name, _), is_lost in zip(every, lost, strict=True) if is_lost)
    reads = [name for name, shown in sides.items() if shown.holds]
    if worse:
        told = [f"{name}: {_lost(sides[name])}" for name in worse]
        return REFUTED, "; ".join(told) + (f"; {', '.join(reads)} read as words throughout" if reads else "")
    if len(reads) == len(sides):
        return SUPPORTED, "every state between is better than a reading without context, and every step takes off loss"
    return INCONCLUSIVE, "; ".join(f"{name}: {_open(shown)}" for name, shown in sides.items() if name not in reads)


def _lost(shown: _Shown) -> str:
    """Where the opposite is shown."""
    states = [str(i) for i, one in shown.above.items() if one.high < 0]
    steps = [str(i) for i, one in shown.falls.items() if one.high < 0]
    told = [f"worse than a reading without context after step {', '.join(states)}"] if states else []
    return " and ".join(told + ([f"more loss than before after step {', '.join(steps)}"] if steps else []))


def _open(shown: _Shown) -> str:
    """Where nothing is shown, or the opposite."""
    states = [str(i) for i, one in shown.above.items() if one.low <= 0]
    steps = [str(i) for i, one in shown.falls.items() if one.low <= 0]
    told = [f"no gain shown over a reading without context after step {', '.join(states)}"] if states else []
    return " and ".join(told + ([f"no fall of the loss shown at step {', '.join(steps)}"] if steps else []))


def _shown(losses_RS: Sequence[Sequence[float]], floor: float) -> _Shown:
    """From the losses of runs, each of the start and after each step."""
    by_state_SR = [list(of) for of in zip(*losses_RS, strict=True)]
    flat_R = [floor] * len(losses_RS)
    between = range(1, len(by_state_SR) - 1)
    above = {i: paired_interval(by_state_SR[i], flat_R, LEVEL) for i in between}
    falls = {i: paired_interval(after, before, LEVEL) for i, (before, after) in enumerate(pairwise(by_state_SR), 1)}
    return _Shown(above, falls)


def _row(values_RS: Sequence[Sequence[float]], digits: int) -> str:
    """Means over runs, from the start on."""
    return " → ".join(f"{fmean(of):.{digits}f}" for of in zip(*values_RS, strict=True))
