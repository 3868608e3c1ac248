"""Causal self-attention with grouped queries (Ainslie et al. 2023) and optional norms of queries and keys.

Legend: B batch, T positions, S positions attended to, D width, H query heads, G key-value heads, K head width, N pieces
of a sequence, W tokens a piece.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.cache import KVSlot
from ..core.held import Holding
from ..core.taps import TapPoint
from . import one_token
from .linear import Linear
from .norm import RMSNorm
from .rope import rotate


class CausalSelfAttention(Holding):
    """softmax(q kᵀ / √K) v over earlier positions, rotary positions.

    Args:
        d_model: width of the residual stream.
        n_heads: query heads; n_kv_heads: key-value heads, a divisor of it.
        d_head: width of a head.
        qk_norm: normalise queries and keys of each head (Henry et al. 2020, with RMS).
        dropout: share of attention weights dropped in training.
        window: how many tokens a token sees, itself included, where no mask says so; 0: all before it.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        n_kv_heads: int,
        d_head: int,
        *,
        qk_norm: bool = False,
        dropout: float = 0.0,
        window: int = 0,
    ) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads, self.d_head, self.dropout = n_heads, n_kv_heads, d_head, dropout
        self.window = window
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
            mask_BTS: True where a position may be seen; None: itself and those before it, in the window.
            cache: the slot to extend and the places (B, T) to write at; needs `mask_BTS`, which lets a token see those
                up to its own, in the window.
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
            if mask_BTS is not None and is_alone(q_BHTK, taps):
                slot.write(k_BGSK, v_BGSK, positions_BT)
                return self._give_out(self._attend_alone(q_BHTK, cache), taps)
            k_BGSK, v_BGSK = slot.extend(k_BGSK, v_BGSK, positions_BT)
            k_BGSK, v_BGSK = k_BGSK.to(q_BHTK.dtype), v_BGSK.to(q_BHTK.dtype)
        z_BHTK = self._attend(q_BHTK, k_BGSK, v_BGSK, mask_BTS)
        return self._give_out(self._shown(z_BHTK, (q_BHTK, k_BGSK, v_BGSK), mask_BTS, taps), taps)

    def _give_out(self, z_BHTK: Tensor, taps: TapPoint) -> Tensor:
        z_BTHK = taps("attn.z", z_BHTK.transpose(1, 2))
        return taps("attn.out", self.o(z_BTHK.flatten(2)))

    def _attend_alone(self, q_BHTK: Tensor, cache: tuple[KVSlot, Tensor]) -> Tensor:
        """What one token a row sees of a slot, up to the place that `cache` gives it, in the window."""
        slot, places_BT = cache
        seen = slot.k_BHLK, slot.v_BHLK, places_BT[:, 0], slot.asked_rows
        return one_token.attend(q_BHTK[:, :, 0], *seen, self.window)[:, :, None]

    def _attend(self, q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, mask_BTS: Tensor | None) -> Tensor:
        options: dict[str, Any] = {
            "dropout_p": self.dropout if self.training else 0.0,
            "enable_gqa": self.n_heads != self.n_kv_heads,
        }
        if mask_BTS is None and 0 < self.window < q_BHTK.shape[2]:
            return attend_in_window(q_BHTK, k_BGSK, v_BGSK, self.window, **options)
        mask = None if mask_BTS is None else mask_BTS[:, None]
        return F.scaled_dot_product_attention(
            q_BHTK, k_BGSK, v_BGSK, attn_mask=mask, is_causal=mask_BTS is None, **options
        )

    def _project(self, x_BTD: Tensor, taps: TapPoint) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values by one product: the three weights are joined at each use, their names stay apart."""
        weights = self.q.weight, self.k.weight, self.v.weight
        weight = self.once("qkv", x_BTD.dtype, lambda: torch.cat(weights).to(x_BTD.dtype))
        heads = F.linear(x_BTD, weight).unflatten(-1, (-1, self.d_head))
        q_BTHK, k_BTGK, v_BTGK = heads.split([self.n_heads, self.n_kv_heads, self.n_kv_heads], dim=2)
        return taps("attn.q", q_BTHK), taps("attn.k", k_BTGK), taps("attn.v", v_BTGK)

    def _shown(
        self, z_BHTK: Tensor, qkv: tuple[Tensor, Tensor, Tensor], mask_BTS: Tensor | None, taps: TapPoint
    ) -> Tensor:
        """Compute scores and pattern for a listener; the fused result stands unless one of them is replaced."""
        if not shows_pattern(taps):
            return z_BHTK
        q_BHTK, k_BGSK, v_BGSK = qkv
        k_BHSK = k_BGSK.repeat_interleave(self.n_heads // self.n_kv_heads, dim=1)
        v_BHSK = v_BGSK.repeat_interleave(self.n_heads // self.n_kv_heads, dim=1)
        n_queries, n_keys = q_BHTK.shape[-2], k_BHSK.shape[-2]
        causal_TS = torch.ones(n_queries, n_keys, dtype=torch.bool, device=z_BHTK.device).tril()
        if self.window:
            causal_TS = causal_TS.triu(1 - self.window)
        allowed = causal_TS if mask_BTS is None else mask_BTS[:, None]
        computed = (q_BHTK @ k_BHSK.mT / math.sqrt(self.d_head)).masked_fill(~allowed, float("-inf"))
        scores_BHTS = taps("attn.scores", computed)
        softmaxed = scores_BHTS.softmax(-1)
        pattern_BHTS = taps("attn.pattern", softmaxed)
        replaced = scores_BHTS is not computed or pattern_BHTS is not softmaxed
        return pattern_BHTS @ v_BHSK if replaced else z_BHTK


def shows_pattern(taps: TapPoint) -> bool:
    """Whether somebody listens to what fused attention never writes down."""
    return taps.wants("attn.scores") or taps.wants("attn.pattern")


def is_alone(q_BHTK: Tensor, taps: TapPoint) -> bool:
    """Whether queries are of one token a row and `one_token.attend` does."""
    return one_token.fits(q_BHTK, q_BHTK.shape[2]) and not shows_pattern(taps)


def attend_in_window(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, window: int, **options: Any) -> Tensor:
    """Attention of each token to the latest `window` tokens, itself included, (B, H, T, K).

    A sequence is cut into pieces of `window` tokens; the queries of one piece find all that they may see in it and in
    the piece before. So work grows with T · 2 window, not with T².

    Args:
        window: fewer than T.
        options: of `torch.nn.functional.scaled_dot_product_attention`.
    """
    B, T = q_BHTK.shape[0], q_BHTK.shape[2]
    n_pieces = -(-T // window)

    def in_pieces(t: Tensor, before: int) -> Tensor:
        """(B, H, T, K) → (B, H, N, W, K), after `before` empty pieces."""
        padded = F.pad(t, (0, 0, before * window, n_pieces * window - T))
        return padded.unflatten(2, (n_pieces + before, window))

    def with_earlier(t_BGTK: Tensor) -> Tensor:
        """Each piece with the one before it, (B · N, G, 2W, K)."""
        pieces = in_pieces(t_BGTK, 1)
        return torch.cat([pieces[:, :, :-1], pieces[:, :, 1:]], 3).transpose(1, 2).flatten(0, 1)

    q = in_pieces(q_BHTK, 0).transpose(1, 2).flatten(0, 1)
    seen_NWS = seen_in_pieces(n_pieces, window, q.device)
    mask = seen_NWS.expand(B, *seen_NWS.shape).flatten(0, 1)[:, None]
    z = F.scaled_dot_product_attention(q, with_earlier(k_BGTK), with_earlier(v_BGTK), attn_mask=mask, **options)
    return z.unflatten(0, (B, n_pieces)).transpose(1, 2).flatten(2, 3)[:, :, :T]


def seen_in_pieces(n_pieces: int, window: int, device: torch.device) -> Tensor:
    """What a query may see of the keys of the piece before its own and of its own, (N, W, 2W)."""
    place_W, place_S = (torch.arange(n, device=device) for n in (window, 2 * window))
    ages_WS = place_W[:, None] + window - place_S
    first_N = torch.arange(n_pieces, device=device) == 0
    missing_NS = first_N[:, None] & (place_S < window)
    return ((ages_WS >= 0) & (ages_WS < window)) & ~missing_NS[:, None]


def window_flops(n_tokens: int, width: int, window: int) -> float:
    """Forward FLOPs a token of scores and weighted values in a call of `n_tokens`, as
    `torch.utils.flop_counter` counts them; `width` of all query heads together, window 0: none."""
    if not 0 < window < n_tokens:
        return 4.0 * n_tokens * width
    return 4.0 * 2 * window * width * (-(-n_tokens // window) * window / n_tokens)
