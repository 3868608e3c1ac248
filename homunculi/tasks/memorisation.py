"""Memorisation: a table of facts that never changes and has to be learned by heart.

    s3 r1 s0 r2 s3 r1 …
       ↑ v7  ↑ v2  ↑ v7      counted: the last token of each key; the answer is never shown

A key is one token, or a pair of them (a subject and a relation) of which neither alone says much. The table is a fixed
function of the key, the same for every seed and split. Ids: first tokens of keys, second tokens, values.

Split: the facts are the same in training, validation and test, as that is what is asked; rows, which are facts in
random order, are disjoint by a hash of the row (`splits`). After Poli et al. 2024 (arXiv 2403.17844).
"""

from __future__ import annotations

import math

import numpy as np

from homunculi.tasks.registry import Dial, Examples, Split, task
from homunculi.tasks.splits import drawn, mixed

_N_VALUES = 16


def _n_first(facts: int, key_tokens: int) -> int:
    """Different tokens at each place of a key."""
    return facts if key_tokens == 1 else math.isqrt(facts - 1) + 1


def fact(keys_N: np.ndarray) -> np.ndarray:
    """The value 0…15 of each key by its number."""
    return (mixed(keys_N) % np.uint64(_N_VALUES)).astype(np.int64)


@task(
    name="memorisation",
    title="Facts by heart",
    question="How many facts does the model keep in its weights?",
    source="Poli et al. 2024, arXiv 2403.17844",
    dials={
        "facts": Dial(1024, (256, 1024, 4096, 16384), 32, 65536, "size of the table"),
        "key_tokens": Dial(2, (1, 2), 1, 2, "tokens of a key"),
        "length": Dial(64, (64, 128), 16, 4096, "positions"),
    },
    swept="facts",
    vocabulary=lambda facts, key_tokens, **_: key_tokens * _n_first(facts, key_tokens) + _N_VALUES,
    length=lambda length, key_tokens, **_: length // key_tokens * key_tokens,
    chance=lambda **_: 1 / _N_VALUES,
    ceiling=lambda **_: 1.0,
    ngram=lambda **_: 1.0,
)
def generate(
    rng: np.random.Generator, n_rows: int, *, split: Split, facts: int, key_tokens: int, length: int
) -> Examples:
    """Rows of keys; dials as described by the task."""
    n_first, n_keys = _n_first(facts, key_tokens), length // key_tokens

    def make(rng: np.random.Generator, n: int) -> Examples:
        keys_BK = rng.integers(facts, size=(n, n_keys))
        parts = [keys_BK] if key_tokens == 1 else [keys_BK // n_first, n_first + keys_BK % n_first]
        ids_BT = np.stack(parts, axis=2).reshape(n, -1)
        targets_BT, counted_BT = np.zeros_like(ids_BT), np.zeros(ids_BT.shape, bool)
        targets_BT[:, key_tokens - 1 :: key_tokens] = key_tokens * n_first + fact(keys_BK)
        counted_BT[:, key_tokens - 1 :: key_tokens] = True
        return Examples(ids_BT, targets_BT, counted_BT)

    return drawn(rng, n_rows, split, make)
