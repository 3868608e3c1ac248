"""Causal self-attention with grouped queries (Ainslie et al. 2023) and optional norms of queries and keys.

Legend: B batch, T positions, S positions attended to, D width, H query heads, G key-value heads, K head width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.cache import KVSlot
from ..core.taps import TapPoint
from .linear import Linear
from .norm import RMSNorm
from .rope import rotate


class CausalSelfAttention(nn.Module):
    """softmax(q kᵀ / √K) v over earlier positions, rotary positions.

    Args:
        d_model: width of the residual stream.
        n_heads: query heads; n_kv_heads: key-value heads, a divisor of it.
        d_head: width of a head.
        qk_norm: normalise queries and keys of each head (Henry et al. 2020, with RMS).
        dropout: share of attention weights dropped in training.
    """

    def __init__(
        self, d_model: int, n_heads: int, n_kv_heads: int, d_head: int, *, qk_norm: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads, self.d_head, self.dropout = n_heads, n_kv_heads, d_head, dropout
        self.q = Linear(d_model, n_heads * d_head)
        self.k = Linear(d_model, n_kv_heads * d_head)
        self.v = Linear(d_model, n_kv_heads * d_head)
        self.o = Linear(n_heads * d_head, d_model)
        self.q_norm = RMSNorm(d_head) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(d_head) if qk_norm else nn.Identity()

    def forward(
        self,
        x_BTD: Tensor,
        rotation: tuple[Tensor, Tensor],
        taps: TapPoint,
        mask_BTS: Tensor | None = None,
        cache: tuple[KVSlot, Tensor] | None = None,
        precision_BT1: Tensor | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            x_BTD: normalised input.
            rotation: rotary tables at the positions of `x_BTD`.
            taps: named points of this step.
            mask_BTS: True where a position may be seen; None: all earlier ones and itself.
            cache: the slot to extend and the positions (B, T) to write at; needs `mask_BTS`.
            precision_BT1: factor of a token's queries, so of its scores: an inverse temperature; (B, T, H) gives each
                head its own. Keys are left alone, so a cache stays valid. None: 1.
        """
        q_BTHK, k_BTGK, v_BTGK = self._project(x_BTD, taps)
        q_BTHK = rotate(self.q_norm(q_BTHK), rotation)
        if precision_BT1 is not None:
            q_BTHK = (q_BTHK * precision_BT1[..., None]).to(k_BTGK.dtype)
        q_BHTK = q_BTHK.transpose(1, 2)
        k_BGSK = rotate(self.k_norm(k_BTGK), rotation).transpose(1, 2)
        v_BGSK = v_BTGK.transpose(1, 2)
        if cache is not None:
            slot, positions_BT = cache
            k_BGSK, v_BGSK = slot.extend(k_BGSK, v_BGSK, positions_BT)
            k_BGSK, v_BGSK = k_BGSK.to(q_BHTK.dtype), v_BGSK.to(q_BHTK.dtype)
        z_BHTK = F.scaled_dot_product_attention(
            q_BHTK,
            k_BGSK,
            v_BGSK,
            attn_mask=None if mask_BTS is None else mask_BTS[:, None],
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=mask_BTS is None,
            enable_gqa=self.n_heads != self.n_kv_heads,
        )
        if taps.wants("attn.scores") or taps.wants("attn.pattern"):
            z_BHTK = self._show_pattern(z_BHTK, (q_BHTK, k_BGSK, v_BGSK), mask_BTS, taps)
        z_BTHK = taps("attn.z", z_BHTK.transpose(1, 2))
        return taps("attn.out", self.o(z_BTHK.flatten(2)))

    def _project(self, x_BTD: Tensor, taps: TapPoint) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values by one product: the three weights are joined at each use, their names stay apart."""
        weight = torch.cat([self.q.weight, self.k.weight, self.v.weight]).to(x_BTD.dtype)
        heads = F.linear(x_BTD, weight).unflatten(-1, (-1, self.d_head))
        q_BTHK, k_BTGK, v_BTGK = heads.split([self.n_heads, self.n_kv_heads, self.n_kv_heads], dim=2)
        return taps("attn.q", q_BTHK), taps("attn.k", k_BTGK), taps("attn.v", v_BTGK)

    def _show_pattern(
        self, z_BHTK: Tensor, qkv: tuple[Tensor, Tensor, Tensor], mask_BTS: Tensor | None, taps: TapPoint
    ) -> Tensor:
        """Compute scores and pattern for a listener; the fused result stands unless one of them is replaced."""
        q_BHTK, k_BGSK, v_BGSK = qkv
        k_BHSK = k_BGSK.repeat_interleave(self.n_heads // self.n_kv_heads, dim=1)
        v_BHSK = v_BGSK.repeat_interleave(self.n_heads // self.n_kv_heads, dim=1)
        n_queries, n_keys = q_BHTK.shape[-2], k_BHSK.shape[-2]
        causal_TS = torch.ones(n_queries, n_keys, dtype=torch.bool, device=z_BHTK.device).tril()
        allowed = causal_TS if mask_BTS is None else mask_BTS[:, None]
        computed = (q_BHTK @ k_BHSK.mT / math.sqrt(self.d_head)).masked_fill(~allowed, float("-inf"))
        scores_BHTS = taps("attn.scores", computed)
        softmaxed = scores_BHTS.softmax(-1)
        pattern_BHTS = taps("attn.pattern", softmaxed)
        replaced = scores_BHTS is not computed or pattern_BHTS is not softmaxed
        return pattern_BHTS @ v_BHSK if replaced else z_BHTK
