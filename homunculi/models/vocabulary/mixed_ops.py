"""A readable model of five parts a step: a moving sum, a long and a short memory, a gate on the stream, and an MLP.

In order, u = rms(x) anew each time: x += o_1 · Σ_{s<t} a_v^(t−s) u_s with a decay of each word; x += o_2 · M(u; a_2);
x = x ⊙ σ(W_u W_d x + b), the stream itself; x += o_4 · W_up gelu(W_down u + c); x += o_5 · M(u; a_5).
M(u; a) = W_o decay(W_q u, W_k u, W_v u), its maps shared by all steps and by both memories, of which the first is long.
Published as v11a of the vocabulary-space models, with one difference: there the moving sum is a cumulative sum divided
by a^(T−1−t), not below 1e-8, which is wrong for early positions once a^T is that small, and then depends on the length
of the row. Here it is the recurrence z_t = a (z_{t−1} + u_{t−1}), at any length.

Legend: B batch, T positions, V vocabulary, K width of keys and values, M hidden width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.budget import Budget
from ...core.held import Holding
from ...core.taps import TapPoint
from ...parts.decay_attention import DecaySlot, decay_attention, decay_flops
from ...parts.linear import Linear
from ...parts.maps import Affine, side_by_side
from ...parts.readable import ReadableConfig, ReadableModel, Reading, number, rms
from ...settings import check_range
from ..registry import architecture

FIRST_GATE = 2.0
FIRST_LONG, FIRST_SHORT = 4.0, 1.0  # decay logits; the long one is the moving sum's as well


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(ReadableConfig):
    """Shape of the model.

    Attributes:
        d_memory: width of keys, queries and values.
        d_mlp: hidden width of the feed-forward part.
        d_gate: rank of the gate.
    """

    d_memory: int = 64
    d_mlp: int = 128
    d_gate: int = 64

    def __post_init__(self) -> None:
        self.check()
        for name in ("d_memory", "d_mlp", "d_gate"):
            check_range(f"model.{name}", getattr(self, name), low=1)


@dataclass(slots=True)
class Slot:
    """What one step remembers of the tokens read so far: Σ a^(t−s) u_s up to the last, and both memories."""

    sum_BV: Tensor
    long: DecaySlot
    short: DecaySlot


def moving_sum(u_BTV: Tensor, log_decay_V: Tensor, documents_BT: Tensor | None = None) -> Tensor:
    """Σ_{s<t} a^(t−s) u_s within documents, which are unbroken stretches of a row.

    Sums over 1, 2, 4, 8 … tokens, each of two that are half as long: log₂ T rounds, and no factor is above 1.
    """
    n_tokens, reach = u_BTV.shape[1], 1
    sum_BTV = _earlier(u_BTV, 1, log_decay_V, documents_BT)
    while reach < n_tokens - 1:
        sum_BTV = sum_BTV + _earlier(sum_BTV, reach, log_decay_V, documents_BT)
        reach *= 2
    return sum_BTV


def _earlier(u_BTV: Tensor, n: int, log_decay_V: Tensor, documents_BT: Tensor | None) -> Tensor:
    """aⁿ u_{t−n}, 0 where that is before the row or of another document."""
    before_BTV = (u_BTV[:, :-n] * (n * log_decay_V).exp()).to(u_BTV.dtype)
    if documents_BT is not None:
        same_BT = documents_BT[:, n:] == documents_BT[:, :-n]
        before_BTV = before_BTV.masked_fill(~same_BT[..., None], 0)
    return F.pad(before_BTV, (0, 0, n, 0))


class Average(nn.Module):
    """The moving sum of one step."""

    def __init__(self, n_words: int) -> None:
        super().__init__()
        self.decay_logit_V = nn.Parameter(torch.full((n_words,), FIRST_LONG))
        self.scale = number(0.1)

    def forward(self, u_BTV: Tensor, reading: Reading) -> Tensor:
        log_decay_V = F.logsigmoid(self.decay_logit_V)
        if reading.slot is None:
            sum_BTV = moving_sum(u_BTV, log_decay_V, reading.documents_BT)
        else:
            sum_BTV = self.go_on(u_BTV, log_decay_V, reading)
        return self.scale.to(u_BTV.dtype) * sum_BTV

    def go_on(self, u_BTV: Tensor, log_decay_V: Tensor, reading: Reading) -> Tensor:
        """From the slot's sum on, and into it."""
        before_BV = reading.slot.sum_BV
        since_T1 = torch.arange(1, u_BTV.shape[1] + 1, device=u_BTV.device)[:, None]
        wide_BTV = u_BTV.to(before_BV.dtype)
        sum_BTV = moving_sum(wide_BTV, log_decay_V) + (since_T1 * log_decay_V).exp() * before_BV[:, None]
        after_BTV = sum_BTV + wide_BTV
        if reading.valid_BT is None:
            before_BV.copy_(after_BTV[:, -1])
        else:
            last_B11 = reading.valid_BT.sum(1)[:, None, None]
            before_BV.copy_(torch.cat([before_BV[:, None], after_BTV], 1).take_along_dim(last_B11, 1)[:, 0])
        return sum_BTV.to(u_BTV.dtype)


class MemoryMaps(Holding):
    """The maps of the memories, which all steps share."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.q, self.k, self.v = (Linear(config.vocab_size, config.d_memory) for _ in range(3))
        self.o = Linear(config.d_memory, config.vocab_size)

    def queries_keys_values(self, u_BTV: Tensor) -> tuple[Tensor, ...]:
        return side_by_side(self, "qkv", u_BTV, self.q, self.k, self.v)


class Memory(nn.Module):
    """What each token reads of those before it, with a decay and a size of its own."""

    def __init__(self, site: str, first_decay: float) -> None:
        super().__init__()
        self.site = site
        self.decay_logit, self.scale = number(first_decay), number(0.1)

    def forward(self, u_BTV: Tensor, maps: MemoryMaps, taps: TapPoint, reading: Reading) -> Tensor:
        made = zip("qkv", maps.queries_keys_values(u_BTV), strict=True)
        q, k, v = (taps(f"{self.site}.{name}", one_BTK)[:, None] for name, one_BTK in made)
        z_BTK = decay_attention(q, k, v, F.logsigmoid(self.decay_logit)[None], reading)[:, 0]
        return taps(f"{self.site}.out", self.scale.to(u_BTV.dtype) * maps.o(taps(f"{self.site}.z", z_BTK)))


class Step(nn.Module):
    """One step of five parts."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        n_words = config.vocab_size
        self.average = Average(n_words)
        self.long, self.short = Memory("long", FIRST_LONG), Memory("short", FIRST_SHORT)
        self.gate_down, self.gate_up = Linear(n_words, config.d_gate), Affine(config.d_gate, n_words)
        nn.init.constant_(self.gate_up.bias, FIRST_GATE)
        self.down, self.up = Linear(n_words, config.d_mlp), Linear(config.d_mlp, n_words)
        self.bias_M = nn.Parameter(torch.zeros(config.d_mlp))
        self.mlp_scale = number(0.1)

    def forward(self, x_BTV: Tensor, maps: MemoryMaps, taps: TapPoint, reading: Reading) -> Tensor:
        x_BTV, dtype = taps("resid_pre", x_BTV), x_BTV.dtype
        x_BTV = x_BTV + taps("average.out", self.average(rms(x_BTV), reading))
        x_BTV = x_BTV + self.long(rms(x_BTV), maps, taps, _part(reading, "long"))
        x_BTV = taps("resid_mid", x_BTV * taps("gate", self.gate_up(self.gate_down(x_BTV)).sigmoid()))
        pre_BTM = taps("mlp.pre", self.down(rms(x_BTV)) + self.bias_M.to(dtype))
        x_BTV = x_BTV + taps("mlp.out", self.mlp_scale.to(dtype) * self.up(taps("mlp.post", F.gelu(pre_BTM))))
        x_BTV = x_BTV + self.short(rms(x_BTV), maps, taps, _part(reading, "short"))
        return taps("resid_post", x_BTV)


def _part(reading: Reading, name: str) -> Reading:
    """The same with one of its slot's memories."""
    if reading.slot is None:
        return reading
    return Reading(getattr(reading.slot, name), reading.documents_BT, reading.valid_BT)


VARIANTS: tuple[dict[str, Any], ...] = (
    {"n_steps": 3, "d_memory": 12, "d_mlp": 20, "d_gate": 10},
    {"n_steps": 2, "d_memory": 8, "d_mlp": 24, "d_gate": 7},
)


@architecture("vocab_mixed_ops", Config, variants=VARIANTS)
class MixedOps(ReadableModel):
    """Readable, with five parts a step."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.memory = MemoryMaps(config)
        self.steps = nn.ModuleList(Step(config) for _ in self.schedule)

    def shared(self) -> tuple[Any, ...]:
        return (self.memory,)

    def new_slot(self, batch_size: int) -> Slot:
        c, like = self.config, self.logit_scale
        shape = (batch_size, 1, c.d_memory, c.d_memory)
        sum_BV = like.new_zeros((batch_size, c.vocab_size), dtype=torch.promote_types(like.dtype, torch.float32))
        return Slot(sum_BV, DecaySlot.empty(shape, like), DecaySlot.empty(shape, like))

    def budget(self, context: int | None = None) -> Budget:
        c, n = self.config, len(self.schedule)
        executed = c.vocab_size * (8 * c.d_memory + 2 * c.d_gate + 2 * c.d_mlp)
        return self.counted(n * executed, 2 * n * decay_flops(context or c.max_seq_len, c.d_memory, c.d_memory))
