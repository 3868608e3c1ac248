"""Fuzzy recall: keys and values are several adjacent tokens, of which nobody says how many.

    k3 k1 : v8 v8 v2   k5 : v1   k1 k1 k4 : v5 v2   k5 : v1   k3 k1 : v8 v8 v2
                                                       ↑ v1         ↑ v8 ↑ v8 ↑ v2     counted in repeats

Keys and values have 1 to `motif` tokens each. All pairs come first, then each key again, in another order, with its
value. Counted are, in repeats, the mark (the first token of the value follows it) and each token of the value but the
last. Keys are drawn without repeats among those of their length, values freely. Ids: blank (after the end), the mark,
tokens of keys, tokens of values.

Split: training, validation and test rows are disjoint by a hash of the row (`splits`). After the fuzzy in-context
recall of Poli et al. 2024 (arXiv 2403.17844); the mark is ours, so that the answer is certain.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from homunculi.errors import InputError
from homunculi.tasks.draws import at, distinct, shuffled
from homunculi.tasks.registry import Dial, Examples, Split, task
from homunculi.tasks.splits import drawn

_BLANK, _MARK, _FIRST = 0, 1, 2


def _check(pairs: int, vocabulary: int, **_: Any) -> None:
    if pairs > vocabulary // 2:
        raise InputError(f"fuzzy_recall.vocabulary: {pairs} pairs need {2 * pairs} tokens; it is {vocabulary}")


@task(
    name="fuzzy_recall",
    title="Fuzzy recall",
    question="Are adjacent tokens bound into one key and one value, whatever their number?",
    source="Poli et al. 2024, arXiv 2403.17844",
    dials={
        "motif": Dial(2, (1, 2, 3), 1, 4, "most tokens of a key or value"),
        "pairs": Dial(3, (3, 6, 12), 1, 256, "pairs to hold"),
        "vocabulary": Dial(32, (32, 64, 128), 8, 4096, "tokens of keys and values, half each"),
    },
    swept="motif",
    vocabulary=lambda vocabulary, **_: vocabulary // 2 * 2 + _FIRST,
    length=lambda pairs, motif, **_: 2 * pairs * (2 * motif + 1),
    chance=lambda vocabulary, **_: 1 / (vocabulary // 2),
    ceiling=lambda **_: 1.0,
    check=_check,
)
def generate(
    rng: np.random.Generator, n_rows: int, *, split: Split, motif: int, pairs: int, vocabulary: int
) -> Examples:
    """Rows of pairs of motifs and their repeats; dials as described by the task."""
    n_each = vocabulary // 2

    def make(rng: np.random.Generator, n: int) -> Examples:
        keys_BPM, key_sizes_BP = _keys(rng, n, pairs, motif, n_each)
        values_BPM = rng.integers(n_each, size=(n, pairs, motif))
        value_sizes_BP = rng.integers(1, motif + 1, size=(n, pairs))
        order_BP = np.concatenate([np.broadcast_to(np.arange(pairs), (n, pairs)), shuffled(rng, n, pairs)], axis=1)
        keys_BPM, values_BPM = (
            np.take_along_axis(part, order_BP[..., None], axis=1) for part in (keys_BPM, values_BPM)
        )
        return _laid_out(keys_BPM, at(key_sizes_BP, order_BP), values_BPM, at(value_sizes_BP, order_BP), n_each)

    return drawn(rng, n_rows, split, make)


def _keys(rng: np.random.Generator, n: int, pairs: int, motif: int, n_each: int) -> tuple[np.ndarray, np.ndarray]:
    """Different keys in each row, and their sizes. [B, P, M] and [B, P]."""
    sizes_BP = rng.integers(1, motif + 1, size=(n, pairs))
    codes_BP = np.zeros((n, pairs), np.int64)
    for size in range(1, motif + 1):  # a key of one size cannot be one of another
        codes_BP = np.where(sizes_BP == size, distinct(rng, n, n_each**size, pairs), codes_BP)
    return codes_BP[..., None] // n_each ** np.arange(motif) % n_each, sizes_BP


def _laid_out(
    keys_BPM: np.ndarray, key_sizes_BP: np.ndarray, values_BPM: np.ndarray, value_sizes_BP: np.ndarray, n_each: int
) -> Examples:
    """Motifs written one after the other without gaps, the second half of them counted."""
    n, pieces, motif = keys_BPM.shape
    within_M = np.arange(motif)
    marks_BP1 = np.full((n, pieces, 1), _MARK)
    tokens = np.concatenate([_FIRST + keys_BPM, marks_BP1, _FIRST + n_each + values_BPM], axis=2)
    in_key, in_value = (within_M < sizes_BP[..., None] for sizes_BP in (key_sizes_BP, value_sizes_BP))
    is_there = np.concatenate([in_key, np.ones_like(marks_BP1, bool), in_value], axis=2)
    asks = np.concatenate([np.zeros_like(in_key), in_value, np.zeros_like(marks_BP1, bool)], axis=2)
    asks[:, : pieces // 2] = False
    order_BT = np.argsort(~is_there.reshape(n, -1), axis=1, kind="stable")  # what is not there goes to the end
    ids_BT = np.where(is_there, tokens, _BLANK).reshape(n, -1)
    ids_BT, counted_BT = at(ids_BT, order_BT), at(asks.reshape(n, -1), order_BT)
    targets_BT = np.where(counted_BT, np.roll(ids_BT, -1, axis=1), 0)
    return Examples(ids_BT, targets_BT, counted_BT)
