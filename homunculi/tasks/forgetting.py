"""Forgetting: values are overwritten, and the newest counts.

    k3 v8 k1 v2 k3 v5 k1 v2 k1 v9 k3 v1   ? k3 ? k1
                                            ↑ v1 ↑ v9       counted: the keys that are asked for

Each of `pairs` keys is given a value 1 + `overwrites` times, in random order; then each is asked for once. Values are
drawn freely, so that an old one says nothing about a new one. Ids: the question mark, keys, values.

Split: training, validation and test rows are disjoint by a hash of the row (`splits`). After the forgetting variant of
associative recall in the repository of Arora et al. 2023 (arXiv 2312.04927).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from homunculi.errors import InputError
from homunculi.tasks.draws import at, distinct, put, shuffled
from homunculi.tasks.registry import Dial, Examples, Split, task
from homunculi.tasks.splits import drawn

_ASK = 0


def _check(pairs: int, vocabulary: int, **_: Any) -> None:
    if pairs > vocabulary // 2:
        raise InputError(f"forgetting.vocabulary: {pairs} pairs need {2 * pairs} keys and values; it is {vocabulary}")


@task(
    name="forgetting",
    title="Newest value wins",
    question="Does a new value replace the old one?",
    source="Arora et al. 2023, arXiv 2312.04927",
    dials={
        "overwrites": Dial(2, (0, 1, 2, 4, 8), 0, 256, "new values of each key"),
        "pairs": Dial(3, (3, 6, 12), 1, 256, "keys to hold"),
        "vocabulary": Dial(32, (32, 64, 128), 16, 65536, "keys and values, half each"),
    },
    swept="overwrites",
    vocabulary=lambda vocabulary, **_: vocabulary // 2 * 2 + 1,
    length=lambda pairs, overwrites, **_: 2 * pairs * (2 + overwrites),
    chance=lambda vocabulary, **_: 1 / (vocabulary // 2),
    ceiling=lambda **_: 1.0,
    ngram=lambda vocabulary, **_: 1 / (vocabulary // 2),
    check=_check,
)
def generate(
    rng: np.random.Generator, n_rows: int, *, split: Split, overwrites: int, pairs: int, vocabulary: int
) -> Examples:
    """Rows of assignments and questions; dials as described by the task."""
    n_each, n_given = vocabulary // 2, pairs * (1 + overwrites)

    def make(rng: np.random.Generator, n: int) -> Examples:
        keys_BP, values_BA = 1 + distinct(rng, n, n_each, pairs), 1 + n_each + rng.integers(n_each, size=(n, n_given))
        which_BA = shuffled(rng, n, n_given) % pairs
        newest_BP = np.zeros((n, pairs), np.int64)
        for place in range(n_given):  # what comes later is written over what was there
            put(newest_BP, which_BA[:, place : place + 1], values_BA[:, place : place + 1])
        order_BP = shuffled(rng, n, pairs)
        ids_BT = np.full((n, 2 * (n_given + pairs)), _ASK)
        ids_BT[:, 0 : 2 * n_given : 2], ids_BT[:, 1 : 2 * n_given : 2] = at(keys_BP, which_BA), values_BA
        ids_BT[:, 2 * n_given + 1 :: 2] = at(keys_BP, order_BP)
        targets_BT, counted_BT = np.zeros_like(ids_BT), np.zeros(ids_BT.shape, bool)
        targets_BT[:, 2 * n_given + 1 :: 2] = at(newest_BP, order_BP)
        counted_BT[:, 2 * n_given + 1 :: 2] = True
        return Examples(ids_BT, targets_BT, counted_BT)

    return drawn(rng, n_rows, split, make)
