"""Parity: is the number of ones so far even or odd?

    1 0 1 1 0 1
    1 1 0 1 1 0      counted: every position

A state of one bit that every 1 flips. Ids are the bits, and so are the answers. `beyond` tests longer rows; of rows
that are longer than any of `length`'s values, the test counts only the positions past those.

Split: training, validation and test rows are disjoint by a hash of the row (`splits`).
"""

from __future__ import annotations

import numpy as np

from homunculi.tasks.registry import Dial, Examples, Split, task
from homunculi.tasks.splits import drawn, unseen_positions

LENGTHS = (8, 16, 32)


@task(
    name="parity",
    title="Parity",
    question="Is one bit of state kept that every one flips, also in rows longer than those of training?",
    source="common",
    dials={"length": Dial(32, LENGTHS, 8, 4096, "positions")},
    swept="length",
    vocabulary=lambda **_: 2,
    length=lambda length, **_: length,
    chance=lambda **_: 0.5,
    ceiling=lambda **_: 1.0,
    ngram=lambda length, **_: (2 + (length - 2) / 2) / length,  # the first two positions are seen whole
    beyond={"length": (64, 128)},
)
def generate(rng: np.random.Generator, n_rows: int, *, split: Split, length: int) -> Examples:
    """Rows of bits; dials as described by the task."""

    def make(rng: np.random.Generator, n: int) -> Examples:
        ids_BT = rng.integers(2, size=(n, length))
        counted_BT = np.broadcast_to(unseen_positions(length, split, max(LENGTHS)), ids_BT.shape).copy()
        return Examples(ids_BT, np.cumsum(ids_BT, axis=1) % 2, counted_BT)

    return drawn(rng, n_rows, split, make)
