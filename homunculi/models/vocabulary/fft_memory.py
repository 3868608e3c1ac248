"""A readable model that works on a few harmonics of its state over the numbers of the words, and writes them back.

X = harmonics 1 … K of the transform of u = rms(x), K < V/2. x += s_m · o B decay(X Wqᵀ, X Wkᵀ, X Wvᵀ), then, X anew,
x += s_o · o′ B act(X Wrᵀ M + b), where B maps to harmonics, all others 0, and transforms back. A transform of which few
harmonics are kept is a product with a narrow basis, and computed so. Published as v5 of the vocabulary-space models.

Legend: B batch, T positions, V vocabulary, W = 2K parts of harmonics, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...core.budget import Budget
from ...core.held import Holding
from ...core.taps import TapPoint
from ...parts.decay_attention import DecaySlot, decay_flops
from ...parts.fourier import WordOrder, coefficients, transform_basis
from ...parts.readable import ACTIVATIONS, ReadableConfig, ReadableModel, Reading, number, rms
from ...parts.wave_memory import WaveMemory, memory_parameters
from ...settings import check_range
from ..registry import architecture


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(ReadableConfig):
    """Shape of the model.

    Attributes:
        n_waves: harmonics K; a small vocabulary has only those below half of its size.
        n_channels: channels of the memory and of what follows it.
        word_order: tokenizer: the words' numbers are the tokenizer's; shuffled: neighbours mean nothing.
        first_decay: logit of the decay before training.
    """

    n_waves: int = 16
    n_channels: int = 128
    activation: Literal["gelu", "swish", "relu2"] = "gelu"
    word_order: WordOrder = "tokenizer"
    first_decay: float = 3.0

    def __post_init__(self) -> None:
        self.check()
        check_range("model.n_waves", self.n_waves, low=1)
        check_range("model.n_channels", self.n_channels, low=1)

    @property
    def n_harmonics(self) -> int:
        """Those there are, of `n_waves`."""
        return min(self.n_waves, (self.vocab_size - 1) // 2)


class HarmonicOp(Holding):
    """o · B act(X Wrᵀ M + b)."""

    def __init__(self, config: Config, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        n_channels, n_parts = config.n_channels, 2 * config.n_harmonics
        self.activation, self.gain = activation, 2 / config.vocab_size
        self.read_CW = coefficients(n_channels, n_parts)
        self.mix_CC = coefficients(n_channels, n_channels)
        self.bias_C = nn.Parameter(torch.zeros(n_channels))
        self.write_WC = coefficients(n_parts, n_channels)
        self.out_scale, self.scale = number(0.1), number(1)

    def forward(self, u_BTV: Tensor, basis_VW: Tensor, taps: TapPoint) -> Tensor:
        dtype = u_BTV.dtype
        waves_VW = self.once("waves", dtype, lambda: basis_VW.to(dtype))
        into_WC = self.once("into", dtype, lambda: (self.read_CW.mT @ self.mix_CC).to(dtype))
        pre_BTC = taps("mlp.pre", u_BTV @ waves_VW @ into_WC + self.bias_C.to(dtype))
        scale = self.gain * self.scale * self.out_scale
        out_CW = self.once("out", dtype, lambda: (scale * self.write_WC.mT).to(dtype))
        return taps("mlp.out", taps("mlp.post", self.activation(pre_BTC)) @ out_CW @ waves_VW.mT)


class Step(nn.Module):
    """One step: the memory, then the channels."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.memory = WaveMemory(
            2 * config.n_harmonics, config.n_channels, config.first_decay, gain=2 / config.vocab_size
        )
        self.op = HarmonicOp(config, ACTIVATIONS[config.activation])

    def forward(self, x_BTV: Tensor, basis_VW: Tensor, taps: TapPoint, reading: Reading) -> Tensor:
        x_BTV = taps("resid_pre", x_BTV)
        x_BTV = taps("resid_mid", x_BTV + self.memory(rms(x_BTV), basis_VW, taps, reading))
        return taps("resid_post", x_BTV + self.op(rms(x_BTV), basis_VW, taps))


VARIANTS: tuple[dict[str, Any], ...] = (
    {"n_steps": 3, "n_waves": 29, "n_channels": 40},
    {"n_steps": 2, "n_waves": 30, "n_channels": 28, "activation": "swish", "word_order": "shuffled"},
)


@architecture("vocab_fft_memory", Config, variants=VARIANTS)
class TransformMemory(ReadableModel):
    """Readable, working on harmonics of the state."""

    config: Config
    basis_VW: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        basis_VW = transform_basis(config.vocab_size, config.n_harmonics, config.word_order)
        self.register_buffer("basis_VW", basis_VW, persistent=False)
        self.steps = nn.ModuleList(Step(config) for _ in self.schedule)

    def shared(self) -> tuple[Any, ...]:
        return (self.basis_VW,)

    def new_slot(self, batch_size: int) -> DecaySlot:
        shape = (batch_size, 1, self.config.n_channels, self.config.n_channels)
        return DecaySlot.empty(shape, self.logit_scale)

    def budget(self, context: int | None = None) -> Budget:
        c, n, n_parts = self.config, len(self.schedule), 2 * self.config.n_harmonics
        executed = memory_parameters(n_parts, c.n_channels) + 2 * n_parts * c.n_channels
        mixing = decay_flops(context or c.max_seq_len, c.n_channels, c.n_channels)
        return self.counted(n * executed, n * mixing, constant=n * 8 * c.vocab_size * n_parts)
