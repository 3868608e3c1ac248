"""Noisy recall: pairs of keys and values among tokens that mean nothing.

    n4 k3 v8 n1 n1 k1 v2 n9 k3 v8 n4 k3 v8 k1 v2 n2
                             ↑ v8     ↑ v8 ↑ v2          counted: each key that was seen before

A share of the row is noise of its own vocabulary. The rest are pairs in random places: first `pairs` different keys,
then any of these again and again, each with the value it has in this row. Keys are drawn without repeats, values with.
Id order: keys, values, noise. A pair is never parted.

Split: training, validation and test rows are disjoint by a hash of the row (`splits`). After the noisy in-context
recall of Poli et al. 2024 (arXiv 2403.17844).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from homunculi.errors import InputError
from homunculi.tasks.draws import at, distinct, put
from homunculi.tasks.registry import Dial, Examples, Split, task
from homunculi.tasks.splits import drawn

_NOISE_IDS = 16


def _n_units(length: int, noise: float) -> int:
    return (length - round(noise * length)) // 2


def _check(pairs: int, length: int, noise: float, vocabulary: int, **_: Any) -> None:
    if pairs >= (n_units := _n_units(length, noise)):
        room = f"length={length} at noise={noise} has room for {n_units}, repeats included"
        raise InputError(
            f"noisy_recall.pairs: {pairs} leaves no repeats: {room}; lower pairs or noise, or raise length"
        )
    if pairs > vocabulary // 2:
        raise InputError(f"noisy_recall.vocabulary: {pairs} pairs need {2 * pairs} keys and values; it is {vocabulary}")


@task(
    name="noisy_recall",
    title="Recall among noise",
    question="Which value did this key have, with tokens that mean nothing in between?",
    source="Poli et al. 2024, arXiv 2403.17844",
    dials={
        "noise": Dial(0.4, (0.2, 0.4, 0.6, 0.8), 0.0, 0.95, "share of the row that is noise"),
        "pairs": Dial(3, (2, 3, 6, 12), 1, 1024, "pairs to hold"),
        "length": Dial(64, (64, 128, 256), 16, 8192, "positions"),
        "vocabulary": Dial(32, (32, 64, 128), 8, 65536, "keys and values, half each"),
    },
    swept="noise",
    vocabulary=lambda vocabulary, **_: vocabulary // 2 * 2 + _NOISE_IDS,
    length=lambda length, **_: length,
    chance=lambda vocabulary, **_: 1 / (vocabulary // 2),
    ceiling=lambda **_: 1.0,
    check=_check,
)
def generate(
    rng: np.random.Generator, n_rows: int, *, split: Split, noise: float, pairs: int, length: int, vocabulary: int
) -> Examples:
    """Rows of pairs among noise; dials as described by the task."""
    n_each, n_units = vocabulary // 2, _n_units(length, noise)
    n_things = length - n_units  # a pair is one thing, and so is a token of noise

    def make(rng: np.random.Generator, n: int) -> Examples:
        keys_BP, values_BP = distinct(rng, n, n_each, pairs), n_each + rng.integers(n_each, size=(n, pairs))
        again_BQ = rng.integers(pairs, size=(n, n_units - pairs))
        which_BU = np.concatenate([np.broadcast_to(np.arange(pairs), (n, pairs)), again_BQ], axis=1)
        places_BU = np.sort(distinct(rng, n, n_things, n_units), axis=1) + np.arange(n_units)
        ids_BT = 2 * n_each + rng.integers(_NOISE_IDS, size=(n, length))
        put(ids_BT, places_BU, at(keys_BP, which_BU))
        put(ids_BT, places_BU + 1, at(values_BP, which_BU))
        targets_BT, counted_BT = np.zeros_like(ids_BT), np.zeros(ids_BT.shape, bool)
        put(targets_BT, places_BU[:, pairs:], at(values_BP, again_BQ))
        put(counted_BT, places_BU[:, pairs:], True)
        return Examples(ids_BT, targets_BT, counted_BT)

    return drawn(rng, n_rows, split, make)
