"""Skills beside the loss of a comparison: small models of its sides at a few tasks, paired over the same seeds.

Every side takes the small shape that `homunculi skills` gives it, at equal parameters, with the quick battery's single
setting of the optimiser. What sides differ in by width or depth alone is therefore not seen here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from homunculi.experiments.skills.cells import Cell, Json, Store
from homunculi.experiments.skills.plan import QUICK, Point, ask, points
from homunculi.experiments.skills.pool import first_failure, train_all
from homunculi.experiments.skills.sizing import Side, small

if TYPE_CHECKING:
    from homunculi.experiments.execution import Execution, Planned

FOLDER = "skills"


def measure_skills(execution: Execution, tasks: Sequence[str]) -> None:
    """Score the ranked sides of a comparison at tasks (none named: at those that it has), and write it down.

    Raises:
        InputError: no such task, or a side has no small shape.
        Stopped: a signal asked for it; finished cells are kept.
        HomunculiError: cells failed.
    """
    comparison = execution.comparison
    names = list(tasks) or list(dict.fromkeys(entry["task"] for entry in comparison.skills))
    if not names:
        return
    curves = points([_side(planned) for planned in execution.ranked], ask(names, {}), QUICK)
    execution.reporter.message(f"skills: {', '.join(names)}, small models of equal parameters")
    store = Store(comparison.folder / FOLDER)
    cells = [cell for point in curves for cell in _cells(point, comparison.seeds)]
    failed = train_all(cells, store, execution.devices, execution.at_once)
    if failed:
        raise first_failure(failed, store.folder)
    comparison.skills = _entries(curves, comparison.seeds, store)
    comparison.write()


def _side(planned: Planned) -> Side:
    side, whole = planned.side, planned.whole
    path = side.recipe.rpartition(":")[0] if ":" in side.recipe else side.recipe
    files = (str(Path(path).resolve()),) if path.endswith(".py") else ()
    return Side(side.name, small(whole.model, QUICK.frame), files=files)


def _cells(point: Point, seeds: Sequence[int]) -> list[Cell]:
    return [replace(point.grid[0], seed=seed) for seed in seeds]


def _entries(curves: Sequence[Point], seeds: Sequence[int], store: Store) -> list[Json]:
    """A score for each side, seed and task: the mean over the swept dial."""
    found: dict[tuple[str, str, int], list[float]] = {}
    for point in curves:
        for cell in _cells(point, seeds):
            if (result := store.find(cell)) is not None:
                found.setdefault((point.side, point.task, cell.seed), []).append(result["test"]["accuracy"])
    return [
        {"side": side, "task": task, "seed": seed, "score": fmean(values)}
        for (side, task, seed), values in found.items()
    ]
