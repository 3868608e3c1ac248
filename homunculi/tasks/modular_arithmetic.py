"""Modular arithmetic: the value so far of a calculation without brackets, from left to right.

    3 × 4 − 2 + 4        modulo 5
        ↑ 2 ↑ 0 ↑ 4      counted: every number after an operation

Numbers and the operations + − × are drawn freely. Ids: numbers, plus, minus, times. `beyond` tests more operations, of
which only those past the most of training count.

Split: training, validation and test rows are disjoint by a hash of the row (`splits`).
"""

from __future__ import annotations

import numpy as np

from homunculi.tasks.registry import Dial, Examples, Split, task
from homunculi.tasks.splits import drawn, unseen_positions

OPERATIONS = (4, 8, 16)


@task(
    name="modular_arithmetic",
    title="Modular arithmetic",
    question="Is a value carried through additions, subtractions and multiplications?",
    source="common",
    dials={
        "operations": Dial(16, OPERATIONS, 4, 4096, "operations of a row"),
        "modulus": Dial(5, (3, 5, 7, 11), 2, 256, "different numbers"),
    },
    swept="operations",
    vocabulary=lambda modulus, **_: modulus + 3,
    length=lambda operations, **_: 2 * operations + 1,
    chance=lambda modulus, **_: 1 / modulus,
    ceiling=lambda **_: 1.0,
    beyond={"operations": (32, 64)},
)
def generate(rng: np.random.Generator, n_rows: int, *, split: Split, operations: int, modulus: int) -> Examples:
    """Rows of calculations; dials as described by the task."""
    length = 2 * operations + 1
    unseen_T = unseen_positions(length, split, 2 * max(OPERATIONS) + 1)

    def make(rng: np.random.Generator, n: int) -> Examples:
        numbers_BN = rng.integers(modulus, size=(n, operations + 1))
        kinds_BN = rng.integers(3, size=(n, operations))
        ids_BT, targets_BT = np.zeros((n, length), np.int64), np.zeros((n, length), np.int64)
        ids_BT[:, ::2], ids_BT[:, 1::2] = numbers_BN, modulus + kinds_BN
        value_B = numbers_BN[:, 0]
        for place in range(operations):
            by_B = numbers_BN[:, place + 1]
            results_3B = np.stack([value_B + by_B, value_B - by_B, value_B * by_B]) % modulus
            value_B = np.take_along_axis(results_3B, kinds_BN[None, :, place], axis=0)[0]
            targets_BT[:, 2 * place + 2] = value_B
        at_T = np.arange(length)
        counted_T = (at_T % 2 == 0) & (at_T > 0) & unseen_T
        return Examples(ids_BT, targets_BT, np.broadcast_to(counted_T, ids_BT.shape).copy())

    return drawn(rng, n_rows, split, make)
