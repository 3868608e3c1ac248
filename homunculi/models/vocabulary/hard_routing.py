"""A readable model with memories of three time scales, one activation chosen for each token, and halting.

x += s_a · o W_o Σ_j g_j decay(W_q u, W_kj u, W_vj u; a_j), g = softmax(W_g u); then x += s_t · o′ W_up f(W_down u + b),
f one of gelu, relu, swish, tanh: the largest of (W_s u + n)/τ, with the gradient of its softmax; u = rms(x) anew each
time. In training n is Gumbel noise; in evaluation it is 0, where the original draws it as well.

Halting, p = σ(w·x + c) after every step but the last. Training reads out Σ_i p_i r_(i−1) x_i, r_i = Π_{j≤i} (1 − p_j),
the last step taking what remains, and adds λ times the mean over tokens of Σ_i r_i plus once more what the last takes.
In evaluation a token whose p is above `halt_above` keeps its state; others read it as before, and nothing is saved.
Published as v11b of the vocabulary-space models.

Legend: B batch, T positions, V vocabulary, H time scales, K width of keys and values, M hidden width, F activations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.budget import Budget
from ...core.cache import Cache
from ...core.held import Holding
from ...core.output import Hidden
from ...core.taps import NO_TAPS, TapPoint
from ...parts.decay_attention import DecaySlot, decay_attention, decay_flops
from ...parts.linear import Linear
from ...parts.maps import Affine, side_by_side
from ...parts.readable import ReadableConfig, ReadableModel, Reading, number, rms
from ...settings import check_range
from ..registry import architecture

CHOICES: tuple[Callable[[Tensor], Tensor], ...] = (F.gelu, F.relu, F.silu, torch.tanh)
FIRST_DECAYS = (0.0, 3.0, 5.0)  # logits
FIRST_HALT = -2.0
LEAST_DRAW = 1e-9  # of a uniform number that is to have a logarithm


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(ReadableConfig):
    """Shape of the model.

    Attributes:
        d_memory: width of keys, queries and values.
        d_mlp: hidden width of the feed-forward part.
        temperature: τ, of the choice between activations.
        halt_above: probability of halting from which on an evaluated token keeps its state.
        ponder_weight: λ, what a step costs in training, in nats a token.
    """

    d_memory: int = 64
    d_mlp: int = 128
    temperature: float = 1.0
    halt_above: float = 0.5
    ponder_weight: float = 0.01

    def __post_init__(self) -> None:
        self.check()
        check_range("model.d_memory", self.d_memory, low=1)
        check_range("model.d_mlp", self.d_mlp, low=1)
        check_range("model.temperature", self.temperature, above=0)
        check_range("model.halt_above", self.halt_above, low=0, high=1)
        check_range("model.ponder_weight", self.ponder_weight, low=0)


class Memories(Holding):
    """Memories of several time scales with the same queries."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        n_words, d, n = config.vocab_size, config.d_memory, len(FIRST_DECAYS)
        self.q, self.gate, self.o = Linear(n_words, d), Linear(n_words, n), Linear(d, n_words)
        self.ks = nn.ModuleList(Linear(n_words, d) for _ in range(n))
        self.vs = nn.ModuleList(Linear(n_words, d) for _ in range(n))
        self.decay_logits = nn.ParameterList(number(first) for first in FIRST_DECAYS)
        self.out_scale, self.scale = number(0.1), number(1)

    def forward(self, u_BTV: Tensor, taps: TapPoint, reading: Reading) -> Tensor:
        maps = [one for one in (self.q, *self.ks, *self.vs, self.gate) if isinstance(one, Linear)]
        q_BTK, *kvs, gate_BTH = side_by_side(self, "into", u_BTV, *maps)
        n = len(kvs) // 2
        k_BHTK, v_BHTK = torch.stack(kvs[:n], 1), torch.stack(kvs[n:], 1)
        q_BHTK = taps("attn.q", q_BTK)[:, None].expand_as(k_BHTK)
        k_BHTK, v_BHTK = taps("attn.k", k_BHTK), taps("attn.v", v_BHTK)
        decay_H = F.logsigmoid(torch.stack(list(self.decay_logits)))
        z_BHTK = taps("attn.z", decay_attention(q_BHTK, k_BHTK, v_BHTK, decay_H, reading))
        gate_BTH = taps("attn.gate", gate_BTH.softmax(-1))
        mixed_BTK = (z_BHTK * gate_BTH.mT[..., None]).sum(1)
        return taps("attn.out", (self.scale * self.out_scale).to(u_BTV.dtype) * self.o(mixed_BTK))


class Transform(Holding):
    """A feed-forward part that bends each token by one of several activations."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.temperature = config.temperature
        self.down, self.up = Linear(config.vocab_size, config.d_mlp), Linear(config.d_mlp, config.vocab_size)
        self.select = Linear(config.vocab_size, len(CHOICES))
        self.bias_M = nn.Parameter(torch.zeros(config.d_mlp))
        self.out_scale, self.scale = number(0.1), number(1)

    def forward(self, u_BTV: Tensor, taps: TapPoint) -> Tensor:
        dtype = u_BTV.dtype
        down_BTM, logits_BTF = side_by_side(self, "into", u_BTV, self.down, self.select)
        pre_BTM = taps("mlp.pre", down_BTM + self.bias_M.to(dtype))
        choice_BTF = taps("mlp.choice", self.choose(logits_BTF, taps).to(dtype))
        bent = [choice_BTF[..., j : j + 1] * bend(pre_BTM) for j, bend in enumerate(CHOICES)]
        post_BTM = taps("mlp.post", sum(bent[1:], bent[0]))
        return taps("mlp.out", (self.scale * self.out_scale).to(dtype) * self.up(post_BTM))

    def choose(self, logits_BTF: Tensor, taps: TapPoint) -> Tensor:
        """1 at the choice of each token and 0 elsewhere, with the gradient of the softmax."""
        logits_BTF = logits_BTF.to(torch.promote_types(logits_BTF.dtype, torch.float32))
        noise_BTF = gumbel_like(logits_BTF) if self.training else torch.zeros_like(logits_BTF)
        noisy_BTF = (taps("mlp.logits", logits_BTF) + taps("mlp.noise", noise_BTF)) / self.temperature
        hard_BTF = F.one_hot(noisy_BTF.argmax(-1), len(CHOICES)).to(noisy_BTF.dtype)
        soft_BTF = noisy_BTF.softmax(-1)
        return hard_BTF + (soft_BTF - soft_BTF.detach())


def gumbel_like(x: Tensor) -> Tensor:
    """Gumbel noise in the shape of x."""
    return -torch.rand_like(x).clamp(min=LEAST_DRAW).log().neg().log()


class Step(nn.Module):
    """One step: the memories, then the feed-forward part."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.memories, self.transform = Memories(config), Transform(config)

    def forward(self, x_BTV: Tensor, taps: TapPoint, reading: Reading) -> Tensor:
        x_BTV = x_BTV + self.memories(rms(x_BTV), taps, reading)
        x_BTV = taps("resid_mid", x_BTV)
        return x_BTV + self.transform(rms(x_BTV), taps)


def halted(states: list[Tensor], ps: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The state that training reads out, and what its steps cost, (B, T, 1): Σ_i r_i and r of the last but one again.

    Args:
        states: x_BTV after each step.
        ps: p_BT1 after each step but the last.
    """
    left_BT1 = torch.ones_like(states[0][..., :1], dtype=torch.promote_types(states[0].dtype, torch.float32))
    x_BTV, cost_BT1 = torch.zeros_like(states[0]), torch.zeros_like(left_BT1)
    for p_BT1, state_BTV in zip(ps, states[:-1], strict=True):
        x_BTV = x_BTV + (left_BT1 * p_BT1).to(x_BTV.dtype) * state_BTV
        left_BT1 = left_BT1 * (1 - p_BT1)
        cost_BT1 = cost_BT1 + left_BT1
    return x_BTV + left_BT1.to(x_BTV.dtype) * states[-1], cost_BT1 + left_BT1


VARIANTS: tuple[dict[str, Any], ...] = (
    {"n_steps": 3, "d_memory": 12, "d_mlp": 20},
    {"n_steps": 2, "d_memory": 16, "d_mlp": 40, "temperature": 0.7, "ponder_weight": 0.03, "first_scale": 0.3},
)


@architecture("vocab_hard_routing", Config, variants=VARIANTS)
class HardRouting(ReadableModel):
    """Readable, with chosen activations and halting."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.steps = nn.ModuleList(Step(config) for _ in self.schedule)
        self.halt = Affine(config.vocab_size, 1)
        nn.init.constant_(self.halt.bias, FIRST_HALT)

    def trunk(
        self,
        ids_BT: Tensor,
        taps: TapPoint = NO_TAPS,
        cache: Cache | None = None,
        documents_BT: Tensor | None = None,
    ) -> Hidden:
        x_BTV, last = self.start(ids_BT, taps), len(self.schedule) - 1
        states: list[Tensor] = []
        ps: list[Tensor] = []
        for i, reading in enumerate(self.readings(ids_BT, cache, documents_BT)):
            at = taps.at(i)
            x_BTV = at("resid_pre", x_BTV)
            after_BTV = self.steps[self.schedule[i].block](x_BTV, at, reading)
            if ps and not self.training:
                after_BTV = torch.where(ps[-1] > self.config.halt_above, x_BTV, after_BTV)
            x_BTV = at("resid_post", after_BTV)
            states.append(x_BTV)
            if i < last:
                ps.append(at("halt", self.halt(x_BTV).to(torch.promote_types(x_BTV.dtype, torch.float32)).sigmoid()))
        if not self.training:
            return Hidden(x_BTV)
        x_BTV, cost_BT1 = halted(states, ps)
        return Hidden(x_BTV, {"ponder": self.config.ponder_weight * cost_BT1.mean()})

    def new_slot(self, batch_size: int) -> DecaySlot:
        shape = (batch_size, len(FIRST_DECAYS), self.config.d_memory, self.config.d_memory)
        return DecaySlot.empty(shape, self.logit_scale)

    def budget(self, context: int | None = None) -> Budget:
        c, n, n_scales = self.config, len(self.schedule), len(FIRST_DECAYS)
        width = (2 + 2 * n_scales) * c.d_memory + n_scales + 2 * c.d_mlp + len(CHOICES)
        mixing = n * n_scales * decay_flops(context or c.max_seq_len, c.d_memory, c.d_memory)
        return self.counted(c.vocab_size * (n * width + n - 1), mixing)
