"""Addition, digit by digit, the smallest first, as one carries by hand.

    7 1 + 5 2 = 2 4        71 is 17, 52 is 25: the sum is 42, written 2 4 0
              ↑ 2 4 0      counted: the equals sign and all digits of the sum but its last, which are shown as given

Both numbers have equally many digits, more than half of `digits` to all of them; the sum has one more. So rows of twice
as many digits are longer than any of training, and `beyond` tests just such. Ids: digits, plus, equals, blank.

Split: pairs of numbers are disjoint by a hash of the row (`splits`), `beyond`: by their length.
"""

from __future__ import annotations

import numpy as np

from homunculi.tasks.registry import Dial, Examples, Split, task
from homunculi.tasks.splits import drawn


@task(
    name="add",
    title="Addition",
    question="Is a carry passed on from digit to digit?",
    source="common",
    dials={
        "digits": Dial(8, (4, 8, 16), 4, 256, "most digits of a number; at least half of it plus one"),
        "base": Dial(10, (2, 4, 10), 2, 64, "different digits"),
    },
    swept="digits",
    vocabulary=lambda base, **_: base + 3,
    length=lambda digits, **_: 3 * digits + 2,
    chance=lambda base, **_: 1 / base,
    ceiling=lambda **_: 1.0,
    beyond={"digits": (32, 64)},
)
def generate(rng: np.random.Generator, n_rows: int, *, split: Split, digits: int, base: int) -> Examples:
    """Rows of sums; dials as described by the task."""
    plus, equals, blank = base, base + 1, base + 2
    at_T = np.arange(3 * digits + 2)

    def make(rng: np.random.Generator, n: int) -> Examples:
        size_B1 = rng.integers(digits // 2 + 1, digits + 1, size=(n, 1))
        is_there_BN = np.arange(digits) < size_B1
        a_BN, b_BN = (np.where(is_there_BN, rng.integers(base, size=(n, digits)), 0) for _ in range(2))
        sums_BN = _sum(a_BN, b_BN, base)
        ids_BT = np.full((n, len(at_T)), blank)
        for numbers_BN, start_B1, width_B1 in (
            (a_BN, 0 * size_B1, size_B1),
            (b_BN, size_B1 + 1, size_B1),
            (sums_BN, 2 * size_B1 + 2, size_B1),
        ):
            inside_BT = (at_T >= start_B1) & (at_T < start_B1 + width_B1)
            ids_BT = np.where(inside_BT, _shifted(numbers_BN, at_T - start_B1), ids_BT)
        ids_BT = np.where(at_T == size_B1, plus, np.where(at_T == 2 * size_B1 + 1, equals, ids_BT))
        counted_BT = (at_T >= 2 * size_B1 + 1) & (at_T < 3 * size_B1 + 2)
        targets_BT = np.where(counted_BT, _shifted(sums_BN, at_T - 2 * size_B1 - 1), 0)
        return Examples(ids_BT, targets_BT, counted_BT)

    return drawn(rng, n_rows, split, make)


def _sum(a_BN: np.ndarray, b_BN: np.ndarray, base: int) -> np.ndarray:
    """Digits of the sums, one more than those of the numbers."""
    totals_BN = np.pad(a_BN + b_BN, ((0, 0), (0, 1)))
    for place in range(a_BN.shape[1]):
        totals_BN[:, place + 1] += totals_BN[:, place] // base
    return totals_BN % base


def _shifted(numbers_BN: np.ndarray, places_BT: np.ndarray) -> np.ndarray:
    return np.take_along_axis(numbers_BN, np.clip(places_BT, 0, numbers_BN.shape[1] - 1), axis=1)
