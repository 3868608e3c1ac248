"""Recall: which value did this key have? Pairs of a key and a value first, then the keys again at random later places.

    k3 v8 k1 v2 k7 v2 · · k1 v2 · · · · k3 v8 k7 v2
                          ↑ v2          ↑ v8 ↑ v2      counted: each repeated key; the answer follows it

Keys are drawn without repeats and values with, anew in each row, so that nothing can be kept from row to row. Every key
is repeated up to `repeats` times, as the length allows: each once in random order, then each once more, never the same
twice in a row. Distances follow a power law: places of repeats, counted in pairs from the end of the first pairs, are
drawn without replacement with weights n^(power − 1). With one repeat this is the task of Zoology, where power is 0.01.
Id 0 is the blank, then come keys, then values.

Split: training, validation and test rows are disjoint by a hash of the row (`splits`). After the multi-query
associative recall of Arora et al. 2023 (arXiv 2312.04927) and the in-context recall of Poli et al. 2024 (arXiv
2403.17844).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from homunculi.errors import InputError
from homunculi.tasks.draws import at, distinct, put, rounds, weighted
from homunculi.tasks.registry import Dial, Examples, Split, task
from homunculi.tasks.splits import drawn


def _check(pairs: int, length: int, vocabulary: int, **_: Any) -> None:
    if 4 * pairs > length:
        raise InputError(f"recall.pairs: {pairs} pairs and their repeats need length={4 * pairs}; length is {length}")
    if pairs > vocabulary // 2:
        raise InputError(f"recall.vocabulary: {pairs} pairs need {2 * pairs} keys and values; it is {vocabulary}")


@task(
    name="recall",
    title="Recall of pairs",
    question="Which value did this key have, with many pairs held at once?",
    source="Arora et al. 2023, arXiv 2312.04927; Poli et al. 2024, arXiv 2403.17844",
    dials={
        "pairs": Dial(4, (2, 4, 8, 16), 2, 1024, "pairs to hold"),
        "length": Dial(64, (64, 128, 256), 8, 8192, "positions"),
        "vocabulary": Dial(32, (32, 64, 128), 8, 65536, "keys and values, half each"),
        "repeats": Dial(8, (1, 8), 1, 1024, "most repeats of a key"),
        "power": Dial(1.0, (0.01, 0.5, 1.0), 0.01, 2.0, "exponent of the distances: 1 is uniform, less is nearer"),
    },
    swept="pairs",
    vocabulary=lambda vocabulary, **_: vocabulary // 2 * 2 + 1,
    length=lambda length, **_: length,
    chance=lambda vocabulary, **_: 1 / (vocabulary // 2),
    ceiling=lambda **_: 1.0,
    ngram=lambda vocabulary, **_: 1 / (vocabulary // 2),
    check=_check,
)
def generate(
    rng: np.random.Generator, n_rows: int, *, split: Split, pairs: int, length: int, vocabulary: int, **dials: Any
) -> Examples:
    """Rows of pairs and repeated keys; dials as described by the task."""
    n_each, n_places = vocabulary // 2, (length - 2 * pairs) // 2
    n_repeats = min(pairs * dials["repeats"], n_places)
    weights_N = np.arange(1, n_places + 1) ** (dials["power"] - 1.0)

    def make(rng: np.random.Generator, n: int) -> Examples:
        keys_BP = 1 + distinct(rng, n, n_each, pairs)
        values_BP = 1 + n_each + rng.integers(n_each, size=(n, pairs))
        ids_BT = np.zeros((n, length), np.int64)
        ids_BT[:, 0 : 2 * pairs : 2], ids_BT[:, 1 : 2 * pairs : 2] = keys_BP, values_BP
        places_BR = 2 * pairs + 2 * np.sort(weighted(rng, n, weights_N, n_repeats), axis=1)
        which_BR = rounds(rng, n, pairs, n_repeats)
        put(ids_BT, places_BR, at(keys_BP, which_BR))
        put(ids_BT, places_BR + 1, at(values_BP, which_BR))
        targets_BT, counted_BT = np.zeros_like(ids_BT), np.zeros(ids_BT.shape, bool)
        put(targets_BT, places_BR, at(values_BP, which_BR))
        put(counted_BT, places_BR, True)
        return Examples(ids_BT, targets_BT, counted_BT)

    return drawn(rng, n_rows, split, make)
