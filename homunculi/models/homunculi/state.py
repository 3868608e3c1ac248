"""What a pass and a call hold while the model thinks.

Legend: B batch, T positions, C places of a gathered block, S positions attended to, D width, H heads, P plan, Q packet
summary, E experts, R passes, N paths, K head width; a trailing 1 is an axis of size one.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ...core.cache import Cache, KVSlot
from ...core.modulation import Modulation
from ...parts.gathered import Crowd, Gathered
from ...parts.kv_sharing import Earlier
from ...parts.routers import Choice, Span
from ...parts.routing import RoutedSlot
from .config import Config


@dataclass(slots=True)
class Slot:
    """What one step of a pass remembers of the tokens read.

    Attributes:
        routed: keys and values of those that took part.
        memory_BHKK: the associative memory.
        summary_BQ: sum and number of the packet's readings; without columns where another step of the pass holds it.
        plan_BP: the decaying mean of plans, likewise.
        through_BN: how many tokens of the pass went through each path, likewise.
    """

    routed: RoutedSlot
    memory_BHKK: Tensor
    summary_BQ: Tensor
    plan_BP: Tensor
    through_BN: Tensor

    @classmethod
    def empty(
        cls, config: Config, n_rows: int, width: int, dtype: torch.dtype, device: torch.device, *, speaks: bool
    ) -> Slot:
        """For at most `width` tokens a row; `speaks`: the first step of a pass, which holds packet and plans."""
        H, K = config.n_heads, config.width_of_heads
        wide = torch.promote_types(dtype, torch.float32)
        routed = RoutedSlot.empty((n_rows, H, width, K), dtype, device)
        sizes = (
            (H if config.has("temporal") else 0, K, K),
            (config.packet_width + 1 if speaks and config.signals else 0,),
            (config.plan_width if speaks else 0,),
        )
        memory, summary, plan = (torch.zeros(n_rows, *size, dtype=wide, device=device) for size in sizes)
        through = torch.zeros(n_rows, len(config.paths) if speaks else 0, dtype=torch.long, device=device)
        return cls(routed, memory, summary, plan, through)


@dataclass(frozen=True, slots=True)
class Place:
    """Where the tokens of a pass stand.

    Attributes:
        block: those that take part; None: all.
        taken_BC: which of its places hold a token; None: all.
        positions_BC: theirs in their sequences; one row if all are alike.
        rotation: rotary tables of these.
        n_places: C.
        r: number of the pass.
        documents_BT: document of each token of the call; None: all are of one.
    """

    block: Gathered | None
    taken_BC: Tensor | None
    positions_BC: Tensor
    rotation: tuple[Tensor, Tensor]
    n_places: int
    r: int
    device: torch.device
    documents_BT: Tensor | None = None

    def documents(self) -> Tensor | None:
        """Of those who take part, (B, C)."""
        return (
            self.documents_BT
            if self.documents_BT is None or self.block is None
            else self.block.take_numbers(self.documents_BT)
        )

    def ranks(self) -> Tensor:
        """Of each place how many took the pass up to and with it, earlier calls included; it never falls."""
        return self.positions_BC + 1 if self.block is None else self.block.selection.count_BC.cummax(1).values

    def pick(self, x_BTD: Tensor) -> Tensor:
        return x_BTD if self.block is None else self.block.take(x_BTD)

    def picked(self, x_BTD: Tensor | None) -> Tensor | None:
        return None if x_BTD is None else self.pick(x_BTD)

    def put(self, x_BTD: Tensor, new_BCD: Tensor, taking_BT: Tensor) -> Tensor:
        """`x_BTD` with the rows of those that take part replaced."""
        if self.block is None:
            return new_BCD
        return self.block.put_sum(torch.where(taking_BT[..., None], 0, x_BTD), new_BCD)

    def add(self, x_BTD: Tensor, change_BCD: Tensor) -> Tensor:
        return x_BTD + change_BCD if self.block is None else self.block.put_sum(x_BTD, change_BCD)

    def rows(self, state: Tensor) -> Tensor:
        """The rows of a decoding state that take part."""
        return state if self.block is None else self.block.rows(state)

    def write_rows(self, state: Tensor, new: Tensor) -> None:
        if self.block is None or self.block.rows_A is None:
            state.copy_(new.detach())
        else:
            state.index_copy_(0, self.block.rows_A, new.detach())


@dataclass(frozen=True, slots=True)
class Path:
    """Those of a pass who go through a region, and what was chosen by.

    Attributes:
        block: them, among the places of the pass; None: while decoding, nobody does.
        gate_BC1: weight of what the region says to a token.
        score_BC, wants_BC: who wanted to, and by what score.
        present_BC: which places of the pass hold a token; None: all.
    """

    block: Gathered | None
    gate_BC1: Tensor
    score_BC: Tensor
    wants_BC: Tensor
    present_BC: Tensor | None


@dataclass(frozen=True, slots=True)
class Call:
    """What is known of a call before the model thinks.

    Attributes:
        rotation: rotary tables of all positions.
        mask_BTS: what the first and the last block may see in their caches; None: all earlier positions.
        cache: None: the whole sequence is in this call.
        span: positions, padding, and how many tokens took each pass before.
        documents_BT: document of each token, in one piece each; None: all are of one.
        kept: of each layer, the keys and values of the first pass, by position; empty: every pass has its own.
    """

    rotation: tuple[Tensor, Tensor]
    mask_BTS: Tensor | None
    cache: Cache | None
    span: Span
    kept: tuple[KVSlot, ...] = ()
    documents_BT: Tensor | None = None

    @property
    def recorded(self) -> bool:
        """Whether this is a step whose pieces are recorded."""
        return self.cache is not None and self.cache.pieces.records

    def kv(self, i: int) -> tuple[KVSlot, Tensor] | None:
        return None if self.cache is None else (self.cache.at(i), self.span.positions_BT)

    def slot(self, i: int) -> Slot | None:
        return None if self.cache is None else self.cache.at(i)

    def shared_kv(self, k: int, r: int) -> KVSlot | None:
        """What layer `k` fills in the first pass, or `Earlier` what it left there; None: a pass's own slot, if any."""
        if not self.kept or (r == 0 and self.cache is not None):
            return None
        kv = self.kept[k]
        if r == 0:
            return kv
        if self.cache is None or self.recorded:  # a recording must hold while the cache fills
            return Earlier(kv)
        return Earlier(kv, n_places=self.cache.longest + self.span.positions_BT.shape[1])


class Chosen(NamedTuple):
    """What is settled before a pass.

    Attributes:
        levels: the packet's signals by name, each (B, T, 1).
        crowd: who takes the pass, in a cache.
    """

    choice: Choice
    levels: dict[str, Tensor]
    crowd: Crowd | None


class Wanted(NamedTuple):
    """How much tokens wanted each expert before inhibition; taken_BC: which places hold a token, None: all."""

    logits_BCE: Tensor
    taken_BC: Tensor | None


@dataclass(frozen=True, slots=True)
class Passed:
    """What a pass leaves to losses and statistics.

    Attributes:
        x_BTD: the state after it.
        forecast_BC1: the amygdala's; None without one.
        wanted: experts of each layer.
        levels: signals and gains by name.
        paths: who went through what, by name.
    """

    x_BTD: Tensor
    forecast_BC1: Tensor | None
    wanted: list[Wanted]
    levels: dict[str, Tensor]
    paths: dict[str, Path]


@dataclass(frozen=True, slots=True)
class Felt:
    """What a token feels in a pass: the packet's influence, its salience, what is inhibited, and where it goes."""

    gains: dict[str, Tensor | None]
    signals: Modulation
    salience_BC1: Tensor | None = None
    open_experts_BCE: Tensor | None = None
    open_heads_BCH: Tensor | None = None
    paths: dict[str, Path] = field(default_factory=dict)

    def on(self, block: Gathered) -> Felt:
        """Of some of the tokens, gathered: what they feel inside a region."""

        def take(x_BCD: Tensor | None) -> Tensor | None:
            return None if x_BCD is None else block.take(x_BCD)

        signals = replace(self.signals, router_temperature=take(self.signals.router_temperature))
        return Felt({}, signals, take(self.salience_BC1), take(self.open_experts_BCE), take(self.open_heads_BCH))


@dataclass(slots=True)
class Mind:
    """The state between passes, at every token."""

    x_BTD: Tensor
    took_BT: Tensor
    salience_BT1: Tensor | None
    plan_BTP: Tensor | None
    open_heads_BTH: Tensor | None = None
    halt_BT1: Tensor | None = None
