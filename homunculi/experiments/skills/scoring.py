"""One score of one model, for others to call: claims, comparisons, notebooks."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from homunculi.experiments.skills.cells import Cell, Json, Store
from homunculi.experiments.skills.learning import learn
from homunculi.experiments.skills.plan import FIRST_SEED, QUICK, Asked, Point, Settings, points
from homunculi.experiments.skills.scores import chosen_of
from homunculi.experiments.skills.sizing import Side
from homunculi.tasks import registry
from homunculi.train.precision import resolve_device


def score_of(
    config: Any,
    task: str,
    seed: int = FIRST_SEED,
    *,
    settings: Settings = QUICK,
    dials: Mapping[str, Any] | None = None,
    folder: Path | None = None,
    device: str = "cpu",
) -> float:
    """The score of one model configuration at one task with one seed: mean test accuracy over the swept dial.

    Args:
        config: of a registered architecture; `homunculi.experiments.skills.sizing.small` gives its small shape. It is
            made equal as `settings.frame` says.
        task: a name, or the path of a file.
        settings: with a grid of several settings, the best by validation of this very seed is scored.
        dials: in place of defaults; the swept one may be a tuple of values.
        folder: where finished cells are kept and looked for; None: nothing is kept.

    Raises:
        InputError: no such task, impossible dials, or a configuration that cannot be made equal.
    """
    with tempfile.TemporaryDirectory() as nowhere:
        store = Store(folder or Path(nowhere))
        found = accuracies(Side("model", config), task, seed, settings, dials or {}, store, device)
    return fmean(found.values())


def accuracies(
    side: Side, task: str, seed: int, settings: Settings, dials: Mapping[str, Any], store: Store, device: str
) -> dict[Any, float]:
    """Value of the swept dial → test accuracy."""
    known = registry.get(task)
    given = dials.get(known.swept, ())
    sweep = tuple(given) if isinstance(given, (tuple, list)) else (given,)
    others = {name: value for name, value in dials.items() if name != known.swept}
    curve = points([side], [Asked(task, known, others, sweep)], settings)
    return {point.value: _accuracy(point, seed, store, device) for point in curve}


def _accuracy(point: Point, seed: int, store: Store, device: str) -> float:
    own = replace(point, grid=tuple(replace(cell, seed=seed) for cell in point.grid))
    results = {cell.key: _learned(cell, store, device) for cell in own.grid}
    chosen = chosen_of(own, results)
    assert chosen is not None
    return float(results[chosen.key]["test"]["accuracy"])


def _learned(cell: Cell, store: Store, device: str) -> Json:
    return store.find(cell) or store.keep(cell, learn(cell, resolve_device(device)))
