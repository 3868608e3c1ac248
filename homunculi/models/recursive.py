"""A transformer that applies stored blocks again: parameter sharing, recurrent depth, loops that grow in training.

The middle schemes have a first and a last block; between them a loop applies each shared block `n_passes` times. A pass
of a cycle is one run through all shared blocks; in a sequence each block is repeated by itself, pass r its r-th time.

`schedule` is that of `n_passes`, whatever runs, so that names of steps never move. Passes that do not run because the
loop has not grown yet are skipped: their taps do not fire, their cache slots stay empty. Passes beyond it (random
counts in training) go unseen by taps. A loop is evaluated at the depth that it has grown to. Compiled, each number of
passes is a graph of its own, and compilers stop at eight: random counts take at most `DISTINCT_COUNTS` values, growth
takes n_passes (for more, raise `torch._dynamo.config.recompile_limit`).

Legend: B batch, T positions, S positions attended to, D width, V vocabulary, P passes, H heads, K head width.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from random import Random
from statistics import NormalDist
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from ..core.budget import Budget, count_parameters
from ..core.cache import Cache, KVSlot
from ..core.model import LanguageModel
from ..core.output import Hidden
from ..core.schedule import Schedule, Sharing, shared
from ..core.taps import NO_TAPS, TapPoint
from ..errors import InputError
from ..parts.attention import CausalSelfAttention
from ..parts.block import Block, positions_and_mask
from ..parts.linear import Linear
from ..parts.norm import RMSNorm
from ..parts.rope import RotaryEmbedding
from ..parts.weights import init_maps, read_out
from ..settings import check_range
from .registry import Part, architecture

DISTINCT_COUNTS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Shape of a recursive transformer; a zero is derived. What is not named here means what it means for gpt.

    Attributes:
        sharing: order of the shared blocks; the middle schemes keep a first and a last block of their own.
        n_slots: steps of an evaluation, the first and the last included; the rest is a multiple of `n_passes`.
        n_passes: how often each shared block is applied; of a random count the mean.
        pass_signal: a vector a pass, added to the stream before it (from 0), or the gain of its updates (from 1).
        injection: how the loop's input enters each pass: added, joined and mapped back, or as what the state decays to.
        start: state before the first pass: what the loop is given, zeros, or noise (in evaluation: zeros).
        pass_count: random draws one count an update, the same on all processes (see `draw_passes`).
        max_passes: bound of random counts; 0: 2 · n_passes.
        backprop_passes: gradients go through that many of the last passes; 0: all.
        growth: from one pass to n_passes: in equal stages of the run, or whenever held-out loss stops gaining.
        growth_gain: nats a token from one evaluation to the next below which growth by loss adds a pass.
        kv_sharing: first: later passes attend to the keys and values of a block's first application.
        sandwich_norm: also normalise the stream after each of a block's two additions.
    """

    vocab_size: int = 0
    d_model: int = 256
    sharing: Sharing = "middle_cycle"
    n_slots: int = 8
    n_passes: int = 3
    pass_signal: Literal["none", "embedding", "gain"] = "none"
    injection: Literal["none", "add", "concat", "decay"] = "none"
    start: Literal["prelude", "zeros", "noise"] = "prelude"
    pass_count: Literal["fixed", "random"] = "fixed"
    max_passes: int = 0
    backprop_passes: int = 0
    growth: Literal["none", "steps", "loss"] = "none"
    growth_gain: float = 0.02
    kv_sharing: Literal["none", "first"] = "none"
    sandwich_norm: bool = False
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
        for name in ("vocab_size", "n_kv_heads", "d_head", "d_mlp", "max_passes", "backprop_passes", "growth_gain"):
            check_range(f"model.{name}", getattr(self, name), low=0)
        check_range("model.dropout", self.dropout, low=0, high=0.99)
        check_range("model.rope_base", self.rope_base, above=1)
        try:
            shared(self.sharing, self.n_slots, self.n_passes)
        except InputError as error:
            fitting = self.n_steps(0) + self.n_passes * max(1, self.n_shared)
            raise InputError(f"model.n_slots: {error}; take {fitting}, for example") from error
        for name, wrong, why in self._conflicts():
            if wrong:
                raise InputError(f"model.{name}: {getattr(self, name)} {why}")

    def _conflicts(self) -> tuple[tuple[str, bool, str], ...]:
        """Field, whether it fits badly to the others, why and what to do."""
        cut, bounded, random = self.backprop_passes > 0, self.max_passes > 0, self.pass_count == "random"
        return (
            ("n_heads", not self.d_head and self.d_model % self.n_heads > 0, "does not divide d_model; or set d_head"),
            ("d_head", self.width_of_heads % 2 > 0, "gives an odd head width, rotary positions need an even one"),
            ("n_kv_heads", self.n_heads % self.number_of_kv_heads > 0, "does not divide n_heads"),
            ("start", self.start != "prelude" and self.injection == "none", "forgets the tokens; set injection too"),
            ("max_passes", bounded and not random, "bounds random counts; set pass_count=random or leave 0"),
            ("max_passes", bounded and self.max_passes < self.n_passes, "is below n_passes; raise it or leave 0"),
            ("growth", self.growth != "none" and random, "needs fixed counts; set pass_count=fixed"),
            ("sharing", cut and "sequence" in self.sharing, "has no last pass for backprop_passes; take a cycle"),
            ("injection", cut and self.injection == "none", "under backprop_passes starves block 0; set add"),
            ("pass_signal", cut and self.pass_signal != "none", "would not learn under backprop_passes; set none"),
            ("kv_sharing", cut and self.kv_sharing != "none", "would not learn under backprop_passes; set none"),
        )

    @property
    def n_first(self) -> int:
        """Blocks before the loop, and as many after it: 1 in the middle schemes, else 0."""
        return int("middle" in self.sharing)

    @property
    def n_shared(self) -> int:
        return (self.n_slots - 2 * self.n_first) // self.n_passes

    def n_steps(self, n_passes: int) -> int:
        return self.n_shared * n_passes + 2 * self.n_first

    @property
    def width_of_heads(self) -> int:
        return self.d_head or self.d_model // self.n_heads

    @property
    def number_of_kv_heads(self) -> int:
        return self.n_kv_heads or self.n_heads

    def schedule(self, n_passes: int) -> Schedule:
        """The steps of that many passes over the stored blocks."""
        steps = shared(self.sharing, self.n_steps(n_passes), n_passes)
        return steps if self.kv_sharing == "none" else tuple(replace(step, slot=step.block) for step in steps)


def draw_passes(step: int, mean: int, longest: int) -> int:
    """The random number of passes of update `step`: a pure function, so the same everywhere and after a restart.

    One more than a Poisson count of log-normal rate, its mean `mean` − 1 and its spread 1/2 (after Geiping et al. 2025,
    section 3); then the nearest of at most `DISTINCT_COUNTS` numbers from 1 to `longest`.
    """
    chance = Random(0x5EED + step)
    rate = (mean - 1) * math.exp(NormalDist(-1 / 8, 1 / 2).inv_cdf(max(1e-12, chance.random())))
    left, count, mass = chance.random(), 1, math.exp(-rate)
    while left >= mass and count < longest:  # inversion of the Poisson distribution
        left, mass, count = left - mass, mass * rate / count, count + 1
    gaps = max(1, min(longest, DISTINCT_COUNTS) - 1)
    return min((1 + (longest - 1) * i // gaps for i in range(gaps + 1)), key=lambda level: abs(level - count))


class Kept(KVSlot):
    """Keys and values of a forward without a cache: those of the first application, for later ones."""

    def extend(self, k_BHTK: Tensor, v_BHTK: Tensor, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
        if k_BHTK.shape[1]:
            self.k_BHLK, self.v_BHLK = k_BHTK, v_BHTK
        return self.k_BHLK, self.v_BHLK


class Attention(CausalSelfAttention):
    """Attention that, while it `rereads`, adds no keys and values (those of no heads) to what its slot holds."""

    rereads = False

    def _project(self, x_BTD: Tensor, taps: TapPoint) -> tuple[Tensor, Tensor, Tensor]:
        if not self.rereads:
            return super()._project(x_BTD, taps)
        q_BTHK = taps("attn.q", self.q(x_BTD).unflatten(-1, (-1, self.d_head)))
        return q_BTHK, q_BTHK[:, :, :0].detach(), q_BTHK[:, :, :0].detach()


class LoopBlock(Block):
    """A pre-norm block that may reread; with the sandwich, the stream after each addition is normalised."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        heads = config.n_heads, config.number_of_kv_heads, config.width_of_heads
        self.attn = Attention(config.d_model, *heads, qk_norm=config.qk_norm, dropout=config.dropout)
        self.mid_norm = RMSNorm(config.d_model) if config.sandwich_norm else nn.Identity()
        self.post_norm = RMSNorm(config.d_model) if config.sandwich_norm else nn.Identity()

    def forward(self, x_BTD: Tensor, rotation: Any, taps: TapPoint, *view: Any) -> Tensor:
        x_BTD = taps("resid_pre", x_BTD)
        x_BTD = self.mid_norm(x_BTD + self.dropout(self.attn(self.attn_norm(x_BTD), rotation, taps, *view)))
        x_BTD = taps("resid_mid", x_BTD)
        return self.post_norm(x_BTD + self.dropout(self.mlp(self.mlp_norm(x_BTD), taps)))


LOOP = {"injection": "concat", "start": "noise", "pass_count": "random", "backprop_passes": 2, "sandwich_norm": True}
CONTRACT_CONFIGS: tuple[dict[str, Any], ...] = (
    {"n_slots": 5, "growth": "steps", "pass_signal": "embedding"},
    {"n_slots": 5} | LOOP,
    {"n_slots": 4, "n_passes": 2, "sharing": "cycle", "pass_signal": "gain", "kv_sharing": "first", "n_kv_heads": 2},
    {"n_slots": 4, "n_passes": 2, "sharing": "middle_sequence", "injection": "decay", "growth": "loss"},
)


PARTS = (
    Part("loop", removed={"n_passes": 1, "n_slots": lambda c: c.n_steps(1)}, note="without it fewer FLOPs are used"),
    Part("injection", {"injection": "none", "start": "prelude", "backprop_passes": 0}, {}, {"control.injection": 0.0}),
    Part("pass_signal", removed={"pass_signal": "none"}),
    Part("random_count", removed={"pass_count": "fixed", "max_passes": 0}),
    Part("growth", removed={"growth": "none"}),
    Part("kv_sharing", removed={"kv_sharing": "none"}),
)


@architecture("recursive", Config, variants=CONTRACT_CONFIGS, parts=PARTS)
class Recursive(LanguageModel):
    """The recursive transformer. Passes of an evaluation are its `depth`, of a training forward `drawn`.

    Raises:
        InputError: `config.vocab_size` is 0.
    """

    passes_now: Tensor
    best_loss: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        if config.vocab_size < 1:
            raise InputError("model.vocab_size: a model needs a vocabulary; give its size")
        self.config, self.schedule, self.growth = config, config.schedule(config.n_passes), config.growth
        self.depth = self.drawn = self.scheduled = config.n_passes
        self.embed = nn.Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(LoopBlock(config) for _ in range(config.n_steps(1)))
        self.adapter = Linear(2 * config.d_model, config.d_model) if config.injection == "concat" else None
        self.rate = nn.Parameter(torch.zeros(config.d_model)) if config.injection == "decay" else None
        neutral = torch.full((config.n_passes, config.d_model), float(config.pass_signal == "gain"))
        # Vectors, because optimisers would decay a matrix.
        self.signals = nn.ParameterList(row.clone() for row in neutral if config.pass_signal != "none")
        self.norm = RMSNorm(config.d_model)
        self.untied = None if config.tied else Linear(config.d_model, config.vocab_size)
        self.rope = RotaryEmbedding(config.width_of_heads, config.max_seq_len, config.rope_base)
        if config.growth != "none":  # fully grown until a run begins, so that a new model shows all its taps and costs
            self.register_buffer("passes_now", torch.tensor(config.n_passes))
            self.register_buffer("best_loss", torch.tensor(math.inf))
            self.register_load_state_dict_post_hook(lambda model, _: model._read_depth())
        init_maps(self)

    def trunk(
        self, ids_BT: Tensor, taps: TapPoint = NO_TAPS, cache: Cache | None = None, documents_BT: Tensor | None = None
    ) -> Hidden:
        config, rereads, ending = self.config, self.config.kv_sharing == "first", len(self.schedule) - 1
        x_BTD = self.embed(ids_BT)
        x_BTD = taps("embed", x_BTD.to(self.compute_dtype or x_BTD.dtype))
        positions, mask_BTS = positions_and_mask(ids_BT, self.config.max_seq_len, cache, documents_BT)
        rotation, kept = self.rope.at(positions, x_BTD.dtype), [Kept(x_BTD, x_BTD) for _ in self.blocks]

        def apply(i: int, x_BTD: Tensor, taps: TapPoint, r: int = 0, gain_D: Tensor | None = None) -> Tensor:
            step, taps = self.schedule[i], taps.at(i)
            block: Any = self.blocks[step.block]
            block.attn.rereads = rereads and r > 0
            slot = cache.at(step.slot) if cache is not None else kept[step.slot] if rereads else None
            y_BTD = block(x_BTD, rotation, taps, mask_BTS, None if slot is None else (slot, positions))
            if gain_D is not None:
                y_BTD = y_BTD + (gain_D - 1) * (y_BTD - x_BTD)  # in this order a gain of 1 changes no bit
            return taps("resid_post", y_BTD)

        if config.n_first:
            x_BTD = apply(0, x_BTD, taps)
        e_BTD = x_BTD if config.injection == "none" else taps("control.injection", x_BTD)
        x_BTD = before_BTD = self._start(x_BTD)
        signals_PD = None
        if config.pass_signal != "none":  # all at once: vectors of passes that do not run get a gradient, of zero
            signals_PD = taps("control.pass_signal", torch.stack([*self.signals]).to(x_BTD.dtype))
        n_passes = self.drawn if self.training and cache is None else self.depth
        for r, steps in self._laps(n_passes):
            if self.training and 0 < r == n_passes - config.backprop_passes:
                x_BTD = x_BTD.detach()
            signal_D = None if signals_PD is None else signals_PD[min(r, config.n_passes - 1)]
            before_BTD, x_BTD = x_BTD, self._inject(x_BTD, e_BTD)
            if signal_D is not None and config.pass_signal == "embedding":
                x_BTD, signal_D = x_BTD + signal_D, None
            for i in steps:
                x_BTD = apply(i, x_BTD, taps if r < self.scheduled else NO_TAPS, r, signal_D)
        change_BT = (x_BTD - before_BTD).detach().norm(dim=-1) / x_BTD.detach().norm(dim=-1).clamp(min=1e-6)
        statistics = {"passes": torch.full_like(change_BT[0, 0], n_passes), "last_change": change_BT.mean()}
        return Hidden(apply(ending, x_BTD, taps) if config.n_first else x_BTD, statistics=statistics)

    def _laps(self, n_passes: int) -> list[tuple[int, list[int]]]:
        """Steps that follow an injection, with their pass; a pass beyond the schedule has the steps of its last one."""
        first, n_shared, last = self.config.n_first, self.config.n_shared, self.scheduled - 1
        if "cycle" in self.config.sharing:
            return [(r, [first + min(r, last) * n_shared + k for k in range(n_shared)]) for r in range(n_passes)]
        return [(r, [first + k * (last + 1) + min(r, last)]) for k in range(n_shared) for r in range(n_passes)]

    def _start(self, x_BTD: Tensor) -> Tensor:
        """The state before the first pass; noise is as large as what the loop is given."""
        if self.config.start == "prelude":
            return x_BTD
        filled = torch.randn_like if self.training and self.config.start == "noise" else torch.zeros_like
        return filled(x_BTD) * x_BTD.detach().square().mean(-1, keepdim=True).sqrt()

    def _inject(self, x_BTD: Tensor, e_BTD: Tensor) -> Tensor:
        if self.adapter is not None:
            return self.adapter(torch.cat([x_BTD, e_BTD], -1))
        if self.rate is not None:  # a share of at most 1 of the distance to e stays (after Parcae, 2604.12946)
            return e_BTD + (-self.rate.exp()).exp().to(x_BTD.dtype) * (x_BTD - e_BTD)
        return x_BTD + e_BTD if self.config.injection == "add" else x_BTD

    def readout(self, x_BTD: Tensor, taps: TapPoint = NO_TAPS) -> Tensor:
        return read_out(self, x_BTD, taps)

    def with_passes(self, n_passes: int) -> Recursive:
        """The same weights under a loop of another depth, for evaluation. Passes beyond the trained ones get the last
        pass's signal. Its schedule, caches and budget are of that depth; its configuration is that of the original."""
        check_range("n_passes", n_passes, low=1)
        view = copy.copy(self)
        view.schedule, view.growth = self.config.schedule(n_passes), "none"
        view.depth = view.drawn = view.scheduled = n_passes
        return view

    def before_update(self, step: int, steps: int) -> None:
        if self.config.pass_count == "random":
            self.drawn = draw_passes(step, self.config.n_passes, self.config.max_passes or 2 * self.config.n_passes)
        elif self.growth == "steps":
            self._set_depth(1 + (step - 1) * self.config.n_passes // steps)
        elif self.growth == "loss" and step == 1:
            self.best_loss.fill_(math.inf)
            self._set_depth(1)

    def after_evaluation(self, loss: float) -> None:
        """Add a pass where the loss gained too little; the first evaluation of a depth only sets its mark."""
        if self.growth == "loss":
            best = self.best_loss.item()
            grows = best - loss < self.config.growth_gain and self.depth < self.config.n_passes
            self._set_depth(self.depth + grows)
            self.best_loss.fill_(math.inf if grows else min(best, loss))

    def _set_depth(self, n_passes: int) -> None:
        self.passes_now.fill_(n_passes)
        self.depth = self.drawn = n_passes

    def _read_depth(self) -> None:
        if self.growth != "none" and not self.passes_now.is_meta:
            self.depth = self.drawn = int(self.passes_now)
            check_range("passes_now", self.depth, low=1, high=self.config.n_passes)

    def train(self, mode: bool = True) -> Self:
        self._read_depth()  # however the buffer was filled
        return super().train(mode)

    def new_cache(self, batch_size: int, capacity: int) -> Cache:
        if capacity > self.config.max_seq_len:
            raise InputError(f"a cache of {capacity} tokens is more than model.max_seq_len={self.config.max_seq_len}")
        device, dtype = self.embed.weight.device, self.compute_dtype or self.embed.weight.dtype
        shape = (batch_size, self.config.number_of_kv_heads, capacity, self.config.width_of_heads)
        slots = [KVSlot.empty(shape, dtype, device) for _ in {step.slot for step in self.schedule}]
        return Cache(slots, batch_size, capacity, device)

    def budget(self, context: int | None = None) -> Budget:
        """Counts the passes that an evaluation runs: of a new model all, of a loop that grows those it has grown to.
        In training mode those of the present update; of passes before the gradient is cut the forward only."""
        n_heads, n_kv_heads, d_head = self.config.n_heads, self.config.number_of_kv_heads, self.config.width_of_heads
        n_passes, cut = (self.drawn, self.config.backprop_passes) if self.training else (self.depth, 0)
        table, laps = self.embed.weight.numel(), self._laps(n_passes)
        square = 4 * (context or self.config.max_seq_len) * n_heads * d_head
        maps = [sum(p.numel() for p in block.parameters() if p.dim() == 2) for block in self.blocks]
        joined = 0 if self.adapter is None else self.adapter.weight.numel()
        costs = [joined + sum(maps[self.schedule[i].block] for i in steps) for _, steps in laps]
        n_steps = 2 * self.config.n_first + sum(len(steps) for _, steps in laps)
        executed = table + sum(costs) + sum(maps[i] for i in (0, -1)[: 2 * self.config.n_first])
        again = self.config.n_shared * (n_passes - 1) if self.config.kv_sharing == "first" else 0
        executed -= again * 2 * self.config.d_model * n_kv_heads * d_head
        blind = max(0, n_passes - cut) if cut else 0  # only cycles are cut: a lap is a pass
        return Budget(
            parameters=count_parameters(self),
            embedding_parameters=table if self.untied is None else 2 * table,
            executed_parameters=executed,
            flops_per_token=2 * executed + square * n_steps,
            cache_bytes_per_token=2 * 2 * len({step.slot for step in self.schedule}) * n_kv_heads * d_head,
            forward_only_flops_per_token=2 * sum(costs[:blind]) + square * self.config.n_shared * blind,
        )
