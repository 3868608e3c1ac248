"""A readable model whose waves are cut into slow, middle and fast ones, with slower memories for slower waves.

With L, M, H the slow, middle and fast columns of the basis F, S(X C) = softmax over words of X Cᵀ and u = rms(x) anew
each time: r_s = decay(u S(L Cq), u S(L Ck), u S(L Cv)), r_f likewise from H with a faster decay, and the slow memory
lets the fast one through, r_f ← σ(r_s W + b) r_f; x += o_s s_s r_s (L Coᵀ)ᵀ + o_f s_f r_f (H Co′ᵀ)ᵀ. Then channels
h = act(u S(X Cr) M + b) of each band X, h_fast ← σ(h_slow W′ + b′) h_fast, and x += Σ o s h (X Cwᵀ)ᵀ.
Published as v6 of the vocabulary-space models.

Legend: B batch, T positions, V vocabulary, W columns of a basis, C channels, E a few times C.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.budget import Budget
from ...core.held import Holding
from ...core.taps import TapPoint
from ...parts.decay_attention import DecaySlot, decay_attention, decay_flops
from ...parts.fourier import FourierOp, coefficients, fourier_basis, reading_map
from ...parts.readable import ACTIVATIONS, ReadableConfig, ReadableModel, Reading, number, rms
from ...settings import check_range
from ..registry import architecture


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(ReadableConfig):
    """Shape of the model.

    Attributes:
        n_slow: slowest waves over the vocabulary.
        n_middle: those after them.
        n_fast: those after them.
        n_channels: channels of each memory and of each band.
        first_slow_decay: logit of the slow memory's decay before training.
        first_fast_decay: logit of the fast memory's decay before training.
    """

    n_slow: int = 4
    n_middle: int = 4
    n_fast: int = 8
    n_channels: int = 128
    activation: Literal["gelu", "swish", "relu2"] = "gelu"
    first_slow_decay: float = 4.0
    first_fast_decay: float = 2.0

    def __post_init__(self) -> None:
        self.check()
        for name in ("n_slow", "n_middle", "n_fast", "n_channels"):
            check_range(f"model.{name}", getattr(self, name), low=1)

    @property
    def columns(self) -> tuple[int, int, int]:
        """Columns of the basis in each band."""
        return 2 * self.n_slow, 2 * self.n_middle, 2 * self.n_fast


class Memory(nn.Module):
    """Weights of one band's memory."""

    def __init__(self, n_columns: int, n_channels: int, first_decay: float) -> None:
        super().__init__()
        self.q_CW, self.k_CW = coefficients(n_channels, n_columns), coefficients(n_channels, n_columns)
        self.v_CW, self.o_CW = coefficients(n_channels, n_columns), coefficients(n_channels, n_columns)
        self.decay_logit, self.out_scale, self.scale = number(first_decay), number(0.1), number(1)

    def reading(self, band_VW: Tensor) -> Tensor:
        """The maps to queries, keys and values, (V, 3C)."""
        return torch.cat([reading_map(band_VW, c_CW) for c_CW in (self.q_CW, self.k_CW, self.v_CW)], 1)

    def writing(self) -> Tensor:
        """The map back to the band's waves, (C, W)."""
        return self.scale * self.out_scale * self.o_CW


class Gate(Holding):
    """σ(h W + b), one channel each."""

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.mix_CC = coefficients(n_channels, n_channels)
        self.bias_C = nn.Parameter(torch.zeros(n_channels))

    def forward(self, h_BTC: Tensor) -> Tensor:
        mix_CC = self.once("mix", h_BTC.dtype, lambda: self.mix_CC.to(h_BTC.dtype))
        return (h_BTC @ mix_CC + self.bias_C.to(h_BTC.dtype)).sigmoid()


class Memories(Holding):
    """A slow memory of slow waves, and a fast one of fast waves that the slow one lets through."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.columns = config.columns
        self.slow = Memory(self.columns[0], config.n_channels, config.first_slow_decay)
        self.fast = Memory(self.columns[2], config.n_channels, config.first_fast_decay)
        self.gate = Gate(config.n_channels)

    def forward(self, u_BTV: Tensor, basis_VW: Tensor, taps: TapPoint, reading: Reading) -> Tensor:
        dtype = u_BTV.dtype
        slow_VW, _, fast_VW = basis_VW.split(self.columns, 1)
        waves_VW = self.once("waves", dtype, lambda: torch.cat([slow_VW, fast_VW], 1).to(dtype))
        maps = self.once("into", dtype, lambda: self._reading(slow_VW, fast_VW).to(dtype))
        q, k, v = (u_BTV @ maps).unflatten(-1, (3, 2, -1)).unbind(2)  # (B, T, 2, C), the bands in place of heads
        q, k, v = (taps(f"attn.{n}", t).transpose(1, 2) for n, t in zip("qkv", (q, k, v), strict=True))
        decay_2 = F.logsigmoid(torch.stack([self.slow.decay_logit, self.fast.decay_logit]))
        slow_BTC, fast_BTC = taps("attn.z", decay_attention(q, k, v, decay_2, reading).transpose(1, 2)).unbind(2)
        both_BTE = torch.cat([slow_BTC, taps("attn.gate", self.gate(slow_BTC)) * fast_BTC], -1)
        out_EW = self.once("out", dtype, lambda: torch.block_diag(self.slow.writing(), self.fast.writing()).to(dtype))
        return taps("attn.out", both_BTE @ out_EW @ waves_VW.mT)

    def _reading(self, slow_VW: Tensor, fast_VW: Tensor) -> Tensor:
        """Queries of both, keys of both, values of both: (V, 6C)."""
        slow, fast = (maps.unflatten(1, (3, -1)) for maps in (self.slow.reading(slow_VW), self.fast.reading(fast_VW)))
        return torch.stack([slow, fast], 2).flatten(1)


class Bands(Holding):
    """Channels of all three bands; the slow ones let the fast ones through."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.columns, self.activation = config.columns, ACTIVATIONS[config.activation]
        self.slow, self.middle, self.fast = (FourierOp(n, config.n_channels, self.activation) for n in self.columns)
        self.scales = nn.ParameterList(torch.tensor(1.0) for _ in self.columns)
        self.gate = Gate(config.n_channels)

    def forward(self, u_BTV: Tensor, basis_VW: Tensor, taps: TapPoint) -> Tensor:
        dtype = u_BTV.dtype
        waves_VW = self.once("waves", dtype, lambda: basis_VW.to(dtype))
        into_VE = self.once("into", dtype, lambda: self._reading(basis_VW).to(dtype))
        bias_E = torch.cat([op.bias_C for op in self.ops]).to(dtype)
        pre_BTE = taps("mlp.pre", u_BTV @ into_VE + bias_E)
        slow_BTC, middle_BTC, fast_BTC = self.activation(pre_BTE).chunk(3, -1)
        fast_BTC = taps("mlp.gate", self.gate(slow_BTC)) * fast_BTC
        post_BTE = taps("mlp.post", torch.cat([slow_BTC, middle_BTC, fast_BTC], -1))
        out_EW = self.once("out", dtype, lambda: self._writing().to(dtype))
        return taps("mlp.out", post_BTE @ out_EW @ waves_VW.mT)

    @property
    def ops(self) -> tuple[FourierOp, FourierOp, FourierOp]:
        """From the slow to the fast."""
        return self.slow, self.middle, self.fast

    def _reading(self, basis_VW: Tensor) -> Tensor:
        bands = zip(self.ops, basis_VW.split(self.columns, 1), strict=True)
        return torch.cat([op.reading(band_VW) for op, band_VW in bands], 1)

    def _writing(self) -> Tensor:
        return torch.block_diag(*(s * op.out_scale * op.write_CW for s, op in zip(self.scales, self.ops, strict=True)))


class Step(nn.Module):
    """One step: the memories, then the bands."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.memories = Memories(config)
        self.bands = Bands(config)

    def forward(self, x_BTV: Tensor, basis_VW: Tensor, taps: TapPoint, reading: Reading) -> Tensor:
        x_BTV = taps("resid_pre", x_BTV)
        x_BTV = taps("resid_mid", x_BTV + self.memories(rms(x_BTV), basis_VW, taps, reading))
        return taps("resid_post", x_BTV + self.bands(rms(x_BTV), basis_VW, taps))


# Distributions over the words start almost even, so that small models learn by heart slowly: these are the widest here.
VARIANTS: tuple[dict[str, Any], ...] = (
    {"n_steps": 3, "n_slow": 9, "n_middle": 10, "n_fast": 30, "n_channels": 96, "first_fast_decay": -2.0},
    {"n_steps": 2, "n_slow": 30, "n_middle": 8, "n_fast": 29, "n_channels": 90, "activation": "relu2"},
)


@architecture("vocab_bands", Config, variants=VARIANTS)
class BandedFourier(ReadableModel):
    """Readable, with bands of waves."""

    config: Config
    basis_VW: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        basis_VW = fourier_basis(config.vocab_size, sum(config.columns) // 2)
        self.register_buffer("basis_VW", basis_VW, persistent=False)
        self.steps = nn.ModuleList(Step(config) for _ in self.schedule)

    def shared(self) -> tuple[Any, ...]:
        return (self.basis_VW,)

    def new_slot(self, batch_size: int) -> DecaySlot:
        shape = (batch_size, 2, self.config.n_channels, self.config.n_channels)
        return DecaySlot.empty(shape, self.logit_scale)

    def budget(self, context: int | None = None) -> Budget:
        c, n = self.config, len(self.schedule)
        n_slow, n_middle, n_fast = c.columns
        n_ends, n_columns = n_slow + n_fast, n_slow + n_middle + n_fast
        maps = c.n_channels * (9 * c.vocab_size + 2 * n_ends + 3 * n_columns + 2 * c.n_channels)
        forgetting = 2 * decay_flops(context or c.max_seq_len, c.n_channels, c.n_channels)
        return self.counted(n * maps, n * forgetting, constant=n * 2 * c.vocab_size * (n_ends + n_columns))
