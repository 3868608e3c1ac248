"""Root-mean-square normalisation (Zhang and Sennrich 2019, equation 4)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.held import Holding


class RMSNorm(Holding):
    """x / rms(x) · weight over the last axis; the weight starts at 1."""

    def __init__(self, d: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        weight = self.once("weight", x.dtype, lambda: self.weight.to(x.dtype))
        if _is_differentiated_op_by_op(x):
            return _WithFusedGradient.apply(x, weight, self.eps)[0]
        return F.rms_norm(x, (x.shape[-1],), weight, self.eps)


def _is_differentiated_op_by_op(x: Tensor) -> bool:
    """On a CPU torch has no fused gradient of `F.rms_norm`; compilation makes one. Narrow types average in float32.

    Whether a gradient will be asked for is left out, so that a forward gives the same bits with and without.
    """
    return not torch.compiler.is_compiling() and x.device.type == "cpu" and x.dtype.itemsize >= 4


class _WithFusedGradient(torch.autograd.Function):
    """`F.rms_norm` and 1 / rms(x), with LayerNorm's fused gradient for its own.

    With inv = 1 / rms(x), gw = gradient · weight and means over the last axis, the gradient is
    inv · (gw − x · inv · mean(gw · x · inv)). LayerNorm's, told that the mean of x is 0, is that less inv · mean(gw),
    and the mean of gw is one product with a vector.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        inv = (torch.linalg.vector_norm(x, dim=-1, keepdim=True).square() / x.shape[-1] + eps).rsqrt()
        return (x * inv).mul_(weight), inv

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(inputs[0], inputs[1], output[1])
        ctx.save_for_forward(inputs[0], inputs[1], output[1])
        ctx.eps = inputs[2]

    @staticmethod
    def backward(ctx: Any, g: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, inv = ctx.saved_tensors
        d = x.shape[-1]
        if torch.is_grad_enabled():  # this gradient will be differentiated itself
            inv = (x.square().mean(-1, keepdim=True) + ctx.eps).rsqrt()
            gw, n = g * weight, x * inv
            return inv * (gw - n * (gw * n).mean(-1, keepdim=True)), (g * n).flatten(0, -2).sum(0), None
        dx, dweight, _ = torch.ops.aten.native_layer_norm_backward(
            g, x, [d], torch.zeros_like(inv), inv, weight, None, [True, True, False]
        )
        mean_gw = (g.reshape(-1, d) @ weight[:, None]).view_as(inv) / d
        return dx.add_(mean_gw.mul_(inv)), dweight, None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, dweight: Tensor | None, _: None) -> tuple[Tensor, None]:  # type: ignore[override]
        x, weight, inv = ctx.saved_tensors
        n = x * inv
        dy = inv * (dx - n * (n * dx).mean(-1, keepdim=True)) * weight
        return dy if dweight is None else dy + n * dweight, None
