"""Later applications of a block that attend to the keys and values of its first one and compute queries only.

Legend: B batch, A some rows of it, T positions, S positions attended to, D width, H heads, L places of a slot, K head
width.
"""

from __future__ import annotations

from typing import Protocol

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


class Asking(Protocol):
    """Some of the tokens of a call (`homunculi.parts.gathered.Gathered`)."""

    def take(self, x_BTD: Tensor) -> Tensor: ...
    def put_sum(self, x_BTD: Tensor, change_ACD: Tensor) -> Tensor: ...


class Earlier(SlotOfRows):
    """Keys and values of an earlier application, to which nothing is added.

    Attributes:
        asking: which of the tokens they are of are the queries' in a forward without a cache; None: all, or a mask
            alone says what may be seen.
    """

    def __init__(
        self, whole: KVSlot, rows_A: Tensor | None = None, n_places: int | None = None, asking: Asking | None = None
    ) -> None:
        super().__init__(whole, rows_A, n_places)
        self.asking = asking

    def of_rows(self, rows_A: Tensor | None, asking: Asking | None) -> Earlier:
        """The same for the tokens of a block."""
        return Earlier(self, rows_A, self.n_places, asking)

    def write(self, k_BHTK: Tensor, v_BHTK: Tensor, positions_BT: Tensor) -> None:
        raise AssertionError("a later application has no keys and values of its own")


def earlier(slots: dict[int, KVSlot], rows_A: Tensor | None = None) -> dict[int, KVSlot]:
    """What lies in slots, of some rows of the batch (None: all), for later applications."""
    return {n: Earlier(slot, rows_A) for n, slot in slots.items()}


class Attention(CausalSelfAttention):
    """Attention that computes queries only where it is given `Earlier` keys and values; without a mask
    these are of the same tokens.

    With a window, queries that are `Earlier.asking` stand where their tokens do while they look: so work grows with
    T · 2 window, as in the first application, and not with C · T.
    """

    def forward(
        self,
        x_BTD: Tensor,
        rotation: tuple[Tensor, Tensor],
        taps: TapPoint,
        mask_BTS: Tensor | None = None,
        cache: tuple[KVSlot, Tensor] | None = None,
        precision_BT1: Tensor | None = None,
    ) -> Tensor:
        slot = None if cache is None else cache[0]
        if cache is None or not isinstance(slot, Earlier):
            return super().forward(x_BTD, rotation, taps, mask_BTS, cache, precision_BT1)
        q_BTHK = taps("attn.q", self.q(x_BTD).unflatten(-1, (-1, self.d_head)))
        q_BTHK = rotate(self.q_norm(q_BTHK), rotation)
        if precision_BT1 is not None:
            q_BTHK = (q_BTHK * precision_BT1[..., None]).to(x_BTD.dtype)
        q_BHTK = q_BTHK.transpose(1, 2)
        if mask_BTS is not None and is_alone(q_BHTK, taps):
            return self._give_out(self._attend_alone(q_BHTK, cache), taps)
        k_BGSK, v_BGSK = (t.to(q_BHTK.dtype) for t in slot.seen())
        if slot.asking is None or not 0 < self.window < k_BGSK.shape[2]:
            z_BHTK = self._attend(q_BHTK, k_BGSK, v_BGSK, mask_BTS)
        else:
            z_BHTK = self._attend_where_they_stand(q_BHTK, k_BGSK, v_BGSK, slot.asking)
        return self._give_out(self._shown(z_BHTK, (q_BHTK, k_BGSK, v_BGSK), mask_BTS, taps), taps)

    def _attend_where_they_stand(self, q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, asking: Asking) -> Tensor:
        q_BTD = q_BHTK.transpose(1, 2).flatten(2)
        q_BSD = asking.put_sum(q_BTD.new_zeros(len(q_BTD), k_BHSK.shape[2], q_BTD.shape[-1]), q_BTD)
        z_BHSK = self._attend(q_BSD.unflatten(-1, (self.n_heads, -1)).transpose(1, 2), k_BHSK, v_BHSK, None)
        z_BTD = asking.take(z_BHSK.transpose(1, 2).flatten(2))
        return z_BTD.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
