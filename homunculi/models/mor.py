"""Mixture of recursions: a shared block is applied again to the tokens that its router takes on (Bae et al. 2025).

    x = first(embed(tokens))                 middle_cycle; a cycle has no blocks of its own
    for each pass r:
        who, gate = router(r, x)             who took pass r − 1, wants to go on, and finds a place
        x[who] += gate · (block(x[who]) − x[who])
    logits = readout(last(x))

Tokens that a pass does not take are not computed in it and keep their state. With all capacities at 1 this is the
recursive transformer.

Legend: B batch, T positions, S attended to, D width, V vocabulary, A rows with tokens in a pass, C places of a block.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..core.budget import Budget, count_parameters
from ..core.cache import Cache, KVSlot
from ..core.model import LanguageModel
from ..core.output import Hidden
from ..core.pieces import at_once
from ..core.schedule import Schedule, shared
from ..core.taps import NO_TAPS, TapPoint
from ..errors import InputError
from ..parts import gathered
from ..parts.block import Block
from ..parts.expert_choice import ExpertChoiceRouter
from ..parts.gathered import Call, Crowd, Gathered, GatheredTaps, PassCount, Sight, Size
from ..parts.kv_sharing import Attention, Kept
from ..parts.linear import Linear
from ..parts.norm import RMSNorm
from ..parts.rope import RotaryEmbedding
from ..parts.routers import (
    Choice,
    Router,
    RouterKind,
    RoutingOptions,
    Span,
    ThresholdRouter,
    TokenChoiceRouter,
    check_capacities,
)
from ..parts.routing import Quota
from ..parts.weights import init_maps, read_out
from ..settings import check_range
from .registry import Part, architecture

ROUTERS: dict[str, type[ThresholdRouter] | type[TokenChoiceRouter]] = {
    "threshold": ThresholdRouter,
    "token_choice": TokenChoiceRouter,
    "expert_choice": ExpertChoiceRouter,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Shape of a mixture of recursions; a zero is derived. What is not named here means what it means for gpt.

    Attributes:
        sharing: a cycle of the shared blocks, or such a cycle between a first and a last block of their own.
        n_slots: steps in all, the first and the last included; the rest is a multiple of `n_passes`.
        n_passes: how often the shared blocks may be applied to a token.
        router: who takes part is decided by a threshold, by each token at the start, or by the highest scores of a
            sequence (looks ahead in training).
        capacities: share of the tokens that take each pass, not increasing; empty: (R − r) / R.
        burst: tokens beyond the share that a sequence may have at any time.
        kv: each pass attends to its own keys and values of the tokens that it takes, or all attend to the first's.
        routing: what else the routers can be told.
    """

    vocab_size: int = 0
    d_model: int = 256
    sharing: Literal["cycle", "middle_cycle"] = "middle_cycle"
    n_slots: int = 8
    n_passes: int = 3
    router: RouterKind = "threshold"
    capacities: tuple[float, ...] = ()
    burst: int = 8
    kv: Literal["per_pass", "shared"] = "per_pass"
    routing: RoutingOptions = field(default_factory=RoutingOptions)
    n_heads: int = 8
    n_kv_heads: int = 0
    d_head: int = 0
    d_mlp: int = 0
    max_seq_len: int = 512
    activation: Literal["swiglu", "gelu", "relu2"] = "swiglu"
    qk_norm: bool = False
    tied: bool = True
    rope_base: float = 10000.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("d_model", "n_slots", "n_passes", "n_heads", "max_seq_len"):
            check_range(f"model.{name}", getattr(self, name), low=1)
        for name in ("vocab_size", "n_kv_heads", "d_head", "d_mlp", "burst"):
            check_range(f"model.{name}", getattr(self, name), low=0)
        check_range("model.dropout", self.dropout, low=0, high=0.99)
        check_range("model.rope_base", self.rope_base, above=1)
        for name, known in (
            ("sharing", ("cycle", "middle_cycle")),
            ("router", tuple(ROUTERS)),
            ("kv", ("per_pass", "shared")),
        ):
            if getattr(self, name) not in known:
                raise InputError(f"model.{name}: {getattr(self, name)!r} is none of {', '.join(known)}")
        try:
            shared(self.sharing, self.n_slots, self.n_passes)
        except InputError as error:
            raise InputError(f"model.n_slots: {error}; change n_slots or n_passes") from error
        check_capacities(self.shares, self.n_passes)
        for name, wrong, why in self._conflicts():
            if wrong:
                raise InputError(f"model.{name}: {getattr(self, name)} {why}")

    def _conflicts(self) -> tuple[tuple[str, bool, str], ...]:
        """Field, whether it fits badly to the others, why and what to do."""
        warms = self.routing.capacity_warmup_frac > 0
        return (
            ("n_heads", not self.d_head and self.d_model % self.n_heads > 0, "does not divide d_model; or set d_head"),
            ("d_head", self.width_of_heads % 2 > 0, "gives an odd head width, rotary positions need an even one"),
            ("n_kv_heads", self.n_heads % self.number_of_kv_heads > 0, "does not divide n_heads"),
            (
                "kv",
                self.kv == "shared" and self.shares[0] < 1,
                "needs a first pass that all take; let capacities begin with 1",
            ),
            ("router", warms and self.router != "expert_choice", "has no warm-up; set routing.capacity_warmup_frac=0"),
        )

    @property
    def shares(self) -> tuple[float, ...]:
        """Share of the tokens that take each pass."""
        n = self.n_passes
        return self.capacities or tuple((n - r) / n for r in range(n))

    @property
    def n_own(self) -> int:
        """Blocks before the passes, and as many after them."""
        return int(self.sharing == "middle_cycle")

    @property
    def n_shared(self) -> int:
        """Stored blocks of a pass."""
        return (self.n_slots - 2 * self.n_own) // self.n_passes

    @property
    def passes(self) -> tuple[range, ...]:
        """The steps of each pass."""
        return tuple(
            range(first, first + self.n_shared) for first in range(self.n_own, self.n_slots - self.n_own, self.n_shared)
        )

    @property
    def schedule(self) -> Schedule:
        """Which block each step applies, and which cache slot it has: with shared keys that of the first pass."""
        steps = shared(self.sharing, self.n_slots, self.n_passes)
        return steps if self.kv == "per_pass" else tuple(replace(step, slot=step.block) for step in steps)

    @property
    def n_kv_slots(self) -> int:
        """Cache slots of keys and values."""
        return 1 + max(step.slot for step in self.schedule)

    @property
    def width_of_heads(self) -> int:
        return self.d_head or self.d_model // self.n_heads

    @property
    def number_of_kv_heads(self) -> int:
        return self.n_kv_heads or self.n_heads


def make_block(config: Config) -> Block:
    """A pre-norm block, able to attend to the keys and values of an earlier pass where passes share them."""
    block = Block(config)
    if config.kv == "shared":
        heads = config.n_heads, config.number_of_kv_heads, config.width_of_heads
        block.attn = Attention(config.d_model, *heads, qk_norm=config.qk_norm, dropout=config.dropout)
    return block


CONTRACT_CONFIGS: tuple[dict[str, Any], ...] = (
    {"n_slots": 5, "capacities": (1.0, 0.5, 0.5), "burst": 2},
    {
        "n_slots": 4,
        "n_passes": 2,
        "sharing": "cycle",
        "capacities": (1.0, 0.5),
        "kv": "shared",
        "n_kv_heads": 2,
        "burst": 1,
    },
    {"n_slots": 5, "router": "token_choice", "capacities": (1.0, 1.0, 0.5), "burst": 2, "qk_norm": True},
    {
        "n_slots": 4,
        "router": "token_choice",
        "n_passes": 2,
        "capacities": (0.5, 0.5),
        "burst": 0,
        "routing": RoutingOptions(balance="loss_free", depth_weight="sigmoid"),
        "dropout": 0.1,
    },
)


PARTS = (
    Part(
        "router",
        removed={"capacities": lambda config: (1.0,) * config.n_passes},
        shuffled=("steps.*.router.score",),
        note="without it every token takes every pass, which costs more FLOPs",
        when=lambda config: min(config.shares) < 1,
    ),
    Part("gate", neutral={"steps.*.router.gate": 1.0}, note="held, it teaches the router nothing"),
)


@architecture("mor", Config, variants=CONTRACT_CONFIGS, parts=PARTS)
class MoR(LanguageModel):
    """The mixture of recursions.

    Raises:
        InputError: `config.vocab_size` is 0.
    """

    router: Router
    in_pieces = True

    def __init__(self, config: Config) -> None:
        super().__init__()
        if config.vocab_size < 1:
            raise InputError("model.vocab_size: a model needs a vocabulary; give its size")
        self.config, self.schedule, self.passes = config, config.schedule, config.passes
        self.first, self.last = range(config.n_own), range(config.n_slots - config.n_own, config.n_slots)
        self.embed = nn.Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(make_block(config) for _ in range(config.n_shared + 2 * config.n_own))
        first_steps = [steps[0] for steps in self.passes]
        router = ROUTERS[config.router]
        self.router = router(config.d_model, config.shares, config.burst, first_steps, config.routing)
        self.norm = RMSNorm(config.d_model)
        self.untied = None if config.tied else Linear(config.d_model, config.vocab_size)
        self.rope = RotaryEmbedding(config.width_of_heads, config.max_seq_len, config.rope_base)
        init_maps(self)
        self.router.init_weights()

    def trunk(
        self, ids_BT: Tensor, taps: TapPoint = NO_TAPS, cache: Cache | None = None, documents_BT: Tensor | None = None
    ) -> Hidden:
        run = at_once if cache is None else cache.pieces
        call, x_BTD = run("first", self._begin, ids_BT, taps, cache, documents_BT)
        choices: list[Choice] = []
        for r in range(self.config.n_passes):
            choice, crowd = run("choose", self._choose, r, x_BTD, choices[-1] if choices else None, call, taps)
            size = None if crowd is None else gathered.measure(crowd, call.recorded)
            if size is not None and not size.n_rows:  # nor does anybody take the passes after it
                break
            x_BTD = run(size, self._pass, r, x_BTD, choice, (crowd, size), call, taps)
            choices.append(choice)
        x_BTD = run("last", self._run, self.last, x_BTD, call.sight, taps)
        if cache is not None:
            return Hidden(x_BTD)
        return Hidden(x_BTD, self.router.loss_terms(choices), statistics=self.router.statistics(choices))

    def _begin(
        self, ids_BT: Tensor, taps: TapPoint, cache: Cache | None, documents_BT: Tensor | None
    ) -> tuple[Call, Tensor]:
        x_BTD = self.embed(ids_BT)
        x_BTD = taps("embed", x_BTD.to(self.compute_dtype or x_BTD.dtype))
        call = self._call(ids_BT, x_BTD.dtype, cache, documents_BT)
        return call, self._run(self.first, x_BTD, call.sight, taps)

    def _choose(
        self, r: int, x_BTD: Tensor, last: Choice | None, call: Call, taps: TapPoint
    ) -> tuple[Choice, Crowd | None]:
        """Who takes a pass; in a cache they are counted."""
        choice = self.router(r, x_BTD, last, call.span, taps)
        if call.cache is None or choice.count_BT is None:
            return choice, None
        counted: PassCount = call.cache.at(self.config.n_kv_slots + r)
        crowd = gathered.look(choice.count_BT, counted.count_B.clone())
        counted.count_B.copy_(choice.count_BT[:, -1])
        return choice, crowd

    def _pass(
        self, r: int, x_BTD: Tensor, choice: Choice, seen: tuple[Crowd | None, Size | None], call: Call, taps: TapPoint
    ) -> Tensor:
        """One pass over the shared blocks, for the tokens that take part."""
        if choice.count_BT is None:
            y_BTD = self._run(self.passes[r], x_BTD, self._sight(r, call, None), taps)
            return y_BTD if choice.gate_BT is None else x_BTD + choice.gate_BT[..., None] * (y_BTD - x_BTD)
        crowd, size = seen
        if crowd is None or size is None:
            block: Gathered | None = gathered.gather(choice.count_BT, self.router.places(r, choice.count_BT.shape[1]))
        else:
            block = gathered.gather_now(crowd, size)
        if block is None:
            return x_BTD
        keys_gathered = call.cache is None and self.config.kv == "per_pass"
        inside = GatheredTaps(taps, block, (x_BTD.shape[0], x_BTD.shape[1]), keys_gathered)
        x_ACD = block.take(x_BTD)
        change_ACD = self._run(self.passes[r], x_ACD, self._sight(r, call, block), inside) - x_ACD
        if choice.gate_BT is not None:
            change_ACD = block.take_numbers(choice.gate_BT)[..., None] * change_ACD
        return block.put_sum(x_BTD, change_ACD)

    def _run(self, steps: Iterable[int], x_BTD: Tensor, sight: Sight, taps: TapPoint) -> Tensor:
        for i in steps:
            step = self.schedule[i]
            x_BTD = self.blocks[step.block](x_BTD, sight.rotation, taps.at(i), sight.mask_BTS, sight.cache(step.slot))
        return x_BTD

    def _sight(self, r: int, call: Call, block: Gathered | None) -> Sight:
        """What the tokens of a pass see; `block` None: all take part."""
        if self.config.kv == "shared" and r > 0:
            return call.rereading(self._slots_of(r), block)
        return call.sight if block is None else call.gathered(self._slots_of(r), block)

    def _slots_of(self, r: int) -> list[int]:
        return [self.schedule[i].slot for i in self.passes[r]]

    def _call(self, ids_BT: Tensor, dtype: torch.dtype, cache: Cache | None, documents_BT: Tensor | None) -> Call:
        n_tokens, n_slots = ids_BT.shape[1], self.config.n_kv_slots
        if cache is not None:
            counts = tuple(counted.count_B for counted in cache.slots[n_slots:])
            slots = dict(enumerate(cache.slots[:n_slots]))
            return Call.cached(
                self.rope, dtype, Span(cache.positions(n_tokens), cache.valid(n_tokens), counts), slots, cache
            )
        if n_tokens > self.config.max_seq_len:
            raise InputError(f"{n_tokens} tokens are more than model.max_seq_len={self.config.max_seq_len}")
        kept: dict[int, KVSlot] | None = {n: Kept() for n in range(n_slots)} if self.config.kv == "shared" else None
        span = Span(torch.arange(n_tokens, device=ids_BT.device)[None])
        return Call.whole(self.rope, dtype, span, kept, documents_BT)

    def readout(self, x_BTD: Tensor, taps: TapPoint = NO_TAPS) -> Tensor:
        return read_out(self, x_BTD, taps)

    def before_update(self, step: int, steps: int) -> None:
        self.router.before_update(step, steps)

    def after_update(self, statistics: dict[str, Tensor]) -> None:
        self.router.after_update(statistics)

    def new_cache(self, batch_size: int, capacity: int) -> Cache:
        if capacity > self.config.max_seq_len:
            raise InputError(f"a cache of {capacity} tokens is more than model.max_seq_len={self.config.max_seq_len}")
        device, dtype = self.embed.weight.device, self.compute_dtype or self.embed.weight.dtype
        n_heads, d_head = self.config.number_of_kv_heads, self.config.width_of_heads
        places = [capacity if q.share == 1 else q.of_first(capacity) + 1 for q in self._quotas_of_slots()]
        slots: list[Any] = [KVSlot.empty((batch_size, n_heads, n, d_head), dtype, device) for n in places]
        slots += [PassCount(torch.zeros(batch_size, dtype=torch.long, device=device)) for _ in self.passes]
        return Cache(slots, batch_size, capacity, device)

    def _quotas_of_slots(self) -> list[Quota]:
        """How many tokens leave keys and values in each cache slot."""
        quotas = [Quota(1.0, 0)] * self.config.n_kv_slots
        for r, quota in enumerate(self.router.quotas if self.config.kv == "per_pass" else ()):
            for n in self._slots_of(r):
                quotas[n] = quota
        return quotas

    def budget(self, context: int | None = None) -> Budget:
        """Counts blocks at their full sizes at that context, in the mode of the model: looking ahead, they differ."""
        n_tokens, config = context or self.config.max_seq_len, self.config
        d_heads, d_kv = config.n_heads * config.width_of_heads, config.number_of_kv_heads * config.width_of_heads
        table = self.embed.weight.numel()
        executed = float(table + sum(p.numel() for p in self.router.parameters()))
        square = 0.0
        for i, step in enumerate(self.schedule):
            r = next((r for r, steps in enumerate(self.passes) if i in steps), 0)
            share = self.router.places(r, n_tokens) / n_tokens if i in self.passes[r] else 1.0
            rereads = config.kv == "shared" and i in self.passes[r] and r > 0
            maps = sum(p.numel() for p in self.blocks[step.block].parameters() if p.dim() == 2)
            executed += share * (maps - rereads * 2 * config.d_model * d_kv)
            square += 4 * n_tokens * d_heads * share * (1.0 if rereads else share)
        return Budget(
            parameters=count_parameters(self),
            embedding_parameters=table if self.untied is None else 2 * table,
            executed_parameters=round(executed),
            flops_per_token=round(2 * executed + square),
            cache_bytes_per_token=round(2 * 2 * d_kv * sum(quota.share for quota in self._quotas_of_slots())),
        )
