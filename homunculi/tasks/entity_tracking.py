"""Entity tracking: after all that happened, where is everybody and everything?

    Ann goes barn   Bob goes mill   cup at barn   Ann takes cup   Ann goes mill   where Bob   where cup
                                                                                        ↑ mill      ↑ mill

First each person goes to a room and each thing is said to be in one, half of the time where somebody is; then `events`
events: somebody goes to another room, takes a thing that lies where they are, or drops one they hold. A thing that is
held is where its holder is. At the end every person and thing is asked about once, in random order; counted is the word
that names it, and the answer is a room. Steps needed: 1 for a person (the last going) and for a thing that nobody
touched, 2 for a thing that was taken or dropped (by whom, and where that one was). Each word is an id: people, things,
rooms, goes, takes, drops, at, where.

Split: training, validation and test rows are disjoint by a hash of the row (`splits`). After entity tracking of Kim &
Schuster 2023 (arXiv 2305.02363); the events are this laboratory's, after its story world.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from homunculi.tasks.draws import at, shuffled
from homunculi.tasks.registry import Dial, Examples, Split, task
from homunculi.tasks.splits import drawn

NOBODY = -1
_GOING = 0.4  # chance of a going, where taking or dropping is possible too
GOES, TAKES, DROPS, AT, WHERE = range(5)  # added to the number of entities and rooms


class _World(NamedTuple):
    """Where people and things are, who holds what (or nobody), and what was ever touched; changed in place."""

    person_room_BP: np.ndarray
    thing_room_BO: np.ndarray
    holder_BO: np.ndarray
    touched_BO: np.ndarray


@task(
    name="entity_tracking",
    title="Entity tracking",
    question="Is the state of a small world kept up to date as things happen?",
    source="Kim & Schuster 2023, arXiv 2305.02363; the events are this laboratory's",
    dials={
        "events": Dial(8, (4, 8, 16, 32), 1, 1024, "events after the opening"),
        "people": Dial(3, (2, 3, 5), 1, 64, "people"),
        "things": Dial(3, (2, 3, 5), 1, 64, "things"),
        "rooms": Dial(8, (4, 8, 16), 4, 256, "rooms"),
    },
    swept="events",
    vocabulary=lambda people, things, rooms, **_: people + things + rooms + 5,
    length=lambda people, things, events, **_: 3 * (people + things + events) + 2 * (people + things),
    chance=lambda rooms, **_: 1 / rooms,
    ceiling=lambda **_: 1.0,
    ngram=lambda rooms, **_: 1 / rooms,
    beyond={"events": (64, 128)},
)
def generate(
    rng: np.random.Generator, n_rows: int, *, split: Split, events: int, people: int, things: int, rooms: int
) -> Examples:
    """Rows of events and questions; dials as described by the task."""
    n_entities, first_room = people + things, people + things
    verb = first_room + rooms

    def make(rng: np.random.Generator, n: int) -> Examples:
        rooms_BE = rng.integers(rooms, size=(n, n_entities))
        with_BO, is_with_BO = rng.integers(people, size=(n, things)), rng.random((n, things)) < 0.5
        rooms_BE[:, people:] = np.where(is_with_BO, at(rooms_BE, with_BO), rooms_BE[:, people:])
        verbs_E = verb + np.where(np.arange(n_entities) < people, GOES, AT)
        told = [_column(np.full(n, one), verbs_E[one], first_room + rooms_BE[:, one]) for one in range(n_entities)]
        world = _World(
            rooms_BE[:, :people].copy(),
            rooms_BE[:, people:].copy(),
            np.full((n, things), NOBODY),
            np.zeros((n, things), bool),
        )
        for _ in range(events):
            who_B, what_B, which_B = _happen(rng, world, rooms)
            told.append(_column(who_B, verb + what_B, which_B + np.where(what_B == GOES, first_room, people)))
        return _asked(rng, np.concatenate(told, axis=1), world, first_room, verb + WHERE)

    return drawn(rng, n_rows, split, make)


def _column(*words: Any) -> np.ndarray:
    return np.stack(np.broadcast_arrays(*words), axis=1)


def _happen(rng: np.random.Generator, world: _World, rooms: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Let one thing happen in each row. Who, what (`GOES`, `TAKES`, `DROPS`), and which room or thing. [B] each."""
    n, people = world.person_room_BP.shape
    rows_B = np.arange(n)
    lies_BPO = (world.holder_BO == NOBODY)[:, None] & (world.thing_room_BO[:, None] == world.person_room_BP[:, :, None])
    holds_BPO = world.holder_BO[:, None] == np.arange(people)[:, None]
    possible = (lies_BPO | holds_BPO).reshape(n, -1)
    chosen_B = (possible * (1 - rng.random(possible.shape))).argmax(axis=1)
    who_B, thing_B = np.divmod(chosen_B, lies_BPO.shape[2])
    goes_B = (rng.random(n) < _GOING) | ~possible.any(axis=1)
    takes_B = ~goes_B & lies_BPO[rows_B, who_B, thing_B]
    who_B = np.where(goes_B, rng.integers(people, size=n), who_B)
    here_B = world.person_room_BP[rows_B, who_B]
    there_B = (here_B + rng.integers(1, rooms, size=n)) % rooms  # another room, each equally likely
    world.person_room_BP[rows_B[goes_B], who_B[goes_B]] = there_B[goes_B]
    for moved_B, holder_B in ((takes_B, who_B), (~goes_B & ~takes_B, np.full(n, NOBODY))):
        at_rows = rows_B[moved_B], thing_B[moved_B]
        world.holder_BO[at_rows], world.thing_room_BO[at_rows] = holder_B[moved_B], here_B[moved_B]
        world.touched_BO[at_rows] = True
    what_B = np.where(goes_B, GOES, np.where(takes_B, TAKES, DROPS))
    return who_B, what_B, np.where(goes_B, there_B, thing_B)


def _asked(rng: np.random.Generator, told_BT: np.ndarray, world: _World, first_room: int, where: int) -> Examples:
    """What was told, and a question about everybody and everything."""
    held_BO = world.holder_BO != NOBODY
    with_holder_BO = at(world.person_room_BP, np.maximum(world.holder_BO, 0))
    rooms_BE = np.concatenate([world.person_room_BP, np.where(held_BO, with_holder_BO, world.thing_room_BO)], axis=1)
    steps_BE = 1 + np.pad(world.touched_BO, ((0, 0), (world.person_room_BP.shape[1], 0)))
    order_BE = shuffled(rng, *rooms_BE.shape)
    blank_BE = np.zeros_like(order_BE)
    parts = []
    for before, answer in ((where, order_BE), (0, first_room + at(rooms_BE, order_BE)), (0, at(steps_BE, order_BE))):
        parts.append(np.stack([blank_BE + before, answer], axis=2).reshape(len(told_BT), -1))
    ids_BT, targets_BT, needed_BT = (
        np.concatenate([told_BT if place == 0 else np.zeros_like(told_BT), part], axis=1)
        for place, part in enumerate(parts)
    )
    return Examples(ids_BT, targets_BT, needed_BT > 0, needed_BT)
