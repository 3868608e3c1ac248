"""A readable model in which each token's compressed state chooses what is read, done and written.

h = W_c u + m · decay(W_q g, W_k g, W_v g), g = W_c u, u = rms(x); (r, p, w) = (softmax, softmax, sigmoid) of
W_2 gelu(W_1 h + b_1) + b_2; x += e · W_e (w ⊙ Σ_j p_j f_j(W_j (h ⊙ r))), the W_j shared by all steps.
Published as v10 of the vocabulary-space models. What is weighed are channels of h, not words.

Legend: B batch, T positions, V vocabulary, K channels of h, O operations.
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
from ...parts.decay_attention import DecaySlot, decay_attention, decay_flops
from ...parts.linear import Linear
from ...parts.maps import Affine, side_by_side
from ...parts.mlp import squared_relu
from ...parts.readable import ReadableConfig, ReadableModel, Reading, number, rms
from ...settings import check_range
from ..registry import architecture

OPERATIONS: tuple[Callable[[Tensor], Tensor], ...] = (
    F.gelu,
    F.relu,
    squared_relu,
    F.silu,
    torch.tanh,
    torch.sigmoid,
    lambda x: x,
    torch.neg,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(ReadableConfig):
    """Shape of the model.

    Attributes:
        d_state: channels of the compressed state.
        n_operations: the first so many of gelu, relu, its square, swish, tanh, sigmoid, identity, negation.
        first_decay: logit of the decay before training.
        first_size: e before training. The softmax over channels makes what a step writes small, so that at 0.1 steps
            hardly act at first.
    """

    d_state: int = 64
    n_operations: int = 8
    first_decay: float = 3.0
    first_size: float = 0.1

    def __post_init__(self) -> None:
        self.check()
        check_range("model.d_state", self.d_state, low=1)
        check_range("model.n_operations", self.n_operations, low=1, high=len(OPERATIONS))
        check_range("model.first_size", self.first_size, above=0)


class Operations(Holding):
    """Σ_j p_j f_j(W_j x)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.maps = nn.ModuleList(Linear(config.d_state, config.d_state) for _ in range(config.n_operations))

    def forward(self, x_BTK: Tensor, p_BTO: Tensor, taps: TapPoint) -> Tensor:
        joined = self.once("maps", x_BTK.dtype, lambda: torch.cat([*self.maps.parameters()]).to(x_BTK.dtype))
        pre_BTOK = taps("mlp.pre", F.linear(x_BTK, joined).unflatten(-1, (len(self.maps), -1)))
        done = [p_BTO[..., j : j + 1] * OPERATIONS[j](one_BTK) for j, one_BTK in enumerate(pre_BTOK.unbind(-2))]
        return taps("mlp.post", sum(done[1:], done[0]))


class Step(Holding):
    """One step: compress, remember, decide, act."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        n_words, d = config.vocab_size, config.d_state
        self.compress, self.expand = Linear(n_words, d), Linear(d, n_words)
        self.q, self.k, self.v = Linear(d, d), Linear(d, d), Linear(d, d)
        self.decay_logit, self.scale, self.out_scale = (
            number(config.first_decay),
            number(0.1),
            number(config.first_size),
        )
        self.policy_hidden = Affine(d, 2 * d)
        self.policy = Affine(2 * d, 2 * d + config.n_operations)

    def forward(self, x_BTV: Tensor, operations: Operations, taps: TapPoint, reading: Reading) -> Tensor:
        x_BTV, dtype = taps("resid_pre", x_BTV), x_BTV.dtype
        h_BTK = self.recall(taps("compressed", self.compress(rms(x_BTV))), taps, reading)
        read_BTK, p_BTO, write_BTK = self.decide(h_BTK, taps)
        y_BTK = operations(h_BTK * read_BTK, p_BTO, taps)
        x_BTV = x_BTV + taps("mlp.out", self.out_scale.to(dtype) * self.expand(y_BTK * write_BTK))
        return taps("resid_post", x_BTV)

    def recall(self, h_BTK: Tensor, taps: TapPoint, reading: Reading) -> Tensor:
        """The compressed state with what it remembers."""
        made = side_by_side(self, "qkv", h_BTK, self.q, self.k, self.v)
        q, k, v = (taps(f"attn.{name}", one_BTK)[:, None] for name, one_BTK in zip("qkv", made, strict=True))
        z_BTK = taps("attn.z", decay_attention(q, k, v, F.logsigmoid(self.decay_logit)[None], reading)[:, 0])
        return h_BTK + taps("attn.out", self.scale.to(h_BTK.dtype) * z_BTK)

    def decide(self, h_BTK: Tensor, taps: TapPoint) -> tuple[Tensor, Tensor, Tensor]:
        """How much of each channel is read, of each operation done, of each channel written."""
        d = h_BTK.shape[-1]
        made_BTJ = self.policy(F.gelu(self.policy_hidden(h_BTK)))
        read_BTK, p_BTO, write_BTK = made_BTJ.split([d, made_BTJ.shape[-1] - 2 * d, d], -1)
        read_BTK = taps("policy.read", read_BTK.softmax(-1))
        p_BTO = taps("policy.operations", p_BTO.softmax(-1))
        return read_BTK, p_BTO, taps("policy.write", write_BTK.sigmoid())


VARIANTS: tuple[dict[str, Any], ...] = (
    {"n_steps": 4, "d_state": 30, "first_size": 5.0, "first_scale": 0.4},
    {"n_steps": 3, "d_state": 34, "first_size": 20.0, "first_scale": 0.4, "n_operations": 5},
)


@architecture("vocab_policy", Config, variants=VARIANTS)
class Policy(ReadableModel):
    """Readable, with operations chosen by each token's state."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.operations = Operations(config)
        self.steps = nn.ModuleList(Step(config) for _ in self.schedule)

    def shared(self) -> tuple[Any, ...]:
        return (self.operations,)

    def new_slot(self, batch_size: int) -> DecaySlot:
        shape = (batch_size, 1, self.config.d_state, self.config.d_state)
        return DecaySlot.empty(shape, self.logit_scale)

    def budget(self, context: int | None = None) -> Budget:
        c, n, d = self.config, len(self.schedule), self.config.d_state
        of_policy = 2 * d * (3 * d + c.n_operations)
        executed = 2 * c.vocab_size * d + (3 + c.n_operations) * d * d + of_policy
        return self.counted(n * executed, n * decay_flops(context or c.max_seq_len, d, d))
