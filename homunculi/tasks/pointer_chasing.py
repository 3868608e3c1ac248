"""Pointer chasing: follow arrows as often as is asked.

    a c  d a  b d  c b   · · » a   » » » d   · » » b
                             ↑ c         ↑ b       ↑ a       counted: the token after the marks, one step a mark

Pairs are arrows, which make one ring in random order. A question is one mark for each step and then the token to start
from; before the marks it is blank, so that all questions are equally wide. Since the start comes last, nothing can be
worked out before. Steps are drawn from 1 to `steps` for each question, and are what a counted position needs; nothing
of an answer is shown. A number of steps is written by marks alone, so that `beyond` asks for more steps than training
without a token that training lacks. Ids: blank, mark, tokens.

Split: training, validation and test rows are disjoint by a hash of the row (`splits`). This laboratory's.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from homunculi.errors import InputError
from homunculi.tasks.draws import at, distinct, shuffled
from homunculi.tasks.registry import Dial, Examples, Split, task
from homunculi.tasks.splits import drawn

_BLANK, _MARK, _FIRST = 0, 1, 2
QUESTIONS = 8


def _check(steps: int, arrows: int, vocabulary: int, **_: Any) -> None:
    if steps >= arrows:
        raise InputError(f"pointer_chasing.steps: {steps} steps need arrows={steps + 1} or more; arrows is {arrows}")
    if arrows > vocabulary:
        raise InputError(f"pointer_chasing.vocabulary: {arrows} arrows need {arrows} tokens; it is {vocabulary}")


@task(
    name="pointer_chasing",
    title="Pointer chasing",
    question="Are as many steps taken as the question asks for?",
    source="this laboratory",
    dials={
        "steps": Dial(3, (1, 2, 3, 4), 1, 64, "most steps of a question"),
        "arrows": Dial(9, (9, 16), 4, 512, "arrows to hold"),
        "vocabulary": Dial(16, (16, 32, 64), 8, 4096, "different tokens"),
    },
    swept="steps",
    vocabulary=lambda vocabulary, **_: vocabulary + _FIRST,
    length=lambda arrows, steps, **_: 2 * arrows + QUESTIONS * (steps + 1),
    chance=lambda vocabulary, **_: 1 / vocabulary,
    ceiling=lambda **_: 1.0,
    ngram=lambda vocabulary, **_: 1 / (vocabulary - 1),
    beyond={"steps": (6, 8)},
    check=_check,
)
def generate(
    rng: np.random.Generator, n_rows: int, *, split: Split, steps: int, arrows: int, vocabulary: int
) -> Examples:
    """Rows of arrows and questions; dials as described by the task."""

    def make(rng: np.random.Generator, n: int) -> Examples:
        ring_BN, shown_BN = _FIRST + distinct(rng, n, vocabulary, arrows), shuffled(rng, n, arrows)
        pairs_BN2 = np.stack([at(ring_BN, shown_BN), at(ring_BN, (shown_BN + 1) % arrows)], axis=2)
        starts_BQ = rng.integers(arrows, size=(n, QUESTIONS))
        steps_BQ = rng.integers(1, steps + 1, size=(n, QUESTIONS))
        marks_BQW = np.where(np.arange(steps)[::-1] < steps_BQ[..., None], _MARK, _BLANK)
        asked_BQW = np.concatenate([marks_BQW, at(ring_BN, starts_BQ)[..., None]], axis=2)
        ids_BT = np.concatenate([pairs_BN2.reshape(n, -1), asked_BQW.reshape(n, -1)], axis=1)
        targets_BT, needed_BT = np.zeros_like(ids_BT), np.zeros_like(ids_BT)
        targets_BT[:, 2 * arrows + steps :: steps + 1] = at(ring_BN, (starts_BQ + steps_BQ) % arrows)
        needed_BT[:, 2 * arrows + steps :: steps + 1] = steps_BQ
        return Examples(ids_BT, targets_BT, needed_BT > 0, needed_BT)

    return drawn(rng, n_rows, split, make)
