"""Causal pooling of a sequence: what a learned query finds among the tokens read so far, kept as running sums.

The query is the same at every position, so softmax attention over a prefix needs no square of scores: with weights
w_i = exp(s_i) it is (Σ w_i v_i) / (Σ w_i), two sums that a new token only adds to. Scores are bounded softly, so the
weights need no running maximum that would rescale the sums: they stay within e^±20, and sums of positive terms lose
no precision.

Legend: B batch, T positions of this call, D width, H heads, K head width, N rows asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .linear import Linear
from .routing import take

SCORE_BOUND = 20.0
PIECE = 32


def prefix_sum(x_BTHK: Tensor, keep_H: Tensor | None = None, documents_BT: Tensor | None = None) -> Tensor:
    """y_t = keep · y_{t−1} + x_t along T, starting anew with each document.

    A sum that decays or starts anew is built by doubling (Hillis and Steele 1986): after n rounds each position holds
    the sum of the latest 2ⁿ. Nothing is subtracted, so nothing cancels.

    Args:
        x_BTHK: float32 or wider.
        keep_H: share of the sum that one step leaves, in (0, 1], one a head; None: all.
        documents_BT: document of each token, in one piece each; None: one document.
    """
    if keep_H is None and documents_BT is None and not torch.are_deterministic_algorithms_enabled():
        return x_BTHK.cumsum(1)
    shift = 1
    while shift < x_BTHK.shape[1]:
        # Padded first: every reduction of a gradient then has the same length.
        earlier = F.pad(x_BTHK[:, :-shift], (0, 0, 0, 0, shift, 0))
        if keep_H is not None:
            earlier = earlier * keep_H[:, None]
            keep_H = keep_H.square()
        if documents_BT is not None:
            same_BT = F.pad(documents_BT[:, shift:] == documents_BT[:, :-shift], (shift, 0))
            earlier = earlier * same_BT[..., None, None]
        x_BTHK = x_BTHK + earlier
        shift *= 2
    return x_BTHK


def decayed_sum(x_BTHK: Tensor, keep_H: Tensor) -> Tensor:
    """As `prefix_sum` of one document, by products: inside pieces of `PIECE` tokens with the triangular matrix of what
    is left of each term, then from piece to piece. Fewer operations than doubling; more arithmetic where K is large.
    Powers of keep are at most 1, so nothing overflows."""
    n_tokens = x_BTHK.shape[1]
    size = min(PIECE, n_tokens)
    n_pieces = -(-n_tokens // size)
    log_keep_H = keep_H.clamp(min=torch.finfo(keep_H.dtype).tiny).log()
    x_BNSHK = F.pad(x_BTHK, (0, 0, 0, 0, 0, n_pieces * size - n_tokens)).unflatten(1, (n_pieces, size))
    y_BNSHK = torch.einsum("hts,bnshk->bnthk", _left(log_keep_H, size), x_BNSHK)
    if n_pieces > 1:
        ends_BNHK = F.pad(y_BNSHK[:, :-1, -1], (0, 0, 0, 0, 1, 0))
        before_BNHK = torch.einsum("hnm,bmhk->bnhk", _left(size * log_keep_H, n_pieces), ends_BNHK)
        steps_S1 = torch.arange(1, size + 1, device=x_BTHK.device)[:, None]
        y_BNSHK = y_BNSHK + (steps_S1 * log_keep_H).exp()[..., None] * before_BNHK[:, :, None]
    return y_BNSHK.flatten(1, 2)[:, :n_tokens]


def decayed_flops(n: int) -> int:
    """FLOPs of a decayed sum of `n` numbers."""
    size = min(PIECE, n)
    n_pieces = -(-n // size)
    return 2 * n_pieces * size * size + (2 * n_pieces * n_pieces if n_pieces > 1 else 0)


def _left(log_keep_H: Tensor, n: int) -> Tensor:
    """What is left of term s at place t, keep^(t − s), 0 before it, (H, n, n)."""
    places = torch.arange(n, device=log_keep_H.device)
    ages_TS = places[:, None] - places
    left_HTS = (ages_TS.clamp(min=0) * log_keep_H[:, None, None]).exp()
    return left_HTS.masked_fill(ages_TS < 0, 0.0)


@dataclass(slots=True)
class PoolingSlot:
    """What pooling remembers of the tokens it has read; its size does not grow with them.

    Attributes:
        sum_BHK: Σ w v.
        total_BH1: Σ w.
        held_BD: the pool at the latest refresh; without columns where every token refreshes.
    """

    sum_BHK: Tensor
    total_BH1: Tensor
    held_BD: Tensor


# A slot, the positions (B, T) of the new tokens, and which of them are valid, (B, T); None: all.
PoolingCache = tuple[PoolingSlot, Tensor, Tensor | None]


class CausalPooling(nn.Module):
    """For each position the average of the values so far, weighted by a softmax of learned scores, by head.

    Args:
        d_model: width of what is pooled, and of the pool.
        n_heads: a divisor of it.
        half_lives: in tokens, one a head, to begin with; they are learned. A token's weight halves with each.
            Empty: weights stay.
        refresh_every: the pool is taken at positions 0, n, 2n, … (counted in a document) and held in between.
    """

    def __init__(self, d_model: int, n_heads: int, half_lives: Sequence[float] = (), refresh_every: int = 1) -> None:
        super().__init__()
        self.n_heads, self.refresh_every = n_heads, refresh_every
        self.score = Linear(d_model, n_heads)
        self.value = Linear(d_model, d_model)
        self.log_half_life_H = nn.Parameter(torch.tensor(half_lives).log()) if half_lives else None

    def forward(self, x_BTD: Tensor, documents_BT: Tensor | None = None, cache: PoolingCache | None = None) -> Tensor:
        """The pool at each position, (B, T, D), in the type of `x_BTD`; sums are taken in float32 at least.

        Args:
            x_BTD: normalised input.
            documents_BT: document of each token; a pool sees its own only. Not with a cache.
            cache: what was read before; the slot is extended. A row's padding follows its tokens.
        """
        wide = torch.promote_types(x_BTD.dtype, torch.float32)
        weight_BTH1 = (SCORE_BOUND * torch.tanh(self.score(x_BTD).to(wide) / SCORE_BOUND)).exp()[..., None]
        sum_BTHK = weight_BTH1 * self.value(x_BTD).to(wide).unflatten(-1, (self.n_heads, -1))
        if cache is not None:
            return self._extend(cache, sum_BTHK, weight_BTH1).to(x_BTD.dtype)
        sum_BTHK, total_BTH1 = self._sums(sum_BTHK, weight_BTH1, documents_BT)
        return self._hold((sum_BTHK / total_BTH1).flatten(2), documents_BT).to(x_BTD.dtype)

    def _sums(self, sum_BTHK: Tensor, weight_BTH1: Tensor, documents_BT: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Running sums of weighted values and of weights."""
        theta_H = self.log_half_life_H
        keep_H = None if theta_H is None else torch.exp2(-torch.exp(-theta_H.to(sum_BTHK.dtype)))
        return prefix_sum(sum_BTHK, keep_H, documents_BT), prefix_sum(weight_BTH1, keep_H, documents_BT)

    def _hold(self, pool_BTD: Tensor, documents_BT: Tensor | None) -> Tensor:
        """At each position the pool of the latest refresh."""
        every, n_tokens = self.refresh_every, pool_BTD.shape[1]
        if every == 1:
            return pool_BTD
        if documents_BT is None:
            return pool_BTD[:, ::every].repeat_interleave(every, dim=1)[:, :n_tokens]
        positions_T = torch.arange(n_tokens, device=pool_BTD.device)
        opens_BT = F.pad(documents_BT[:, 1:] != documents_BT[:, :-1], (1, 0))
        start_BT = (positions_T * opens_BT).cummax(1).values
        return take(pool_BTD, start_BT + (positions_T - start_BT) // every * every)

    def _extend(self, cache: PoolingCache, sum_BTHK: Tensor, weight_BTH1: Tensor) -> Tensor:
        """The pool of new tokens. What was read before stands in front of them, as a token of its own."""
        slot, positions_BT, valid_BT = cache
        n_rows, n_tokens = positions_BT.shape
        last_B = torch.full_like(positions_BT[:, 0], n_tokens) if valid_BT is None else valid_BT.sum(1)
        sums = torch.cat([slot.sum_BHK[:, None], sum_BTHK], 1)
        sums, totals = self._sums(sums, torch.cat([slot.total_BH1[:, None], weight_BTH1], 1))
        pool_BTD = (sums[:, 1:] / totals[:, 1:]).flatten(2)
        rows_B = torch.arange(n_rows, device=last_B.device)
        slot.sum_BHK.copy_(sums[rows_B, last_B].detach())
        slot.total_BH1.copy_(totals[rows_B, last_B].detach())
        if self.refresh_every == 1:
            return pool_BTD
        first_B1 = positions_BT[:, :1]
        row_BT = (positions_BT // self.refresh_every * self.refresh_every - first_B1 + 1).clamp(min=0)
        series = torch.cat([slot.held_BD[:, None], pool_BTD], 1)
        held_BTD = take(series, row_BT)
        slot.held_BD.copy_(torch.cat([series[:, :1], held_BTD], 1)[rows_B, last_B].detach())
        return held_BTD

    def new_slot(self, batch_size: int) -> PoolingSlot:
        """An empty slot on the module's device."""
        weight = self.value.weight
        d_model, wide = weight.shape[0], torch.promote_types(weight.dtype, torch.float32)
        sum_BHK = torch.zeros(batch_size, self.n_heads, d_model // self.n_heads, dtype=wide, device=weight.device)
        held_BD = sum_BHK.new_zeros(batch_size, d_model if self.refresh_every > 1 else 0)
        return PoolingSlot(sum_BHK, sum_BHK.new_zeros(batch_size, self.n_heads, 1), held_BD)
