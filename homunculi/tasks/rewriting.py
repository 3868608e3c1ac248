"""Copy, reverse, sort: what was read, written again in the same, the opposite, or rising order.

    c a d b » b d a        read: four tokens and the mark, then the answer, which is shown as it is given
            ↑ b d a c      counted: the mark and all of the answer but its last token (here: reverse)

A row has between more than half of `tokens` and all of them, and is blank after the answer. So a row of twice as many
tokens is longer than any of training, and `beyond` tests just such lengths. Ids: blank, mark, tokens (rising).

Split: training, validation and test rows are disjoint by a hash of the row (`splits`); `beyond`: by their length.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from homunculi.tasks.registry import Dial, Examples, Split, task
from homunculi.tasks.splits import drawn

_BLANK, _MARK, _FIRST = 0, 1, 2
# From the tokens of a row, of which the first n count, to the answer, of which the first n count.
Rewrite = Callable[[np.ndarray, np.ndarray], np.ndarray]

_SHARED: dict[str, Any] = {
    "source": "common; read and written as in sequence-to-sequence learning",
    "dials": {
        "tokens": Dial(16, (8, 16, 32), 4, 1024, "most tokens of a row; at least half of it plus one"),
        "vocabulary": Dial(16, (16, 32, 64), 8, 65536, "different tokens"),
    },
    "swept": "tokens",
    "vocabulary": lambda vocabulary, **_: vocabulary + _FIRST,
    "length": lambda tokens, **_: 2 * tokens,
    "chance": lambda vocabulary, **_: 1 / vocabulary,
    "ceiling": lambda **_: 1.0,
    "beyond": {"tokens": (64, 128)},
}


def _mean_tokens(tokens: int) -> float:
    return (tokens // 2 + 1 + tokens) / 2


@task(
    name="copy",
    title="Copy",
    question="Can a row be written again?",
    ngram=lambda vocabulary, **_: 1 / vocabulary,
    **_SHARED,
)
def generate_copy(rng: np.random.Generator, n_rows: int, *, split: Split, tokens: int, vocabulary: int) -> Examples:
    """Rows and the same again; dials as described by the task."""
    return _rewritten(rng, n_rows, split, (tokens, vocabulary), lambda read_BN, sizes_B: read_BN)


@task(
    name="reverse",
    title="Reverse",
    question="Can a row be written backwards?",
    ngram=lambda tokens, vocabulary, **_: (1 - 1 / vocabulary) / _mean_tokens(tokens) + 1 / vocabulary,
    **_SHARED,
)
def generate_reverse(rng: np.random.Generator, n_rows: int, *, split: Split, tokens: int, vocabulary: int) -> Examples:
    """Rows and the same backwards; dials as described by the task."""

    def backwards(read_BN: np.ndarray, sizes_B: np.ndarray) -> np.ndarray:
        places_BN = np.maximum(sizes_B[:, None] - 1 - np.arange(tokens), 0)
        return np.take_along_axis(read_BN, places_BN, axis=1)

    return _rewritten(rng, n_rows, split, (tokens, vocabulary), backwards)


@task(name="sort", title="Sort", question="Can a row be written in rising order?", **_SHARED)
def generate_sort(rng: np.random.Generator, n_rows: int, *, split: Split, tokens: int, vocabulary: int) -> Examples:
    """Rows and the same in rising order, tokens that stand twice twice; dials as described by the task."""

    def rising(read_BN: np.ndarray, sizes_B: np.ndarray) -> np.ndarray:
        is_there_BN = np.arange(tokens) < sizes_B[:, None]
        return np.sort(np.where(is_there_BN, read_BN, _FIRST + vocabulary), axis=1)

    return _rewritten(rng, n_rows, split, (tokens, vocabulary), rising)


def _rewritten(
    rng: np.random.Generator, n_rows: int, split: Split, sizes: tuple[int, int], rewrite: Rewrite
) -> Examples:
    tokens, vocabulary = sizes

    def make(rng: np.random.Generator, n: int) -> Examples:
        sizes_B = rng.integers(tokens // 2 + 1, tokens + 1, size=n)
        read_BN = _FIRST + rng.integers(vocabulary, size=(n, tokens))
        answer_BN = rewrite(read_BN, sizes_B)
        at_T, size_B1 = np.arange(2 * tokens), sizes_B[:, None]
        answer_BT, written_BT = (
            np.take_along_axis(answer_BN, np.clip(at_T - size_B1 - back, 0, tokens - 1), axis=1) for back in (0, 1)
        )
        counted_BT = (at_T >= size_B1) & (at_T < 2 * size_B1)
        ids_BT = np.where(at_T < size_B1, read_BN[:, np.minimum(at_T, tokens - 1)], _BLANK)
        ids_BT = np.where(at_T == size_B1, _MARK, np.where(counted_BT, written_BT, ids_BT))
        return Examples(ids_BT, np.where(counted_BT, answer_BT, 0), counted_BT)

    return drawn(rng, n_rows, split, make)
