"""Nested brackets: the value of each bracket as it closes, innermost first.

    (max 3 (sum 5 6 2 ) (min 7 1 ) 0 )        sums modulo 8
                      ↑ 5        ↑ 1 ↑ 5      counted: closing brackets; needed: 1, 1, 2

A bracket holds two or more things, numbers or brackets, of which it takes the greatest, the least, or the sum modulo
the number of digits. A closing bracket needs one step more than the deepest bracket within it, and one if it holds
numbers alone. Each outermost bracket aims at a depth drawn from 1 to `depth`, so that deep ones are not rare. The row
may end within a bracket, which then is not counted. Ids: digits, opening brackets (max, min, sum), the closing bracket.
`beyond` tests deeper nesting than training.

Split: training, validation and test rows are disjoint by a hash of the row (`splits`). After the ListOps of Nangia &
Bowman 2018 (arXiv 1804.06028).
"""

from __future__ import annotations

import numpy as np

from homunculi.tasks.registry import Dial, Examples, Split, task
from homunculi.tasks.splits import drawn

MAX, MIN, SUM, CLOSE = range(4)  # added to the number of digits
# Chances to open a bracket on the way down and once the depth was reached, and then to close one.
_DOWN, _AGAIN, _UP = 0.5, 0.15, 0.5


class _Stack:
    """Open brackets of many rows: operation, value so far, number of things, steps needed, by depth; 0 is outside."""

    def __init__(self, n: int, depth: int, digits: int) -> None:
        self.rows_B, self.depth_B, self.digits = np.arange(n), np.zeros(n, np.int64), digits
        self.operation_BD, self.value_BD, self.n_BD, self.steps_BD = (
            np.zeros((n, depth + 1), np.int64) for _ in range(4)
        )

    def top(self, column_BD: np.ndarray) -> np.ndarray:
        """Of the bracket that is open in each row. [B]."""
        top_B: np.ndarray = column_BD[self.rows_B, self.depth_B]
        return top_B

    def open(self, which_B: np.ndarray, operation_B: np.ndarray) -> None:
        self.depth_B[which_B] += 1
        at = self.rows_B[which_B], self.depth_B[which_B]
        self.operation_BD[at], self.n_BD[at], self.steps_BD[at] = operation_B[which_B], 0, 1
        self.value_BD[at] = np.where(operation_B[which_B] == MIN, self.digits - 1, 0)

    def add(self, which_B: np.ndarray, value_B: np.ndarray) -> None:
        """One thing more in the bracket that is open."""
        at = self.rows_B[which_B], self.depth_B[which_B]
        before, value = self.value_BD[at], value_B[which_B]
        results = np.stack([np.maximum(before, value), np.minimum(before, value), (before + value) % self.digits])
        self.value_BD[at] = np.take_along_axis(results, self.operation_BD[at][None], axis=0)[0]
        self.n_BD[at] += 1

    def close(self, which_B: np.ndarray) -> None:
        """The bracket that is open becomes one thing of that around it."""
        value_B, steps_B = self.top(self.value_BD), self.top(self.steps_BD)
        self.depth_B[which_B] -= 1
        self.add(which_B, value_B)
        at = self.rows_B[which_B], self.depth_B[which_B]
        self.steps_BD[at] = np.maximum(self.steps_BD[at], steps_B[which_B] + 1)


@task(
    name="nested_brackets",
    title="Nested brackets",
    question="Is as much worked out as the nesting asks for?",
    source="Nangia & Bowman 2018, arXiv 1804.06028, with this laboratory's brackets",
    dials={
        "depth": Dial(3, (1, 2, 3, 4), 1, 64, "most brackets within each other"),
        "length": Dial(64, (64, 128), 16, 1024, "positions"),
        "digits": Dial(8, (4, 8, 16), 3, 256, "different digits"),
    },
    swept="depth",
    vocabulary=lambda digits, **_: digits + 4,
    length=lambda length, **_: length,
    chance=lambda digits, **_: 1 / digits,
    ceiling=lambda **_: 1.0,
    beyond={"depth": (6, 8)},
)
def generate(rng: np.random.Generator, n_rows: int, *, split: Split, depth: int, length: int, digits: int) -> Examples:
    """Rows of brackets; dials as described by the task."""
    return drawn(rng, n_rows, split, lambda rng, n: _nested(rng, n, depth, length, digits))


def _nested(rng: np.random.Generator, n: int, depth: int, length: int, digits: int) -> Examples:
    ids_BT, targets_BT, needed_BT = (np.zeros((n, length), np.int64) for _ in range(3))
    stack, aim_B, reached_B = _Stack(n, depth, digits), np.zeros(n, np.int64), np.zeros(n, bool)
    for t in range(length):
        outside_B, chance_B = stack.depth_B == 0, rng.random(n)
        aim_B = np.where(outside_B, rng.integers(1, depth + 1, size=n), aim_B)
        reached_B &= ~outside_B
        deeper_B = chance_B < np.where(reached_B, _AGAIN, _DOWN)
        opens_B = outside_B | (deeper_B & (stack.depth_B < aim_B))
        closes_B = ~opens_B & reached_B & (stack.top(stack.n_BD) >= 2) & (chance_B > 1 - _UP)
        operation_B, digit_B = rng.integers(3, size=n), rng.integers(digits, size=n)
        ids_BT[:, t] = np.where(opens_B, digits + operation_B, np.where(closes_B, digits + CLOSE, digit_B))
        targets_BT[:, t] = np.where(closes_B, stack.top(stack.value_BD), 0)
        needed_BT[:, t] = np.where(closes_B, stack.top(stack.steps_BD), 0)
        stack.add(~(opens_B | closes_B), digit_B)
        stack.close(closes_B)
        stack.open(opens_B, operation_B)
        reached_B |= stack.depth_B >= aim_B
    return Examples(ids_BT, targets_BT, needed_BT > 0, needed_BT)
