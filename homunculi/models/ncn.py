"""A plain transformer under a tiny controller: neuromodulatory control, causal, neutral at the start.

The controller reads the token table's rows only: each token's own, and a pool of those before it. For every token and
block it sets a gain of both updates of the residual stream, a precision of attention (an inverse temperature) and a
gate of the feed-forward part. Idea: M. C. Morgan, "Neuromodulatory Control Networks" (2025); here the pool is causal,
and the maps give exactly 1 for a controller that says 0.

Legend: B batch, T positions, N = B · T, S positions seen, D width, V vocabulary, L blocks, H heads, C controller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.budget import Budget, count_parameters
from ..core.cache import Cache, KVSlot
from ..core.model import LanguageModel
from ..core.modulation import NEUTRAL, Modulation
from ..core.output import Hidden
from ..core.schedule import in_order
from ..core.taps import NO_TAPS, TapPoint
from ..errors import InputError
from ..parts.block import Block, positions_and_mask
from ..parts.linear import Linear
from ..parts.norm import RMSNorm
from ..parts.pooling import CausalPooling
from ..parts.rope import RotaryEmbedding
from ..settings import check_range
from .registry import Part, architecture, without

Signal = Literal["gain", "precision", "gate"]
# From what the controller says to a signal: 0 gives exactly 1; gain and gate lie in (0, 2), precision in (1/4, 4).
MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "gain": lambda z: 2 * torch.sigmoid(z),
    "precision": lambda z: torch.exp2(2 * torch.tanh(z / 2)),
    "gate": lambda z: 2 * torch.sigmoid(z),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Shape of a modulated transformer; a zero is derived. The first block of fields is the plain transformer's.

    Attributes:
        signals: what the controller sets; without any the model is the plain transformer.
        precision_per: one precision a block, or one for each of its heads.
        pooling: what of the past the controller sees: causal, all of it; decay, with weights that halve over learned
            half-lives; refreshed, all of it as it was at the latest multiple of `refresh_every`; last, nothing.
        n_pool_heads: heads of the pool.
        d_control: width of the controller's hidden layer.
        n_controls: length of the external control vector (`NCN.set_controls`); 0: none.
        homeostasis: weight of the mean squared distance of each signal from 1.
        skip_below: a gate below it counts as 0, and evaluation leaves the feed-forward part out; 0: never.
        plasticity: gain scales a block's updates by the running mean of its gain.
    """

    vocab_size: int = 0
    d_model: int = 256
    n_blocks: int = 6
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

    signals: tuple[Signal, ...] = ("gain", "precision", "gate")
    precision_per: Literal["block", "head"] = "block"
    pooling: Literal["causal", "decay", "refreshed", "last"] = "causal"
    n_pool_heads: int = 4
    refresh_every: int = 16
    d_control: int = 64
    n_controls: int = 0
    homeostasis: float = 0.01
    skip_below: float = 0.0
    plasticity: Literal["none", "gain"] = "none"

    def __post_init__(self) -> None:
        for name in ("d_model", "n_blocks", "n_heads", "max_seq_len", "n_pool_heads", "refresh_every", "d_control"):
            check_range(f"model.{name}", getattr(self, name), low=1)
        for name in ("vocab_size", "n_kv_heads", "d_head", "d_mlp", "n_controls", "homeostasis"):
            check_range(f"model.{name}", getattr(self, name), low=0)
        check_range("model.rope_base", self.rope_base, above=1)
        for name, wrong, fix in self._faults():
            if wrong:
                raise InputError(f"model.{name}: {fix}")

    def _faults(self) -> Iterator[tuple[str, object, str]]:
        """Field, whether it is wrong, and what to say then."""
        width, has = self.d_model, self.signals.__contains__
        unknown = [name for name in self.signals if name not in MAPS]
        yield "signals", unknown, f"{', '.join(unknown)} is no signal; choose from {', '.join(MAPS)}"
        yield "signals", len(set(self.signals)) < len(self.signals), "a signal is named twice; name each once"
        for name, parts in (("n_heads", 0 if self.d_head else self.n_heads), ("n_pool_heads", self.n_pool_heads)):
            yield name, parts and width % parts, f"{parts} does not divide model.d_model={width}"
        yield "d_head", self.width_of_heads % 2, "rotary positions need an even head width; change d_model or n_heads"
        kv_heads = self.number_of_kv_heads
        yield "n_kv_heads", self.n_heads % kv_heads, f"{kv_heads} does not divide model.n_heads={self.n_heads}"
        yield "dropout", not 0 <= self.dropout < 1, f"{self.dropout} is outside [0, 1)"
        yield "skip_below", not 0 <= self.skip_below < 1, f"{self.skip_below} is outside [0, 1); a neutral gate is 1"
        yield "skip_below", self.skip_below and not has("gate"), "needs a gate: add it to model.signals, or set 0"
        yield "plasticity", self.plasticity == "gain" and not has("gain"), "needs a gain: add it to model.signals"
        yield "n_controls", self.n_controls and not self.signals, "needs a signal to act on: set model.signals, or 0"

    @property
    def width_of_heads(self) -> int:
        return self.d_head or self.d_model // self.n_heads

    @property
    def number_of_kv_heads(self) -> int:
        return self.n_kv_heads or self.n_heads


class Controller(nn.Module):
    """Signals from the token table's rows: u = norm(pool + own), h = tanh(W1 u + b1), signal = map(W2 h + b2).

    W2 and b2 are zero at the start, so all signals are 1.
    """

    controls: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        n_heads = config.n_heads if config.precision_per == "head" else 1
        self.widths = {name: n_heads if name == "precision" else 1 for name in config.signals}
        self.n_blocks = config.n_blocks
        self.own_norm = RMSNorm(config.d_model)
        half_lives = [8.0 * 4**i for i in range(config.n_pool_heads)] if config.pooling == "decay" else []
        every = config.refresh_every if config.pooling == "refreshed" else 1
        pooling = CausalPooling(config.d_model, config.n_pool_heads, half_lives, every)
        self.pooling = None if config.pooling == "last" else pooling
        self.norm = RMSNorm(config.d_model)
        self.hidden = Linear(config.d_model, config.d_control)
        self.hidden_bias_C = nn.Parameter(torch.zeros(config.d_control))
        self.from_controls = Linear(config.n_controls, config.d_control) if config.n_controls else None
        if config.n_controls:
            self.register_buffer("controls", torch.zeros(config.n_controls))
        self.out = Linear(config.d_control, config.n_blocks * sum(self.widths.values()))
        self.out_bias = nn.Parameter(torch.zeros(self.out.out_features))
        for module in self.modules():
            if isinstance(module, Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
        nn.init.zeros_(self.out.weight)

    def forward(
        self, x_BTD: Tensor, taps: TapPoint, documents_BT: Tensor | None, cache: Cache | None
    ) -> dict[str, Tensor]:
        """Signals (B, T, L) by name, precision of heads (B, T, H, L); in float32 at least: near 1 a bfloat16 moves in
        steps of 1/128."""
        own_BTD = seen_BTD = self.own_norm(x_BTD)
        if self.pooling is not None:
            n = x_BTD.shape[1]
            read = None if cache is None else (cache.at(-1), cache.positions(n), cache.valid(n))
            seen_BTD = own_BTD + taps("control.pool", self.pooling(own_BTD, documents_BT, read))
        h_BTC = self.hidden(self.norm(seen_BTD)) + self.hidden_bias_C.to(x_BTD.dtype)
        if self.from_controls is not None:
            h_BTC = h_BTC + self.from_controls(self.controls).to(h_BTC.dtype)
        h_BTC = taps("control.hidden", torch.tanh(h_BTC))
        wide = torch.promote_types(h_BTC.dtype, torch.float32)
        said = (self.out(h_BTC.to(wide)) + self.out_bias).unflatten(-1, (self.n_blocks, -1))
        parts = said.split(list(self.widths.values()), dim=-1)
        return {
            name: taps(f"control.{name}", MAPS[name](z.mT if z.shape[-1] > 1 else z.squeeze(-1)))
            for name, z in zip(self.widths, parts, strict=True)
        }


def _times(factor: Tensor | None, update: Tensor) -> Tensor:
    return update if factor is None else (factor * update).to(update.dtype)


class ModulatedBlock(Block):
    """x + gain · attention(norm(x)), then x + gain · gate · mlp(norm(x))."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.skips = config.skip_below > 0

    def forward(
        self,
        x_BTD: Tensor,
        rotation: tuple[Tensor, Tensor],
        taps: TapPoint,
        mask_BTS: Tensor | None = None,
        cache: tuple[KVSlot, Tensor] | None = None,
        signals: Modulation = NEUTRAL,
    ) -> Tensor:
        x_BTD = taps("resid_pre", x_BTD)
        precision = signals.precision
        if precision is not None and precision.dim() == 4:
            precision = precision.squeeze(-1)
        update = self.dropout(self.attn(self.attn_norm(x_BTD), rotation, taps, mask_BTS, cache, precision))
        x_BTD = taps("resid_mid", x_BTD + _times(signals.gain, update))
        factor = signals.gate if signals.gain is None else _times(signals.gate, signals.gain)
        return taps("resid_post", self._feed_forward(x_BTD, factor, taps))

    def _feed_forward(self, x_BTD: Tensor, factor_BT1: Tensor | None, taps: TapPoint) -> Tensor:
        """x + factor · mlp(norm(x)). Evaluation computes it where the factor is not 0, unless somebody looks inside."""
        looked_at = any(taps.wants(f"mlp.{site}") for site in ("pre", "post", "out"))
        if factor_BT1 is not None and self.skips and not (self.training or looked_at or torch.compiler.is_compiling()):
            x_ND, factor_N1 = x_BTD.flatten(0, 1), factor_BT1.flatten(0, 1)
            index_N = factor_N1.squeeze(1).nonzero().squeeze(1)
            if len(index_N) < len(factor_N1):
                update_ND = self.mlp(self.mlp_norm(x_ND[index_N]), NO_TAPS)
                return x_ND.index_add(0, index_N, _times(factor_N1[index_N], update_ND)).view_as(x_BTD)
        return x_BTD + _times(factor_BT1, self.dropout(self.mlp(self.mlp_norm(x_BTD), taps)))


CONTRACT_CONFIGS: tuple[dict[str, Any], ...] = (
    {"n_blocks": 3},
    {"n_blocks": 2, "pooling": "decay", "signals": ("gate", "gain"), "skip_below": 0.5, "n_kv_heads": 2, "tied": False},
    {"n_blocks": 2, "pooling": "refreshed", "refresh_every": 3, "precision_per": "head", "plasticity": "gain"},
    {"n_blocks": 2, "pooling": "last", "signals": ("precision",), "activation": "gelu", "dropout": 0.1},
)


PARTS = (
    Part(
        "controller",
        removed={"signals": (), "n_controls": 0, "skip_below": 0.0, "plasticity": "none"},
        neutral={f"control.{name}": 1.0 for name in MAPS},
    ),
    Part("gain", {"signals": without("signals", "gain"), "plasticity": "none"}, neutral={"control.gain": 1.0}),
    Part("precision", {"signals": without("signals", "precision")}, neutral={"control.precision": 1.0}),
    Part("gate", {"signals": without("signals", "gate"), "skip_below": 0.0}, neutral={"control.gate": 1.0}),
    Part("pool", {"pooling": "last"}, neutral={"control.pool": 0.0}, when=lambda config: config.signals != ()),
    Part("homeostasis", {"homeostasis": 0.0}, when=lambda config: config.signals != ()),
    Part("plasticity", {"plasticity": "none"}, misdirected={"train.plasticity": "shuffled"}),
)


@architecture("ncn", Config, variants=CONTRACT_CONFIGS, parts=PARTS)
class NCN(LanguageModel):
    """The modulated transformer. Built from one seed, it has the plain transformer's weights and, at first, its bits.

    Raises:
        InputError: `config.vocab_size` is 0.
    """

    mean_gain_L: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        if config.vocab_size < 1:
            raise InputError("model.vocab_size: a model needs a vocabulary; give its size")
        self.config = config
        self.schedule = in_order(range(config.n_blocks))
        self.embed = nn.Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(ModulatedBlock(config) for _ in range(config.n_blocks))
        self.norm = RMSNorm(config.d_model)
        self.untied = None if config.tied else Linear(config.d_model, config.vocab_size)
        self.rope = RotaryEmbedding(config.width_of_heads, config.max_seq_len, config.rope_base)
        self.init_weights()
        # Drawn last, so that the rest gets the random numbers that it gets without a controller.
        self.controller = Controller(config) if config.signals else None
        if config.plasticity == "gain":
            self.register_buffer("mean_gain_L", torch.ones(config.n_blocks))

    def init_weights(self) -> None:
        """Normal weights: token table and untied read-out 0.02; maps 1/√inputs; maps that write to the residual
        stream smaller by √(2 · steps), so that its variance does not grow with depth."""
        nn.init.normal_(self.embed.weight, std=0.02)
        for name, module in self.named_modules():
            if isinstance(module, Linear):
                writes = name.endswith(("attn.o", "mlp.out"))
                depth = 2 * len(self.schedule) if writes else 1
                nn.init.normal_(module.weight, std=(module.in_features * depth) ** -0.5)
        if self.untied is not None:
            nn.init.normal_(self.untied.weight, std=0.02)

    def trunk(
        self, ids_BT: Tensor, taps: TapPoint = NO_TAPS, cache: Cache | None = None, documents_BT: Tensor | None = None
    ) -> Hidden:
        x_BTD = self.embed(ids_BT)
        x_BTD = taps("embed", x_BTD.to(self.compute_dtype or x_BTD.dtype))
        positions, mask_BTS = positions_and_mask(ids_BT, self.config.max_seq_len, cache, documents_BT)
        rotation = self.rope.at(positions, x_BTD.dtype)
        signals = {} if self.controller is None else self.controller(x_BTD, taps, documents_BT, cache)
        modulation, least = Modulation(**signals), self.config.skip_below
        if least:
            modulation = replace(modulation, gate=torch.where(signals["gate"] < least, 0.0, signals["gate"]))
        for i, step in enumerate(self.schedule):
            slot = None if cache is None else (cache.at(step.slot), positions)
            x_BTD = self.blocks[step.block](x_BTD, rotation, taps.at(i), mask_BTS, slot, modulation.at(i))
        if cache is not None or not signals:
            return Hidden(x_BTD)
        return Hidden(x_BTD, self._loss_terms(signals), statistics=self._statistics(signals))

    def _loss_terms(self, signals: dict[str, Tensor]) -> dict[str, Tensor]:
        """Homeostasis: signals that the loss does not move return to 1; closed gates open again through it."""
        apart = [(signal - 1).square().mean() for signal in signals.values()]
        return {"homeostasis": self.config.homeostasis * torch.stack(apart).sum()}

    @torch.no_grad()
    def _statistics(self, signals: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of each signal, averaged over blocks: mean, variance over tokens, variance between the means of sequences,
        and the share within a tenth of the way to a bound."""
        found: dict[str, Tensor] = {}
        for name, signal in signals.items():
            s = signal.detach().flatten(2)
            apart = s.log2() / 2 if name == "precision" else s - 1
            found[f"signal/{name}/mean"] = s.mean()
            found[f"signal/{name}/variance"] = s.var((0, 1), correction=0).mean()
            found[f"signal/{name}/between"] = s.mean(1).var(0, correction=0).mean()
            found[f"signal/{name}/saturated"] = (apart.abs() > 0.9).to(s.dtype).mean()
        if self.config.skip_below:
            found["skipped"] = (signals["gate"] < self.config.skip_below).float().mean()
        if self.config.plasticity == "gain":
            found["gain_of_blocks"] = signals["gain"].mean((0, 1))
        return found

    def readout(self, x_BTD: Tensor, taps: TapPoint = NO_TAPS) -> Tensor:
        weight_VD = self.embed.weight if self.untied is None else self.untied.weight
        x_BTD = taps("readout.norm", self.norm(x_BTD))
        return taps("readout.logits", F.linear(x_BTD, weight_VD.to(x_BTD.dtype)))

    def new_cache(self, batch_size: int, capacity: int) -> Cache:
        """Keys and values of each step; in the last slot what the controller's pool remembers."""
        device, dtype = self.embed.weight.device, self.compute_dtype or self.embed.weight.dtype
        if capacity > self.config.max_seq_len:
            raise InputError(f"a cache of {capacity} tokens is more than model.max_seq_len={self.config.max_seq_len}")
        shape = (batch_size, self.config.number_of_kv_heads, capacity, self.config.width_of_heads)
        slots: list[Any] = [KVSlot.empty(shape, dtype, device) for _ in self.schedule]
        if self.controller is not None and self.controller.pooling is not None:
            slots.append(self.controller.pooling.new_slot(batch_size))
        return Cache(slots, batch_size, capacity, device)

    def budget(self, context: int | None = None) -> Budget:
        """The pool's running sums multiply no matrices and their size does not grow with the context. Skipping is not
        counted: how much it saves depends on the text (statistic `skipped`)."""
        n_heads, n_kv_heads, d_head = self.config.n_heads, self.config.number_of_kv_heads, self.config.width_of_heads
        table = self.embed.weight.numel()
        maps = [sum(p.numel() for p in block.parameters() if p.dim() == 2) for block in self.blocks]
        own = [] if self.controller is None else self.controller.named_parameters()
        control = sum(p.numel() for name, p in own if p.dim() == 2 and name != "from_controls.weight")
        executed = sum(maps[step.block] for step in self.schedule) + table + control
        square = 4 * (context or self.config.max_seq_len) * n_heads * d_head
        return Budget(
            parameters=count_parameters(self),
            embedding_parameters=table if self.untied is None else 2 * table,
            executed_parameters=executed,
            flops_per_token=2 * executed + square * len(self.schedule),
            cache_bytes_per_token=2 * 2 * len(self.schedule) * n_kv_heads * d_head,
        )

    def neutral_twin(self) -> NCN:
        """A copy of the model without its controller: the plain transformer with the same weights."""
        bare = replace(self.config, signals=(), n_controls=0, skip_below=0.0, plasticity="none")
        twin = type(self)(bare).to(self.embed.weight.device, self.embed.weight.dtype)
        own = self.state_dict()
        twin.load_state_dict({name: own[name] for name in twin.state_dict()})
        twin.compute_dtype = self.compute_dtype
        return twin.train(self.training)

    def set_controls(self, values: Sequence[float] | Tensor) -> None:
        """Set the external control vector, zero at first; it acts on all tokens read from now on.

        Raises:
            InputError: not `n_controls` numbers.
        """
        given = torch.as_tensor(values, dtype=torch.float32)
        if given.shape != (self.config.n_controls,):
            raise InputError(f"controls: expected model.n_controls={self.config.n_controls} numbers, got {values}")
        if self.controller is not None and self.config.n_controls:
            self.controller.controls.copy_(given)

    def after_update(self, statistics: dict[str, Tensor]) -> None:
        if self.config.plasticity == "gain":
            self.mean_gain_L.lerp_(statistics["gain_of_blocks"].to(self.mean_gain_L.dtype), 0.01)

    def plasticity(self) -> dict[str, Tensor]:
        """Running mean gain of each block (over about 100 updates) by its prefix of parameter names; empty: no block
        learns faster than another."""
        if self.config.plasticity == "none":
            return {}
        return {f"blocks.{i}": gain for i, gain in enumerate(self.mean_gain_L.unbind())}
