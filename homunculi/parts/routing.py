"""Which tokens take part in a step, decided from the past alone, and gathering them into a block of fixed size.

A threshold says which tokens want to take part. How many may is bounded by a quota that grows with the position: of
the first t + 1 tokens at most share · (t + 1), rounded up, and `burst` more. Who wants to while the quota is used up is
left out. So a token's part depends on nothing after it, a block of fixed size holds all who take part whatever the
router does, and nobody has to count on the host.

Legend: B batch, T positions of this call, C places in the block, D width, H heads, L cache capacity, K head width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.cache import KVSlot


@dataclass(frozen=True, slots=True)
class Quota:
    """At most min(n, ⌈share · n⌉ + burst) of the first n tokens.

    Attributes:
        share: of the tokens, in (0, 1].
        burst: places beyond it, so that a sequence may begin with several tokens in a row.
    """

    share: float
    burst: int

    def of_first(self, n: int) -> int:
        """The bound for the first n tokens: the size of a block for a sequence of that length."""
        return min(n, math.ceil(self.share * n - 1e-9) + self.burst)

    def at(self, positions: Tensor) -> Tensor:
        """The bound that holds at each position, same shape, integers."""
        n = positions + 1
        return torch.minimum(n, (self.share * n.double() - 1e-9).ceil().long() + self.burst)


def admit(wants_BT: Tensor, quota_BT: Tensor, before_B: Tensor | None = None) -> Tensor:
    """How many tokens have taken part up to and with each position, (B, T), integers.

    The count n_t = min(n_{t−1} + wants_t, quota_t) in closed form (Lindley's recursion):
    A_t + min(n_{−1}, min over s ≤ t of quota_s − A_s), where A is the running sum of wants.

    Args:
        wants_BT: True where a token wants to take part.
        quota_BT: not decreasing along T.
        before_B: the count before this call; None: 0.
    """
    asked_BT = wants_BT.long()
    if asked_BT.shape[1] > 1:  # scans of single tokens are slow on a GPU
        asked_BT = asked_BT.cumsum(1)
    room_BT = quota_BT - asked_BT
    if asked_BT.shape[1] > 1:
        room_BT = room_BT.cummin(1).values
    before = torch.zeros_like(room_BT[:, :1]) if before_B is None else before_B[:, None]
    return asked_BT + torch.minimum(room_BT, before)


class Selection(NamedTuple):
    """The tokens of a block.

    Attributes:
        index_BC: their positions in this call, in order; 0 where a place is empty.
        taken_BC: which places hold a token.
        count_BC: how many took part up to and with the token, earlier calls included; 0 where a place is empty.
    """

    index_BC: Tensor
    taken_BC: Tensor
    count_BC: Tensor


def select(count_BT: Tensor, n_places: int, before_B: Tensor | None = None) -> Selection:
    """The tokens at which the running count rises, at most `n_places` of each row: those beyond are left out."""
    before_B = torch.zeros_like(count_BT[:, 0]) if before_B is None else before_B
    local_BT = count_BT - before_B[:, None]
    taking_BT = torch.diff(local_BT, dim=1, prepend=torch.zeros_like(local_BT[:, :1])) > 0
    place_BT = torch.where(taking_BT & (local_BT <= n_places), local_BT - 1, n_places)
    positions_BT = torch.arange(count_BT.shape[1], device=count_BT.device).expand_as(count_BT)
    index_BC = place_BT.new_zeros(len(count_BT), n_places + 1).scatter(1, place_BT, positions_BT)[:, :n_places]
    places_C = torch.arange(n_places, device=count_BT.device)
    taken_BC = places_C < local_BT[:, -1:]
    return Selection(index_BC, taken_BC, (before_B[:, None] + places_C + 1) * taken_BC)


def take(x_BTD: Tensor, index_BC: Tensor) -> Tensor:
    """Rows of `x_BTD` at the selected positions, (B, C, D)."""
    return x_BTD.flatten(0, 1).index_select(0, _rows(x_BTD, index_BC)).unflatten(0, index_BC.shape)


def put_sum(x_BTD: Tensor, change_BCD: Tensor, selection: Selection) -> Tensor:
    """`x_BTD` plus `change_BCD` at the selected positions; empty places change nothing."""
    change = (change_BCD * selection.taken_BC[..., None]).flatten(0, 1).to(x_BTD.dtype)
    return x_BTD.flatten(0, 1).index_add(0, _rows(x_BTD, selection.index_BC), change).view_as(x_BTD)


def _rows(x_BTD: Tensor, index_BC: Tensor) -> Tensor:
    n_rows, n_tokens = x_BTD.shape[:2]
    return (index_BC + n_tokens * torch.arange(n_rows, device=index_BC.device)[:, None]).flatten()


@dataclass(slots=True)
class RoutedSlot:
    """Keys and values of the tokens that took part in one attention step, side by side, and how many those were.

    Attributes:
        kv: one place more than can be taken: empty places of a block are written there.
        count_B: tokens that took part so far.
    """

    kv: KVSlot
    count_B: Tensor

    @classmethod
    def empty(cls, shape_BHLK: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> RoutedSlot:
        B, H, L, K = shape_BHLK
        return cls(KVSlot.empty((B, H, L + 1, K), dtype, device), torch.zeros(B, dtype=torch.long, device=device))

    def places(self, selection: Selection) -> tuple[Tensor, Tensor]:
        """Where a block's keys and values go, (B, C), and what each of its tokens may see, (B, C, L + 1)."""
        last = self.kv.k_BHLK.shape[2] - 1
        where_BC = torch.where(selection.taken_BC, selection.count_BC - 1, last)
        seen_BCL = torch.arange(last + 1, device=where_BC.device) <= where_BC[..., None]
        return where_BC, seen_BCL
