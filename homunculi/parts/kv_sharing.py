"""Later applications of a block that attend to the keys and values of its first one and compute queries only.

Legend: B batch, A some rows of it, T positions, S positions attended to, D width, H heads, L places of a slot, K head
width.
"""

from __future__ import annotations

from torch import Tensor

from ..core.cache import KVSlot, SlotOfRows
from ..core.taps import TapPoint
from .attention import CausalSelfAttention, is_alone
from .rope import rotate


class Kept(KVSlot):
    """Keys and values of a first application in a forward without a cache, for later ones."""

    def __init__(self) -> None:
        pass  # the first application fills it

    def extend(self, k_BHTK: Tensor, v_BHTK: Tensor, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
        self.k_BHLK, self.v_BHLK = k_BHTK, v_BHTK
        return k_BHTK, v_BHTK


class Earlier(SlotOfRows):
    """Keys and values of an earlier application, to which nothing is added."""

    def write(self, k_BHTK: Tensor, v_BHTK: Tensor, positions_BT: Tensor) -> None:
        raise AssertionError("a later application has no keys and values of its own")


def earlier(slots: dict[int, KVSlot], rows_A: Tensor | None = None) -> dict[int, KVSlot]:
    """What lies in slots, of some rows of the batch (None: all), for later applications."""
    return {n: Earlier(slot, rows_A) for n, slot in slots.items()}


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
        if mask_BTS is not None and is_alone(q_BHTK, taps):
            return self._give_out(self._attend_alone(q_BHTK, cache), taps)
        k_BGSK, v_BGSK = (t.to(q_BHTK.dtype) for t in cache[0].seen())
        z_BHTK = self._attend(q_BHTK, k_BGSK, v_BGSK, mask_BTS)
        return self._give_out(self._shown(z_BHTK, (q_BHTK, k_BGSK, v_BGSK), mask_BTS, taps), taps)
