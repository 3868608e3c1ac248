"""Feed-forward parts. Legend: B batch, T positions, D width, M hidden width; a trailing 1 is an axis of size one."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from ..core.taps import TapPoint
from .linear import Linear


def squared_relu(x: Tensor) -> Tensor:
    """relu(x)² (So et al. 2021, Primer)."""
    return F.relu(x).square()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu2": squared_relu}


def bent(f: Callable[[Tensor], Tensor], x: Tensor, beta: Tensor | None) -> Tensor:
    """f(β x) / β: for silu x · σ(β x), swish (Ramachandran et al. 2017); the larger β, the nearer to relu. None: f(x).

    Args:
        beta: above 0; the type of `x` or wider.
    """
    return f(x) if beta is None else (f(x * beta) / beta).to(x.dtype)


class MLP(nn.ModuleDict):
    """out(f(in(x))) with f one of `ACTIVATIONS`, bent by β where one is given."""

    def __init__(self, d_model: int, d_mlp: int, activation: str) -> None:
        super().__init__({"in": Linear(d_model, d_mlp), "out": Linear(d_mlp, d_model)})
        self.activation = ACTIVATIONS[activation]

    def forward(self, x_BTD: Tensor, taps: TapPoint, beta_BT1: Tensor | None = None) -> Tensor:
        pre_BTM = taps("mlp.pre", self["in"](x_BTD))
        post_BTM = taps("mlp.post", bent(self.activation, pre_BTM, beta_BT1))
        return taps("mlp.out", self["out"](post_BTM))


class SwiGLU(nn.ModuleDict):
    """out(silu(gate(x)) · in(x)) (Shazeer 2020, equation 6); silu bent by β where one is given."""

    def __init__(self, d_model: int, d_mlp: int) -> None:
        super().__init__({"gate": Linear(d_model, d_mlp), "in": Linear(d_model, d_mlp), "out": Linear(d_mlp, d_model)})

    def forward(self, x_BTD: Tensor, taps: TapPoint, beta_BT1: Tensor | None = None) -> Tensor:
        pre_BTM = taps("mlp.pre", self["gate"](x_BTD))
        post_BTM = taps("mlp.post", bent(F.silu, pre_BTM, beta_BT1) * self["in"](x_BTD))
        return taps("mlp.out", self["out"](post_BTM))


def feed_forward(d_model: int, d_mlp: int, activation: str) -> MLP | SwiGLU:
    """The feed-forward part of that name: swiglu, gelu or relu2."""
    return SwiGLU(d_model, d_mlp) if activation == "swiglu" else MLP(d_model, d_mlp, activation)
