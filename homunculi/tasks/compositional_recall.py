"""Compositional recall: the value of the value of a key.

    a c  d a  b d  c b   ? a  ? d
                           ↑ b  ↑ c      counted, with two hops: a → c → b, d → a → c

Values are keys themselves: all pairs make one ring in random order, so that no two numbers of hops lead to the same
token. After the pairs each key is asked for; nothing of an answer is shown. Ids: the question mark, the tokens.

Split: training, validation and test rows are disjoint by a hash of the row (`splits`). After the compositional variants
of associative recall in the repository of Arora et al. 2023 (arXiv 2312.04927).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from homunculi.errors import InputError
from homunculi.tasks.draws import at, distinct, shuffled
from homunculi.tasks.registry import Dial, Examples, Split, task
from homunculi.tasks.splits import drawn

_ASK = 0


def _check(hops: int, pairs: int, vocabulary: int, **_: Any) -> None:
    if hops >= pairs:
        raise InputError(f"compositional_recall.hops: {hops} hops need pairs={hops + 1} or more; pairs is {pairs}")
    if pairs > vocabulary:
        raise InputError(f"compositional_recall.vocabulary: {pairs} pairs need {pairs} tokens; it is {vocabulary}")


@task(
    name="compositional_recall",
    title="Recall of a value's value",
    question="Can what was recalled be the key of the next recall?",
    source="Arora et al. 2023, arXiv 2312.04927",
    dials={
        "hops": Dial(2, (1, 2, 3, 4), 1, 16, "look-ups in a row"),
        "pairs": Dial(6, (6, 12, 24), 4, 512, "pairs to hold"),
        "vocabulary": Dial(32, (32, 64, 128), 8, 65536, "different tokens"),
    },
    swept="hops",
    vocabulary=lambda vocabulary, **_: vocabulary + 1,
    length=lambda pairs, **_: 4 * pairs,
    chance=lambda vocabulary, **_: 1 / vocabulary,
    ceiling=lambda **_: 1.0,
    ngram=lambda vocabulary, **_: 1 / (vocabulary - 1),
    check=_check,
)
def generate(
    rng: np.random.Generator, n_rows: int, *, split: Split, hops: int, pairs: int, vocabulary: int
) -> Examples:
    """Rows of a ring of pairs and questions; dials as described by the task."""

    def make(rng: np.random.Generator, n: int) -> Examples:
        ring_BP = 1 + distinct(rng, n, vocabulary, pairs)
        shown_BP, asked_BP = shuffled(rng, n, pairs), shuffled(rng, n, pairs)
        ids_BT = np.full((n, 4 * pairs), _ASK)
        ids_BT[:, 0 : 2 * pairs : 2] = at(ring_BP, shown_BP)
        ids_BT[:, 1 : 2 * pairs : 2] = at(ring_BP, (shown_BP + 1) % pairs)
        ids_BT[:, 2 * pairs + 1 :: 2] = at(ring_BP, asked_BP)
        targets_BT, counted_BT = np.zeros_like(ids_BT), np.zeros(ids_BT.shape, bool)
        targets_BT[:, 2 * pairs + 1 :: 2] = at(ring_BP, (asked_BP + hops) % pairs)
        counted_BT[:, 2 * pairs + 1 :: 2] = True
        return Examples(ids_BT, targets_BT, counted_BT, needed_BT=np.where(counted_BT, hops, 0))

    return drawn(rng, n_rows, split, make)
