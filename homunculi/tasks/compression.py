"""Compression: a whole row in the state of one token.

    a c a b … ⊕        counted: all positions but the last; the answer at a position is the token that stands there

A decoder is given the state at the last position, ⊕, and the number of a position, and says which token stood there.
What is scored is how much of the row that one state holds. Tokens are drawn freely; ⊕ is the last id.

Split: training, validation and test rows are disjoint by a hash of the row (`splits`). After Poli et al. 2024 (arXiv
2403.17844).
"""

from __future__ import annotations

import numpy as np

from homunculi.tasks.registry import Dial, Examples, Split, task
from homunculi.tasks.splits import drawn


@task(
    name="compression",
    title="Compression into one state",
    question="How many tokens does the state of a single position hold?",
    source="Poli et al. 2024, arXiv 2403.17844",
    dials={
        "tokens": Dial(16, (8, 16, 32, 64), 4, 1024, "tokens to hold"),
        "vocabulary": Dial(16, (16, 32, 64), 4, 65536, "different tokens"),
    },
    swept="tokens",
    vocabulary=lambda vocabulary, **_: vocabulary + 1,
    length=lambda tokens, **_: tokens + 1,
    chance=lambda vocabulary, **_: 1 / vocabulary,
    ceiling=lambda **_: 1.0,
    ngram=lambda tokens, vocabulary, **_: (1 + (tokens - 1) / vocabulary) / tokens,
    readout="aggregate",
)
def generate(rng: np.random.Generator, n_rows: int, *, split: Split, tokens: int, vocabulary: int) -> Examples:
    """Rows of tokens and the one that gathers them; dials as described by the task."""

    def make(rng: np.random.Generator, n: int) -> Examples:
        ids_BT = rng.integers(vocabulary, size=(n, tokens + 1))
        ids_BT[:, -1] = vocabulary
        counted_BT = np.ones(ids_BT.shape, bool)
        counted_BT[:, -1] = False
        return Examples(ids_BT, np.where(counted_BT, ids_BT, 0), counted_BT)

    return drawn(rng, n_rows, split, make)
