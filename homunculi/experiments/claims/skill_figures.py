"""Figures that a battery of skills gives to claims that runs decide: they are shown beside, and no verdict hears them.

A battery is what `homunculi skills … --json` prints; it lies beside the folder of stored results, as
``results/NAME.json``. One that is missing, or not what it should be, gives no figures at all. Every name ends with the
seeds that the figure is of, since they are few and not those of the runs. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from homunculi.errors import InputError
from homunculi.evals.statistics import paired_interval
from homunculi.experiments.claims.evidence import Json
from homunculi.experiments.claims.skilled import LEVEL, record

BySeed = Mapping[str, float]
UNDEFINED = "undefined, nothing varies"


def shown(name: str, figures: Callable[[Json], Json]) -> Callable[[Path | None], Json]:
    """What `Claim.shown` takes: the figures of the record of that name; empty where it is missing or damaged."""

    def read(results: Path | None) -> Json:
        try:
            return figures(record(results, name))
        except (InputError, OSError, LookupError, TypeError, AttributeError, ValueError, ArithmeticError):
            return {}

    return read


def own_jobs(whole: str, without: Mapping[str, str], probes: Mapping[str, Sequence[str]]) -> Callable[[Json], Json]:
    """What the whole has more than itself without each part, in accuracy: on the part's probe tasks, and how much more
    there than on all other tasks. Above 0: the part helps; it helps on its own tasks most.

    A seed counts once, by its mean over tasks; the intervals are Student's over seeds that both sides have of all these
    tasks, and are not adjusted for each other.

    Args:
        without: part → side that lacks it. probes: part → its tasks.
    """

    def figures(found: Json) -> Json:
        scores = {(row["architecture"], row["task"]): _by_seed(row["seeds"]) for row in found["scores"]}
        rows: Json = {}
        for part, side in without.items():
            gains = _gains(scores, whole, side)
            own = {task: gain for task, gain in gains.items() if task in probes[part]}
            others = {task: gain for task, gain in gains.items() if task not in probes[part]}
            here, there = _over_tasks(own), _over_tasks(others)
            more = {seed: here[seed] - there[seed] for seed in here.keys() & there.keys()}
            some = "" if len(own) == len(probes[part]) else f", {len(own)} of {len(probes[part])}"
            rows |= _named(f"{part} on its probe tasks{some}", here)
            rows |= _named(f"{part} on its probe tasks{some} more than on others", more)
        return rows

    return figures


def depths(found: Json) -> Json:
    """Of every side and task: the rank correlation of the passes that a token chooses with the steps that its answer
    needs, where answers need different numbers of them; accuracy at the model's own depths, and where every token is
    given the fewest and the most passes.
    """
    chosen, accuracies = {}, {}
    for row in found["depth"]:
        where = f"{row['architecture']} on {row['task']} at {row['value']}"
        if row["chosen"] is not None and len(row["needed"]) > 1:
            name = f"passes chosen with steps needed, rank correlation, {where}"
            chosen[f"{name} ({_seeds(row['chosen']['n'], row['n'])})"] = _correlation(row["chosen"])
        forced = {row_of["passes"]: _number(row_of["accuracy"]) for row_of in row["forced"]}
        seeds = _seeds(row["n"], row["n"])
        accuracies[f"accuracy of {where}, own depths ({seeds})"] = _number(row["own"]["accuracy"])
        for passes in sorted({min(forced), max(forced)} if forced else ()):
            word = "pass" if passes == 1 else "passes"
            accuracies[f"accuracy of {where}, {passes} {word} forced ({seeds})"] = forced[passes]
    return chosen | accuracies


def _gains(scores: Mapping[tuple[str, str], BySeed], whole: str, side: str) -> dict[str, BySeed]:
    """Task → seed → score of the whole less the side's, of tasks that both have a seed of."""
    tasks = [task for name, task in scores if name == whole and (side, task) in scores]
    found: dict[str, BySeed] = {}
    for task in tasks:
        a, b = scores[whole, task], scores[side, task]
        if both := a.keys() & b.keys():
            found[task] = {seed: a[seed] - b[seed] for seed in both}
    return found


def _over_tasks(gains: Mapping[str, BySeed]) -> BySeed:
    """Seed → mean over tasks, of seeds that all of them have."""
    seeds = set.intersection(*(set(gain) for gain in gains.values())) if gains else set()
    return {seed: fmean(gain[seed] for gain in gains.values()) for seed in seeds}


def _named(name: str, by_seed: BySeed) -> Json:
    """Mean and interval over seeds; of one seed its value, of none nothing."""
    if not by_seed:
        return {}
    values = [by_seed[seed] for seed in sorted(by_seed)]
    name = f"{name} (accuracy, {_seeds(len(values), len(values))})"
    if len(values) < 2:
        return {name: values[0]}
    found = paired_interval([0.0] * len(values), values, LEVEL)
    return {name: [found.difference, found.low, found.high]}


def _correlation(chosen: Json) -> Any:
    """With its interval where it has one."""
    if chosen["rho"] is None:
        return UNDEFINED
    ends = [chosen["low"], chosen["high"]]
    return _number(chosen["rho"]) if None in ends else [_number(value) for value in (chosen["rho"], *ends)]


def _by_seed(seeds: Mapping[str, Any]) -> BySeed:
    return {seed: _number(value) for seed, value in seeds.items()}


def _seeds(n: int, whole: int) -> str:
    """How many seeds, and of how many where not all have the figure."""
    some = f"{n:d} of {whole:d}" if n != whole else f"{n:d}"
    return f"{some} seed{'' if whole == 1 else 's'}"


def _number(value: Any) -> float:
    """The number itself.

    Raises:
        ValueError: it is none, or not finite.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no finite number")
    return float(value)
