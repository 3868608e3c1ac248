"""A readable model that compares and passes on whole states, and whose words act on each other through a few channels.

x += s_a · o · decay(q ⊙ k ⊙ u, u, u), then x += s_m · o′ · act(u U Wᵀ + d ⊙ u + b), u = rms(x) anew each time. The keys
and the values of its memory are the state itself: what it passes on is what was read, word for word. (Two factors, q of
queries and k of keys, are learned; only their product acts.)
Published as v8 of the vocabulary-space models.

Legend: B batch, T positions, V vocabulary, R rank.
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
from ...parts.fourier import coefficients
from ...parts.readable import ACTIVATIONS, ReadableConfig, ReadableModel, Reading, number, rms
from ...settings import check_range
from ..registry import architecture


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(ReadableConfig):
    """Shape of the model.

    Attributes:
        rank: channels through which words act on each other.
        first_decay: logit of the decay before training.
    """

    rank: int = 8
    activation: Literal["gelu", "swish", "relu2"] = "gelu"
    first_decay: float = 3.0

    def __post_init__(self) -> None:
        self.check()
        check_range("model.rank", self.rank, low=1)


class Step(Holding):
    """One step: the memory of states, then words acting on words."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        n_words = config.vocab_size
        self.q_V = nn.Parameter(torch.ones(n_words))
        self.k_V = nn.Parameter(torch.ones(n_words))
        self.decay_logit, self.out_scale, self.scale = number(config.first_decay), number(0.1), number(1)
        self.read_VR, self.write_VR = coefficients(n_words, config.rank), coefficients(n_words, config.rank)
        self.own_V = nn.Parameter(torch.zeros(n_words))
        self.bias_V = nn.Parameter(torch.zeros(n_words))
        self.mlp_out_scale, self.mlp_scale = number(0.1), number(1)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x_BTV: Tensor, taps: TapPoint, reading: Reading) -> Tensor:
        x_BTV, dtype = taps("resid_pre", x_BTV), x_BTV.dtype
        u_BTV = rms(x_BTV)
        q_BTV = taps("attn.q", (u_BTV * (self.q_V * self.k_V)).to(dtype))  # both factors meet in the product
        k_BTV, v_BTV = taps("attn.k", u_BTV), taps("attn.v", u_BTV)
        z_BTV = taps("attn.z", self.attend(q_BTV, k_BTV, v_BTV, reading))
        x_BTV = x_BTV + taps("attn.out", (self.scale * self.out_scale).to(dtype) * z_BTV)
        x_BTV = taps("resid_mid", x_BTV)
        pre_BTV = taps("mlp.pre", self.interact(rms(x_BTV)))
        post_BTV = taps("mlp.post", self.activation(pre_BTV))
        x_BTV = x_BTV + taps("mlp.out", (self.mlp_scale * self.mlp_out_scale).to(dtype) * post_BTV)
        return taps("resid_post", x_BTV)

    def attend(self, q_BTV: Tensor, k_BTV: Tensor, v_BTV: Tensor, reading: Reading) -> Tensor:
        """What each token reads of those before it."""
        decay = F.logsigmoid(self.decay_logit)[None]
        return decay_attention(q_BTV[:, None], k_BTV[:, None], v_BTV[:, None], decay, reading)[:, 0]

    def interact(self, u_BTV: Tensor) -> Tensor:
        """u U Wᵀ + d ⊙ u + b."""
        dtype = u_BTV.dtype
        read_VR = self.once("read", dtype, lambda: self.read_VR.to(dtype))
        write_VR = self.once("write", dtype, lambda: self.write_VR.to(dtype))
        return u_BTV @ read_VR @ write_VR.mT + (u_BTV * self.own_V + self.bias_V).to(dtype)


VARIANTS: tuple[dict[str, Any], ...] = (
    {"n_steps": 3, "rank": 48, "first_scale": 0.4},
    {"n_steps": 3, "rank": 47, "first_scale": 0.4, "activation": "relu2"},
)


@architecture("vocab_low_rank", Config, variants=VARIANTS)
class LowRank(ReadableModel):
    """Readable, with states as keys and values, and maps of low rank."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.steps = nn.ModuleList(Step(config) for _ in self.schedule)

    def new_slot(self, batch_size: int) -> DecaySlot:
        n_words = self.config.vocab_size
        return DecaySlot.empty((batch_size, 1, n_words, n_words), self.logit_scale)

    def budget(self, context: int | None = None) -> Budget:
        c, n = self.config, len(self.schedule)
        mixing = decay_flops(context or c.max_seq_len, c.vocab_size, c.vocab_size)
        return self.counted(n * c.vocab_size * 2 * c.rank, n * mixing)
