"""A readable model in which the tokens say how much is mixed and how long they are remembered.

x += c ⊙ conv(u) · mean σ(W_g u), u = rms(x); then g = x[read_i], and with n = rms(g)
g += s · o · W_o z, z_t = Σ_{r<t} a_r^(t−r−1) (W_q n_t · W_k n_r / √k) W_v n_r, a_r = σ(w · n_r + b);
then x += o′ act(rms(x) R M + b′) (F Cwᵀ)ᵀ with cosines for F; then x[write_i] += w / √k · rms(g).
Each memory decays at a rate of its own, so no sum of fixed size can hold them: while decoding all are kept. Published
as v14 of the vocabulary-space models.

Legend: B batch, T positions, S positions of memories, L capacity, V vocabulary, k words of a slice, K its width or,
beside V, waves; c has one factor a word.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...core.budget import Budget
from ...core.cache import Cache, KVSlot
from ...core.output import Hidden
from ...core.taps import NO_TAPS, TapPoint
from ...parts.causal_conv import CausalConv, ConvSlot
from ...parts.decay_attention import ROWS
from ...parts.fourier import FourierOp, cosine_basis
from ...parts.linear import Linear
from ...parts.readable import ACTIVATIONS, ReadableModel, Reading, number, rms
from ...parts.slices import Reach, SliceAttention, SliceConfig, reaches
from ...settings import check_range
from ..registry import architecture

LEAST_DECAY = 1e-8


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(SliceConfig):
    """Shape of the model.

    Attributes:
        kernel_size: tokens that a step's convolution mixes, a token itself included.
        n_waves: waves over the vocabulary.
        n_channels: channels between reading and writing them.
    """

    kernel_size: int = 16
    n_waves: int = 16
    n_channels: int = 128
    activation: Literal["gelu", "swish", "relu2"] = "gelu"

    def __post_init__(self) -> None:
        self.check()
        for name in ("kernel_size", "n_waves", "n_channels"):
            check_range(f"model.{name}", getattr(self, name), low=1)


@dataclass(slots=True)
class StepSlot:
    """What a step remembers: inputs of the convolution; keys, values and log decays of all tokens."""

    conv: ConvSlot
    kept: KVSlot
    log_decay_BL: Tensor


class AdaptiveMemory(SliceAttention):
    """Memories of which each decays at a rate that its own token says."""

    def __init__(self, size: int, first_decay: float) -> None:
        super().__init__(size)
        self.decay = Linear(size, 1)
        self.decay_bias = number(first_decay)

    def mixed(self, q_BTK: Tensor, k_BTK: Tensor, v_BTK: Tensor, n_BTK: Tensor, reading: Reading) -> Tensor:
        """As in `SliceAttention`; the slot of `reading` is a `StepSlot` and the tokens' places (B, T), or None."""
        wide = torch.promote_types(n_BTK.dtype, torch.float32)
        rate_BT = self.decay(n_BTK)[..., 0].to(wide) + self.decay_bias
        log_decay_BT = (rate_BT.sigmoid() + LEAST_DECAY).log()
        if reading.slot is None:
            return remembered(q_BTK, k_BTK, v_BTK, log_decay_BT, reading.documents_BT)
        slot, place_BT = reading.slot
        k_B1LK, v_B1LK = slot.kept.extend(k_BTK[:, None], v_BTK[:, None], place_BT)
        slot.log_decay_BL.scatter_(1, place_BT, log_decay_BT.to(slot.log_decay_BL.dtype))
        since_BTL = place_BT[..., None] - torch.arange(k_B1LK.shape[2], device=place_BT.device) - 1
        scores_BTL = q_BTK @ k_B1LK[:, 0].to(q_BTK.dtype).mT
        return decayed(scores_BTL, since_BTL, slot.log_decay_BL) @ v_B1LK[:, 0].to(v_BTK.dtype)


def remembered(
    q_BTK: Tensor, k_BTK: Tensor, v_BTK: Tensor, log_decay_BT: Tensor, documents_BT: Tensor | None
) -> Tensor:
    """What each token reads of those before it, (B, T, K), without the scores of most that come after it."""
    n_tokens, found = q_BTK.shape[1], []
    place_T = torch.arange(n_tokens, device=q_BTK.device)
    for start in range(0, n_tokens, ROWS):
        end = min(n_tokens, start + ROWS)
        since_TS = place_T[start:end, None] - place_T[:end] - 1
        if documents_BT is not None:
            same_BTS = documents_BT[:, start:end, None] == documents_BT[:, None, :end]
            since_TS = since_TS.masked_fill(~same_BTS, -1)
        scores_BTS = q_BTK[:, start:end] @ k_BTK[:, :end].mT
        found.append(decayed(scores_BTS, since_TS, log_decay_BT[:, :end]) @ v_BTK[:, :end])
    return found[0] if len(found) == 1 else torch.cat(found, 1)


def decayed(scores_BTS: Tensor, since_BTS: Tensor, log_decay_BS: Tensor) -> Tensor:
    """Scores times a^since; 0 where `since`, the tokens between, is below 0."""
    powers_BTS = since_BTS.clamp(min=0) * log_decay_BS[:, None]
    return (scores_BTS * powers_BTS.exp()).masked_fill(since_BTS < 0, 0).to(scores_BTS.dtype)


def remembering_flops(n_tokens: int, size: int) -> int:
    """FLOPs a token of `remembered`."""
    starts = range(0, n_tokens, ROWS)
    seen = sum(end * (end - start) for start in starts for end in (min(n_tokens, start + ROWS),))
    return round(4 * size * seen / n_tokens)


class Step(nn.Module):
    """One step: the convolution, the memory over a slice, the channels, and the slice written elsewhere."""

    def __init__(self, config: Config, reach: Reach) -> None:
        super().__init__()
        n_words = config.vocab_size
        self.reach = reach
        self.conv = CausalConv(n_words, config.kernel_size)
        self.conv_scale_V = nn.Parameter(torch.ones(n_words))
        self.gate = Linear(n_words, config.kernel_size)
        nn.init.zeros_(self.gate.weight)
        self.memory = AdaptiveMemory(config.slice_size, config.first_decay)
        self.op = FourierOp(config.n_waves, config.n_channels, ACTIVATIONS[config.activation])
        self.write_scale = number(0.1)

    def forward(
        self, x_BTV: Tensor, basis_VK: Tensor, taps: TapPoint, reading: Reading, place_BT: Tensor | None
    ) -> Tensor:
        slot, x_BTV = reading.slot, taps("resid_pre", x_BTV)
        u_BTV = rms(x_BTV)
        gate_BT1 = taps("conv.gate", self.gate(u_BTV).sigmoid().mean(-1, keepdim=True))
        mixed_BTV = self.conv(u_BTV, replace(reading, slot=slot and slot.conv), self.conv_scale_V)
        x_BTV = taps("resid_mid", x_BTV + taps("conv.out", gate_BT1 * mixed_BTV))
        memories = replace(reading, slot=slot and (slot, place_BT))
        g_BTK = self.memory(self.reach.read.of(x_BTV), taps, memories)
        x_BTV = x_BTV + self.op(rms(x_BTV), basis_VK, taps)
        scale = (self.write_scale * self.reach.write.size**-0.5).to(x_BTV.dtype)
        return taps("resid_post", x_BTV + self.reach.write.spread(taps("slice.out", scale * rms(g_BTK))))


VARIANTS: tuple[dict[str, Any], ...] = (
    {"n_steps": 5, "kernel_size": 10, "d_slice": 24, "n_waves": 54, "n_channels": 128},
    {
        "n_steps": 4,
        "kernel_size": 12,
        "d_slice": 40,
        "n_waves": 52,
        "n_channels": 160,
        "activation": "swish",
        "first_scale": 0.3,
    },
)


@architecture("vocab_adaptive", Config, variants=VARIANTS)
class Adaptive(ReadableModel):
    """Readable, with a gated convolution and memories that decay at rates of their own."""

    config: Config
    basis_VK: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.register_buffer("basis_VK", cosine_basis(config.vocab_size, config.n_waves), persistent=False)
        self.reaches = reaches(config.vocab_size, config.n_steps, config.slice_size)
        self.steps = nn.ModuleList(Step(config, reach) for reach in self.reaches)

    def trunk(
        self,
        ids_BT: Tensor,
        taps: TapPoint = NO_TAPS,
        cache: Cache | None = None,
        documents_BT: Tensor | None = None,
    ) -> Hidden:
        x_BTV = self.start(ids_BT, taps)
        place_BT = None if cache is None else cache.positions(ids_BT.shape[1])
        for i, reading in enumerate(self.readings(ids_BT, cache, documents_BT)):
            x_BTV = self.steps[self.schedule[i].block](x_BTV, self.basis_VK, taps.at(i), reading, place_BT)
        return Hidden(x_BTV)

    def new_cache(self, batch_size: int, capacity: int) -> Cache:
        like, dtype = self.logit_scale, self.compute_dtype or self.logit_scale.dtype
        return Cache(
            [self._slot(batch_size, capacity, dtype) for _ in self.schedule], batch_size, capacity, like.device
        )

    def _slot(self, batch_size: int, capacity: int, dtype: torch.dtype) -> StepSlot:
        c, like = self.config, self.logit_scale
        wide = torch.promote_types(like.dtype, torch.float32)
        return StepSlot(
            ConvSlot.empty(like, (batch_size, c.kernel_size - 1, c.vocab_size), dtype),
            KVSlot.empty((batch_size, 1, capacity, c.slice_size), dtype, like.device),
            like.new_zeros(batch_size, capacity, dtype=wide),
        )

    def budget(self, context: int | None = None) -> Budget:
        c, n_steps, size = self.config, len(self.schedule), self.config.slice_size
        executed = 2 * c.vocab_size * (c.kernel_size + c.n_channels) + 4 * size * size + size
        mixing = n_steps * remembering_flops(context or c.max_seq_len, size)
        return self.counted(n_steps * executed, mixing, cache_bytes_per_token=n_steps * (2 * 2 * size + 4))
