"""How many directions weight matrices use, and how far and in how many directions training has moved them.

Lazy learning changes each matrix little beside its size; rich learning changes it much, and in few directions (Chizat,
Oyallon and Bach 2019; Woodworth et al. 2020). Directions are counted by the participation ratio of the squared singular
values σ², (Σσ²)² / Σσ⁴: n where n directions share evenly, at most the smaller side.

Legend: R rows, C columns, S the smaller of both.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from homunculi.instruments.observation import Observation
from homunculi.instruments.registry import instrument
from homunculi.runs.measures import Measurement

MEASURES = ("participation ratio", "share of the smaller side", "relative change", "participation ratio of the change")
_BATCH = 2**24  # numbers of matrices of one shape that are multiplied at once


@instrument(
    "weight_rank",
    view="table",
    title="Rank of weights",
    question="How many directions does each weight matrix use, and how far and in how many has training moved it?",
)
def measure(seen: Observation) -> Measurement | None:
    matrices = {n: p.detach().float() for n, p in seen.model.named_parameters() if p.dim() == 2 and min(p.shape) > 1}
    if not matrices:
        return None
    changes = {n: w - seen.first[n].to(w.device).float() for n, w in matrices.items() if n in seen.first}
    used, moved = participation_ratios(matrices), participation_ratios(changes)
    sizes = _norms({n: seen.first[n] for n in changes})
    changed = _norms(changes)
    rows = [
        (
            used[n],
            used[n] / min(w.shape),
            changed[n] / sizes[n] if sizes.get(n) else np.nan,
            moved.get(n, np.nan),
        )
        for n, w in matrices.items()
    ]
    table = np.array(rows, dtype=np.float32)
    return Measurement(
        {
            "weights": table,
            "mean_share_of_smaller_side": _mean(table[:, 1]),
            "mean_relative_change": _mean(table[:, 2]),
            "mean_participation_ratio_of_change": _mean(table[:, 3]),
        },
        {"weights": ("matrix", "measure")},
        {"matrix": tuple(matrices), "measure": MEASURES},
        notes=("participation ratio of squared singular values; change since before the first update",),
    )


def participation_ratios(matrices: dict[str, Tensor]) -> dict[str, float]:
    """Of each matrix (R, C) its (Σσ²)² / Σσ⁴, in [1, S]; NaN for zero. Matrices of one shape go through together."""
    shapes: dict[tuple[int, ...], list[str]] = {}
    for name, matrix in matrices.items():
        shapes.setdefault(tuple(matrix.shape), []).append(name)
    found: dict[str, float] = {}
    for shape, names in shapes.items():
        at_once = max(1, _BATCH // (shape[0] * shape[1]))
        for i in range(0, len(names), at_once):
            some = names[i : i + at_once]
            ratios = _participation_ratio(torch.stack([matrices[name] for name in some]))
            found |= dict(zip(some, ratios.tolist(), strict=True))
    return {name: found[name] for name in matrices}


def _participation_ratio(w_NRC: Tensor) -> Tensor:
    """Σσ⁴ is the squared norm of the product of a matrix with itself, which is cheaper than its singular values."""
    w_NSC = w_NRC if w_NRC.shape[1] <= w_NRC.shape[2] else w_NRC.mT
    unit_NSC = w_NSC / torch.linalg.matrix_norm(w_NSC, keepdim=True)  # Σσ² = 1
    return 1 / (unit_NSC @ unit_NSC.mT).square().sum((1, 2))


def _norms(tensors: dict[str, Tensor]) -> dict[str, float]:
    """All at once: a device is asked once."""
    if not tensors:
        return {}
    norms = torch._foreach_norm([tensor.float() for tensor in tensors.values()])
    return dict(zip(tensors, torch.stack(norms).tolist(), strict=True))


def _mean(values: np.ndarray) -> np.ndarray:
    known = values[np.isfinite(values)]
    return np.array(known.mean() if len(known) else np.nan, dtype=np.float32)
