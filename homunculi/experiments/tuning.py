"""Learning rates, found for every side with the same budget: one grid of factors around each recipe's own rate.

Where the best rate of some side lies at the edge of the grid, the grid grows by one factor there, for every side. A
trial is one short run of one seed, so a rate has to be better than the recipe's by more than seeds differ: else which
side changes its rate is chance, and what it costs in the longer runs is taken for what the sides differ in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from homunculi.errors import InputError

SEED = 1_000_003  # of the trials; seeds of the runs are far below
STEPS_FRAC = 0.25
EXTENSIONS = 2
TIE = 0.0025  # of the loss; equal runs of two seeds end about that far apart (docs/LOG.md)
FACTORS = (0.5, 1.0, 2.0)

Trials = Mapping[str, Mapping[float, float | None]]


def check_factors(factors: Sequence[float]) -> list[float]:
    """The factors in order, each once.

    Raises:
        InputError: one is not a finite number above 0.
    """
    for factor in factors:
        if not 0 < factor < math.inf:
            raise InputError(f"--tune: {factor} is no factor of a learning rate; use numbers above 0, such as 0.5,1,2")
    return sorted(set(factors))


def rate(lr: float, factor: float) -> float:
    """A learning rate as short as it is written in names of folders."""
    return float(f"{lr * factor:.6g}")


def best_factor(losses: Mapping[float, float | None]) -> float | None:
    """The factor of least loss; None stands for a trial that did not end. None if none did.

    Of losses within `TIE` of the least, that of the factor nearest to 1 counts, of two as near the lower factor's.
    """
    ended = {factor: loss for factor, loss in losses.items() if loss is not None}
    if not ended:
        return None
    least = min(ended.values())
    level = [factor for factor in sorted(ended) if ended[factor] <= least + TIE * abs(least)]
    return min(level, key=lambda factor: abs(math.log(factor)))


def extended(grid: Sequence[float], trials: Trials) -> list[float]:
    """The grid with a factor more at each edge where some side does best; where nothing ended, at the lower one.

    Args:
        grid: in order; a single factor is never extended, being no search.
        trials: side → factor → loss.
    """
    if len(grid) < 2:
        return list(grid)
    best = [best_factor(losses) for losses in trials.values()]
    lower = [grid[0] ** 2 / grid[1]] if any(factor in (None, grid[0]) for factor in best) else []
    higher = [grid[-1] ** 2 / grid[-2]] if grid[-1] in best else []
    return [*lower, *grid, *higher]


def note_of(side: str, grid: Sequence[float], losses: Mapping[float, float | None]) -> str:
    """What a reader should know of a choice; empty where there is nothing."""
    best = best_factor(losses)
    if best is None:
        return f"{side}: no trial of a learning rate ended; the recipe's own is used"
    if len(grid) > 1 and best in (grid[0], grid[-1]):
        return f"{side}: the best learning rate lies at the edge of what was tried; a better one may lie beyond"
    return ""


def entry(side: str, lr: float, factor: float, run: str, ended: Mapping[str, Any] | None) -> dict[str, Any]:
    """A trial's entry in comparison.json. `ended`: its last evaluated line, None if it did not end."""
    found = ended or {}
    return {
        "side": side,
        "lr": lr,
        "factor": factor,
        "val_bpb": found.get("val/bpb"),
        "val_loss": found.get("val/loss"),
        "tokens": found.get("tokens"),
        "run": run,
    }
