"""Recall of a name at a distance: whose thing is it, many sentences later?

    Ann has kite . Bob has drum . | Cid greets mill . Ann leaves park . … | whose kite ? Ann . whose drum ? Bob .
                                                                                     ↑ Ann            ↑ Bob   counted

First 1 + `distractors` people are said to have one thing each, then `distance` sentences tell of people and places
without a word about things, then each thing is asked about once, in random order. Things differ within a row; owners
are drawn freely. Each word is an id of a small vocabulary: names, things, doings, places, and has . whose ?

Split: training, validation and test rows are disjoint by a hash of the row (`splits`). The sentences are this
laboratory's, after its story world.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from homunculi.errors import InputError
from homunculi.tasks.draws import at, distinct, shuffled
from homunculi.tasks.registry import Dial, Examples, Split, task
from homunculi.tasks.splits import drawn

HAS, STOP, WHOSE, ASK, DOING = 0, 1, 2, 3, 4
N_DOINGS, N_PLACES = 8, 8
PLACE = DOING + N_DOINGS
NAME = PLACE + N_PLACES


def _check(distractors: int, people: int, **_: Any) -> None:
    if distractors >= people:
        raise InputError(f"name_recall.distractors: {distractors} need people={distractors + 1} or more, not {people}")


@task(
    name="name_recall",
    title="Recall of a name at a distance",
    question="Is it still known after many sentences who has what?",
    source="this laboratory, after its story world",
    dials={
        "distance": Dial(8, (2, 8, 32), 0, 1024, "sentences between what is told and the first question"),
        "distractors": Dial(3, (0, 1, 3, 7), 0, 255, "other people who have a thing"),
        "people": Dial(16, (16, 32, 64), 8, 1024, "different names, and as many things"),
    },
    swept="distance",
    vocabulary=lambda people, **_: NAME + 2 * people,
    length=lambda distance, distractors, **_: 4 * distance + 9 * (1 + distractors),
    chance=lambda people, **_: 1 / people,
    ceiling=lambda **_: 1.0,
    ngram=lambda people, **_: 1 / people,
    beyond={"distance": (64, 128)},
    check=_check,
)
def generate(
    rng: np.random.Generator, n_rows: int, *, split: Split, distance: int, distractors: int, people: int
) -> Examples:
    """Rows of what is told, happens and is asked; dials as described by the task."""
    n_told = 1 + distractors
    thing = NAME + people

    def make(rng: np.random.Generator, n: int) -> Examples:
        owners_BN = NAME + rng.integers(people, size=(n, n_told))
        things_BN = thing + distinct(rng, n, people, n_told)
        told = _sentences(owners_BN, HAS, things_BN, STOP)
        shape = (n, distance)
        doings_BN, places_BN = DOING + rng.integers(N_DOINGS, size=shape), PLACE + rng.integers(N_PLACES, size=shape)
        happens = _sentences(NAME + rng.integers(people, size=shape), doings_BN, places_BN, STOP)
        order_BN = shuffled(rng, n, n_told)
        asked = _sentences(WHOSE, at(things_BN, order_BN), ASK, at(owners_BN, order_BN), STOP)
        ids_BT = np.concatenate([told, happens, asked], axis=1)
        counted_BT = np.zeros(ids_BT.shape, bool)
        counted_BT[:, told.shape[1] + happens.shape[1] + 2 :: 5] = True
        return Examples(ids_BT, np.where(counted_BT, np.roll(ids_BT, -1, axis=1), 0), counted_BT)

    return drawn(rng, n_rows, split, make)


def _sentences(*words: np.ndarray | int) -> np.ndarray:
    """Sentences of these words, one of each array and the same one everywhere of each id. [B, N·words]."""
    columns = np.broadcast_arrays(*words)
    return np.stack(columns, axis=2).reshape(len(columns[0]), -1)
