"""Linear maps with a bias, and several maps of one input by one product. They compute in their input's type."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.held import Holding


class Affine(nn.Linear, Holding):
    """`nn.Linear` with a bias, both cast to the type of the activations at each use."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.once("weight", x.dtype, lambda: self.weight.to(x.dtype))
        return F.linear(x, weight, self.bias.to(x.dtype))


def side_by_side(holder: Holding, name: str, x: Tensor, *maps: nn.Linear) -> tuple[Tensor, ...]:
    """What each of `maps`, all without a bias, makes of x.

    Args:
        holder: keeps the joined weight while weights are held.
        name: of the joined weight in the holder.
    """
    weight = holder.once(name, x.dtype, lambda: torch.cat([one.weight for one in maps]).to(x.dtype))
    return F.linear(x, weight).split([one.out_features for one in maps], -1)
