"""State tracking: shuffles of a few things one after the other; in which order are they now?

    (read a permutation, say the product of all so far: counted at every position)

Ids and answers are the permutations of `things` things, numbered in lexicographic order: 6, 24 or 120 of them. The
product so far takes thing i to ``read[product[i]]``: what was read last is applied last. With five things no fixed
number of parallel look-ups is known to do it for every length (the word problem of S5 is complete for NC¹). `beyond`
tests longer rows, of which only the positions past the longest of training count.

Split: training, validation and test rows are disjoint by a hash of the row (`splits`). After the word problems of
Merrill, Petty & Sabharwal 2024 (arXiv 2404.08819).
"""

from __future__ import annotations

import math
from functools import cache
from itertools import permutations

import numpy as np

from homunculi.tasks.registry import Dial, Examples, Split, task
from homunculi.tasks.splits import drawn, unseen_positions

LENGTHS = (4, 8, 16, 32)


@cache
def products(things: int) -> np.ndarray:
    """Number of the permutation that is the first of two and then the second. [things!, things!] int64."""
    orders_NI = np.array(list(permutations(range(things))))
    places_I = things ** np.arange(things)[::-1]
    codes_N = orders_NI @ places_I  # rising, as the order is lexicographic
    table: np.ndarray = np.searchsorted(codes_N, orders_NI[:, orders_NI].transpose(1, 0, 2) @ places_I)
    return table


@task(
    name="s5",
    title="Shuffled things",
    question="Is a state tracked that no shortcut gives, one step after the other?",
    source="Merrill, Petty & Sabharwal 2024, arXiv 2404.08819",
    dials={
        "length": Dial(16, LENGTHS, 4, 4096, "positions"),
        "things": Dial(5, (3, 4, 5), 3, 5, "things that are shuffled"),
    },
    swept="length",
    vocabulary=lambda things, **_: math.factorial(things),
    length=lambda length, **_: length,
    chance=lambda things, **_: 1 / math.factorial(things),
    ceiling=lambda **_: 1.0,
    ngram=lambda length, things, **_: (2 + (length - 2) / math.factorial(things)) / length,  # the first two are seen
    beyond={"length": (64, 128)},
)
def generate(rng: np.random.Generator, n_rows: int, *, split: Split, length: int, things: int) -> Examples:
    """Rows of permutations; dials as described by the task."""
    table_NN = products(things)
    unseen_T = unseen_positions(length, split, max(LENGTHS))

    def make(rng: np.random.Generator, n: int) -> Examples:
        ids_BT = rng.integers(len(table_NN), size=(n, length))
        targets_BT = ids_BT.copy()
        for t in range(1, length):
            targets_BT[:, t] = table_NN[targets_BT[:, t - 1], ids_BT[:, t]]
        return Examples(ids_BT, targets_BT, np.broadcast_to(unseen_T, ids_BT.shape).copy())

    return drawn(rng, n_rows, split, make)
