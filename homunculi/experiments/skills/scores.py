"""From finished cells to scores: which setting is chosen, the difficulty curves, the score of a task with its interval.

A score is the mean over the values of the swept dial of the test accuracy: the area under the difficulty curve. For
each seed there is one; the interval is Student's over seeds, cut at 0 and 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from homunculi.evals.statistics import paired_interval
from homunculi.experiments.skills.cells import Cell, Json
from homunculi.experiments.skills.plan import Asked, Point

LEVEL = 0.95
Results = Mapping[str, Json]  # key of a cell → what it came to


def chosen_of(point: Point, results: Results) -> Cell | None:
    """The cell of the grid that validates best; of equals the one of lower loss, then the first. None: none is done."""
    done = [cell for cell in point.grid if cell.key in results]
    return max(done, key=lambda cell: _merit(results[cell.key]), default=None)


def _merit(result: Json) -> tuple[bool, float, float]:
    valid, loss = result["valid"], result["valid"]["loss"]
    return not result["diverged"], valid["accuracy"], -(loss if loss is not None else float("inf"))


def interval_of(values: Sequence[float]) -> Json:
    """Mean, interval and count; without two values no interval, without one no mean."""
    if not values:
        return {"score": None, "low": None, "high": None, "n": 0}
    if len(values) < 2:
        return {"score": values[0], "low": None, "high": None, "n": 1}
    found = paired_interval([0.0] * len(values), values, LEVEL)
    return {"score": found.difference, "low": max(0.0, found.low), "high": min(1.0, found.high), "n": found.n}


def seeds_of(point: Point, results: Results, n_seeds: int) -> list[Json]:
    """The finished cells of a point at its chosen setting, in order of their seeds."""
    chosen = chosen_of(point, results)
    if chosen is None:
        return []
    cells = [chosen, *point.other_seeds(chosen, n_seeds)]
    return [results[cell.key] for cell in cells if cell.key in results]


def point_json(point: Point, asked: Asked, results: Results, n_seeds: int) -> Json:
    """A point of a difficulty curve with its interval over seeds, its setting, and where that lies in the grid."""
    found, chosen = seeds_of(point, results, n_seeds), chosen_of(point, results)
    accuracies = [one["test"]["accuracy"] for one in found]
    rates = sorted({cell.lr for cell in point.grid})
    dials = asked.settled(point.value)
    return {
        "architecture": point.side,
        "task": point.task,
        "dial": asked.task.swept,
        "value": point.value,
        **interval_of(accuracies),
        "accuracies": {str(one["cell"]["seed"]): one["test"]["accuracy"] for one in found},
        "loss": _mean([one["test"]["loss"] for one in found]),
        "best_loss": _mean([one["test"]["best_loss"] for one in found]),
        "chance": asked.task.chance(**dials),
        "ceiling": asked.task.ceiling(**dials),
        "lr": chosen.lr if chosen else None,
        "weight_decay": chosen.weight_decay if chosen else None,
        "at_edge": bool(chosen and len(rates) > 1 and chosen.lr in (rates[0], rates[-1])),
        "parameters": found[0]["parameters"] if found else None,
        "steps_taken": [one["steps_taken"] for one in found],
        "seconds": sum(one["seconds"] for one in found),
        "diverged": sum(one["diverged"] for one in found),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return fmean(there) if there and len(there) == len(values) else None


def score_json(points: Sequence[Json]) -> Json:
    """The score of one architecture at one task from all points of its curve; of seeds that have finished them all."""
    seeds = set.intersection(*(set(point["accuracies"]) for point in points)) if points else set()
    values = [fmean(point["accuracies"][seed] for point in points) for seed in sorted(seeds, key=int)]
    first = points[0]
    return {
        "architecture": first["architecture"],
        "task": first["task"],
        **interval_of(values),
        "chance": fmean(point["chance"] for point in points),
        "ceiling": fmean(point["ceiling"] for point in points),
        "seeds": dict(zip(sorted(seeds, key=int), values, strict=True)),
    }


def beyond_json(point: Point, results: Results, n_seeds: int) -> list[Json]:
    """Accuracies at dials that were never trained, over seeds."""
    found = [one["beyond"] for one in seeds_of(point, results, n_seeds) if one["beyond"]]
    rows = []
    for place in zip(*found, strict=True):
        known = {name: place[0][name] for name in ("dial", "value", "chance", "ceiling")}
        named = {"architecture": point.side, "task": point.task, "trained": point.value}
        rows.append(named | known | interval_of([one["accuracy"] for one in place]))
    return rows


def depth_json(point: Point, results: Results, n_seeds: int) -> Json | None:
    """Depth chosen and forced against depth needed: means over seeds; None where there is nothing to say."""
    found = [one["depth"] for one in seeds_of(point, results, n_seeds) if one["depth"]]
    if not found:
        return None
    needed = [n for n in found[0]["needed"] if all(n in one["needed"] for one in found)]
    named: Json = {"architecture": point.side, "task": point.task, "value": point.value, "n": len(found)}
    own: Json = {"accuracy": fmean(one["own"]["accuracy"] for one in found)}
    own |= {"by_needed": _over_seeds([one["own"]["by_needed"] for one in found], found, needed)}
    forced = []
    for place in zip(*(one["forced"] for one in found), strict=True):
        by_needed = _over_seeds([one["by_needed"] for one in place], found, needed)
        accuracy = fmean(one["accuracy"] for one in place)
        forced.append({"passes": place[0]["passes"], "accuracy": accuracy, "by_needed": by_needed})
    chosen = [one["chosen"] for one in found if one["chosen"]]
    return named | {"needed": needed, "own": own, "forced": forced, "chosen": _chosen(chosen, needed)}


def _over_seeds(rows: Sequence[Sequence[float]], found: Sequence[Json], needed: Sequence[int]) -> list[float]:
    places = [[one["needed"].index(n) for n in needed] for one in found]
    return [fmean(row[at[i]] for row, at in zip(rows, places, strict=True)) for i in range(len(needed))]


def _chosen(chosen: Sequence[Json], needed: Sequence[int]) -> Json | None:
    """Mean depth at each needed depth, and the rank correlation with its interval over seeds."""
    if not chosen:
        return None
    means = []
    for n in needed:
        there = [one["by_needed"][one["steps"].index(n)] for one in chosen if n in one["steps"]]
        means.append(fmean(there) if there else None)
    rhos = [one["rho"] for one in chosen if one["rho"] is not None]
    spread: dict[str, Any] = {"rho": fmean(rhos) if rhos else None, "low": None, "high": None, "n": len(rhos)}
    if len(rhos) > 1:
        found = paired_interval([0.0] * len(rhos), rhos, LEVEL)
        spread |= {"low": max(-1.0, found.low), "high": min(1.0, found.high)}
    deepest = max(one["deepest"] for one in chosen)
    return {"mean": fmean(one["mean"] for one in chosen), "by_needed": means, "deepest": deepest} | spread
