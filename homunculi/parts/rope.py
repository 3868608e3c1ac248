"""Rotary position embedding (Su et al. 2021, equation 15), halves rotated against each other.

Legend: B batch, T positions, H heads, K head width, L longest position, W = H · K.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class RotaryEmbedding(nn.Module):
    """Tables of cos and sin for positions 0 … max_len − 1, kept out of checkpoints because they are computed."""

    cos_LK: Tensor
    sin_LK: Tensor

    def __init__(self, d_head: int, max_len: int, base: float = 10000.0) -> None:
        super().__init__()
        rates = base ** (-torch.arange(0, d_head, 2, dtype=torch.float64) / d_head)
        angles = torch.outer(torch.arange(max_len, dtype=torch.float64), rates).repeat(1, 2)
        sign = torch.cat([-torch.ones(d_head // 2), torch.ones(d_head // 2)])
        self.register_buffer("cos_LK", angles.cos().float(), persistent=False)
        self.register_buffer("sin_LK", (angles.sin() * sign).float(), persistent=False)

    def at(self, positions: Tensor | slice, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Rows of both tables, (T, 1, K) for a slice or (B, T, 1, K) for positions (B, T)."""
        return self.cos_LK[positions].to(dtype).unsqueeze(-2), self.sin_LK[positions].to(dtype).unsqueeze(-2)


def rotate(x_BTHK: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate each pair (k, k + K/2) by its position's angle."""
    cos, sin = rotation
    eager = not torch.compiler.is_compiling() and torch.is_grad_enabled() and x_BTHK.requires_grad
    if eager and x_BTHK.device.type == "cpu":
        return _InLongRows.apply(x_BTHK, cos, sin)
    return torch.addcmul(x_BTHK * cos, x_BTHK.roll(x_BTHK.shape[-1] // 2, -1), sin)


class _InLongRows(torch.autograd.Function):
    """The rotation with a position's heads as one long row, in which a pair's other half lies K/2 to the right or to
    the left: a head by itself is too short a row for a CPU. The gradient is the rotation back."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x_BTHK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return _turn(x_BTHK, cos, sin)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])
        ctx.save_for_forward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, g_BTHK: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        cos, sin = ctx.saved_tensors
        if torch.is_grad_enabled():  # this gradient will be differentiated itself
            return rotate(g_BTHK, (cos, -sin)), None, None
        return _turn(g_BTHK, cos, -sin), None, None

    @staticmethod
    def jvp(ctx: Any, dx_BTHK: Tensor, *_: None) -> Tensor:  # type: ignore[override]
        return _turn(dx_BTHK, *ctx.saved_tensors)


def _turn(x_BTHK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    n_heads, half = x_BTHK.shape[-2], x_BTHK.shape[-1] // 2
    first, second = sin.clone(), sin.clone()
    first[..., half:] = 0
    second[..., :half] = 0
    cos_TW, first_TW, second_TW = (
        t.expand(*t.shape[:-2], n_heads, t.shape[-1]).flatten(-2) for t in (cos, first, second)
    )
    x_BTW = x_BTHK.flatten(-2)
    y_BTW = x_BTW * cos_TW
    y_BTW[..., :-half].addcmul_(x_BTW[..., half:], first_TW[..., :-half])
    y_BTW[..., half:].addcmul_(x_BTW[..., :-half], second_TW[..., half:])
    return y_BTW.view(x_BTHK.shape)
