"""A linear map that computes in its input's type, so that weights can stay in float32."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..core.held import Holding


class Linear(nn.Linear, Holding):
    """`nn.Linear` without bias whose weight is cast to the type of the activations at each use."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__(d_in, d_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.once("weight", x.dtype, lambda: self.weight.to(x.dtype)))
