"""Maps over the vocabulary that are sums of a few waves over the numbers of the words.

Legend: V vocabulary, K waves, C channels; a state is (B, T, V).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from ..core.held import Holding
from ..core.taps import TapPoint

COEFFICIENT_STD = 0.02
WordOrder = Literal["tokenizer", "shuffled"]


def fourier_basis(n_words: int, n_waves: int, order: WordOrder = "tokenizer") -> Tensor:
    """cos(2πkv/V) and sin(2πkv/V) in turns, k = 1 … K: (V, 2K), float32.

    Args:
        order: shuffled: the words are numbered anew, at random but always alike, so that neighbours mean nothing.
    """
    angle_VK = _angles(n_words, n_waves, order)
    return torch.stack([angle_VK.cos(), angle_VK.sin()], dim=-1).flatten(1).float()


def transform_basis(n_words: int, n_waves: int, order: WordOrder = "tokenizer") -> Tensor:
    """Real and then imaginary parts of harmonics 1 … K of the discrete Fourier transform, as a map: (V, 2K), float32.

    Below V/2 harmonics, 2/V times its transpose is the way back.
    """
    angle_VK = _angles(n_words, n_waves, order)
    return torch.cat([angle_VK.cos(), -angle_VK.sin()], dim=-1).float()


def cosine_basis(n_words: int, n_waves: int) -> Tensor:
    """cos(πk(2v+1)/(2V)), k = 1 … K: (V, K), float32 (the second cosine transform without its constant)."""
    half_V = torch.arange(n_words, dtype=torch.float64) + 0.5
    return (math.pi / n_words * torch.outer(half_V, torch.arange(1.0, n_waves + 1).double())).cos().float()


def places(n_words: int, order: WordOrder) -> Tensor:
    """The number of each word, (V,)."""
    if order == "tokenizer":
        return torch.arange(n_words)
    return torch.randperm(n_words, generator=torch.Generator().manual_seed(0))


def _angles(n_words: int, n_waves: int, order: WordOrder) -> Tensor:
    """2πkv/V, in float64: float32 would lose digits where it is many turns."""
    return 2 * math.pi / n_words * torch.outer(places(n_words, order), torch.arange(1, n_waves + 1)).double()


def coefficients(*shape: int) -> nn.Parameter:
    """Learned coefficients, small at the start."""
    return nn.Parameter(COEFFICIENT_STD * torch.randn(*shape))


def reading_map(basis_VW: Tensor, read_CW: Tensor) -> Tensor:
    """A distribution over the words for each channel, (V, C): the softmax over words of a sum of waves."""
    return (basis_VW @ read_CW.mT).softmax(0)


class ChannelOp(Holding, ABC):
    """Channels read, mixed, bent and written as waves: o · act(u R M + b) (F Cwᵀ)ᵀ, R = softmax over words of F Crᵀ.

    Args:
        n_waves: columns of the basis.
        n_channels: channels.
        activation: act.
    """

    def __init__(self, n_waves: int, n_channels: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.activation = activation
        self.read_CW = coefficients(n_channels, n_waves)
        self.write_CW = coefficients(n_channels, n_waves)
        self.bias_C = nn.Parameter(torch.zeros(n_channels))
        self.out_scale = nn.Parameter(torch.tensor(0.1))

    @abstractmethod
    def mixing(self) -> Tensor:
        """M, (C, C)."""

    def reading(self, basis_VW: Tensor) -> Tensor:
        """R M, (V, C)."""
        return reading_map(basis_VW, self.read_CW) @ self.mixing()

    def forward(self, u_BTV: Tensor, basis_VW: Tensor, taps: TapPoint, scale: Tensor | None = None) -> Tensor:
        """What is to be added to a state; `scale` is a learned factor of it, one for all words or one for each."""
        dtype, basis_VW = u_BTV.dtype, basis_VW.to(self.read_CW.dtype)
        out_scale = self.out_scale if scale is None else self.out_scale * scale
        into_VC = self.once("into", dtype, lambda: self.reading(basis_VW).to(dtype))
        out_CV = self.once("out", dtype, lambda: (out_scale * (self.write_CW @ basis_VW.mT)).to(dtype))
        pre_BTC = taps("mlp.pre", u_BTV @ into_VC + self.bias_C.to(dtype))
        return taps("mlp.out", taps("mlp.post", self.activation(pre_BTC)) @ out_CV)

    @property
    def n_executed(self) -> int:
        """Products a token for each word; times V, what the maps count as parameters executed."""
        return 2 * len(self.bias_C)


class FourierOp(ChannelOp):
    """A `ChannelOp` whose M is learned whole.

    Args:
        n_waves: columns of the basis.
        n_channels: channels.
        activation: act.
    """

    def __init__(self, n_waves: int, n_channels: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__(n_waves, n_channels, activation)
        self.mix_CC = coefficients(n_channels, n_channels)

    def mixing(self) -> Tensor:
        return self.mix_CC
