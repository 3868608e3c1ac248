"""Later applications of a block that attend to the keys and values of its first one and compute queries only.

Legend: B batch, A some rows of it, T positions, S positions attended to, D width, H heads, L places of a slot, K head
width.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..core.cache import KVSlot
from ..core.taps import TapPoint
from .attention import CausalSelfAttention
from .rope import rotate


class Kept(KVSlot):
    """Keys and values of a first application in a forward without a cache, for later ones."""

    def __init__(self) -> None:
        pass  # the first application fills it

    def extend(self, k_BHTK: Tensor, v_BHTK: Tensor, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
        self.k_BHLK, self.v_BHLK = k_BHTK, v_BHTK
        return k_BHTK, v_BHTK


class Earlier(KVSlot):
    """Keys and values of an earlier application, to which nothing is added."""


def earlier(slots: dict[int, KVSlot], rows_A: Tensor | None = None) -> dict[int, KVSlot]:
    """What lies in slots, of some rows of the batch (None: all), for later applications."""
    return {
        n: Earlier(*(kv if rows_A is None else kv.index_select(0, rows_A) for kv in (slot.k_BHLK, slot.v_BHLK)))
        for n, slot in slots.items()
    }


class Attention(CausalSelfAttention):
    """Attention that computes queries only where it is given `Earlier` keys and values; without a mask
    these are of the same tokens."""

    def forward(
        self,
        x_BTD: Tensor,
        rotation: tuple[Tensor, Tensor],
        taps: TapPoint,
        mask_BTS: Tensor | None = None,
        cache: tuple[KVSlot, Tensor] | None = None,
        precision_BT1: Tensor | None = None,
    ) -> Tensor:
        if cache is None or not isinstance(cache[0], Earlier):
            return super().forward(x_BTD, rotation, taps, mask_BTS, cache, precision_BT1)
        q_BTHK = taps("attn.q", self.q(x_BTD).unflatten(-1, (-1, self.d_head)))
        q_BHTK = rotate(self.q_norm(q_BTHK), rotation).transpose(1, 2)
        kv = cache[0].k_BHLK.to(q_BHTK.dtype), cache[0].v_BHLK.to(q_BHTK.dtype)
        z_BHTK = F.scaled_dot_product_attention(
            q_BHTK,
            *kv,
            attn_mask=None if mask_BTS is None else mask_BTS[:, None],
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=mask_BTS is None,
            enable_gqa=self.n_heads != self.n_kv_heads,
        )
        if taps.wants("attn.scores") or taps.wants("attn.pattern"):
            z_BHTK = self._show_pattern(z_BHTK, (q_BHTK, *kv), mask_BTS, taps)
        z_BTHK = taps("attn.z", z_BHTK.transpose(1, 2))
        return taps("attn.out", self.o(z_BTHK.flatten(2)))
