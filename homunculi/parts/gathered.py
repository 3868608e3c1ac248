"""Running blocks on the tokens that take part, and on nothing else: gathered in order, put back where they were.

Without a cache the gathered block has a fixed size. With one the host looks how many take part: nobody, and the blocks
are skipped; some rows of the batch, and the blocks run on those. Where steps are recorded, each number of rows would
need a recording of its own; there it is rounded up, and the rows beyond have an empty place.

Legend: B batch, T positions of this call, A rows that take part, C places in the block, D width, S positions attended
to, H key-value heads, L places of a cache slot, K head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.cache import Cache, KVSlot, SlotOfRows
from ..core.taps import TapPoint
from .kv_sharing import earlier
from .rope import RotaryEmbedding
from .routers import Span
from .routing import Selection, put_sum, select, take


@dataclass(frozen=True, slots=True)
class Gathered:
    """The tokens of one block.

    Attributes:
        selection: of each row that takes part.
        rows_A: those rows; None: all.
        n_seen: the most tokens that any row has had in this pass, this call's included; None: nobody asked the host.
        single: it is a decoding step of one token a row: place 0 is that token, and nothing is to be looked up.
    """

    selection: Selection
    rows_A: Tensor | None = None
    n_seen: int | None = None
    single: bool = False

    def rows(self, x_BT: Tensor) -> Tensor:
        """The rows that take part, of a tensor that has a row for each or one for all."""
        return x_BT if self.rows_A is None or len(x_BT) == 1 else x_BT.index_select(0, self.rows_A)

    def take(self, x_BTD: Tensor) -> Tensor:
        """What stands at the tokens of the block, (A, C, D)."""
        rows = self.rows(x_BTD)
        return rows if self.single else take(rows, self.selection.index_BC)

    def take_numbers(self, x_BT: Tensor) -> Tensor:
        """As `take`, of one number a token: (A, C)."""
        rows = self.rows(x_BT).expand(len(self.selection.index_BC), -1)
        return rows if self.single else rows.gather(1, self.selection.index_BC)

    def put_sum(self, x_BTD: Tensor, change_ACD: Tensor) -> Tensor:
        """`x_BTD` plus a change at the tokens of the block."""
        rows = self.rows(x_BTD)
        if self.single:
            changed = rows + change_ACD * self.selection.taken_BC[..., None]
        else:
            changed = put_sum(rows, change_ACD, self.selection)
        return changed if self.rows_A is None else x_BTD.index_copy(0, self.rows_A, changed)

    def places(self, slot: KVSlot) -> Tensor:
        """Where the block's keys and values go in a slot whose last place is for empty places of the block, (A, C)."""
        return torch.where(self.selection.taken_BC, self.selection.count_BC - 1, slot.k_BHLK.shape[2] - 1)


def gather(count_BT: Tensor, n_places: int) -> Gathered:
    """The tokens at which the running count of `admit` rises, in a block of that size."""
    return Gathered(select(count_BT, n_places))


class Crowd(NamedTuple):
    """Those who take part in a pass of a call that goes on from a cache, before the host has looked.

    Attributes:
        count_BT: running counts, earlier calls included; before_B: those of the earlier calls.
        order_B: the rows that take part, in order, then the others.
        sizes: how many rows take part, the most new tokens of a row, the most tokens of a row in all; None: of each
            row the one token.
    """

    count_BT: Tensor
    before_B: Tensor
    order_B: Tensor
    sizes: Tensor | None


def look(count_BT: Tensor, before_B: Tensor) -> Crowd:
    """The crowd of a pass, found on the device."""
    after_B = count_BT[:, -1]
    took_B = after_B > before_B
    rank_B = took_B.cumsum(0)
    rows_B = torch.arange(len(rank_B), device=rank_B.device)
    place_B = torch.where(took_B, rank_B - 1, rank_B[-1:] + rows_B - rank_B)
    order_B = torch.empty_like(rows_B).scatter(0, place_B, rows_B)
    return Crowd(count_BT, before_B, order_B, torch.stack([took_B.sum(), (after_B - before_B).max(), after_B.max()]))


class Size(NamedTuple):
    """Of a block: rows, places a row, and `Gathered.n_seen`. No rows: nobody takes part."""

    n_rows: int
    n_places: int
    n_seen: int | None


def measure(crowd: Crowd, recorded: bool) -> Size:
    """The smallest block that holds a crowd; waits for the device. `recorded`: the next of 32 sizes."""
    if crowd.sizes is None:
        return Size(len(crowd.order_B), 1, None)
    n_rows, n_places, n_seen = crowd.sizes.tolist()
    if not recorded:
        return Size(n_rows, n_places, n_seen)
    n_all = len(crowd.order_B)
    grain = max(1, n_all // 32)
    return Size(min(n_all, grain * -(-n_rows // grain)), 1, None)


def gather_now(crowd: Crowd, size: Size) -> Gathered | None:
    """A crowd in a block of that size; None: nobody takes part."""
    if not size.n_rows:
        return None
    rows_A = crowd.order_B[: size.n_rows] if size.n_rows < len(crowd.order_B) else None
    count_BT, before_B = (t if rows_A is None else t.index_select(0, rows_A) for t in (crowd.count_BT, crowd.before_B))
    if count_BT.shape[1] > 1:
        return Gathered(select(count_BT, size.n_places, before_B), rows_A, size.n_seen)
    taken_A1 = count_BT > before_B[:, None]
    return Gathered(Selection(torch.zeros_like(count_BT), taken_A1, count_BT * taken_A1), rows_A, size.n_seen, True)


@dataclass(slots=True)
class PassCount:
    """A cache's slot of a pass: how many tokens of each row have taken it."""

    count_B: Tensor


class Sight(NamedTuple):
    """What the tokens that go through a block see.

    Attributes:
        rotation: rotary tables of their positions.
        mask_BTS: what each may see; None: all before it in the block, and itself.
        slots: keys and values by number of the cache slot; None: their own and no others.
        places_BT: where theirs go in a slot.
    """

    rotation: tuple[Tensor, Tensor]
    mask_BTS: Tensor | None
    slots: dict[int, KVSlot] | None
    places_BT: Tensor

    def cache(self, slot: int) -> tuple[KVSlot, Tensor] | None:
        """What attention is given as its cache."""
        return None if self.slots is None else (self.slots[slot], self.places_BT)


@dataclass(frozen=True, slots=True)
class Call:
    """What holds for one call of a model.

    Attributes:
        rope: makes rotations.
        span: where the tokens stand.
        sight: what they see when all take part.
        documents_BT: which document each belongs to.
        cache: what was read before.
    """

    rope: RotaryEmbedding
    span: Span
    sight: Sight
    documents_BT: Tensor | None = None
    cache: Cache | None = None

    @property
    def recorded(self) -> bool:
        """Whether this is a step whose pieces are recorded."""
        return self.cache is not None and self.cache.pieces.records

    @classmethod
    def whole(
        cls,
        rope: RotaryEmbedding,
        dtype: torch.dtype,
        span: Span,
        kept: dict[int, KVSlot] | None,
        documents_BT: Tensor | None,
    ) -> Call:
        """A call without a cache. `kept`: slots that keep keys and values for later passes of this call."""
        rotation = rope.at(slice(0, span.positions_BT.shape[1]), dtype)
        same_BTS = None if documents_BT is None else (documents_BT[:, :, None] == documents_BT[:, None]).tril()
        return cls(rope, span, Sight(rotation, same_BTS, kept, span.positions_BT), documents_BT)

    @classmethod
    def cached(
        cls, rope: RotaryEmbedding, dtype: torch.dtype, span: Span, slots: dict[int, KVSlot], cache: Cache
    ) -> Call:
        """A call that goes on from a cache."""
        positions_BT = span.positions_BT
        seen_BTS = torch.arange(cache.capacity, device=positions_BT.device) <= positions_BT[..., None]
        return cls(rope, span, Sight(rope.at(positions_BT, dtype), seen_BTS, slots, positions_BT), cache=cache)

    def gathered(self, numbers: list[int], block: Gathered) -> Sight:
        """The tokens of a block see each other and, in a cache, those gathered before. Slots: of the pass."""
        positions_AC, rotation = self._positions(block)
        if self.sight.slots is None:
            documents_AC = None if self.documents_BT is None else block.take_numbers(self.documents_BT)
            mask_ACC = None if documents_AC is None else (documents_AC[..., None] == documents_AC[:, None]).tril()
            return Sight(rotation, mask_ACC, None, positions_AC)
        places_AC = block.places(self.sight.slots[numbers[0]])
        n_seen = block.n_seen or self.sight.slots[numbers[0]].k_BHLK.shape[2]
        seen_ACS = torch.arange(n_seen, device=places_AC.device) <= places_AC[..., None]
        slots = {n: SlotOfRows(self.sight.slots[n], block.rows_A, n_seen) for n in numbers}
        return Sight(rotation, seen_ACS, dict(slots), places_AC)

    def rereading(self, numbers: list[int], block: Gathered | None) -> Sight:
        """The tokens of a block (None: all) see all tokens up to themselves as an earlier pass left them in slots."""
        assert self.sight.slots is not None
        slots = {n: self.sight.slots[n] for n in numbers}
        if block is None:
            return self.sight._replace(slots=earlier(slots))
        positions_AC, rotation = self._positions(block)
        n_keys = slots[numbers[0]].k_BHLK.shape[2]
        seen_ACS = torch.arange(n_keys, device=positions_AC.device) <= positions_AC[..., None]
        if self.documents_BT is not None:
            seen_ACS = seen_ACS & (block.take_numbers(self.documents_BT)[..., None] == self.documents_BT[:, None])
        return Sight(rotation, seen_ACS, earlier(slots, block.rows_A), positions_AC)

    def _positions(self, block: Gathered) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        positions_AC = block.take_numbers(self.span.positions_BT)
        return positions_AC, self.rope.at(positions_AC, self.sight.rotation[0].dtype)


class GatheredTaps:
    """Taps inside a gathered block, shown at full length (B, T, …): zero (a score: −∞) where no token takes part.

    So a tap has one shape whatever the router does, and a position means the same token everywhere. What a hook writes
    at a token that does not take part is lost.

    Args:
        taps: where the tensors go.
        block: the tokens.
        size: rows and tokens of the call.
        keys_gathered: whether the attended keys are the block's own (else they are shown as they are).
        present_AC: places at which something is shown, for a block inside this one; None: all that are taken.
    """

    def __init__(
        self,
        taps: TapPoint,
        block: Gathered,
        size: tuple[int, int],
        keys_gathered: bool,
        present_AC: Tensor | None = None,
    ) -> None:
        self.taps, self.block, self.size, self.keys_gathered = taps, block, size, keys_gathered
        self.present_AC = present_AC

    def at(self, step: int) -> GatheredTaps:
        return GatheredTaps(self.taps.at(step), self.block, self.size, self.keys_gathered, self.present_AC)

    def among(self, present_AC: Tensor) -> GatheredTaps:
        """These taps, told that of the block only some places are shown."""
        return GatheredTaps(self.taps, self.block, self.size, self.keys_gathered, present_AC)

    def wants(self, site: str) -> bool:
        return self.taps.wants(site)

    def __call__(self, site: str, tensor: Tensor) -> Tensor:
        if not self.taps.wants(site):
            return tensor
        pairs = site in ("attn.scores", "attn.pattern")
        axes = ((2, 3) if self.keys_gathered else (2,)) if pairs else (1,)
        shown = tensor
        for axis in axes:
            shown = self._spread(shown, axis, float("-inf") if site == "attn.scores" else 0.0)
        answer = self._told()(site, shown)
        if pairs and answer is shown:  # attention goes its fast way unless scores or pattern are replaced
            return tensor
        taken = tensor.new_ones((), dtype=torch.bool)
        for axis in axes:
            answer, taken = self._collect(answer, axis), taken & self._taken(axis, tensor.dim())
        return torch.where(taken, answer, tensor)

    def _told(self) -> TapPoint:
        """The taps, told who takes part where they ask for it."""
        among = getattr(self.taps, "among", None)
        if among is None:
            return self.taps
        taken_AC = self.block.selection.taken_BC
        present_AC = taken_AC if self.present_AC is None else taken_AC & self.present_AC
        return among(self._spread(present_AC, 1, False))

    def _spread(self, tensor: Tensor, axis: int, fill: float) -> Tensor:
        """Axis `axis` from places to positions; empty places end in one position more, which is cut off."""
        n_rows, n_tokens = self.size
        selection = self.block.selection
        where_AC = torch.where(selection.taken_BC, selection.index_BC, n_tokens)
        places_first = tensor.movedim(axis, 1)
        whole = places_first.new_full((n_rows, n_tokens + 1, *places_first.shape[2:]), fill)
        whole[self._row_numbers(), where_AC] = places_first
        return whole[:, :-1].movedim(1, axis)

    def _collect(self, shown: Tensor, axis: int) -> Tensor:
        """Axis `axis` from positions to places."""
        positions_first = shown.movedim(axis, 1)
        return positions_first[self._row_numbers(), self.block.selection.index_BC].movedim(1, axis)

    def _taken(self, axis: int, n_axes: int) -> Tensor:
        taken_AC = self.block.selection.taken_BC
        return taken_AC.view(len(taken_AC), *[1] * (axis - 1), -1, *[1] * (n_axes - axis - 1))

    def _row_numbers(self) -> Tensor:
        rows_A = self.block.rows_A
        all_B = torch.arange(self.size[0], device=self.block.selection.index_BC.device)
        return (all_B if rows_A is None else rows_A)[:, None]
