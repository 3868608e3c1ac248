"""Whether logits depend on anything but their own row and its tokens: the batch, earlier calls, chance, the cache.

Legend: B batch, T positions, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from homunculi.core.cache import Cache
from homunculi.experiments.causality import differences
from homunculi.experiments.certificate import Check
from homunculi.experiments.subject import Subject


def check_batch(subject: Subject, rows_BT: Tensor) -> Check:
    """A row gives the same logits alone, first in a batch and second behind another row.

    Args:
        rows_BT: three rows; the first is watched.
    """
    alone = subject.logits(rows_BT[:1])
    first = differences(alone, subject.logits(rows_BT[:2])[:1]).max()
    second = differences(alone, subject.logits(rows_BT[[2, 0]])[1:]).max()
    worst = float(max(first, second))
    note = "a row depends on others of its batch" if worst > subject.limit else ""
    return Check.of("batch_independence", worst, subject.limit, note)


def check_determinism(subject: Subject, ids_BT: Tensor) -> Check:
    """Evaluating draws nothing at random: two forwards agree, whatever the random generator held."""
    first, second = (subject.logits(ids_BT, seed=subject.seed + i) for i in (1, 2))
    worst = float(differences(first, second).max())
    note = "evaluating draws at random" if worst > subject.limit else ""
    return Check.of("determinism", worst, subject.limit, note)


def check_calls(subject: Subject, rows_BT: Tensor) -> Check:
    """A call does not depend on what was read in the call before."""
    before = subject.logits(rows_BT[:1])
    subject.logits(rows_BT[1:2])
    worst = float(differences(before, subject.logits(rows_BT[:1])).max())
    note = "a call depends on what was read in the call before" if worst > subject.limit else ""
    return Check.of("call_independence", worst, subject.limit, note)


def check_state(subject: Subject, ids_BT: Tensor) -> Check:
    """An evaluating forward leaves parameters and buffers as they were. The value counts those it changed."""
    changed = subject.changed_tensors(ids_BT)
    return Check.of("state_unchanged", len(changed), 0.0, f"changed: {', '.join(changed[:3])}" if changed else "")


def check_cached_decoding(subject: Subject, rows_BT: Tensor) -> list[Check]:
    """Reading through a cache gives the logits of the full forward: in pieces, and for rows of different lengths."""
    whole = subject.logits(rows_BT)
    pieces = float(differences(whole, _in_pieces(subject, rows_BT)).max())
    ragged = _ragged(subject, rows_BT, whole)
    notes = (
        "reading through a cache gives other logits",
        "padded rows of different lengths get other logits through a cache",
    )
    return [
        Check.of(name, value, subject.limit, note if value > subject.limit else "")
        for name, value, note in zip(("cached_decoding", "ragged_decoding"), (pieces, ragged), notes, strict=True)
    ]


def _new_cache(subject: Subject, batch_size: int, capacity: int) -> Cache:
    new_cache: Any = getattr(subject.module, "new_cache", None)
    with subject.types():
        return new_cache(batch_size, capacity)


def _in_pieces(subject: Subject, rows_BT: Tensor) -> Tensor:
    """Logits read as single tokens, one long piece, single tokens up to the last place of the cache."""
    n_tokens = rows_BT.shape[1]
    singles = min(4, n_tokens // 2)
    sizes = [1] * singles + [n_tokens - 2 * singles] + [1] * singles
    cache = _new_cache(subject, rows_BT.shape[0], n_tokens)
    logits = []
    for piece_BT in rows_BT.split([size for size in sizes if size], dim=1):
        logits.append(subject.logits(piece_BT, cache=cache))
        cache.advance(piece_BT.shape[1])
    return torch.cat(logits, dim=1)


def _ragged(subject: Subject, rows_BT: Tensor, whole_BTV: Tensor) -> float:
    """Prompts of different lengths, padded on the right to the longest, then twice the token that follows each."""
    n_rows, n_tokens = rows_BT.shape
    if n_tokens < 4:
        return 0.0
    lengths = [n_tokens - 2, max(1, n_tokens // 2 - 1), 1][:n_rows]
    lengths_B = torch.tensor(lengths, device=subject.device)
    cache = _new_cache(subject, n_rows, n_tokens)
    prompts_BT = rows_BT[:, : lengths[0]].clone()
    for i, n in enumerate(lengths):
        prompts_BT[i, n:] = 0
    cache.announce(lengths_B)
    read = subject.logits(prompts_BT, cache=cache)
    cache.advance(lengths_B)
    worst = [differences(read[i : i + 1, :n], whole_BTV[i : i + 1, :n]).max() for i, n in enumerate(lengths)]
    for _ in range(2):
        starts = cache.lengths_B.tolist()
        next_BT = torch.stack([rows_BT[i, n : n + 1] for i, n in enumerate(starts)])
        read = subject.logits(next_BT, cache=cache)
        cache.advance(1)
        worst += [differences(read[i : i + 1], whole_BTV[i : i + 1, n : n + 1]).max() for i, n in enumerate(starts)]
    return float(max(worst))


def check_neutral_start(subject: Subject, twin: Subject, ids_BT: Tensor) -> Check:
    """At initialisation a model gives the bits of its twin without modulation. The value is relative; only 0 passes."""
    apart = differences(subject.logits(ids_BT), twin.logits(ids_BT))
    return Check.of("neutral_start", float(apart.max()), 0.0)
