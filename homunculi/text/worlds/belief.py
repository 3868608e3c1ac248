"""Who is where, where things are, and what everybody believes: the state behind the generated stories.

The rules define what is *true* of a story; every search, belief statement and answer in a story follows from them.

- Containers are closed: coming into a room reveals nothing. Rooms do not see each other.
- Whoever is awake in the room of an event sees it, and everybody there knows that everybody there saw it.
- Nobody assumes that anything happens unseen: a belief stays until its holder sees, is told or misses otherwise.
- `put`, `take`, `give` and `find` show all who are present where the object is (`find`: a container is opened for all).
- `miss`: all who are present learn that the object is not in this container; who believed it there knows nothing now.
- `tell` informs its listener only, who trusts: a lie is believed. The speaker's own belief and the world do not change.
  Those present know what the listener now believes; what the listener thinks that the speaker believes stays as it was.
- `peek` shows the object to one person, and nobody notices. `sleep` ends seeing until `wake`; the body stays there.
- `search`, `try`, `setting`, `flavour`, `belief`, `fact` and `question` change nothing.

The place of an object is a container, or the name of the person who holds it, or None: not known, not yet in the story.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

KINDS = (
    *("enter", "leave", "sleep", "wake", "put", "take", "give", "find", "miss", "tell", "peek"),
    *("search", "try", "setting", "belief", "fact", "question", "flavour"),
)


@dataclass(frozen=True, slots=True)
class Event:
    """One sentence of a story and what it does. Fields that do not apply are empty.

    Attributes:
        kind: one of `KINDS`.
        start, end: character span of the sentence in the text, end exclusive. A question's span holds its answer.
        agent: who acts, believes or is asked about.
        other: the listener of `tell`, the receiver of `give`, the person whose belief `agent` has a belief about.
        object: the thing.
        container: where it goes (`put`), is (`find`, `peek`, `fact`), came from (`take`, `give`), is said to be
            (`tell`), believed to be (`belief`), or looked for (`miss`, `search` where the agent believes it to be,
            `try` where the agent has no belief).
        place: the room in which the event happens; empty off stage.
        people: all who come or go (`enter`, `leave`).
        asks: what a `question` asks: `reality`, `memory` (first container), `belief` or `belief2` (second order).
        answer: container or holder that answers a `question`; `unknown` where the person asked about has no belief.
    """

    kind: str
    start: int
    end: int
    agent: str = ""
    other: str = ""
    object: str = ""
    container: str = ""
    place: str = ""
    people: tuple[str, ...] = ()
    asks: str = ""
    answer: str = ""


@dataclass(slots=True)
class BeliefState:
    """The world and everybody's beliefs at one moment.

    Attributes:
        present: person -> room in which the person is awake; None when away or asleep.
        room: person -> room in which the body is; None when away.
        loc: object -> where it is.
        b1: person -> object -> where the person believes it is.
        b2: person -> another person -> object -> where the first believes that the second believes it is.
        saw_last: person -> object -> where the person last saw it with their own eyes.
    """

    present: dict[str, str | None]
    room: dict[str, str | None]
    loc: dict[str, str | None]
    b1: dict[str, dict[str, str | None]]
    b2: dict[str, dict[str, dict[str, str | None]]]
    saw_last: dict[str, dict[str, str | None]]

    @classmethod
    def blank(cls, people: Iterable[str], objects: Iterable[str]) -> BeliefState:
        """Return the state before a story begins: nobody is there, nobody knows anything."""
        people, objects = tuple(people), tuple(objects)
        return cls(
            present=dict.fromkeys(people),
            room=dict.fromkeys(people),
            loc=dict.fromkeys(objects),
            b1={a: dict.fromkeys(objects) for a in people},
            b2={a: {b: dict.fromkeys(objects) for b in people if b != a} for a in people},
            saw_last={a: dict.fromkeys(objects) for a in people},
        )

    def copy(self) -> BeliefState:
        """Return an independent copy."""
        return BeliefState(
            present=dict(self.present),
            room=dict(self.room),
            loc=dict(self.loc),
            b1={a: dict(row) for a, row in self.b1.items()},
            b2={a: {b: dict(row) for b, row in rows.items()} for a, rows in self.b2.items()},
            saw_last={a: dict(row) for a, row in self.saw_last.items()},
        )

    def see_in(self, place: str) -> list[str]:
        """Return all who are awake in a room, in the order of introduction."""
        return [person for person, room in self.present.items() if room == place]

    def false_beliefs(self) -> list[tuple[str, str]]:
        """Return all (person, object) whose belief is held and wrong."""
        return [(a, o) for a, row in self.b1.items() for o, where in row.items() if where and where != self.loc[o]]

    def apply(self, event: Event) -> None:
        """Change the state in place by one event; kinds that change nothing are passed over."""
        rule = _RULES.get(event.kind)
        if rule is not None:
            rule(self, event)


def simulate(events: Sequence[Event]) -> list[BeliefState]:
    """Return the state after each event, from a blank state over all people and objects that the events name."""
    people: dict[str, None] = {}
    objects: dict[str, None] = {}
    for event in events:
        people.update(dict.fromkeys(name for name in (*event.people, event.agent, event.other) if name))
        if event.object:
            objects[event.object] = None
    state, states = BeliefState.blank(people, objects), []
    for event in events:
        state.apply(event)
        states.append(state.copy())
    return states


def _enter(state: BeliefState, event: Event) -> None:
    for person in event.people:
        state.present[person] = state.room[person] = event.place


def _leave(state: BeliefState, event: Event) -> None:
    for person in event.people:
        state.present[person] = state.room[person] = None


def _sleep(state: BeliefState, event: Event) -> None:
    state.present[event.agent] = None


def _wake(state: BeliefState, event: Event) -> None:
    state.present[event.agent] = state.room[event.agent]


def _show(state: BeliefState, event: Event, where: str) -> None:
    witnesses, thing = state.see_in(event.place), event.object
    for a in witnesses:
        state.b1[a][thing] = state.saw_last[a][thing] = where
        about = state.b2[a]
        for b in witnesses:
            if b != a:
                about[b][thing] = where


def _put(state: BeliefState, event: Event) -> None:
    state.loc[event.object] = event.container
    _show(state, event, event.container)


def _take(state: BeliefState, event: Event) -> None:
    state.loc[event.object] = event.agent
    _show(state, event, event.agent)


def _give(state: BeliefState, event: Event) -> None:
    state.loc[event.object] = event.other
    _show(state, event, event.other)


def _find(state: BeliefState, event: Event) -> None:
    _show(state, event, event.container)


def _miss(state: BeliefState, event: Event) -> None:
    witnesses, thing, where = state.see_in(event.place), event.object, event.container
    for a in witnesses:
        if state.b1[a][thing] == where:
            state.b1[a][thing] = None
        for b in witnesses:
            if b != a and state.b2[a][b][thing] == where:
                state.b2[a][b][thing] = None


def _tell(state: BeliefState, event: Event) -> None:
    listener, thing = event.other, event.object
    state.b1[listener][thing] = event.container
    for a in {*state.see_in(event.place), event.agent} - {listener}:
        state.b2[a][listener][thing] = event.container


def _peek(state: BeliefState, event: Event) -> None:
    thing = event.object
    state.b1[event.agent][thing] = state.saw_last[event.agent][thing] = state.loc[thing]


_RULES: dict[str, Callable[[BeliefState, Event], None]] = {
    "enter": _enter,
    "leave": _leave,
    "sleep": _sleep,
    "wake": _wake,
    "put": _put,
    "take": _take,
    "give": _give,
    "find": _find,
    "miss": _miss,
    "tell": _tell,
    "peek": _peek,
}
