"""A readable model whose maps are sums of waves over the numbers of the words: a decaying memory, then channels.

x += s_m · o decay(u F Cqᵀ, u F Ckᵀ, u F Cvᵀ) (F Coᵀ)ᵀ, then x += s_o · o′ act(u R M + b) (F Cwᵀ)ᵀ, where u = rms(x)
anew each time and R = softmax over words of F Crᵀ. Published as v3 of the vocabulary-space models.

Legend: B batch, T positions, V vocabulary, W = 2K columns of the basis F of K waves, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from ...core.budget import Budget
from ...core.taps import TapPoint
from ...parts.decay_attention import DecaySlot, decay_flops
from ...parts.fourier import FourierOp, WordOrder, fourier_basis
from ...parts.readable import ACTIVATIONS, ReadableConfig, ReadableModel, Reading, number, rms
from ...parts.wave_memory import WaveMemory, memory_parameters
from ...settings import check_range
from ..registry import architecture


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(ReadableConfig):
    """Shape of the model.

    Attributes:
        n_waves: waves K over the vocabulary.
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


class Step(nn.Module):
    """One step: the memory, then the channels."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.memory = WaveMemory(2 * config.n_waves, config.n_channels, config.first_decay)
        self.op = FourierOp(2 * config.n_waves, config.n_channels, ACTIVATIONS[config.activation])
        self.op_scale = number(1)

    def forward(self, x_BTV: Tensor, basis_VW: Tensor, taps: TapPoint, reading: Reading) -> Tensor:
        x_BTV = taps("resid_pre", x_BTV)
        x_BTV = taps("resid_mid", x_BTV + self.memory(rms(x_BTV), basis_VW, taps, reading))
        written_BTV = self.op_scale.to(x_BTV.dtype) * self.op(rms(x_BTV), basis_VW, taps)
        return taps("resid_post", x_BTV + written_BTV)


VARIANTS: tuple[dict[str, Any], ...] = (
    {"n_steps": 3, "n_waves": 30, "n_channels": 24},
    {"n_steps": 2, "n_waves": 25, "n_channels": 28, "activation": "swish", "word_order": "shuffled"},
)


@architecture("vocab_fourier_memory", Config, variants=VARIANTS)
class FourierMemory(ReadableModel):
    """Readable, with maps of waves."""

    config: Config
    basis_VW: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        basis_VW = fourier_basis(config.vocab_size, config.n_waves, config.word_order)
        self.register_buffer("basis_VW", basis_VW, persistent=False)
        self.steps = nn.ModuleList(Step(config) for _ in self.schedule)

    def shared(self) -> tuple[Any, ...]:
        return (self.basis_VW,)

    def new_slot(self, batch_size: int) -> DecaySlot:
        shape = (batch_size, 1, self.config.n_channels, self.config.n_channels)
        return DecaySlot.empty(shape, self.logit_scale)

    def budget(self, context: int | None = None) -> Budget:
        c, n, n_columns = self.config, len(self.schedule), 2 * self.config.n_waves
        executed = memory_parameters(n_columns, c.n_channels) + 2 * c.vocab_size * c.n_channels
        mixing = decay_flops(context or c.max_seq_len, c.n_channels, c.n_channels)
        return self.counted(n * executed, n * mixing, constant=n * 4 * c.vocab_size * n_columns)
