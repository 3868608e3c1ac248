"""What parts make of their weights at each use, cast or joined, made once while the weights do not change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Holding(nn.Module):
    """A module that asks `once` for what it makes of its weights.

    Attributes:
        held: what was made, by name and type; None: nothing is held, everything is made anew.
        n_holders: how many times it is held at present.
    """

    held: dict[tuple[str, torch.dtype], Tensor] | None = None
    n_holders: int = 0

    def once(self, name: str, dtype: torch.dtype, make: Callable[[], Tensor]) -> Tensor:
        """`make()`, of that type; where weights are held, what it gave before."""
        if self.held is None:
            return make()
        key = name, dtype
        if key not in self.held:
            self.held[key] = make()
        return self.held[key]


@contextmanager
def holding(model: nn.Module) -> Iterator[None]:
    """Hold what the parts of `model` make of their weights, which must not change meanwhile."""
    parts = [module for module in model.modules() if isinstance(module, Holding)]
    for part in parts:
        part.held, part.n_holders = {} if part.held is None else part.held, part.n_holders + 1
    kept = [part.held for part in parts]  # recordings of this holder go on reading it
    try:
        yield
    finally:
        for part in parts:
            part.n_holders -= 1
            part.held = part.held if part.n_holders else None
        kept.clear()
