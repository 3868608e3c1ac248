"""Regions of a model that learn faster or slower than others, by signals of its own.

A model that defines `plasticity() -> dict[str, Tensor]` names its regions by prefixes of parameter names and gives each
a positive scalar, such as the running mean of a signal. A region's updates and weight decay are scaled with its share
of the mean over regions. Updates are scaled and not gradients, because Adam divides a gradient's scale away.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor

Control = Literal["own", "shuffled", "off"]
LOWEST, HIGHEST = 0.5, 2.0


def regions_of(model: Any) -> list[str]:
    """Prefixes of parameter names whose updates the model scales; empty for most models."""
    return list(model.plasticity()) if hasattr(model, "plasticity") else []


def region_of(parameter: str, regions: Iterable[str]) -> str:
    """The region that a parameter's name belongs to, or an empty string."""
    return next((region for region in regions if parameter.startswith(f"{region}.")), "")


def multipliers(model: Any, control: Control) -> dict[str, Tensor]:
    """Region → factor of its updates: scalars on the device, mean 1 and within [1/2, 2].

    Args:
        model: with `plasticity`, or without: then there are none.
        control: own gives each region its own; shuffled gives it the next region's, which breaks the tie between a
            signal and what it scales; off gives all regions 1.
    """
    regions = regions_of(model)
    if not regions:
        return {}
    raw_G = torch.stack([value.detach().float() for value in model.plasticity().values()])
    if control == "off":
        raw_G = torch.ones_like(raw_G)
    elif control == "shuffled":
        raw_G = raw_G.roll(1)
    return dict(zip(regions, normalised(raw_G).unbind(), strict=True))


def normalised(raw_G: Tensor) -> Tensor:
    """Positive numbers scaled to mean 1 and pulled towards 1 together as far as the bounds ask.

    Pulling keeps the mean, which cutting off each by itself would not: so a rate common to all regions cannot change.
    """
    apart_G = raw_G / raw_G.mean() - 1
    reach = torch.maximum(apart_G.amax() / (HIGHEST - 1), -apart_G.amin() / (1 - LOWEST))
    return 1 + apart_G / reach.clamp(min=1.0)
