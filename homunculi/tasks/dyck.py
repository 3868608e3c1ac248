"""Dyck languages: which bracket has to be closed next?

    ( [ ] { } ) [ ( )
        ↑ )         ]      counted: after a bracket was closed while others are open; the answer is the closing bracket

Brackets of `kinds` kinds, at most `depth` open at once; while both are possible, opening and closing are equally
likely, and kinds are drawn freely. After an opening bracket the answer would be plain from the last token, so only
positions after a closing one count. Ids: opening brackets, closing brackets. `beyond` tests longer rows, of which only
the positions past the longest of training count.

Split: training, validation and test rows are disjoint by a hash of the row (`splits`).
"""

from __future__ import annotations

import numpy as np

from homunculi.tasks.registry import Dial, Examples, Split, task
from homunculi.tasks.splits import drawn, unseen_positions

LENGTHS = (16, 32, 64)


@task(
    name="dyck",
    title="Brackets of several kinds",
    question="Is it known which bracket is open after the inner ones were closed?",
    source="common; the Dyck languages of formal language theory, with bounded depth",
    dials={
        "depth": Dial(4, (2, 4, 8, 16), 2, 256, "most brackets open at once"),
        "kinds": Dial(4, (2, 4, 8), 2, 1024, "kinds of brackets"),
        "length": Dial(64, LENGTHS, 12, 4096, "positions"),
    },
    swept="depth",
    vocabulary=lambda kinds, **_: 2 * kinds,
    length=lambda length, **_: length,
    chance=lambda kinds, **_: 1 / kinds,
    ceiling=lambda **_: 1.0,
    ngram=lambda kinds, **_: 1 / kinds,
    beyond={"length": (128, 256)},
)
def generate(rng: np.random.Generator, n_rows: int, *, split: Split, depth: int, kinds: int, length: int) -> Examples:
    """Rows of brackets; dials as described by the task."""
    unseen_T = unseen_positions(length, split, max(LENGTHS))

    def make(rng: np.random.Generator, n: int) -> Examples:
        drawn_BT, closes_BT = rng.integers(kinds, size=(n, length)), rng.random((n, length)) < 0.5
        open_BD, n_open_B, rows_B = np.zeros((n, depth + 1), np.int64), np.zeros(n, np.int64), np.arange(n)
        ids_BT, targets_BT, counted_BT = (
            np.zeros_like(drawn_BT),
            np.zeros_like(drawn_BT),
            np.zeros(drawn_BT.shape, bool),
        )
        for t in range(length):
            closes_B = (n_open_B == depth) | (closes_BT[:, t] & (n_open_B > 0))
            ids_BT[:, t] = np.where(closes_B, kinds + open_BD[rows_B, n_open_B], drawn_BT[:, t])
            n_open_B = n_open_B + np.where(closes_B, -1, 1)
            opened_B = rows_B[~closes_B]
            open_BD[opened_B, n_open_B[opened_B]] = drawn_BT[opened_B, t]
            counted_BT[:, t] = closes_B & (n_open_B > 0)
            targets_BT[:, t] = kinds + open_BD[rows_B, n_open_B]
        return Examples(ids_BT, np.where(counted_BT, targets_BT, 0), counted_BT & unseen_T)

    return drawn(rng, n_rows, split, make)
