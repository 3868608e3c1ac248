"""Attention without a softmax over the strict past, in which a token's weight decays with its distance.

z_t = Σ_{s<t} a^(t−s−1) (q_t · k_s) w_s. The same function as a memory that forgets: S_{t+1} = a S_t + k_t w_tᵀ, read
before it is written, z_t = q_tᵀ S_t (linear attention, Katharopoulos et al. 2020, with the decay of Sun et al. 2023).

Long rows with narrow keys are cut into chunks of S tokens: inside a chunk a triangular product, between chunks the
memory at their borders, which is again such a sum over chunks, with the decay a^S. Wide keys would make memories larger
than the scores, so there the scores are computed. Adding up the gradients of many pieces costs more than the scores of
the future do, so pieces are large. On top of a memory a long text is read piece by piece, so that the scores of all its
pairs are never made.

Legend: B batch, H heads, T positions, K key width, J value width, N chunks, S tokens a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from .readable import Reading

CHUNK = 64
ROWS = 1024  # of scores at a time
PIECE = 512  # tokens that are read at a time on top of a memory


@dataclass(slots=True)
class DecaySlot:
    """The memory S of one step after the tokens read so far."""

    state_BHKJ: Tensor

    @classmethod
    def empty(cls, shape_BHKJ: tuple[int, int, int, int], like: Tensor) -> Self:
        """A memory of nothing, on the device of `like`, float32 or wider."""
        return cls(like.new_zeros(shape_BHKJ, dtype=torch.promote_types(like.dtype, torch.float32)))


def decay_attention(q_BHTK: Tensor, k_BHTK: Tensor, w_BHTJ: Tensor, log_decay_H: Tensor, reading: Reading) -> Tensor:
    """What each token reads of those before it, (B, H, T, J); 0 for the first.

    Args:
        q_BHTK: queries.
        k_BHTK: keys.
        w_BHTJ: values.
        log_decay_H: log a of each head, not above 0.
        reading: its slot is a `DecaySlot` or None.
    """
    n_tokens, n_keys, n_values = q_BHTK.shape[2], q_BHTK.shape[3], w_BHTJ.shape[3]
    if reading.slot is not None:
        return _go_on(q_BHTK, k_BHTK, w_BHTJ, log_decay_H, reading)
    if reading.documents_BT is None and _is_chunked(n_tokens, n_keys, n_values):
        return _by_chunks(q_BHTK, k_BHTK, w_BHTJ, log_decay_H)
    return _by_scores(q_BHTK, k_BHTK, w_BHTJ, log_decay_H, reading.documents_BT)


def decay_flops(n_tokens: int, n_keys: int, n_values: int) -> int:
    """FLOPs a token and head of a call of `n_tokens` without a cache."""
    if not _is_chunked(n_tokens, n_keys, n_values):
        rows = [min(n_tokens, start + ROWS) for start in range(0, n_tokens, ROWS)]
        seen = sum(end * (end - start) for start, end in zip(range(0, n_tokens, ROWS), rows, strict=True))
        return round(2 * (n_keys + n_values) * seen / n_tokens)
    n_chunks = -(-n_tokens // CHUNK)
    memories = 2 * n_keys * n_values * (2 * n_chunks * CHUNK + n_chunks * n_chunks)
    return round((2 * (n_keys + n_values) * n_chunks * CHUNK * CHUNK + memories) / n_tokens)


def decay_before(n: int, log_decay_H: Tensor) -> Tensor:
    """a^(t−s−1) for s < t, else 0: (H, n, n)."""
    place_n = torch.arange(n, device=log_decay_H.device)
    since_nn = place_n[:, None] - place_n - 1
    powers_Hnn = since_nn.clamp(min=0) * log_decay_H[:, None, None]
    return powers_Hnn.masked_fill(since_nn < 0, float("-inf")).exp()


def _is_chunked(n_tokens: int, n_keys: int, n_values: int) -> bool:
    return n_tokens > 2 * CHUNK and 4 * n_keys * n_values < n_tokens * (n_keys + n_values)


def _by_scores(q: Tensor, k: Tensor, w: Tensor, log_decay_H: Tensor, documents_BT: Tensor | None) -> Tensor:
    n_tokens = q.shape[2]
    decay_HTT = decay_before(n_tokens, log_decay_H).to(q.dtype)
    found = []
    for start in range(0, n_tokens, ROWS):
        end = min(n_tokens, start + ROWS)
        scores = (q[:, :, start:end] @ k[:, :, :end].mT) * decay_HTT[:, start:end, :end]
        if documents_BT is not None:
            same = documents_BT[:, None, start:end, None] == documents_BT[:, None, None, :end]
            scores = scores.masked_fill(~same, 0)
        found.append(scores @ w[:, :, :end])
    return found[0] if len(found) == 1 else torch.cat(found, 2)


def _by_chunks(q: Tensor, k: Tensor, w: Tensor, log_decay_H: Tensor) -> Tensor:
    n_tokens, dtype = q.shape[2], q.dtype
    n_chunks = -(-n_tokens // CHUNK)
    q, k, w = (F.pad(t, (0, 0, 0, n_chunks * CHUNK - n_tokens)).unflatten(2, (n_chunks, CHUNK)) for t in (q, k, w))
    place_S = torch.arange(CHUNK, device=q.device)
    since_HS1 = (place_S * log_decay_H[:, None]).exp()[:, None, :, None]
    scores_BHNSS = (q @ k.mT) * decay_before(CHUNK, log_decay_H).to(dtype)[:, None]
    written_BHNKJ = (k * since_HS1.flip(2).to(dtype)).mT @ w
    between_HNN = decay_before(n_chunks, CHUNK * log_decay_H)
    before_BHNKJ = (between_HNN @ written_BHNKJ.to(between_HNN.dtype).flatten(3)).view_as(written_BHNKJ)
    z_BHNSJ = scores_BHNSS @ w + (q * since_HS1.to(dtype)) @ before_BHNKJ.to(dtype)
    return z_BHNSJ.flatten(2, 3)[:, :, :n_tokens]


def _go_on(q: Tensor, k: Tensor, w: Tensor, log_decay_H: Tensor, reading: Reading) -> Tensor:
    """From the slot's memory on, and into it."""
    n_tokens, valid_BT, found = q.shape[2], reading.valid_BT, []
    for start in range(0, n_tokens, PIECE):
        end = min(n_tokens, start + PIECE)
        here = replace(reading, valid_BT=None if valid_BT is None else valid_BT[:, start:end])
        found.append(_read_on(q[:, :, start:end], k[:, :, start:end], w[:, :, start:end], log_decay_H, here))
    return found[0] if len(found) == 1 else torch.cat(found, 2)


def _read_on(q: Tensor, k: Tensor, w: Tensor, log_decay_H: Tensor, reading: Reading) -> Tensor:
    """`_go_on` with a piece."""
    slot: DecaySlot = reading.slot
    n_tokens, before = q.shape[2], slot.state_BHKJ
    place_T = torch.arange(n_tokens, device=q.device)
    since_HT1 = (place_T * log_decay_H[:, None]).exp()[..., None]
    z = (q.to(before.dtype) * since_HT1) @ before
    if n_tokens > 1:
        z = z + _by_scores(q, k, w, log_decay_H, None)
    if reading.valid_BT is None:
        left_BHT1, n_valid = since_HT1.flip(1)[None], n_tokens
        kept = (n_valid * log_decay_H).exp()[None, :, None, None]
    else:
        n_B = reading.valid_BT.sum(1)
        after_BT = (n_B[:, None] - 1 - place_T).clamp(min=0)
        left = (after_BT[:, None] * log_decay_H[:, None]).exp() * reading.valid_BT[:, None]
        left_BHT1, kept = left[..., None], (n_B[:, None] * log_decay_H).exp()[..., None, None]
    slot.state_BHKJ.copy_(kept * before + (k.to(before.dtype) * left_BHT1).mT @ w.to(before.dtype))
    return z.to(q.dtype)
