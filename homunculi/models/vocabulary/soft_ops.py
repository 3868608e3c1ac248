"""A readable model whose steps are instructions: each is a blend of a few functions, which all steps share.

x += s_m · o decay(u F Cqᵀ, u F Ckᵀ, u F Cvᵀ) (F Coᵀ)ᵀ, then x += s_o · o′ (Σ_j π_j f_j(u R W_j + b_j)) (F Cwᵀ)ᵀ,
where u = rms(x) anew each time, R = softmax over words of F Crᵀ, π = softmax of the step's learned logits. The blend
is the same for all tokens; neither noise nor a temperature takes part in it. W and b belong to all steps.
Published as v7 of the vocabulary-space models.

Legend: B batch, T positions, V vocabulary, W = 2K columns of the basis F of K waves, C channels, J functions, E = JC.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.budget import Budget
from ...core.held import Holding
from ...core.taps import TapPoint
from ...parts.decay_attention import DecaySlot, decay_flops
from ...parts.fourier import coefficients, fourier_basis, reading_map
from ...parts.readable import ReadableConfig, ReadableModel, Reading, number, rms
from ...parts.wave_memory import WaveMemory, memory_parameters
from ...settings import check_range
from ..registry import architecture


def identity(x: Tensor) -> Tensor:
    return x


FUNCTIONS: tuple[Callable[[Tensor], Tensor], ...] = (
    identity,
    F.relu,
    F.gelu,
    torch.square,
    torch.neg,
    torch.abs,
    torch.tanh,
    torch.sigmoid,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(ReadableConfig):
    """Shape of the model.

    Attributes:
        n_ops: functions J to blend: identity, relu, gelu, square, minus, abs, tanh, sigmoid, then from the first again,
            each with a map of its own.
        n_waves: waves K over the vocabulary.
        n_channels: channels of the memory and of the functions.
        first_decay: logit of the decay before training.
    """

    n_ops: int = 8
    n_waves: int = 16
    n_channels: int = 128
    first_decay: float = 3.0

    def __post_init__(self) -> None:
        self.check()
        for name in ("n_ops", "n_waves", "n_channels"):
            check_range(f"model.{name}", getattr(self, name), low=1)


class Bank(Holding):
    """The functions that all steps share, each with its map: f_j(h W_j + b_j)."""

    def __init__(self, n_ops: int, n_channels: int) -> None:
        super().__init__()
        self.mix_JCC = coefficients(n_ops, n_channels, n_channels)
        self.bias_JC = nn.Parameter(torch.zeros(n_ops, n_channels))

    def forward(self, h_BTC: Tensor, share_J: Tensor, taps: TapPoint) -> Tensor:
        """Their mean, weighted by `share_J`."""
        dtype = h_BTC.dtype
        into_CE = self.once("into", dtype, lambda: self.mix_JCC.transpose(0, 1).flatten(1).to(dtype))
        pre_BTJC = taps("mlp.pre", (h_BTC @ into_CE).unflatten(-1, self.bias_JC.shape) + self.bias_JC.to(dtype))
        kept = zip(share_J.to(dtype), pre_BTJC.unbind(2), strict=True)
        post_BTC = torch.zeros_like(h_BTC)
        for j, (share, pre_BTC) in enumerate(kept):
            post_BTC = post_BTC + share * FUNCTIONS[j % len(FUNCTIONS)](pre_BTC)
        return taps("mlp.post", post_BTC)


class Instruction(Holding):
    """Channels read, put through a blend of the bank's functions, and written as waves."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.read_CW = coefficients(config.n_channels, 2 * config.n_waves)
        self.write_CW = coefficients(config.n_channels, 2 * config.n_waves)
        self.op_logits_J = nn.Parameter(torch.zeros(config.n_ops))
        self.out_scale, self.scale = number(0.1), number(1)

    def forward(self, u_BTV: Tensor, basis_VW: Tensor, bank: Bank, taps: TapPoint) -> Tensor:
        dtype = u_BTV.dtype
        waves_VW = self.once("waves", dtype, lambda: basis_VW.to(dtype))
        into_VC = self.once("into", dtype, lambda: reading_map(basis_VW, self.read_CW).to(dtype))
        out_CW = self.once("out", dtype, lambda: (self.scale * self.out_scale * self.write_CW).to(dtype))
        return taps("mlp.out", bank(u_BTV @ into_VC, self.op_logits_J.softmax(0), taps) @ out_CW @ waves_VW.mT)


class Step(nn.Module):
    """One step: the memory, then the instruction."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.memory = WaveMemory(2 * config.n_waves, config.n_channels, config.first_decay)
        self.instruction = Instruction(config)

    def forward(self, x_BTV: Tensor, basis_VW: Tensor, bank: Bank, taps: TapPoint, reading: Reading) -> Tensor:
        x_BTV = taps("resid_pre", x_BTV)
        x_BTV = taps("resid_mid", x_BTV + self.memory(rms(x_BTV), basis_VW, taps, reading))
        return taps("resid_post", x_BTV + self.instruction(rms(x_BTV), basis_VW, bank, taps))


VARIANTS: tuple[dict[str, Any], ...] = (
    {"n_steps": 3, "n_waves": 30, "n_channels": 40},
    {"n_steps": 2, "n_waves": 29, "n_channels": 36, "n_ops": 11},
)


@architecture("vocab_soft_ops", Config, variants=VARIANTS)
class SoftOps(ReadableModel):
    """Readable, with blended functions."""

    config: Config
    basis_VW: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        basis_VW = fourier_basis(config.vocab_size, config.n_waves)
        self.register_buffer("basis_VW", basis_VW, persistent=False)
        self.bank = Bank(config.n_ops, config.n_channels)
        self.steps = nn.ModuleList(Step(config) for _ in self.schedule)

    def shared(self) -> tuple[Any, ...]:
        return (self.basis_VW, self.bank)

    def new_slot(self, batch_size: int) -> DecaySlot:
        shape = (batch_size, 1, self.config.n_channels, self.config.n_channels)
        return DecaySlot.empty(shape, self.logit_scale)

    def budget(self, context: int | None = None) -> Budget:
        c, n, n_columns = self.config, len(self.schedule), 2 * self.config.n_waves
        instruction = c.n_channels * (c.vocab_size + c.n_ops * c.n_channels + n_columns)
        executed = memory_parameters(n_columns, c.n_channels) + instruction
        mixing = decay_flops(context or c.max_seq_len, c.n_channels, c.n_channels)
        return self.counted(n * executed, n * mixing, constant=n * 6 * c.vocab_size * n_columns)
