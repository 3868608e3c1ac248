"""A readable model with dense maps: a decaying memory of narrow keys, and a feed-forward part without a token table.

x += s_a · o W_o decay(W_q u, W_k u, W_v u), then x += s_t · o′ W_up act(W_down u + b), u = rms(x) anew each time.
Published as v9 of the vocabulary-space models.

Legend: B batch, T positions, V vocabulary, K width of keys and values, M hidden width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from ...core.budget import Budget
from ...core.taps import TapPoint
from ...parts.decay_attention import DecaySlot, decay_attention, decay_flops
from ...parts.linear import Linear
from ...parts.readable import ACTIVATIONS, ReadableConfig, ReadableModel, Reading, number, rms
from ...settings import check_range
from ..registry import architecture


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(ReadableConfig):
    """Shape of the model.

    Attributes:
        d_memory: width of keys, queries and values.
        d_mlp: hidden width of the feed-forward part.
        first_decay: logit of the decay before training.
    """

    d_memory: int = 64
    d_mlp: int = 128
    activation: Literal["gelu", "swish", "relu2", "relu"] = "gelu"
    first_decay: float = 3.0

    def __post_init__(self) -> None:
        self.check()
        check_range("model.d_memory", self.d_memory, low=1)
        check_range("model.d_mlp", self.d_mlp, low=1)


class Step(nn.Module):
    """One step: the memory, then the feed-forward part."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        n_words = config.vocab_size
        self.q = Linear(n_words, config.d_memory)
        self.k = Linear(n_words, config.d_memory)
        self.v = Linear(n_words, config.d_memory)
        self.o = Linear(config.d_memory, n_words)
        self.decay_logit, self.out_scale, self.scale = number(config.first_decay), number(0.1), number(1)
        self.down = Linear(n_words, config.d_mlp)
        self.bias_M = nn.Parameter(self.down.weight.new_zeros(config.d_mlp))
        self.up = Linear(config.d_mlp, n_words)
        self.mlp_out_scale, self.mlp_scale = number(0.1), number(1)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x_BTV: Tensor, taps: TapPoint, reading: Reading) -> Tensor:
        x_BTV = taps("resid_pre", x_BTV)
        u_BTV = rms(x_BTV)
        q_BTK, k_BTK, v_BTK = (taps(f"attn.{n}", m(u_BTV)) for n, m in (("q", self.q), ("k", self.k), ("v", self.v)))
        decay = F.logsigmoid(self.decay_logit)[None]
        z_BTK = taps("attn.z", decay_attention(q_BTK[:, None], k_BTK[:, None], v_BTK[:, None], decay, reading)[:, 0])
        x_BTV = x_BTV + taps("attn.out", (self.scale * self.out_scale).to(x_BTV.dtype) * self.o(z_BTK))
        x_BTV = taps("resid_mid", x_BTV)
        pre_BTM = taps("mlp.pre", self.down(rms(x_BTV)) + self.bias_M.to(x_BTV.dtype))
        post_BTM = taps("mlp.post", self.activation(pre_BTM))
        x_BTV = x_BTV + taps("mlp.out", (self.mlp_scale * self.mlp_out_scale).to(x_BTV.dtype) * self.up(post_BTM))
        return taps("resid_post", x_BTV)


VARIANTS: tuple[dict[str, Any], ...] = (
    {"n_steps": 3, "d_memory": 12, "d_mlp": 20},
    {"n_steps": 2, "d_memory": 8, "d_mlp": 24, "activation": "relu2"},
)


@architecture("vocab_dense_memory", Config, variants=VARIANTS)
class DenseMemory(ReadableModel):
    """Readable, with dense maps."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.steps = nn.ModuleList(Step(config) for _ in self.schedule)

    def new_slot(self, batch_size: int) -> DecaySlot:
        shape = (batch_size, 1, self.config.d_memory, self.config.d_memory)
        return DecaySlot.empty(shape, self.logit_scale)

    def budget(self, context: int | None = None) -> Budget:
        c, n = self.config, len(self.schedule)
        mixing = decay_flops(context or c.max_seq_len, c.d_memory, c.d_memory)
        return self.counted(n * c.vocab_size * (4 * c.d_memory + 2 * c.d_mlp), n * mixing)
