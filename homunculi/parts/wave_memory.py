"""A decaying memory over the strict past whose maps are sums of a few waves over the numbers of the words.

Legend: B batch, T positions, V vocabulary, W columns of the basis F, C channels, E = 3C.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.held import Holding
from ..core.taps import TapPoint
from .decay_attention import decay_attention, decay_flops
from .fourier import coefficients
from .readable import Reading, number


class WaveMemory(Holding):
    """g · s · o · decay(u F Cqᵀ, u F Ckᵀ, u F Cvᵀ) Co Fᵀ, with one decay.

    States go through the waves first, which are few, so that no map is as wide as the vocabulary and the channels.

    Args:
        n_columns: columns of the basis.
        n_channels: width of queries, keys and values.
        first_decay: logit of the decay before training.
        gain: g, where the waves that are written are not those that are read.
    """

    def __init__(self, n_columns: int, n_channels: int, first_decay: float, gain: float = 1.0) -> None:
        super().__init__()
        self.q_CW, self.k_CW = coefficients(n_channels, n_columns), coefficients(n_channels, n_columns)
        self.v_CW, self.o_CW = coefficients(n_channels, n_columns), coefficients(n_channels, n_columns)
        self.decay_logit, self.out_scale, self.scale = number(first_decay), number(0.1), number(1)
        self.gain = gain

    def forward(self, u_BTV: Tensor, basis_VW: Tensor, taps: TapPoint, reading: Reading) -> Tensor:
        dtype = u_BTV.dtype
        waves_VW = self.once("waves", dtype, lambda: basis_VW.to(dtype))
        into_WE = self.once("into", dtype, lambda: torch.cat([self.q_CW, self.k_CW, self.v_CW]).mT.to(dtype))
        found = zip("qkv", (u_BTV @ waves_VW @ into_WE).chunk(3, -1), strict=True)
        q_BTC, k_BTC, v_BTC = (taps(f"attn.{name}", t) for name, t in found)
        decay = F.logsigmoid(self.decay_logit)[None]
        z_BTC = taps("attn.z", decay_attention(q_BTC[:, None], k_BTC[:, None], v_BTC[:, None], decay, reading)[:, 0])
        out_CW = self.once("out", dtype, lambda: (self.written_scale * self.o_CW).to(dtype))
        return taps("attn.out", z_BTC @ out_CW @ waves_VW.mT)

    @property
    def written_scale(self) -> Tensor:
        """g · s · o."""
        return self.gain * self.scale * self.out_scale


def memory_parameters(n_columns: int, n_channels: int) -> int:
    """Parameters of a `WaveMemory` that multiply a token's activations."""
    return 4 * n_columns * n_channels


def memory_flops(n_words: int, n_columns: int, n_channels: int, n_tokens: int) -> int:
    """FLOPs a token of a `WaveMemory` without those of parameters: to the waves and back, and the memory itself."""
    return 4 * n_words * n_columns + decay_flops(n_tokens, n_channels, n_channels)
