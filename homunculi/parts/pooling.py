"""Causal pooling of a sequence: what a learned query finds among the tokens read so far, kept as running sums.

The query is the same at every position, so softmax attention over a prefix needs no square of scores: with weights
w_i = exp(s_i) it is (Σ w_i v_i) / (Σ w_i), two sums that a new token only adds to. Scores are bounded softly, so the
weights need no running maximum that would rescale the sums: they stay within e^±20, and sums of positive terms lose
no precision.

Legend: B batch, T positions of this call, D width, H heads, K head width, W sums of which
a share is made, N pieces, S tokens a piece.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .linear import Linear
from .routing import take

SCORE_BOUND = 20.0
HEARD_HALF_LIFE = 16.0  # tokens over which a softmax is asked how undecided it is
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


def starts_of(documents_BT: Tensor) -> Tensor:
    """Position at which the document of each token begins, (B, T)."""
    positions_T = torch.arange(documents_BT.shape[1], device=documents_BT.device)
    opens_BT = F.pad(documents_BT[:, 1:] != documents_BT[:, :-1], (1, 0))
    return (positions_T * opens_BT).cummax(1).values


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
        recent_BHW: decaying sums of w, w s and 1; without columns where nobody asks how undecided the weights are.
    """

    sum_BHK: Tensor
    total_BH1: Tensor
    held_BD: Tensor
    recent_BHW: Tensor


# A slot, the positions (B, T) of the new tokens, and which of them are valid, (B, T); None: all.
PoolingCache = tuple[PoolingSlot, Tensor, Tensor | None]
# Of each token, or summed: (B, T, H, K), (B, T, H, 1), (B, T, H, W).
Terms = tuple[Tensor, ...]


class CausalPooling(nn.Module):
    """For each position the average of the values so far, weighted by a softmax of learned scores, by head.

    The pool may be held between refreshes. With `refresh_above` it is taken where the softmax over the latest tokens is
    undecided. With p that softmax, older tokens counting less by a half-life of 16, and π what it were with equal
    scores, exp(−Σ p log(p / π)), a mean over heads in the exponent, is the share of the latest tokens that is heard: 1
    where all are, 1 / n where one of n outweighs the others. (For equal ages Σ p log(p / π) is log n less the entropy
    of p.) It needs three decaying sums, Σ w, Σ w s and Σ 1, so it too is decided from the past, in parallel.

    Args:
        d_model: width of what is pooled, and of the pool.
        n_heads: a divisor of it.
        half_lives: in tokens, one a head, to begin with; they are learned. A token's weight halves with each.
            Empty: weights stay.
        refresh_every: the pool is taken at positions 0, n, 2n, … (counted in a document) and held in between.
        refresh_above: the share heard from which on the pool is taken, in (0, 1), instead of by a period; 0: by it.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        half_lives: Sequence[float] = (),
        refresh_every: int = 1,
        refresh_above: float = 0.0,
    ) -> None:
        super().__init__()
        self.n_heads, self.refresh_every, self.refresh_above = n_heads, refresh_every, refresh_above
        self.score = Linear(d_model, n_heads)
        self.value = Linear(d_model, d_model)
        self.log_half_life_H = nn.Parameter(torch.tensor(half_lives).log()) if half_lives else None

    @property
    def holds(self) -> bool:
        """Whether some tokens see an earlier token's pool."""
        return self.refresh_every > 1 or self.refresh_above > 0

    def forward(self, x_BTD: Tensor, documents_BT: Tensor | None = None, cache: PoolingCache | None = None) -> Tensor:
        """The pool at each position, (B, T, D), in the type of `x_BTD`; sums are taken in float32 at least.

        Args:
            x_BTD: normalised input.
            documents_BT: document of each token; a pool sees its own only. Not with a cache.
            cache: what was read before; the slot is extended. A row's padding follows its tokens.
        """
        wide = torch.promote_types(x_BTD.dtype, torch.float32)
        score_BTH1 = (SCORE_BOUND * torch.tanh(self.score(x_BTD).to(wide) / SCORE_BOUND))[..., None]
        weight_BTH1 = score_BTH1.exp()
        sum_BTHK = weight_BTH1 * self.value(x_BTD).to(wide).unflatten(-1, (self.n_heads, -1))
        recent_BTHW = weight_BTH1[..., :0]
        if self.refresh_above:
            terms = (weight_BTH1, weight_BTH1 * score_BTH1, torch.ones_like(weight_BTH1))
            recent_BTHW = torch.cat(terms, -1).detach()
        if cache is not None:
            return self._extend(cache, (sum_BTHK, weight_BTH1, recent_BTHW)).to(x_BTD.dtype)
        sum_BTHK, total_BTH1, recent_BTHW = self._sums((sum_BTHK, weight_BTH1, recent_BTHW), documents_BT)
        pool_BTD = (sum_BTHK / total_BTH1).flatten(2)
        return self._hold(pool_BTD, recent_BTHW, documents_BT).to(x_BTD.dtype)

    def _sums(self, terms: Terms, documents_BT: Tensor | None = None) -> Terms:
        """Running sums of weighted values, of weights, and of what tells how undecided they are."""
        sum_BTHK, total_BTH1, recent_BTHW = terms
        theta_H = self.log_half_life_H
        keep_H = None if theta_H is None else torch.exp2(-torch.exp(-theta_H.to(sum_BTHK.dtype)))
        if self.refresh_above:
            recent_H = recent_BTHW.new_full((self.n_heads,), 2 ** (-1 / HEARD_HALF_LIFE))
            recent_BTHW = prefix_sum(recent_BTHW, recent_H, documents_BT)
        return prefix_sum(sum_BTHK, keep_H, documents_BT), prefix_sum(total_BTH1, keep_H, documents_BT), recent_BTHW

    def _hold(self, pool_BTD: Tensor, recent_BTHW: Tensor, documents_BT: Tensor | None) -> Tensor:
        """At each position the pool of the latest refresh."""
        every, n_tokens = self.refresh_every, pool_BTD.shape[1]
        if not self.holds:
            return pool_BTD
        positions_T = torch.arange(n_tokens, device=pool_BTD.device)
        if self.refresh_above:
            return take(pool_BTD, (positions_T * self._refreshes(recent_BTHW)).cummax(1).values)
        if documents_BT is None:
            return pool_BTD[:, ::every].repeat_interleave(every, dim=1)[:, :n_tokens]
        start_BT = starts_of(documents_BT)
        return take(pool_BTD, start_BT + (positions_T - start_BT) // every * every)

    def _refreshes(self, recent_BTHW: Tensor) -> Tensor:
        """Whether a token takes the pool anew, (B, T); the first one of a document always does."""
        weight_BTH, scored_BTH, number_BTH = recent_BTHW.unbind(-1)
        apart_BT = (scored_BTH / weight_BTH - (weight_BTH / number_BTH).log()).mean(-1)
        return apart_BT <= -math.log(self.refresh_above)

    def _extend(self, cache: PoolingCache, terms: Terms) -> Tensor:
        """The pool of new tokens. What was read before stands in front of them, as a token of its own."""
        slot, positions_BT, valid_BT = cache
        n_rows, n_tokens = positions_BT.shape
        last_B = torch.full_like(positions_BT[:, 0], n_tokens) if valid_BT is None else valid_BT.sum(1)
        rows_B = torch.arange(n_rows, device=last_B.device)
        before = (slot.sum_BHK, slot.total_BH1, slot.recent_BHW)
        series = self._sums(tuple(torch.cat([b[:, None], new], 1) for b, new in zip(before, terms, strict=True)))
        for kept, sums in zip(before, series, strict=True):
            kept.copy_(sums[rows_B, last_B].detach())
        pool_BTD = (series[0][:, 1:] / series[1][:, 1:]).flatten(2)
        if not self.holds:
            return pool_BTD
        if self.refresh_above:
            places_T = torch.arange(1, n_tokens + 1, device=last_B.device)
            row_BT = (places_T * self._refreshes(series[2][:, 1:])).cummax(1).values
        else:
            first_B1 = positions_BT[:, :1]
            row_BT = (positions_BT // self.refresh_every * self.refresh_every - first_B1 + 1).clamp(min=0)
        pools = torch.cat([slot.held_BD[:, None], pool_BTD], 1)
        held_BTD = take(pools, row_BT)
        slot.held_BD.copy_(torch.cat([pools[:, :1], held_BTD], 1)[rows_B, last_B].detach())
        return held_BTD

    def new_slot(self, batch_size: int) -> PoolingSlot:
        """An empty slot on the module's device."""
        weight = self.value.weight
        d_model, wide = weight.shape[0], torch.promote_types(weight.dtype, torch.float32)
        sum_BHK = torch.zeros(batch_size, self.n_heads, d_model // self.n_heads, dtype=wide, device=weight.device)
        total_BH1, recent_BHW = (
            sum_BHK.new_zeros(batch_size, self.n_heads, n) for n in (1, 3 * bool(self.refresh_above))
        )
        return PoolingSlot(sum_BHK, total_BH1, sum_BHK.new_zeros(batch_size, d_model if self.holds else 0), recent_BHW)
