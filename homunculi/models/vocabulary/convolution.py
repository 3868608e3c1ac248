"""A readable model that mixes positions by a convolution alone: a step sees the last few tokens.

x += c ⊙ conv(u), then x += s ⊙ o act(u R M + b) (F Cwᵀ)ᵀ, where u = rms(x) anew each time, conv mixes the last K tokens
word by word, and R = softmax over words of F Crᵀ. N steps see N (K − 1) tokens back. Published as v2 of the
vocabulary-space models.

Legend: B batch, T positions, V vocabulary, W = 2 · waves columns of the basis F; c and s have one factor a word.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...core.budget import Budget
from ...core.taps import TapPoint
from ...parts.causal_conv import CausalConv, ConvSlot
from ...parts.fourier import FourierOp, WordOrder, fourier_basis
from ...parts.readable import ACTIVATIONS, ReadableConfig, ReadableModel, Reading, rms
from ...settings import check_range
from ..registry import architecture


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(ReadableConfig):
    """Shape of the model.

    Attributes:
        kernel_size: tokens that a step mixes, a token itself included.
        n_waves: waves over the vocabulary.
        n_channels: channels of what follows the convolution.
        word_order: tokenizer: the words' numbers are the tokenizer's; shuffled: neighbours mean nothing.
    """

    kernel_size: int = 16
    n_waves: int = 16
    n_channels: int = 128
    activation: Literal["gelu", "swish", "relu2"] = "gelu"
    word_order: WordOrder = "tokenizer"

    def __post_init__(self) -> None:
        self.check()
        for name in ("kernel_size", "n_waves", "n_channels"):
            check_range(f"model.{name}", getattr(self, name), low=1)


class Step(nn.Module):
    """One step: the convolution, then the channels."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.conv = CausalConv(config.vocab_size, config.kernel_size)
        self.conv_scale_V = nn.Parameter(torch.ones(config.vocab_size))
        self.op = FourierOp(2 * config.n_waves, config.n_channels, ACTIVATIONS[config.activation])
        self.op_scale_V = nn.Parameter(torch.ones(config.vocab_size))

    def forward(self, x_BTV: Tensor, basis_VW: Tensor, taps: TapPoint, reading: Reading) -> Tensor:
        x_BTV = taps("resid_pre", x_BTV)
        x_BTV = x_BTV + taps("conv.out", self.conv(rms(x_BTV), reading, self.conv_scale_V))
        x_BTV = taps("resid_mid", x_BTV)
        return taps("resid_post", x_BTV + self.op(rms(x_BTV), basis_VW, taps, self.op_scale_V))


VARIANTS: tuple[dict[str, Any], ...] = (
    {"n_steps": 4, "kernel_size": 12, "n_waves": 30, "n_channels": 96},
    {
        "n_steps": 4,
        "kernel_size": 10,
        "n_waves": 27,
        "n_channels": 112,
        "activation": "swish",
        "word_order": "shuffled",
    },
)


@architecture("vocab_convolution", Config, variants=VARIANTS)
class Convolution(ReadableModel):
    """Readable, with a convolution for the past."""

    config: Config
    basis_VW: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        basis_VW = fourier_basis(config.vocab_size, config.n_waves, config.word_order)
        self.register_buffer("basis_VW", basis_VW, persistent=False)
        self.steps = nn.ModuleList(Step(config) for _ in self.schedule)

    def shared(self) -> tuple[Any, ...]:
        return (self.basis_VW,)

    def new_slot(self, batch_size: int) -> ConvSlot:
        dtype = self.compute_dtype or self.logit_scale.dtype
        shape = (batch_size, self.config.kernel_size - 1, self.config.vocab_size)
        return ConvSlot.empty(self.logit_scale, shape, dtype)

    def budget(self, context: int | None = None) -> Budget:
        c = self.config
        a_word = c.kernel_size + 2 * c.n_channels
        return self.counted(len(self.schedule) * c.vocab_size * a_word, 0)
