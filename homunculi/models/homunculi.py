"""Homunculi: a mixture of recursions whose passes go through four regions under a packet of neuromodulators.

One shared block is applied again to the tokens that take another pass. In each pass the temporal lobe binds a token to
its context, the amygdala says how much it matters, the prefrontal cortex plans and inhibits across passes, and the
neocortex answers with experts. A packet of bounded signals, exactly 1 at the start, influences each pass. The equations
stand in docs/architectures/homunculi.md.

Over 400 lines: the regions and the loop that joins them are one architecture and are read together.

Legend: B batch, T positions, C places of a gathered block, S positions attended to, D width, H heads, P plan, Q packet
summary, E experts, R passes, N sampled positions, V vocabulary; a trailing 1 is an axis of size one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.budget import Budget, count_parameters
from ..core.cache import Cache, KVSlot
from ..core.model import LanguageModel
from ..core.modulation import Modulation
from ..core.output import Hidden
from ..core.schedule import shared
from ..core.taps import NO_TAPS, TapPoint
from ..errors import InputError
from ..parts.attention import CausalSelfAttention
from ..parts.block import Block
from ..parts.expert_choice import ExpertChoiceRouter
from ..parts.experts import Experts
from ..parts.gathered import Gathered, GatheredTaps, SlotOfRows, gather, gather_now
from ..parts.linear import Linear
from ..parts.memory import AssociativeMemory, running_sum
from ..parts.mlp import feed_forward
from ..parts.norm import RMSNorm
from ..parts.pooling import prefix_sum
from ..parts.rope import RotaryEmbedding
from ..parts.routers import Choice, Router, RoutingOptions, Span, ThresholdRouter, TokenChoiceRouter, check_capacities
from ..parts.routing import RoutedSlot
from ..settings import check_range
from .registry import architecture

REGIONS = ("temporal", "amygdala", "prefrontal", "neocortex")
SIGNALS = ("dopamine", "acetylcholine", "noradrenaline", "serotonin")
# What each signal influences, and the bound of its influence: θ · (1 ± KAPPA) at most.
EFFECTS = {
    "gain_temporal": "dopamine",
    "gain_prefrontal": "dopamine",
    "gain_neocortex": "dopamine",
    "precision": "acetylcholine",
    "router_temperature": "noradrenaline",
    "patience": "serotonin",
}
KAPPA = 0.5
# Regions whose output dopamine scales, and with it how fast they learn.
GAINED = ("temporal", "prefrontal", "neocortex")
ROUTERS: dict[str, Callable[..., Router]] = {
    "threshold": ThresholdRouter,
    "token_choice": TokenChoiceRouter,
    "expert_choice": ExpertChoiceRouter,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Shape of the model; a zero or an empty tuple is derived.

    Attributes:
        vocab_size: 0 stands for the tokenizer's size when a run is planned.
        n_passes: how often the shared block may be applied.
        n_shared: layers of the shared block.
        capacities: share of the tokens that each pass may take, from the first on; not increasing, the first 1.
            Empty: (R − r) / R for r = 0 … R − 1.
        burst: tokens that a pass may take beyond its share.
        router, routing: who takes another pass; see `homunculi.parts.routers`.
        window: how far back the temporal lobe's attention sees among the tokens of its pass; 0: to the beginning.
        d_mlp: hidden width of the first and last block; 0: 8/3 · d_model rounded up to a multiple of 8.
        n_experts, n_active, d_expert: of the neocortex; d_expert 0: d_mlp / n_active.
        plan_width: of the prefrontal state; packet_width: of the packet's summary.
        regions: those that take part; without one the plain part of a recursive transformer stands in its place (the
            temporal lobe's attention then sees to the beginning and has no memory, the neocortex is one feed-forward
            part of width d_mlp).
        signals: of the packet; empty: no packet.
        filled: regions left out, or "packet", whose parameters a plain feed-forward part makes up for.
        forecast: what the amygdala learns to foresee: a token's loss, how much of it later passes remove, or nothing.
        forecast_weight, homeostasis: factors of the two losses.
        balance_rate: how fast the biases of experts follow their load, an update.
    """

    vocab_size: int = 0
    d_model: int = 256
    n_heads: int = 8
    n_passes: int = 3
    n_shared: int = 1
    max_seq_len: int = 512
    capacities: tuple[float, ...] = ()
    burst: int = 4
    router: Literal["threshold", "token_choice", "expert_choice"] = "threshold"
    routing: RoutingOptions = field(default_factory=RoutingOptions)
    window: int = 64
    d_mlp: int = 0
    n_experts: int = 8
    n_active: int = 2
    d_expert: int = 0
    plan_width: int = 32
    packet_width: int = 32
    regions: tuple[str, ...] = REGIONS
    signals: tuple[str, ...] = SIGNALS
    filled: tuple[str, ...] = ()
    forecast: Literal["surprise", "reducible", "none"] = "surprise"
    forecast_weight: float = 0.1
    homeostasis: float = 0.01
    balance_rate: float = 1e-2
    qk_norm: bool = True
    tied: bool = True
    rope_base: float = 10000.0

    def __post_init__(self) -> None:
        positive = ("d_model", "n_heads", "n_passes", "n_shared", "max_seq_len", "n_experts", "n_active")
        for name in (*positive, "plan_width", "packet_width"):
            check_range(f"model.{name}", getattr(self, name), low=1)
        for name in ("vocab_size", "burst", "window", "d_mlp", "d_expert", "forecast_weight", "homeostasis"):
            check_range(f"model.{name}", getattr(self, name), low=0)
        check_range("model.balance_rate", self.balance_rate, low=0, high=1)
        check_range("model.rope_base", self.rope_base, above=1)
        if self.d_model % (2 * self.n_heads):
            raise InputError(f"model.n_heads: {self.n_heads} heads of even width do not divide d_model={self.d_model}")
        check_range("model.n_active", self.n_active, high=self.n_experts)
        _check_names("regions", self.regions, REGIONS)
        _check_names("signals", self.signals, SIGNALS)
        _check_names("filled", self.filled, (*REGIONS, "packet"))
        for name in self.filled:
            if name in self.regions or (name == "packet" and self.signals):
                raise InputError(f"model.filled: {name} takes part itself; leave it out of regions or signals first")
        check_capacities(self.shares, self.n_passes)
        if self.shares[0] != 1:
            raise InputError(f"model.capacities: the first pass takes every token, so it is 1 and not {self.shares[0]}")
        if self.router not in ROUTERS:
            raise InputError(f"model.router: {self.router!r} is none of {', '.join(ROUTERS)}")

    @property
    def shares(self) -> tuple[float, ...]:
        n = self.n_passes
        return self.capacities or tuple((n - r) / n for r in range(n))

    @property
    def hidden(self) -> int:
        return self.d_mlp or 8 * -(-self.d_model // 3)

    @property
    def expert_width(self) -> int:
        return self.d_expert or -(-self.hidden // self.n_active)

    # What the first and the last block are built from.
    activation: ClassVar[Literal["swiglu"]] = "swiglu"
    dropout: ClassVar[float] = 0.0

    @property
    def number_of_kv_heads(self) -> int:
        return self.n_heads

    @property
    def width_of_heads(self) -> int:
        return self.d_model // self.n_heads

    def has(self, region: str) -> bool:
        return region in self.regions


def _check_names(field: str, given: tuple[str, ...], known: tuple[str, ...]) -> None:
    unknown = [name for name in given if name not in known]
    if unknown or len(set(given)) < len(given):
        raise InputError(f"model.{field}: {', '.join(unknown or given)}: give each of {', '.join(known)} at most once")


class Temporal(nn.Module):
    """Temporal lobe: what was just said, word for word, by attention inside a window, and bindings from further back by
    an associative memory that salient tokens write harder."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        d, h = config.d_model, config.n_heads
        self.norm = RMSNorm(d)
        self.attn = CausalSelfAttention(d, h, h, d // h, qk_norm=config.qk_norm)
        self.memory = AssociativeMemory(d, h, d // h) if config.has("temporal") else None
        self.window = config.window if config.has("temporal") else 0

    def forward(self, x_BCD: Tensor, place: Place, felt: Felt, taps: TapPoint, slot: Slot | None) -> Tensor:
        n_BCD = self.norm(x_BCD)
        mask_BCS, cache = self._visible(place, slot)
        y_BCD = self.attn(n_BCD, place.rotation, taps, mask_BCS, cache, felt.signals.precision)
        if self.memory is None:
            return y_BCD
        write = None if felt.salience_BC1 is None else 2 * felt.salience_BC1
        before = None if slot is None else place.rows(slot.memory_BHKK)
        bound_BCD, after = self.memory(n_BCD, write, felt.open_heads_BCH, taps, place.taken_BC, before)
        if slot is not None:
            place.write_rows(slot.memory_BHKK, after)
        return y_BCD + bound_BCD

    def _visible(self, place: Place, slot: Slot | None) -> tuple[Tensor | None, tuple[KVSlot, Tensor] | None]:
        if slot is None or place.block is None:
            C = place.n_places
            if not 0 < self.window < C:
                return None, None
            ages_CC = torch.arange(C, device=place.device)[:, None] - torch.arange(C, device=place.device)
            return ((ages_CC >= 0) & (ages_CC < self.window))[None], None
        where_BC = place.block.places(slot.routed.kv)
        ages_BCS = where_BC[..., None] - torch.arange(place.block.n_seen, device=place.device)
        seen_BCS = ages_BCS >= 0 if not self.window else (ages_BCS >= 0) & (ages_BCS < self.window)
        return seen_BCS, (SlotOfRows(slot.routed.kv, place.block.rows_A, place.block.n_seen), where_BC)


class Amygdala(nn.Module):
    """How much a token matters: σ(w · n + b + 4 (forecast − typical forecast)), n the normalised state.

    The forecast is an affine reading of the same n that learns by itself what the token's loss will be; its gradient
    stays with it.
    """

    typical: Tensor

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.norm = RMSNorm(d_model)
        self.salience = Linear(d_model, 1)
        self.forecast = Linear(d_model, 1)
        self.bias = nn.Parameter(torch.zeros(2))
        self.register_buffer("typical", torch.zeros(()))

    def forward(self, x_BTD: Tensor, taps: TapPoint) -> tuple[Tensor, Tensor]:
        """Salience and forecast, each (B, T, 1)."""
        n_BTD = self.norm(x_BTD)
        bias = self.bias.to(n_BTD.dtype)
        forecast_BT1 = taps("amygdala.forecast", self.forecast(n_BTD.detach()) + bias[1])
        unusual_BT1 = 4 * (forecast_BT1.detach() - self.typical.to(n_BTD.dtype))
        score_BT1 = self.salience(n_BTD) + bias[0] + unusual_BT1
        return taps("amygdala.salience", score_BT1.sigmoid()), forecast_BT1


class Prefrontal(nn.Module):
    """Plans and inhibits across passes: a gated recurrent cell over passes (Cho et al. 2014) that also hears a decaying
    mean, over positions, of the plans of the pass before."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        P = config.plan_width
        self.sizes = (
            config.n_experts if config.has("neocortex") else 0,
            config.n_heads if config.has("temporal") else 0,
            1,
        )
        self.norm = RMSNorm(config.d_model)
        self.read = Linear(config.d_model, P)
        self.salience_P = nn.Parameter(torch.zeros(P))
        self.passes_RP = nn.Parameter(torch.zeros(config.n_passes, P))
        self.context = Linear(P, P)
        self.decay_P = nn.Parameter(torch.linspace(0.0, 4.0, P))  # time constants from 2 to about 50 tokens
        self.update = Linear(2 * P, 2 * P)
        self.candidate = Linear(2 * P, P)
        self.plan = Linear(P, config.d_model)
        self.gates = Linear(P, sum(self.sizes))

    def forward(
        self,
        y_BCD: Tensor,
        salience_BC1: Tensor | None,
        plans: tuple[Tensor, Tensor],
        r: int,
        taps: TapPoint,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One step of the cell over passes.

        Args:
            plans: the token's plan of the pass before, and the mean of the plans before it, each (B, C, P).

        Returns:
            The plan (B, C, P), and the gates: experts open (E) and memory heads open (H), 1 at the start, and the wish
            to halt (1).
        """
        plan_BCP, context_BCP = plans
        heard_BCP = self.read(self.norm(y_BCD)) + self.context(context_BCP) + self.passes_RP[r].to(y_BCD.dtype)
        if salience_BC1 is not None:
            heard_BCP = heard_BCP + salience_BC1 * self.salience_P.to(y_BCD.dtype)
        keep, reset = self.update(torch.cat([heard_BCP, plan_BCP], -1)).sigmoid().chunk(2, -1)
        new_BCP = self.candidate(torch.cat([heard_BCP, reset * plan_BCP], -1)).tanh()
        state_BCP = keep * plan_BCP + (1 - keep) * new_BCP
        state_BCP = taps("prefrontal.state", state_BCP)
        experts, heads, halt = self.gates(state_BCP).split(self.sizes, -1)
        return state_BCP, (2 * experts.sigmoid(), 2 * heads.sigmoid(), halt)

    def recall(self, plan_BTP: Tensor, slot: Slot | None, valid_BT: Tensor | None) -> Tensor:
        """Of each position the decaying mean of plans up to it, (B, T, P)."""
        wide = torch.promote_types(plan_BTP.dtype, torch.float32)
        keep_P = self.decay_P.to(wide).sigmoid()
        mean_BTP = decaying_mean(plan_BTP.to(wide), keep_P, None if slot is None else slot.plan_BP)
        if slot is not None:
            series = torch.cat([slot.plan_BP[:, None], mean_BTP], 1)
            n_rows, n_tokens = plan_BTP.shape[:2]
            last_B = torch.full((n_rows,), n_tokens, device=series.device) if valid_BT is None else valid_BT.sum(1)
            slot.plan_BP.copy_(series[torch.arange(n_rows, device=series.device), last_B].detach())
        return mean_BTP.to(plan_BTP.dtype)


def decaying_mean(x_BTP: Tensor, keep_P: Tensor, before_BP: Tensor | None) -> Tensor:
    """c_t = keep · c_{t−1} + (1 − keep) · x_t along T, from `before_BP` or 0 on."""
    part_BTP = (1 - keep_P) * x_BTP
    if before_BP is not None:
        part_BTP = torch.cat([before_BP[:, None], part_BTP], 1)
    sums_BTP = prefix_sum(part_BTP[..., None], keep_P)[..., 0]
    return sums_BTP if before_BP is None else sums_BTP[:, 1:]


class Neocortex(nn.Module):
    """Experts, chosen by what the token is, how salient it is and what is inhibited; or one plain part."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        d, E = config.d_model, config.n_experts
        self.norm = RMSNorm(d)
        self.experts: Experts | None = None
        if config.has("neocortex"):
            self.experts = Experts(d, config.expert_width, E, config.n_active, "swiglu")
            self.router = Linear(d, E)
            self.salience_E = nn.Parameter(torch.zeros(E)) if config.has("amygdala") else None
        else:
            self.plain = feed_forward(d, config.hidden, "swiglu")

    def forward(self, y_BCD: Tensor, place: Place, felt: Felt, taps: TapPoint) -> tuple[Tensor, Tensor | None]:
        """The answer (B, C, D), and the load of each expert before inhibition (E)."""
        n_BCD = self.norm(y_BCD)
        if self.experts is None:
            return self.plain(n_BCD, taps), None
        wanted_BCE = self.router(n_BCD)
        if self.salience_E is not None and felt.salience_BC1 is not None:
            wanted_BCE = wanted_BCE + felt.salience_BC1 * self.salience_E.to(n_BCD.dtype)
        logits_BCE = wanted_BCE
        if felt.open_experts_BCE is not None:
            logits_BCE = logits_BCE + felt.open_experts_BCE.float().clamp(min=1e-6).log().to(n_BCD.dtype)
        if felt.signals.router_temperature is not None:
            logits_BCE = logits_BCE / felt.signals.router_temperature
        logits_BCE = taps("experts.logits", logits_BCE)
        out_BCD, _ = self.experts(n_BCD, logits_BCE, taps, place.taken_BC)
        with torch.no_grad():
            wanted = self.experts.choose(wanted_BCE, NO_TAPS)
            return out_BCD, self.experts.load(wanted.indices_BCA, place.taken_BC)


class Packet(nn.Module):
    """The packet of neuromodulators: bounded signals 2σ(·), exactly 1 at the start, from a running mean over the tokens
    that took part so far, the token itself and its salience.

    A signal influences and does not force: a positive quantity θ of a pass becomes θ · (1 + KAPPA · tanh(c (m − 1))),
    with a sensitivity c for each effect.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        Q = config.packet_width
        self.signals = config.signals
        self.norm = RMSNorm(config.d_model)
        self.read = Linear(config.d_model, Q)
        self.summary = Linear(Q, Q)
        self.salience_Q = nn.Parameter(torch.zeros(Q)) if config.has("amygdala") else None
        self.passes_RQ = nn.Parameter(torch.zeros(config.n_passes, Q))
        self.out = Linear(Q, len(config.signals))

        owner = {"gain_prefrontal": "prefrontal", "router_temperature": "neocortex"}
        absent = {effect for effect, region in owner.items() if not config.has(region)}
        absent |= {"patience"} if min(config.shares) == 1 else set()
        effects = [e for e, signal in EFFECTS.items() if signal in config.signals and e not in absent]
        self.sensitivity = nn.ParameterDict({e: nn.Parameter(torch.ones(())) for e in effects})

    def forward(self, x_BTD: Tensor, salience_BT1: Tensor | None, took_BT: Tensor, r: int, slot: Slot | None) -> Tensor:
        """The signals of pass `r` at every token, (B, T, S)."""
        read_BTQ = self.read(self.norm(x_BTD))
        wide = torch.promote_types(read_BTQ.dtype, torch.float32)
        counted = torch.cat([read_BTQ.to(wide), torch.ones_like(read_BTQ[..., :1], dtype=wide)], -1)
        counted = counted * took_BT[..., None]
        if slot is not None:
            counted = torch.cat([slot.summary_BQ[:, None], counted], 1)
        sums = running_sum(counted.mT).mT[:, slot is not None :]
        if slot is not None:
            slot.summary_BQ.copy_(sums[:, -1])
        mean_BTQ = (sums[..., :-1] / sums[..., -1:].clamp(min=1)).to(x_BTD.dtype)
        heard_BTQ = read_BTQ + self.summary(mean_BTQ) + self.passes_RQ[r].to(x_BTD.dtype)
        if self.salience_Q is not None and salience_BT1 is not None:
            heard_BTQ = heard_BTQ + salience_BT1 * self.salience_Q.to(x_BTD.dtype)
        return 2 * self.out(heard_BTQ.tanh()).sigmoid()

    def influence(self, effect: str, levels: dict[str, Tensor]) -> Tensor | None:
        """The factor that an effect's signal puts on it, in 1 ± KAPPA; None where the packet has no such signal."""
        if effect not in self.sensitivity:
            return None
        level = levels[EFFECTS[effect]]
        return 1 + KAPPA * torch.tanh(self.sensitivity[effect].to(level.dtype) * (level - 1))


@dataclass(slots=True)
class Slot:
    """What one step of a pass remembers of the tokens read.

    Attributes:
        routed: keys and values of those that took part.
        memory_BHKK: the associative memory.
        summary_BQ: sum and number of the packet's readings; without columns where another step of the pass holds it.
        plan_BP: the decaying mean of plans, likewise.
    """

    routed: RoutedSlot
    memory_BHKK: Tensor
    summary_BQ: Tensor
    plan_BP: Tensor


@dataclass(frozen=True, slots=True)
class Place:
    """Where the tokens of a pass stand.

    Attributes:
        block: those that take part; None: all.
        taken_BC: which of its places hold a token; None: all.
        rotation: rotary tables of their positions.
        n_places: C.
    """

    block: Gathered | None
    taken_BC: Tensor | None
    rotation: tuple[Tensor, Tensor]
    n_places: int
    device: torch.device

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
class Call:
    """What is known of a call before the model thinks.

    Attributes:
        rotation: rotary tables of all positions.
        mask_BTS: what the first and the last block may see in their caches; None: all earlier positions.
        cache: None: the whole sequence is in this call.
        span: positions, padding, and how many tokens took each pass before.
    """

    rotation: tuple[Tensor, Tensor]
    mask_BTS: Tensor | None
    cache: Cache | None
    span: Span

    def kv(self, i: int) -> tuple[KVSlot, Tensor] | None:
        return None if self.cache is None else (self.cache.at(i), self.span.positions_BT)

    def slot(self, i: int) -> Slot | None:
        return None if self.cache is None else self.cache.at(i)


@dataclass(frozen=True, slots=True)
class Passed:
    """What a pass leaves to losses and statistics.

    Attributes:
        x_BTD: the state after it.
        forecast_BC1: the amygdala's; None without one.
        loads: of the experts of each layer, (E).
        levels: signals and gains by name.
    """

    x_BTD: Tensor
    forecast_BC1: Tensor | None
    loads: list[Tensor]
    levels: dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Felt:
    """What a token feels in a pass: the packet's influence, its salience, and what is inhibited."""

    gains: dict[str, Tensor | None]
    signals: Modulation
    salience_BC1: Tensor | None = None
    open_experts_BCE: Tensor | None = None
    open_heads_BCH: Tensor | None = None


@dataclass(slots=True)
class Mind:
    """The state between passes, at every token."""

    x_BTD: Tensor
    took_BT: Tensor
    salience_BT1: Tensor | None
    plan_BTP: Tensor | None
    open_heads_BTH: Tensor | None = None
    halt_BT1: Tensor | None = None


VARIANTS: tuple[dict[str, Any], ...] = (
    {"n_heads": 2, "n_passes": 2, "window": 6, "n_experts": 4, "n_active": 2, "plan_width": 6, "packet_width": 5},
    {"n_heads": 2, "n_passes": 2, "n_shared": 2, "regions": ("temporal", "neocortex"), "n_experts": 3, "n_active": 1},
    {"n_heads": 2, "n_passes": 2, "regions": (), "signals": (), "filled": REGIONS, "tied": False},
)


@architecture("homunculi", Config, variants=VARIANTS)
class Homunculi(LanguageModel):
    """Four regions, a packet of neuromodulators and a router of depth over one shared block.

    Raises:
        InputError: `config.vocab_size` is 0.
    """

    router: Router
    dopamine_G: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        if config.vocab_size < 1:
            raise InputError("model.vocab_size: a model needs a vocabulary; give its size")
        self.config = config
        d, R, K = config.d_model, config.n_passes, config.n_shared
        self.schedule = shared("middle_cycle", 2 + R * K, R)
        self.first_steps = tuple(1 + r * K for r in range(R))
        self.embed = nn.Embedding(config.vocab_size, d)
        self.first, self.last = Block(config), Block(config)
        self.temporal = nn.ModuleList(Temporal(config) for _ in range(K))
        self.neocortex = nn.ModuleList(Neocortex(config) for _ in range(K))
        self.amygdala = Amygdala(d) if config.has("amygdala") else None
        self.prefrontal = Prefrontal(config) if config.has("prefrontal") else None
        self.packet = Packet(config) if config.signals else None
        self.router = ROUTERS[config.router](d, config.shares, config.burst, self.first_steps, config.routing)
        routed = len(self.router.routed)
        routed = 1 if routed and config.router == "token_choice" else routed
        self.alarm_R = nn.Parameter(torch.ones(routed)) if self.amygdala is not None and routed else None
        self.filler = self._filler()
        self.filler_norm = None if self.filler is None else RMSNorm(d)
        self.norm = RMSNorm(d)
        self.untied = None if config.tied else Linear(d, config.vocab_size)
        self.rope = RotaryEmbedding(config.width_of_heads, config.max_seq_len, config.rope_base)
        self.register_buffer("dopamine_G", torch.ones(3))
        self.init_weights()

    def _filler(self) -> nn.Module | None:
        """A plain part with as many parameters as the regions in `config.filled` would have."""
        wanted = count_filled(self.config)
        hidden = round(wanted / (2 * self.config.d_model))
        return feed_forward(self.config.d_model, hidden, "gelu") if hidden else None

    def init_weights(self) -> None:
        """As the plain transformer's, with maps to the residual stream smaller by √(2 · steps). Plans, gates and the
        packet begin at zero, so that a new model is its twin without them."""
        nn.init.normal_(self.embed.weight, std=0.02)
        depth = 2 * len(self.schedule)
        for name, module in self.named_modules():
            if isinstance(module, Linear):
                writes = name.endswith((".o", "mlp.out", "plain.out", "filler.out"))
                nn.init.normal_(module.weight, std=(module.in_features * (depth if writes else 1)) ** -0.5)
            elif isinstance(module, Experts):
                for out_MD in module.maps["out"].parameters():
                    nn.init.normal_(out_MD, std=(self.config.expert_width * depth) ** -0.5)
        if self.untied is not None:
            nn.init.normal_(self.untied.weight, std=0.02)
        self.router.init_weights()
        silent = [self.packet.out] if self.packet is not None else []
        silent += [self.prefrontal.plan, self.prefrontal.gates] if self.prefrontal is not None else []
        for module in silent:
            nn.init.zeros_(module.weight)

    def neutral_twin(self) -> Homunculi:
        """The same weights without a packet."""
        twin = type(self)(replace(self.config, signals=()))
        twin.load_state_dict(self.state_dict(), strict=False)
        return twin.to(self.embed.weight.device, self.embed.weight.dtype)

    def trunk(
        self,
        ids_BT: Tensor,
        taps: TapPoint = NO_TAPS,
        cache: Cache | None = None,
        documents_BT: Tensor | None = None,
    ) -> Hidden:
        if documents_BT is not None:
            raise InputError("text.document_mask: memory and packet run over whole sequences; set it to false")
        call = self._call(ids_BT, cache)
        x_BTD = self.embed(ids_BT)
        x_BTD = taps("embed", x_BTD.to(self.compute_dtype or x_BTD.dtype))
        mind = self._awake(x_BTD, call, taps)
        mind.x_BTD = self.first(x_BTD, call.rotation, taps.at(0), call.mask_BTS, call.kv(0))
        choices: list[Choice] = []
        passed: list[Passed] = []
        for r in range(self.config.n_passes):
            levels = self._feel(mind, r, call, taps)
            choices.append(self._route(mind, levels, r, choices, call, taps))
            passed.append(self._think(mind, choices[r], levels, r, call, taps))
        x_BTD = self.last(mind.x_BTD, call.rotation, taps.at(len(self.schedule) - 1), call.mask_BTS, call.kv(-1))
        if cache is not None:
            return Hidden(x_BTD)
        foreseen = self._foresee(ids_BT, passed[0], x_BTD)
        terms = self._loss_terms(choices, passed, foreseen)
        return Hidden(x_BTD, terms, statistics=self._statistics(choices, passed, foreseen))

    def _call(self, ids_BT: Tensor, cache: Cache | None) -> Call:
        n_tokens, device = ids_BT.shape[1], ids_BT.device
        if cache is None:
            if n_tokens > self.config.max_seq_len:
                raise InputError(f"{n_tokens} tokens are more than model.max_seq_len={self.config.max_seq_len}")
            span = Span(torch.arange(n_tokens, device=device)[None])
            return Call(self.rope.at(slice(0, n_tokens), self._dtype), None, None, span)
        positions_BT = cache.positions(n_tokens)
        mask_BTS = torch.arange(cache.capacity, device=device) <= positions_BT[..., None]
        counts = tuple(cache.at(first).routed.count_B.clone() for first in self.first_steps)
        span = Span(positions_BT, cache.valid(n_tokens), counts)
        return Call(self.rope.at(positions_BT, self._dtype), mask_BTS, cache, span)

    @property
    def _dtype(self) -> torch.dtype:
        return self.compute_dtype or self.embed.weight.dtype

    def _awake(self, x_BTD: Tensor, call: Call, taps: TapPoint) -> Mind:
        B, T = x_BTD.shape[:2]
        valid_BT = call.span.valid_BT
        took_BT = torch.ones(B, T, dtype=torch.bool, device=x_BTD.device) if valid_BT is None else valid_BT
        salience = None if self.amygdala is None else self.amygdala(x_BTD, taps)[0]
        plan = None if self.prefrontal is None else x_BTD.new_zeros(B, T, self.config.plan_width)
        return Mind(x_BTD, took_BT, salience, plan)

    def _feel(self, mind: Mind, r: int, call: Call, taps: TapPoint) -> dict[str, Tensor]:
        """The packet's signals of a pass, by name, each (B, T, 1)."""
        if self.packet is None:
            return {}
        here, slot = taps.at(self.first_steps[r]), call.slot(self.first_steps[r])
        levels_BTS = self.packet(mind.x_BTD, mind.salience_BT1, mind.took_BT, r, slot)
        effective = {EFFECTS[effect] for effect in self.packet.sensitivity if effect != "patience" or self._routes(r)}
        return {
            name: here(f"packet.{name}", levels_BTS[..., i : i + 1])
            for i, name in enumerate(self.config.signals)
            if name in effective
        }

    def _routes(self, r: int) -> bool:
        """Whether anything is decided before pass `r`."""
        return r in self.router.routed if self.config.router != "token_choice" else r == 0

    def _route(
        self, mind: Mind, levels: dict[str, Tensor], r: int, choices: list[Choice], call: Call, taps: TapPoint
    ) -> Choice:
        """Who takes the pass: salience, a wish to halt and the packet's patience move the router's score."""
        score = self.router.score(r, mind.x_BTD)
        if score is not None:
            urge_BT1 = torch.zeros_like(mind.x_BTD[..., :1])
            if mind.salience_BT1 is not None and self.alarm_R is not None:
                alarm = self.alarm_R[self.router.routed.index(r) if r else 0].to(urge_BT1.dtype)  # r = 0 plans all
                urge_BT1 = urge_BT1 + alarm * (2 * mind.salience_BT1 - 1)
            if mind.halt_BT1 is not None:
                urge_BT1 = urge_BT1 - mind.halt_BT1
            patience = None if self.packet is None else self.packet.influence("patience", levels)
            if patience is not None:
                urge_BT1 = urge_BT1 + (patience - 1)
            # Of a choice of depths, urges speak for the deeper ones.
            if isinstance(self.router, TokenChoiceRouter):
                score = score + urge_BT1 * self.router.depth_E.to(score.dtype)
            else:
                score = score + urge_BT1[..., 0]
        return self.router.choose(r, mind.x_BTD, score, choices[-1] if choices else None, call.span, taps)

    def _place(self, choice: Choice, r: int, call: Call, mind: Mind) -> Place | None:
        """Where those who take the pass stand; None: while decoding, nobody takes it."""
        B, T = mind.x_BTD.shape[:2]
        device = mind.x_BTD.device
        if call.cache is None or call.span.counts is None:
            if choice.count_BT is None:
                return Place(None, None, call.rotation, T, device)
            block: Gathered | None = gather(choice.count_BT, self.router.places(r, T))
        else:
            before_B, count_BT = self._slot(call, r).routed.count_B, choice.count_BT
            if count_BT is None:
                count_BT = before_B[:, None] + mind.took_BT.long().cumsum(1)
            block = gather_now(count_BT, before_B)
            self._slot(call, r).routed.count_B.copy_(count_BT[:, -1])
        if block is None:
            return None
        positions_BC = block.take_numbers(call.span.positions_BT.expand(B, T))
        rotation = self.rope.at(positions_BC, self._dtype)
        return Place(block, block.selection.taken_BC, rotation, positions_BC.shape[1], device)

    def _slot(self, call: Call, r: int) -> Any:
        return call.slot(self.first_steps[r])

    def _think(
        self, mind: Mind, choice: Choice, levels: dict[str, Tensor], r: int, call: Call, taps: TapPoint
    ) -> Passed:
        """One pass over those who take part. Changes `mind`."""
        context = None
        if self.prefrontal is not None and mind.plan_BTP is not None:
            context = self.prefrontal.recall(mind.plan_BTP, self._slot(call, r), call.span.valid_BT)
        place = self._place(choice, r, call, mind)
        mind.took_BT = mind.took_BT if choice.taking_BT is None else choice.taking_BT
        if place is None:
            return Passed(mind.x_BTD, None, [], {})
        felt = self._felt(mind, levels, place)
        start_BCD = y_BCD = place.pick(mind.x_BTD)
        forecast, loads = None, []
        for k in range(self.config.n_shared):
            i = self.first_steps[r] + k
            here = self._taps(taps.at(i), place, mind, call)
            y_BCD = here("resid_pre", y_BCD)
            y_BCD = y_BCD + _scaled(self.temporal[k](y_BCD, place, felt, here, call.slot(i)), felt.gains["temporal"])
            if k == 0:
                y_BCD, felt, forecast = self._reflect(mind, y_BCD, context, place, felt, r, here)
            y_BCD = here("resid_mid", y_BCD)
            out_BCD, load_E = self.neocortex[k](y_BCD, place, felt, here)
            y_BCD = here("resid_post", y_BCD + _scaled(out_BCD, felt.gains["neocortex"]))
            loads += [] if load_E is None else [load_E]
        if choice.gate_BT is None and place.block is None:
            mind.x_BTD = y_BCD
        else:
            change_BCD = y_BCD - start_BCD
            if choice.gate_BT is not None:
                change_BCD = place.pick(choice.gate_BT[..., None]) * change_BCD
            mind.x_BTD = place.add(mind.x_BTD, change_BCD)
        gains = {f"gain_{name}": gain for name, gain in felt.gains.items() if gain is not None}
        return Passed(mind.x_BTD, forecast, loads, levels | gains)

    def _taps(self, taps: TapPoint, place: Place, mind: Mind, call: Call) -> TapPoint:
        """Taps that show gathered tensors at full length."""
        n_rows, n_tokens = mind.took_BT.shape
        return taps if place.block is None else GatheredTaps(taps, place.block, (n_rows, n_tokens), call.cache is None)

    def _felt(self, mind: Mind, levels: dict[str, Tensor], place: Place) -> Felt:
        def influence(effect: str) -> Tensor | None:
            return None if self.packet is None else place.picked(self.packet.influence(effect, levels))

        gains = {region: influence(f"gain_{region}") for region in GAINED}
        signals = Modulation(precision=influence("precision"), router_temperature=influence("router_temperature"))
        return Felt(gains, signals, place.picked(mind.salience_BT1), None, place.picked(mind.open_heads_BTH))

    def _reflect(
        self, mind: Mind, y_BCD: Tensor, context_BTP: Tensor | None, place: Place, felt: Felt, r: int, here: TapPoint
    ) -> tuple[Tensor, Felt, Tensor | None]:
        """Between binding and answering: how much it matters, what to plan, what to inhibit. Changes `mind`."""
        forecast = None
        if self.amygdala is not None and mind.salience_BT1 is not None:
            salience_BC1, forecast = self.amygdala(y_BCD, here)
            felt = replace(felt, salience_BC1=salience_BC1)
            mind.salience_BT1 = place.put(mind.salience_BT1, salience_BC1, mind.took_BT)
        if self.prefrontal is not None and mind.plan_BTP is not None and context_BTP is not None:
            plans = place.pick(mind.plan_BTP), place.pick(context_BTP)
            plan_BCP, (experts_BCE, heads_BCH, halt_BC1) = self.prefrontal(y_BCD, felt.salience_BC1, plans, r, here)
            mind.plan_BTP = place.put(mind.plan_BTP, plan_BCP, mind.took_BT)
            if self._routes(r + 1):
                halt_BC1 = here("prefrontal.halt", halt_BC1)
                mind.halt_BT1 = place.put(_or_full(mind.halt_BT1, mind.x_BTD, 1, 0.0), halt_BC1, mind.took_BT)
            if heads_BCH.shape[-1] and r + 1 < self.config.n_passes:
                heads_BCH = here("prefrontal.open_heads", heads_BCH)
                heads_BTH = _or_full(mind.open_heads_BTH, mind.x_BTD, heads_BCH.shape[-1], 1.0)
                mind.open_heads_BTH = place.put(heads_BTH, heads_BCH, mind.took_BT)
            if experts_BCE.shape[-1]:
                felt = replace(felt, open_experts_BCE=here("prefrontal.open_experts", experts_BCE))
            plan_BCD = here("prefrontal.plan", self.prefrontal.plan(plan_BCP))
            y_BCD = y_BCD + _scaled(plan_BCD, felt.gains["prefrontal"])
        if self.filler is not None and self.filler_norm is not None:
            y_BCD = y_BCD + self.filler(self.filler_norm(y_BCD), NO_TAPS)
        return y_BCD, felt, forecast

    def readout(self, x_BTD: Tensor, taps: TapPoint = NO_TAPS) -> Tensor:
        weight_VD = self.embed.weight if self.untied is None else self.untied.weight
        x_BTD = taps("readout.norm", self.norm(x_BTD))
        return taps("readout.logits", F.linear(x_BTD, weight_VD.to(x_BTD.dtype)))

    def _foresee(self, ids_BT: Tensor, first: Passed, x_BTD: Tensor) -> tuple[Tensor, Tensor] | None:
        """At sampled positions of a training forward: forecasts, and what they should have been, in ln V nats."""
        if not self.training or first.forecast_BC1 is None or self.config.forecast == "none" or ids_BT.shape[1] < 2:
            return None
        T = ids_BT.shape[1]
        index_N = torch.randint(T - 1, (max(1, T // 16),), device=ids_BT.device)
        targets_BN = ids_BT[:, index_N + 1]

        def loss_of(state_BTD: Tensor) -> Tensor:
            logits_BNV = self.readout(state_BTD[:, index_N]).float()
            return F.cross_entropy(logits_BNV.flatten(0, 1), targets_BN.flatten(), reduction="none").view_as(targets_BN)

        with torch.no_grad():
            target_BN = loss_of(x_BTD)
            if self.config.forecast == "reducible":
                target_BN = loss_of(first.x_BTD) - target_BN
        return first.forecast_BC1[:, index_N, 0].float(), target_BN / math.log(self.config.vocab_size)

    def _loss_terms(
        self, choices: list[Choice], passed: list[Passed], foreseen: tuple[Tensor, Tensor] | None
    ) -> dict[str, Tensor]:
        terms = dict(self.router.loss_terms(choices))
        if foreseen is not None:
            terms["forecast"] = self.config.forecast_weight * F.huber_loss(*foreseen)
        if self.packet is not None and self.config.homeostasis:
            away = [
                (p.levels[name].float() - 1).square().mean() for p in passed for name in SIGNALS if name in p.levels
            ]
            terms["homeostasis"] = self.config.homeostasis * torch.stack(away).sum()
        return terms

    @torch.no_grad()
    def _statistics(
        self, choices: list[Choice], passed: list[Passed], foreseen: tuple[Tensor, Tensor] | None
    ) -> dict[str, Tensor]:
        found = dict(self.router.statistics(choices))
        if foreseen is not None:
            found["forecast_mean"], found["forecast_target"] = foreseen[0].mean(), foreseen[1].mean()
        for name in self.config.signals:
            levels = [p.levels[name].float() for p in passed if name in p.levels]
            if not levels:
                continue
            found[f"{name}_mean"] = torch.stack([level.mean() for level in levels]).mean()
            found[f"{name}_std"] = torch.stack([level.std(correction=0) for level in levels]).mean()
        for name in GAINED if "dopamine" in self.config.signals else ():
            gains = [p.levels[f"gain_{name}"].float().mean() for p in passed if f"gain_{name}" in p.levels]
            if gains:
                found[f"gain_{name}"] = torch.stack(gains).mean()
        for k in range(self.config.n_shared):
            loads = [p.loads[k] for p in passed if len(p.loads) > k]
            if loads:
                found[f"load_{k}"] = torch.stack(loads).mean(0)
                found[f"busiest_expert_{k}"] = found[f"load_{k}"].max()
        return found

    def before_update(self, step: int, steps: int) -> None:
        self.router.before_update(step, steps)

    def after_update(self, statistics: dict[str, Tensor]) -> None:
        """Thresholds, biases of experts, the typical forecast and the running mean of dopamine follow statistics."""
        self.router.after_update(statistics)
        if self.amygdala is not None and "forecast_mean" in statistics:
            self.amygdala.typical.lerp_(statistics["forecast_mean"].to(self.amygdala.typical), 0.05)
        for g, name in enumerate(GAINED):
            if f"gain_{name}" in statistics:
                self.dopamine_G[g].lerp_(statistics[f"gain_{name}"].to(self.dopamine_G), 0.01)
        answering: Any = self.neocortex
        for k, neocortex in enumerate(answering):
            if neocortex.experts is not None and f"load_{k}" in statistics:
                neocortex.experts.update_bias(statistics[f"load_{k}"], self.config.balance_rate)

    def plasticity(self) -> dict[str, Tensor]:
        """The running mean of dopamine's gain of each region that it modulates (`homunculi.train.plasticity`)."""
        if "dopamine" not in self.config.signals:
            return {}
        present = [name for name in GAINED if name != "prefrontal" or self.prefrontal is not None]
        return {name: self.dopamine_G[GAINED.index(name)] for name in present}

    def new_cache(self, batch_size: int, capacity: int) -> Cache:
        if capacity > self.config.max_seq_len:
            raise InputError(f"a cache of {capacity} tokens is more than model.max_seq_len={self.config.max_seq_len}")
        device, dtype, config = self.embed.weight.device, self._dtype, self.config
        B, H, K = batch_size, config.n_heads, config.width_of_heads
        wide = torch.promote_types(dtype, torch.float32)
        outer = [KVSlot.empty((B, H, capacity, K), dtype, device) for _ in range(2)]
        inner: list[Slot] = []
        for i in range(len(self.schedule) - 2):
            r, k = divmod(i, config.n_shared)
            width = self.router.quotas[r].of_first(capacity)
            remembers, speaks = self.temporal[k].memory is not None, k == 0
            inner.append(
                Slot(
                    RoutedSlot.empty((B, H, width, K), dtype, device),
                    torch.zeros(B, H if remembers else 0, K, K, dtype=wide, device=device),
                    torch.zeros(
                        B, config.packet_width + 1 if speaks and config.signals else 0, dtype=wide, device=device
                    ),
                    torch.zeros(B, config.plan_width if speaks else 0, dtype=wide, device=device),
                )
            )
        return Cache([outer[0], *inner, outer[1]], batch_size, capacity, device)

    def budget(self, context: int | None = None) -> Budget:
        T, config = context or self.config.max_seq_len, self.config
        table, d = self.embed.weight.numel(), config.d_model
        outer = _maps(self.first) + _maps(self.last)
        whole = [self.packet] * config.n_passes if self.packet is not None else []
        per_token = outer + sum(_maps(part) for part in whole) + _maps(self.router) + table
        executed = float(per_token + (_maps(self.amygdala) if self.amygdala is not None else 0))
        flops = 2 * executed + 2 * 4 * T * d
        for r in range(config.n_passes):
            C = self.router.places(r, T) if r in self.router.routed else T
            inside, attended = self._pass_cost(C)
            executed += C / T * inside
            flops += C / T * (2 * inside + attended)
        kept = 2 + config.n_shared * sum(config.shares)
        return Budget(
            parameters=count_parameters(self),
            embedding_parameters=table if self.untied is None else 2 * table,
            executed_parameters=round(executed),
            flops_per_token=round(flops),
            cache_bytes_per_token=round(2 * 2 * d * kept),
        )

    def _pass_cost(self, n_places: int) -> tuple[float, float]:
        """Of a token that takes a pass: parameters that multiply it, and FLOPs of attention and memory."""
        config = self.config
        inside = sum(_maps(part) for part in (self.amygdala, self.prefrontal, self.filler) if part is not None)
        attended = 0.0
        layers: Any = zip(self.temporal, self.neocortex, strict=True)
        for temporal, neocortex in layers:
            inside += _maps(temporal.attn) + _maps(neocortex)
            attended += 4 * n_places * config.d_model
            if temporal.memory is not None:
                attended += temporal.memory.flops_per_token(n_places)
            if neocortex.experts is not None:
                inside += neocortex.experts.active_parameters
        return inside, attended


def count_filled(config: Config) -> int:
    """Parameters of the regions that `config.filled` asks a plain part to make up for."""
    without = replace(config, filled=())
    with torch.device("meta"):
        return sum(_size(_restored(without, name)) - _size(without) for name in config.filled)


def _restored(config: Config, name: str) -> Config:
    if name == "packet":
        return replace(config, signals=SIGNALS)
    return replace(config, regions=(*config.regions, name))


def _size(config: Config) -> int:
    """Parameters of what a pass is made of."""
    parts: list[nn.Module] = [Temporal(config), Neocortex(config)] * config.n_shared
    parts += [Amygdala(config.d_model)] if config.has("amygdala") else []
    parts += [Prefrontal(config)] if config.has("prefrontal") else []
    parts += [Packet(config)] if config.signals else []
    return sum(count_parameters(part) for part in parts)


def _maps(module: nn.Module) -> int:
    """Parameters of the linear maps inside."""
    return sum(part.weight.numel() for part in module.modules() if isinstance(part, Linear))


def _scaled(x: Tensor, gain: Tensor | None) -> Tensor:
    return x if gain is None else gain * x


def _or_full(x: Tensor | None, like_BTD: Tensor, width: int, value: float) -> Tensor:
    return torch.full_like(like_BTD[..., :1], value).expand(*like_BTD.shape[:2], width) if x is None else x
