"""Selective copy: say the tokens that mattered, in order, once the noise has ended.

    · a · · c a · b · » » » »
                      ↑ a c a b       counted: the marks; nothing of the answer is shown

`tokens` tokens stand at random places among blanks; as many marks follow. Ids: the blank, the mark, the tokens.

Split: training, validation and test rows are disjoint by a hash of the row (`splits`). After Poli et al. 2024 (arXiv
2403.17844).
"""

from __future__ import annotations

import math

import numpy as np

from homunculi.tasks.draws import distinct, put
from homunculi.tasks.registry import Dial, Examples, Split, task
from homunculi.tasks.splits import drawn

_BLANK, _MARK, _FIRST = 0, 1, 2


def _n_read(tokens: int, noise: float) -> int:
    """Positions before the marks."""
    return math.ceil(tokens / (1 - noise))


@task(
    name="selective_copy",
    title="Selective copy",
    question="Are the tokens that matter kept in order while the rest is passed over?",
    source="Poli et al. 2024, arXiv 2403.17844",
    dials={
        "tokens": Dial(8, (4, 8, 16, 32), 3, 1024, "tokens to copy"),
        "noise": Dial(0.5, (0.25, 0.5, 0.75), 0.0, 0.95, "share of blanks in what is read"),
        "vocabulary": Dial(16, (16, 32, 64), 8, 65536, "different tokens"),
    },
    swept="tokens",
    vocabulary=lambda vocabulary, **_: vocabulary + _FIRST,
    length=lambda tokens, noise, **_: _n_read(tokens, noise) + tokens,
    chance=lambda vocabulary, **_: 1 / vocabulary,
    ceiling=lambda **_: 1.0,
    ngram=lambda vocabulary, **_: 1 / vocabulary,
)
def generate(
    rng: np.random.Generator, n_rows: int, *, split: Split, tokens: int, noise: float, vocabulary: int
) -> Examples:
    """Rows of tokens among blanks, then marks; dials as described by the task."""
    n_read = _n_read(tokens, noise)

    def make(rng: np.random.Generator, n: int) -> Examples:
        copied_BN = _FIRST + rng.integers(vocabulary, size=(n, tokens))
        ids_BT = np.full((n, n_read + tokens), _BLANK)
        put(ids_BT, np.sort(distinct(rng, n, n_read, tokens), axis=1), copied_BN)
        ids_BT[:, n_read:] = _MARK
        targets_BT, counted_BT = np.zeros_like(ids_BT), np.zeros(ids_BT.shape, bool)
        targets_BT[:, n_read:], counted_BT[:, n_read:] = copied_BN, True
        return Examples(ids_BT, targets_BT, counted_BT)

    return drawn(rng, n_rows, split, make)
