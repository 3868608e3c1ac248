"""Models that choose how many passes a token takes: do they choose as many as its answer needs?

Depth chosen is read at the routers' taps (`homunculi.instruments.depth`), depth is forced as a change is
(`homunculi.experiments.changing`). Needed is what the task says: sequential look-ups of a counted position.

Legend: B rows, T positions.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from homunculi.core.model import LanguageModel
from homunculi.experiments.changing import changed, depths_of
from homunculi.experiments.skills.reading import judge
from homunculi.instruments.depth import depths
from homunculi.instruments.observing import observe
from homunculi.instruments.tokenwise import Numbers, correlate
from homunculi.tasks.registry import Examples

_BEYOND = 2  # how many times as deep as trained a loop is forced
_OBSERVED_ROWS = 128
_TAKING = "steps.*.router.taking"


def depth_of(model: LanguageModel, examples: Examples, device: torch.device) -> dict[str, Any] | None:
    """Depth chosen and forced against depth needed; None where the task does not say what is needed, or the model has
    no depth to choose or to force.

    Returns: `needed` with accuracy at each; `chosen` (mean depth and count at each needed depth, rank correlation with
        its interval over rows and the spread under chance) where a router chooses; `forced` with accuracy at each
        needed depth when every token takes so many passes.
    """
    if examples.needed_BT is None:
        return None
    forcible = _forcible(model)
    chosen = _chosen(model, examples, device)
    if not forcible and chosen is None:
        return None
    needed = sorted(int(n) for n in np.unique(examples.needed_BT[examples.counted_BT]))
    found: dict[str, Any] = {"needed": needed, "own": _by_needed(model, examples, device, needed)}
    found["chosen"] = chosen
    found["forced"] = []
    for n_passes in forcible:
        with changed(model, [f"depth={n_passes}"]):
            found["forced"].append({"passes": n_passes} | _by_needed(model, examples, device, needed))
    return found


def _forcible(model: LanguageModel) -> list[int]:
    """Depths that can be forced; of a loop also some that it was not trained with."""
    trained = depths_of(model)
    return list(range(1, _BEYOND * max(trained) + 1)) if trained and hasattr(model, "with_passes") else trained


def _by_needed(model: LanguageModel, examples: Examples, device: torch.device, needed: list[int]) -> dict[str, Any]:
    right_BT = judge(model, examples, device).right_BT
    assert examples.needed_BT is not None
    at = [examples.counted_BT & (examples.needed_BT == n) for n in needed]
    return {
        "accuracy": float(right_BT.sum() / max(1, examples.counted_BT.sum())),
        "by_needed": [float(right_BT[where].mean()) for where in at],
    }


def _chosen(model: LanguageModel, examples: Examples, device: torch.device) -> dict[str, Any] | None:
    ids_BT = torch.from_numpy(examples.ids_BT[:_OBSERVED_ROWS].astype(np.int64)).to(device)
    found = depths(observe(model, ids_BT, [_TAKING]))
    if found is None:
        return None
    depth_BT, deepest = found
    assert examples.needed_BT is not None
    counted_BT = examples.counted_BT[: len(depth_BT)]
    needed_BT: Numbers = np.where(counted_BT, examples.needed_BT[: len(depth_BT)], np.nan).astype(np.float64)
    correlation = correlate(np.where(counted_BT, depth_BT, np.nan), needed_BT)
    steps = sorted(int(n) for n in np.unique(needed_BT[counted_BT]))
    return {
        "deepest": deepest,
        "mean": float(depth_BT[counted_BT].mean()),
        "by_needed": [float(depth_BT[needed_BT == n].mean()) for n in steps],
        "n_by_needed": [int((needed_BT == n).sum()) for n in steps],
        "steps": steps,
        "rho": _number(correlation.rho),
        "low": _number(correlation.low),
        "high": _number(correlation.high),
        "null_sd": _number(correlation.null_sd),
    }


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
