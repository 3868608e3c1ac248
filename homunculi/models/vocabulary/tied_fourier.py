"""A readable model with maps of waves whose blocks are applied several times in a row, with scales of each use.

At use n of block i, u = rms(x) anew each time: q, k = u F Cqᵀ, u F Ckᵀ, the same maps for all blocks, each of length 1,
then cut into heads h that forget at rates of their own; v = u F Cvᵀ likewise cut.
x += m_n s_m · o decay(q, k, v; a_h = σ(l_h + δ_nh)) (F Coᵀ)ᵀ, then x += p_n s_o · o′ act(u R M + b) (F Cwᵀ)ᵀ, where
R = softmax over words of F Crᵀ and M = diag(d) + D U, then x ← e_n x. Published as v4 of the vocabulary-space models.

Legend: B batch, T positions, V vocabulary, W = 2K columns of the basis F of K waves, C channels, H heads, K′ = C/H
their width, R rank, N uses.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.budget import Budget
from ...core.cache import Cache
from ...core.held import Holding
from ...core.output import Hidden
from ...core.schedule import shared
from ...core.taps import NO_TAPS, TapPoint
from ...errors import InputError
from ...parts.decay_attention import DecaySlot, decay_attention, decay_flops
from ...parts.fourier import COEFFICIENT_STD, ChannelOp, coefficients, fourier_basis
from ...parts.readable import ACTIVATIONS, ReadableConfig, ReadableModel, Reading, number, rms
from ...settings import check_range
from ..registry import architecture


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(ReadableConfig):
    """Shape of the model.

    Attributes:
        n_steps: uses of blocks; a multiple of `n_uses`.
        n_uses: how often each stored block is applied, one use after the other.
        n_waves: waves K over the vocabulary.
        n_channels: channels of the memory and of what follows it; a multiple of `n_heads`.
        n_heads: parts of the memory that forget at different rates.
        rank: of the channels' mixing, beside its diagonal.
    """

    n_steps: int = 10
    n_uses: int = 2
    n_waves: int = 16
    n_channels: int = 128
    n_heads: int = 4
    rank: int = 8
    activation: Literal["gelu", "swish", "relu2"] = "gelu"

    def __post_init__(self) -> None:
        self.check()
        for name in ("n_uses", "n_waves", "n_channels", "n_heads", "rank"):
            check_range(f"model.{name}", getattr(self, name), low=1)
        if self.n_steps % self.n_uses:
            raise InputError(f"model.n_steps: {self.n_steps} is no multiple of n_uses={self.n_uses}")
        if self.n_channels % self.n_heads:
            raise InputError(f"model.n_channels: {self.n_channels} is no multiple of n_heads={self.n_heads}")

    @property
    def d_head(self) -> int:
        """Width of a head."""
        return self.n_channels // self.n_heads


class NarrowOp(ChannelOp):
    """A `ChannelOp` whose M is a diagonal and a map of low rank."""

    def __init__(self, config: Config) -> None:
        super().__init__(2 * config.n_waves, config.n_channels, ACTIVATIONS[config.activation])
        self.diagonal_C = nn.Parameter(torch.full((config.n_channels,), COEFFICIENT_STD))
        self.down_CR = coefficients(config.n_channels, config.rank)
        self.up_RC = coefficients(config.rank, config.n_channels)

    def mixing(self) -> Tensor:
        return self.diagonal_C.diag() + self.down_CR @ self.up_RC


@dataclass(frozen=True, slots=True)
class Use:
    """What an application of a block gets from the model: the shared maps, and its own scales."""

    basis_VW: Tensor
    q_CW: Tensor
    k_CW: Tensor
    memory_scale: Tensor
    op_scale: Tensor
    end_scale: Tensor
    decay_shift_H: Tensor


class Block(Holding):
    """A stored block: values and output of the memory, then the channels."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        n_columns = 2 * config.n_waves
        self.v_CW, self.o_CW = coefficients(config.n_channels, n_columns), coefficients(config.n_channels, n_columns)
        self.decay_logit_H = nn.Parameter(torch.linspace(1, 5, config.n_heads))
        self.out_scale, self.scale = number(0.1), number(1)
        self.op, self.op_scale = NarrowOp(config), number(1)

    def forward(self, x_BTV: Tensor, use: Use, taps: TapPoint, reading: Reading) -> Tensor:
        dtype = x_BTV.dtype
        x_BTV = taps("resid_pre", x_BTV)
        remembered_BTV = use.memory_scale.to(dtype) * self.memory(rms(x_BTV), use, taps, reading)
        x_BTV = taps("resid_mid", x_BTV + taps("attn.out", remembered_BTV))
        written_BTV = self.op(rms(x_BTV), use.basis_VW, taps)
        x_BTV = x_BTV + (use.op_scale * self.op_scale).to(dtype) * written_BTV
        return taps("resid_post", x_BTV * use.end_scale.to(dtype))

    def memory(self, u_BTV: Tensor, use: Use, taps: TapPoint, reading: Reading) -> Tensor:
        dtype, n_heads = u_BTV.dtype, len(self.decay_logit_H)
        waves_VW = self.once("waves", dtype, lambda: use.basis_VW.to(dtype))
        into_WE = self.once("into", dtype, lambda: torch.cat([use.q_CW, use.k_CW, self.v_CW]).mT.to(dtype))
        q_BTC, k_BTC, v_BTC = (u_BTV @ waves_VW @ into_WE).chunk(3, -1)
        cut = (t.unflatten(-1, (n_heads, -1)) for t in (F.normalize(q_BTC, dim=-1), F.normalize(k_BTC, dim=-1), v_BTC))
        q, k, v = (taps(f"attn.{n}", t_BTHK).transpose(1, 2) for n, t_BTHK in zip("qkv", cut, strict=True))
        decay_H = F.logsigmoid(self.decay_logit_H + use.decay_shift_H)
        z_BTHK = taps("attn.z", decay_attention(q, k, v, decay_H, reading).transpose(1, 2))
        out_CW = self.once("out", dtype, lambda: (self.scale * self.out_scale * self.o_CW).to(dtype))
        return z_BTHK.flatten(2) @ out_CW @ waves_VW.mT


VARIANTS: tuple[dict[str, Any], ...] = (
    {"n_steps": 4, "n_waves": 30, "n_channels": 40, "rank": 6},
    {"n_steps": 3, "n_uses": 3, "n_waves": 29, "n_channels": 36, "n_heads": 3, "rank": 7, "activation": "swish"},
)


@architecture("vocab_tied_fourier", Config, variants=VARIANTS)
class TiedFourier(ReadableModel):
    """Readable, with maps of waves and few stored blocks."""

    config: Config
    basis_VW: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.schedule = shared("sequence", config.n_steps, config.n_uses)
        basis_VW = fourier_basis(config.vocab_size, config.n_waves)
        self.register_buffer("basis_VW", basis_VW, persistent=False)
        self.q_CW = coefficients(config.n_channels, 2 * config.n_waves)
        self.k_CW = coefficients(config.n_channels, 2 * config.n_waves)
        self.memory_scale_N = nn.Parameter(torch.ones(config.n_steps))
        self.op_scale_N = nn.Parameter(torch.ones(config.n_steps))
        self.end_scale_N = nn.Parameter(torch.ones(config.n_steps))
        self.decay_shifts = nn.ParameterList(torch.zeros(config.n_heads) for _ in self.schedule)
        self.steps = nn.ModuleList(Block(config) for _ in range(config.n_steps // config.n_uses))

    def trunk(
        self,
        ids_BT: Tensor,
        taps: TapPoint = NO_TAPS,
        cache: Cache | None = None,
        documents_BT: Tensor | None = None,
    ) -> Hidden:
        x_BTV = self.start(ids_BT, taps)
        uses = zip(self.schedule, self.uses(), self.readings(ids_BT, cache, documents_BT), strict=True)
        for i, (step, use, reading) in enumerate(uses):
            x_BTV = self.steps[step.block](x_BTV, use, taps.at(i), reading)
        return Hidden(x_BTV)

    def uses(self) -> Iterator[Use]:
        """One for each step of the schedule."""
        scales = zip(self.memory_scale_N, self.op_scale_N, self.end_scale_N, self.decay_shifts, strict=True)
        for memory_scale, op_scale, end_scale, decay_shift_H in scales:
            yield Use(self.basis_VW, self.q_CW, self.k_CW, memory_scale, op_scale, end_scale, decay_shift_H)

    def new_slot(self, batch_size: int) -> DecaySlot:
        shape = (batch_size, self.config.n_heads, self.config.d_head, self.config.d_head)
        return DecaySlot.empty(shape, self.logit_scale)

    def budget(self, context: int | None = None) -> Budget:
        c, n_columns, n = self.config, 2 * self.config.n_waves, len(self.schedule)
        memory = 4 * c.n_channels * n_columns
        forgetting = c.n_heads * decay_flops(context or c.max_seq_len, c.d_head, c.d_head)
        executed = n * (memory + c.vocab_size * 2 * c.n_channels)
        return self.counted(executed, n * forgetting, constant=n * 4 * c.vocab_size * n_columns)
