"""Rotary position embedding (Su et al. 2021, equation 15), halves rotated against each other.

Legend: B batch, T positions, H heads, K head width, L longest position.
"""

from __future__ import annotations

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
    return x_BTHK * cos + x_BTHK.roll(x_BTHK.shape[-1] // 2, -1) * sin
