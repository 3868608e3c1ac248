"""What an update did to each part of a model: gradient, change relative to the weights, learning rate.

The change relative to the weights is near 1e-3 in runs that go well, a rule of thumb; the norm of the gradient is the
one before clipping.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from homunculi.instruments.observation import UpdateSeen
from homunculi.instruments.registry import instrument
from homunculi.runs.measures import Measurement

MEASURES = ("gradient norm", "update / weight", "rate multiplier")


@instrument(
    "updates",
    view="table",
    title="Updates",
    question="Which parts of the model get a gradient, and how far does one update move each?",
    reads="update",
)
def measure(seen: UpdateSeen) -> Measurement:
    parts = parts_of(seen.before)
    moved = {name: seen.after[name].float() - before.float() for name, before in seen.before.items()}
    gradients, moves, weights = squares(seen.gradients), squares(moved), squares(seen.before)
    rows = []
    for names in parts.values():
        with_gradient = [gradients[name] for name in names if name in gradients]
        norm = math.sqrt(sum(with_gradient)) if with_gradient else math.nan
        rows.append((norm, _ratio(moves, weights, names), _multiplier(seen, names)))
    whole = list(seen.before)
    return Measurement(
        {
            "updates": np.array(rows, dtype=np.float32),
            "gradient_norm": np.array(math.sqrt(sum(gradients.values())), dtype=np.float32),
            "update_ratio": np.array(_ratio(moves, weights, whole), dtype=np.float32),
            "lr": np.array(seen.lr, dtype=np.float32),
        },
        {"updates": ("part", "measure")},
        {"part": tuple(parts), "measure": MEASURES},
        notes=("gradients before clipping; update / weight: norm of the change over norm of the weights before it",),
    )


def parts_of(tensors: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Names of parameters by the part of the model that they belong to, in order."""
    parts: dict[str, list[str]] = {}
    for name, tensor in tensors.items():
        parts.setdefault(part_of(name, tensor.dim()), []).append(name)
    return parts


def part_of(name: str, n_axes: int) -> str:
    """The part that a parameter belongs to, by its name alone.

    In a numbered block the module under the number (``blocks.3.attn``), elsewhere the first two modules of its path.
    Vectors and scalars of a module without modules in it, such as a norm's scale, belong to what it stands in.
    """
    path = name.split(".")[:-1] or [name]
    number = next((i for i, word in enumerate(path) if word.isdigit()), None)
    depth = 2 if number is None else number + 2
    if n_axes < 2 and len(path) == depth:
        depth -= 1
    return ".".join(path[:depth])


def squares(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """Sum of squares of each, with one transfer from the device."""
    if not tensors:
        return {}
    norms = torch.stack(torch._foreach_norm([t.detach().float() for t in tensors.values()]))
    return dict(zip(tensors, norms.double().square().tolist(), strict=True))


def _ratio(moves: Mapping[str, float], weights: Mapping[str, float], names: list[str]) -> float:
    """Norm of the change over norm of the weights; NaN where these are zero."""
    held = sum(weights[name] for name in names)
    return math.sqrt(sum(moves[name] for name in names) / held) if held else math.nan


def _multiplier(seen: UpdateSeen, names: list[str]) -> float:
    """Mean factor on the rate, over the numbers of a part."""
    sizes = [seen.before[name].numel() for name in names]
    factors = [_factor(seen.multipliers, name) for name in names]
    return sum(size * factor for size, factor in zip(sizes, factors, strict=True)) / max(1, sum(sizes))


def _factor(multipliers: Mapping[str, float], name: str) -> float:
    return next((factor for prefix, factor in multipliers.items() if name.startswith(f"{prefix}.")), 1.0)
