"""Static caches for decoding: fixed buffers, one slot a step, rows of different lengths.

Legend: B batch, A some rows of it, T positions of this call, H key-value heads, L capacity, K head width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from .pieces import Pieces


@dataclass(slots=True)
class KVSlot:
    """Keys and values of one attention step.

    Attributes:
        k_BHLK: keys by position.
        v_BHLK: values by position.
    """

    k_BHLK: Tensor
    v_BHLK: Tensor

    @classmethod
    def empty(cls, shape_BHLK: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> KVSlot:
        return cls(
            torch.zeros(shape_BHLK, dtype=dtype, device=device), torch.zeros(shape_BHLK, dtype=dtype, device=device)
        )

    @property
    def asked_rows(self) -> Tensor | None:
        """The rows of the batch that are asked; None: all."""
        return None

    def write(self, k_BHTK: Tensor, v_BHTK: Tensor, positions_BT: Tensor) -> None:
        """Write new keys and values at `positions_BT`."""
        where = positions_BT[:, None, :, None].expand_as(k_BHTK)
        self.k_BHLK.scatter_(2, where, k_BHTK.to(self.k_BHLK.dtype))
        self.v_BHLK.scatter_(2, where, v_BHTK.to(self.v_BHLK.dtype))

    def extend(self, k_BHTK: Tensor, v_BHTK: Tensor, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Write new keys and values and return all of them, capacity included."""
        self.write(k_BHTK, v_BHTK, positions_BT)
        return self.k_BHLK, self.v_BHLK


class SlotOfRows(KVSlot):
    """Some rows of the batch (None: all) of a slot, and of it the first `n_places` places (None: all)."""

    def __init__(self, whole: KVSlot, rows_A: Tensor | None, n_places: int | None = None) -> None:
        super().__init__(whole.k_BHLK, whole.v_BHLK)
        self._whole, self._rows_A = whole, rows_A
        self.n_places = whole.k_BHLK.shape[2] if n_places is None else n_places

    @property
    def asked_rows(self) -> Tensor | None:
        return self._rows_A

    def write(self, k_BHTK: Tensor, v_BHTK: Tensor, positions_BT: Tensor) -> None:
        if self._rows_A is None:
            self._whole.write(k_BHTK, v_BHTK, positions_BT)
            return
        rows = self._rows_A[:, None]
        self.k_BHLK[rows, :, positions_BT] = k_BHTK.transpose(1, 2).to(self.k_BHLK.dtype)
        self.v_BHLK[rows, :, positions_BT] = v_BHTK.transpose(1, 2).to(self.v_BHLK.dtype)

    def seen(self) -> tuple[Tensor, Tensor]:
        """Keys and values of the rows, copied where there are fewer than all."""
        n = self.n_places
        if self._rows_A is None:
            return self.k_BHLK[:, :, :n], self.v_BHLK[:, :, :n]
        return self.k_BHLK[self._rows_A, :, :n], self.v_BHLK[self._rows_A, :, :n]

    def extend(self, k_BHTK: Tensor, v_BHTK: Tensor, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
        self.write(k_BHTK, v_BHTK, positions_BT)
        return self.seen()


class Cache:
    """What a model remembers of the tokens it has read.

    A row's tokens need not be as many as another's: a prompt shorter than the longest is padded on the right,
    `announce` is told the true lengths, the whole batch is fed once, and `advance` is told them too. What was written
    beyond a row's length is never visible and is overwritten by its next tokens.

    Attributes:
        slots: one entry a cache slot of the schedule, of whatever type the architecture uses.
        lengths_B: how many tokens of each row are valid.
        capacity: the most tokens a row may have.
        pieces: recordings of decoding steps.
        running: tensors of the slots that know no positions, so that a fresh cache can go on from them when a text
            outgrows this one; empty for most architectures.
    """

    def __init__(
        self,
        slots: list[Any],
        batch_size: int,
        capacity: int,
        device: torch.device,
        running: tuple[Tensor, ...] = (),
    ) -> None:
        self.slots = slots
        self.capacity = capacity
        self.running = running
        self.lengths_B = torch.zeros(batch_size, dtype=torch.long, device=device)
        self.pieces = Pieces()
        self._longest = 0
        self._announced_B: Tensor | None = None

    @property
    def longest(self) -> int:
        """Valid tokens of the row that has most."""
        return self._longest

    def at(self, slot: int) -> Any:
        """The entry of one slot."""
        return self.slots[slot]

    def positions(self, n_tokens: int) -> Tensor:
        """Positions (B, T) of the next `n_tokens` tokens of each row.

        Raises:
            InputError: as `check_room`.
        """
        self.check_room(n_tokens)
        return self.lengths_B[:, None] + torch.arange(n_tokens, device=self.lengths_B.device)

    def check_room(self, n_tokens: int) -> None:
        """Refuse more tokens than there is room for.

        Raises:
            InputError: the longest row would outgrow the capacity.
        """
        if self._longest + n_tokens > self.capacity:
            raise InputError(f"cache: {self._longest} + {n_tokens} tokens do not fit its capacity of {self.capacity}")

    def announce(self, n_tokens_B: Tensor) -> None:
        """Say before a padded call how many of its tokens are valid, one number a row.

        Keys and values of padding are overwritten later, but a running sum cannot forget them: models that keep one
        leave padding out, so they have to know. Without an announcement all tokens of a call are valid.
        """
        self._announced_B = n_tokens_B

    def valid(self, n_tokens: int) -> Tensor | None:
        """Which of the `n_tokens` of this call are valid, (B, T); None: all."""
        if self._announced_B is None:
            return None
        return torch.arange(n_tokens, device=self.lengths_B.device) < self._announced_B[:, None]

    def advance(self, n_tokens: int | Tensor) -> None:
        """Count tokens just fed as valid: a number for all rows, or (B,) numbers, one a row; ends an announcement."""
        self._announced_B = None
        self.lengths_B += n_tokens
        self._longest = self._longest + n_tokens if isinstance(n_tokens, int) else int(self.lengths_B.max())

    def carry_on(self, before: Cache) -> None:
        """Begin with the running tensors of a cache that has read what stands before this one's first token."""
        for mine, theirs in zip(self.running, before.running, strict=True):
            mine.copy_(theirs)

    @property
    def n_bytes(self) -> int:
        """Bytes held by all slots."""
        return sum(tensor.nbytes for slot in self.slots for tensor in tensors_of(slot))


def tensors_of(slot: Any) -> Iterator[Tensor]:
    """All tensors of a slot: a dataclass of tensors, and of such dataclasses."""
    for name in slot.__slots__:
        value = getattr(slot, name)
        if isinstance(value, Tensor):
            yield value
        elif is_dataclass(value):
            yield from tensors_of(value)
