"""A readable model whose steps share one softmax attention; each weighs what it found word by word.

x += a_i ⊙ W_o attend(W_q u, W_k u, W_v u), then x += s_i ⊙ o_i act(u R_i M_i + b_i) (F Cw_iᵀ)ᵀ at step i, where
u = rms(x) anew each time and R_i = softmax over words of F Cr_iᵀ. Queries and keys of a head are normalised and
rotated, queries multiplied by a learned gain. Published as v1 of the vocabulary-space models.

Legend: B batch, T positions, S positions attended to, V vocabulary, N steps, H query heads, G key-value heads, K head
width, W = 2 · waves columns of the basis F.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.budget import Budget
from ...core.cache import Cache, KVSlot
from ...core.output import Hidden
from ...core.taps import NO_TAPS, TapPoint
from ...errors import InputError
from ...parts.attention import CausalSelfAttention, is_alone
from ...parts.block import positions_and_mask
from ...parts.fourier import FourierOp, WordOrder, fourier_basis
from ...parts.readable import ACTIVATIONS, ReadableConfig, ReadableModel, rms
from ...parts.rope import RotaryEmbedding, rotate
from ...settings import check_range
from ..registry import architecture


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(ReadableConfig):
    """Shape of the model.

    Attributes:
        n_kv_heads: a divisor of n_heads.
        d_head: 0: vocab_size / n_heads, rounded down to an even number.
        first_gain: of the queries, before training.
        n_waves: waves over the vocabulary.
        n_channels: channels of what follows the attention.
        word_order: tokenizer: the words' numbers are the tokenizer's; shuffled: neighbours mean nothing.
    """

    n_heads: int = 8
    n_kv_heads: int = 4
    d_head: int = 0
    rope_base: float = 10000.0
    first_gain: float = 1.5
    n_waves: int = 16
    n_channels: int = 128
    activation: Literal["gelu", "swish", "relu2"] = "gelu"
    word_order: WordOrder = "tokenizer"

    def __post_init__(self) -> None:
        self.check()
        for name in ("n_heads", "n_kv_heads", "n_waves", "n_channels"):
            check_range(f"model.{name}", getattr(self, name), low=1)
        check_range("model.d_head", self.d_head, low=0)
        check_range("model.rope_base", self.rope_base, above=1)
        if self.n_heads % self.n_kv_heads:
            raise InputError(f"model.n_kv_heads: {self.n_kv_heads} does not divide model.n_heads={self.n_heads}")
        if self.d_head % 2:
            raise InputError(f"model.d_head: rotary positions need an even head width, not {self.d_head}")
        if self.vocab_size and not self.width_of_heads:
            raise InputError(
                f"model.n_heads: {self.n_heads} heads leave no two of model.vocab_size={self.vocab_size} words each; "
                "set d_head"
            )

    @property
    def width_of_heads(self) -> int:
        return self.d_head or self.vocab_size // (2 * self.n_heads) * 2


class SharedAttention(CausalSelfAttention):
    """The attention of all steps; it adds nothing before training."""

    def __init__(self, config: Config) -> None:
        super().__init__(config.vocab_size, config.n_heads, config.n_kv_heads, config.width_of_heads)
        self.gain_H = nn.Parameter(torch.full((config.n_heads,), float(config.first_gain)))
        nn.init.zeros_(self.o.weight)

    def look(
        self,
        u_BTV: Tensor,
        rotation: tuple[Tensor, Tensor],
        taps: TapPoint,
        mask_BTS: Tensor | None,
        cache: tuple[KVSlot, Tensor] | None,
    ) -> Tensor:
        """What the heads find, (B, T, H · K); arguments as those of `CausalSelfAttention.forward`."""
        q_BTHK, k_BTGK, v_BTGK = self._project(u_BTV, taps)
        gain_H1 = self.gain_H[:, None]
        q_BHTK = (rotate(rms(q_BTHK), rotation) * gain_H1).to(u_BTV.dtype).transpose(1, 2)
        k_BGSK, v_BGSK = rotate(rms(k_BTGK), rotation).transpose(1, 2), v_BTGK.transpose(1, 2)
        if cache is not None:
            slot, place_BT = cache
            if is_alone(q_BHTK, taps):
                slot.write(k_BGSK, v_BGSK, place_BT)
                return taps("attn.z", self._attend_alone(q_BHTK, cache).transpose(1, 2)).flatten(2)
            k_BGSK, v_BGSK = (t.to(u_BTV.dtype) for t in slot.extend(k_BGSK, v_BGSK, place_BT))
        z_BHTK = self._attend(q_BHTK, k_BGSK, v_BGSK, mask_BTS)
        z_BHTK = self._shown(z_BHTK, (q_BHTK, k_BGSK, v_BGSK), mask_BTS, taps)
        return taps("attn.z", z_BHTK.transpose(1, 2)).flatten(2)


VARIANTS: tuple[dict[str, Any], ...] = (
    {"n_steps": 3, "n_heads": 4, "n_kv_heads": 2, "n_waves": 21, "n_channels": 24},
    {
        "n_steps": 2,
        "n_heads": 3,
        "n_kv_heads": 3,
        "d_head": 10,
        "n_waves": 25,
        "n_channels": 28,
        "activation": "relu2",
        "word_order": "shuffled",
    },
)


@architecture("vocab_shared_attention", Config, variants=VARIANTS)
class ReadableAttention(ReadableModel):
    """Readable, with one attention for all steps."""

    config: Config
    basis_VW: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        n_words, n_steps = config.vocab_size, len(self.schedule)
        basis_VW = fourier_basis(n_words, config.n_waves, config.word_order)
        self.register_buffer("basis_VW", basis_VW, persistent=False)
        self.attn = SharedAttention(config)
        self.rope = RotaryEmbedding(config.width_of_heads, config.max_seq_len, config.rope_base)
        self.attn_scale_NV = nn.Parameter(torch.ones(n_steps, n_words))
        self.op_scale_NV = nn.Parameter(torch.ones(n_steps, n_words))
        self.steps = nn.ModuleList(
            FourierOp(2 * config.n_waves, config.n_channels, ACTIVATIONS[config.activation]) for _ in self.schedule
        )

    def trunk(
        self,
        ids_BT: Tensor,
        taps: TapPoint = NO_TAPS,
        cache: Cache | None = None,
        documents_BT: Tensor | None = None,
    ) -> Hidden:
        x_BTV = self.start(ids_BT, taps)
        places, mask_BTS = positions_and_mask(ids_BT, self.config.max_seq_len, cache, documents_BT)
        cos, sin = self.rope.at(places, x_BTV.dtype)
        rotation = cos, -sin  # the published models turn the other way
        for i, step in enumerate(self.schedule):
            here = taps.at(i)
            slot = None if cache is None else (cache.at(step.slot), self._placed(places))
            x_BTV = here("resid_pre", x_BTV)
            z_BTD = self.attn.look(rms(x_BTV), rotation, here, mask_BTS, slot)
            x_BTV = x_BTV + here("attn.out", F.linear(z_BTD, self._giving_out(step.block, x_BTV.dtype)))
            x_BTV = here("resid_mid", x_BTV)
            scale_V = self.op_scale_NV[step.block].clone()  # torch's counter of FLOPs fails on a view of a parameter
            change_BTV = self.steps[step.block](rms(x_BTV), self.basis_VW, here, scale_V)
            x_BTV = here("resid_post", x_BTV + change_BTV)
        return Hidden(x_BTV)

    def _giving_out(self, block: int, dtype: torch.dtype) -> Tensor:
        """a_i ⊙ W_o: a factor of the weights costs a token nothing."""
        scale_V1 = self.attn_scale_NV[block, :, None]
        return self.once(f"out.{block}", dtype, lambda: (scale_V1 * self.attn.o.weight).to(dtype))

    @staticmethod
    def _placed(places: Tensor | slice) -> Tensor:
        assert isinstance(places, Tensor)  # with a cache they are numbers
        return places

    def new_cache(self, batch_size: int, capacity: int) -> Cache:
        c, device, dtype = self.config, self.logit_scale.device, self.compute_dtype or self.logit_scale.dtype
        if capacity > c.max_seq_len:
            raise InputError(f"a cache of {capacity} tokens is more than model.max_seq_len={c.max_seq_len}")
        shape = (batch_size, c.n_kv_heads, capacity, c.width_of_heads)
        return Cache([KVSlot.empty(shape, dtype, device) for _ in self.schedule], batch_size, capacity, device)

    def budget(self, context: int | None = None) -> Budget:
        c, n_steps = self.config, len(self.schedule)
        heads, kv_heads = c.n_heads * c.width_of_heads, c.n_kv_heads * c.width_of_heads
        executed = n_steps * c.vocab_size * (2 * heads + 2 * kv_heads + 2 * c.n_channels)
        mixing = n_steps * 4 * (context or c.max_seq_len) * heads
        return self.counted(executed, mixing, cache_bytes_per_token=2 * 2 * n_steps * kv_heads)
