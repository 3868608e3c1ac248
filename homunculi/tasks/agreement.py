"""Agreement at a distance: is or are, many words after the noun that decides?

    the keys often near the door behind the boxes truly are small .
                                                      ↑ are         counted: the last word before each verb

A row is four sentences of words of a small vocabulary: nouns in two forms, adverbs, prepositions, adjectives. Between
the noun that decides and its verb stand exactly `distance` words: `distractors` times a preposition, "the" and another
noun, whose number is drawn freely, and adverbs, in random order. So the words just before the verb say nothing, and
half of the distractors mislead.

Split: training, validation and test rows are disjoint by a hash of the row (`splits`). After the agreement over
attractors of Linzen, Dupoux & Goldberg 2016 (arXiv 1611.01368); the sentences are this laboratory's.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from homunculi.errors import InputError
from homunculi.tasks.draws import distinct, put
from homunculi.tasks.registry import Dial, Examples, Split, task
from homunculi.tasks.splits import drawn

SENTENCES = 4
N_NOUNS, N_ADVERBS, N_PREPOSITIONS, N_ADJECTIVES = 16, 12, 4, 8
THE, STOP, IS, ARE = range(4)
NOUN = 4  # noun i is NOUN + 2·i for one, one id more for several
ADVERB = NOUN + 2 * N_NOUNS
PREPOSITION = ADVERB + N_ADVERBS
ADJECTIVE = PREPOSITION + N_PREPOSITIONS
N_IDS = ADJECTIVE + N_ADJECTIVES


def _check(distance: int, distractors: int, **_: Any) -> None:
    if 3 * distractors > distance:
        room = f"{distractors} distractors need distance={3 * distractors}"
        raise InputError(f"agreement.distractors: {room} or more; distance is {distance}")


@task(
    name="agreement",
    title="Agreement at a distance",
    question="Does the verb agree with its noun over many words and other nouns?",
    source="Linzen, Dupoux & Goldberg 2016, arXiv 1611.01368; the sentences are this laboratory's",
    dials={
        "distance": Dial(12, (6, 12, 24), 2, 1024, "words between noun and verb"),
        "distractors": Dial(2, (0, 1, 2, 4), 0, 256, "nouns between noun and verb"),
    },
    swept="distance",
    vocabulary=lambda **_: N_IDS,
    length=lambda distance, **_: SENTENCES * (distance + 5),
    chance=lambda **_: 0.5,
    ceiling=lambda **_: 1.0,
    ngram=lambda **_: 0.5,
    beyond={"distance": (48, 96)},
    check=_check,
)
def generate(rng: np.random.Generator, n_rows: int, *, split: Split, distance: int, distractors: int) -> Examples:
    """Rows of sentences; dials as described by the task."""

    def make(rng: np.random.Generator, n: int) -> Examples:
        many_N = rng.integers(2, size=n * SENTENCES)
        ids_NW = np.empty((len(many_N), distance + 5), np.int64)
        ids_NW[:, 0] = THE
        ids_NW[:, 1] = NOUN + 2 * rng.integers(N_NOUNS, size=len(many_N)) + many_N
        ids_NW[:, 2:-3] = _between(rng, len(many_N), distance, distractors)
        ids_NW[:, -3] = IS + many_N
        ids_NW[:, -2] = ADJECTIVE + rng.integers(N_ADJECTIVES, size=len(many_N))
        ids_NW[:, -1] = STOP
        targets_NW, counted_NW = np.zeros_like(ids_NW), np.zeros(ids_NW.shape, bool)
        targets_NW[:, -4], counted_NW[:, -4] = IS + many_N, True
        return Examples(*(part.reshape(n, -1) for part in (ids_NW, targets_NW, counted_NW)))

    return drawn(rng, n_rows, split, make)


def _between(rng: np.random.Generator, n: int, distance: int, distractors: int) -> np.ndarray:
    """Words between noun and verb: adverbs, and distractors of three words each at random places. [N, distance]."""
    words_NW = ADVERB + rng.integers(N_ADVERBS, size=(n, distance))
    if distractors:
        n_things = distance - 2 * distractors
        places_ND = np.sort(distinct(rng, n, n_things, distractors), axis=1) + 2 * np.arange(distractors)
        put(words_NW, places_ND, PREPOSITION + rng.integers(N_PREPOSITIONS, size=places_ND.shape))
        put(words_NW, places_ND + 1, THE)
        put(words_NW, places_ND + 2, NOUN + rng.integers(2 * N_NOUNS, size=places_ND.shape))
    return words_NW
