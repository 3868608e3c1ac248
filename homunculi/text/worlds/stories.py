"""Little stories about people, things and places, without end, with the truth about every belief in them.

A story is a pure function of its index, the seed and the shares in the config. Its events say what every sentence does;
`simulate(story.events)` gives the world and all beliefs after each of them, by the rules of the module `belief`:

- a search goes where the searcher believes the thing to be (`try`: the searcher has no belief), and ends as `loc` says;
- a belief, fact or answer that is told is true of the state at that sentence; questions ask about the end of the story;
- only who is awake in a room acts there; two things never share a container;
- whoever overhears what somebody is told knows it already, or it is acted on at once for all to see;
- nothing is said about what a listener thinks that the teller believes, on which readers may differ.

The text is one paragraph, then one line for each question. Sentences are parted by one space or line break.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from homunculi.errors import InputError
from homunculi.text.worlds import grammar as g
from homunculi.text.worlds.belief import KINDS, Event
from homunculi.text.worlds.narrator import Stage

VAL_START = 1 << 40  # indices from here on are validation stories; training stories lie below


def _begin(s: Stage) -> tuple[str, str, str]:
    """Open the story and let one person put the thing away; return this person, another and the thing."""
    s.begin(s.people)
    s.put(s.people[0], s.objects[0], s.boxes[0])
    s.breathe(0.4)
    return s.people[0], s.people[1], s.objects[0]


def _plot_moved(s: Stage) -> None:
    """One goes away, another moves the thing before or after the first is back."""
    a, b, thing = _begin(s)
    s.away(a)
    early = s.chance(0.3)
    if early:
        s.breathe(1.0)
        s.back(a)
    if len(s.people) > 2 and s.chance(0.4):
        s.away(s.people[2])
    s.move(thing, s.boxes[1], b)
    s.breathe()
    if s.n_words < 75 and s.chance(0.3):
        s.move(thing, s.boxes[2])
    if not early:
        s.back(a)
    s.hunt(a, thing)


def _plot_seen(s: Stage) -> None:
    """The thing is moved before everybody's eyes; then one goes away and nothing happens."""
    a, b, thing = _begin(s)
    s.put(b, thing, s.boxes[1])
    gone = s.pick(s.people)
    s.away(gone)
    s.breathe(1.0)
    s.back(gone)
    s.hunt(s.pick((a, b, gone)), thing)


def _plot_told(s: Stage) -> None:
    """The thing is moved unseen, and somebody says so, in the room or on the road."""
    a, b, thing = _begin(s)
    meet = s.chance(0.5)
    s.away(a, asleep=0.0 if meet else 0.3)
    s.put(b, thing, s.boxes[1])
    s.breathe()
    if meet:
        s.away(b, asleep=0.0)
        s.tell(b, a, thing, patterns=g.MEET)
        if s.n_words < 100 and s.chance(0.4):
            s.back(b)
            s.move(thing, s.boxes[2])
        s.back(a)
    else:
        s.back(a)
        if s.chance(0.5):
            s.say("flavour", g.ASK, agent=a, object=thing, place=s.scene)
        s.tell(b, a, thing)
    if s.n_words < 100:
        s.say("flavour", g.GRATEFUL, agent=a)
    s.hunt(a, thing)


def _plot_stale(s: Stage) -> None:
    """A newcomer asks somebody whose news may be old."""
    (a, b, c), thing = s.people, s.objects[0]
    s.begin((b, c))
    s.put(b, thing, s.boxes[0])
    s.away(b)
    if s.chance(0.7):
        s.put(c, thing, s.boxes[1])
    s.breathe(0.3)
    s.away(c, asleep=0.0)
    s.back(b)
    s.back(a)
    s.say("flavour", g.ASK, agent=a, object=thing, place=s.scene)
    s.tell(b, a, thing)
    found = s.seek(a, thing, turns=1)
    if not found and s.n_words < 112 and s.chance(0.8):
        s.back(c)
        s.tell(c, a, thing)
        found = s.seek(a, thing, turns=1)
    s.finish(a, thing, found)


def _plot_hunt(s: Stage) -> None:
    """The thing is carried to another room; the hunt goes over both."""
    a, b, thing = _begin(s)
    s.away(a)
    s.say("take", g.CARRY, agent=b, object=thing, container=s.boxes[0], place=s.home)
    s.go(b)
    s.put(b, thing, s.next_boxes[0])
    s.back(a)
    s.hunt(a, thing)


def _plot_gift(s: Stage) -> None:
    """A present is hidden and given; the one who is to get it may have seen where it was."""
    (a, b), thing = s.people[:2], s.objects[0]
    s.begin(s.people)
    s.say("flavour", g.BIRTHDAY, agent=a, other=b)
    hidden = s.chance(0.6)
    if hidden:
        s.away(b)
    s.put(a, thing, s.boxes[0])
    if not hidden:
        s.away(b)
        s.put(a, thing, s.boxes[1])
    s.breathe()
    s.back(b)
    s.breathe(0.3)
    s.say("give", g.GIVE, agent=a, other=b, object=thing, container=s.state.loc[thing], place=s.scene)
    s.say("flavour", g.THANKS, agent=a, other=b, object=thing, place=s.scene)
    s.finish(a, thing, None)


def _plot_peeked(s: Stage) -> None:
    """One who is away peeks into the room, before or after the thing is moved."""
    a, b, thing = _begin(s)
    s.away(a, asleep=0.0)
    late = s.chance(0.6)  # whether the peek comes after the move
    peeked = {"peeked": "peeked over the hedge" if s.home == g.OUTDOOR else "peeked round the door"}
    for moved in (True, False) if late else (False, True):
        if moved:
            s.put(b, thing, s.boxes[1])
        else:
            where = s.state.loc[thing]
            s.say("peek", g.PEEK, peeked, agent=a, object=thing, container=where, place=s.home)
    s.breathe(0.3)
    s.back(a)
    if not late:
        return s.hunt(a, thing)
    found = s.seek(a, thing)
    s.say("flavour", g.SURPRISED, agent=b, place=s.scene)
    s.finish(a, thing, found)


def _plot_relay(s: Stage) -> None:
    """People take turns in being away, until everybody believes something else."""
    (a, b, c), thing = s.people, s.objects[0]
    s.begin(s.people)
    s.put(c, thing, s.boxes[0])
    s.away(a)
    s.put(c, thing, s.boxes[1])
    s.back(a)
    s.away(b)
    s.put(c, thing, s.boxes[2] if s.chance(0.7) else s.boxes[0])
    s.breathe(0.3)
    if s.chance(0.5):
        s.back(b)
    seeker = s.pick([person for person in (a, b) if s.state.present[person]])
    s.finish(seeker, thing, s.seek(seeker, thing, turns=2) if s.n_words < 105 else None)


def _plot_busy(s: Stage) -> None:
    """Anybody comes, goes and moves the thing."""
    thing = s.objects[0]
    s.begin(s.people)
    s.put(s.pick(s.state.see_in(s.home)), thing, s.boxes[0])
    gone = ""
    while s.n_words < 75:
        here = s.state.see_in(s.home)
        out = [person for person in s.people if person not in here and person != gone]
        roll, gone = s.random(), ""
        if out and roll < 0.4:
            s.back(s.pick(out))
        elif len(here) > 1 and roll < 0.7:
            gone = s.pick(here)
            s.away(gone)
        else:
            s.move(thing, s.pick([box for box in s.boxes if box != s.state.loc[thing]]))
        s.breathe(0.2)
    mover = next(event.agent for event in reversed(s.events) if event.kind == "put")
    seeker = s.pick([person for person in s.people if person != mover])
    if not s.state.present[seeker]:
        s.back(seeker)
    s.hunt(seeker, thing)


def _plot_trick(s: Stage) -> None:
    """The thing is moved, and then somebody plays a trick with words."""
    a, b, thing = _begin(s)
    s.away(a)
    s.put(b, thing, s.boxes[1])
    s.breathe(0.3)
    s.back(a)
    s.tell(b, a, thing, patterns=g.LIE, where=s.boxes[2])
    if s.chance(0.3):
        return s.finish(a, thing, None)
    found = s.seek(a, thing, turns=1)
    s.say("flavour", g.LAUGHED, agent=b, place=s.scene)
    if s.n_words < 118 and s.chance(0.8):
        s.tell(b, a, thing)
        found = s.seek(a, thing, turns=1)
    s.finish(a, thing, found)


def _plot_swap(s: Stage) -> None:
    """Two things; one or both change places while one person is away."""
    (a, b), (thing, other) = s.people[:2], s.objects
    s.begin(s.people)
    s.put(a, thing, s.boxes[0])
    s.put(b, other, s.boxes[1])
    s.away(a)
    s.put(b, thing, s.boxes[2])
    if s.chance(0.6):
        s.put(b, other, s.boxes[0])
    s.back(a)
    s.hunt(a, thing if s.chance(0.7) else other)


def _plot_lost(s: Stage) -> None:
    """Somebody comes who does not know where the thing is, and tries or asks."""
    (a, b), thing = s.people[:2], s.objects[0]
    s.begin([person for person in s.people if person != a])
    s.put(b, thing, s.pick(s.boxes))
    s.breathe()
    if s.chance(0.5):
        s.away(b)
    s.breathe()
    s.back(a)
    s.hunt(a, thing)


# Name -> the plot; the least and the most people it takes; how many things.
_PLOTS: dict[str, tuple[Callable[[Stage], None], int, int, int]] = {
    "moved": (_plot_moved, 2, 3, 1),
    "seen": (_plot_seen, 2, 3, 1),
    "told": (_plot_told, 2, 2, 1),
    "stale": (_plot_stale, 3, 3, 1),
    "hunt": (_plot_hunt, 2, 2, 1),
    "gift": (_plot_gift, 2, 3, 1),
    "peeked": (_plot_peeked, 2, 2, 1),
    "relay": (_plot_relay, 3, 3, 1),
    "busy": (_plot_busy, 2, 3, 1),
    "trick": (_plot_trick, 2, 2, 1),
    "swap": (_plot_swap, 2, 2, 2),
    "lost": (_plot_lost, 2, 3, 1),
}
PLOTS = tuple(_PLOTS)


@dataclass(frozen=True, kw_only=True, slots=True)
class StoryConfig:
    """Which stories are told.

    Attributes:
        n_documents: training stories that `documents` gives, 1 to 2**40.
        n_val_documents: validation stories that `documents` gives, 1 to 2**40.
        seed: number of the world, 0 to 2**40; another seed tells other stories.
        belief_frac: chance after a sentence that changes something of a true statement about a belief or place, 0 to 1.
        question_frac: share of stories that end with one or two questions and their answers, 0 to 1.
        plots: names out of `PLOTS` that may occur, all equally often; leaving some out holds them back for a test.

    Raises:
        InputError: a field is out of range.
    """

    n_documents: int = 20000
    n_val_documents: int = 500
    seed: int = 0
    belief_frac: float = 0.3
    question_frac: float = 0.4
    plots: tuple[str, ...] = PLOTS

    def __post_init__(self) -> None:
        for name, least in {"n_documents": 1, "n_val_documents": 1, "seed": 0}.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= VAL_START:
                raise InputError(f"stories: {name} must be a whole number from {least} to {VAL_START}, not {value!r}")
        for name in ("belief_frac", "question_frac"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise InputError(f"stories: {name} must be a number from 0 to 1, not {value!r}")
        plots = self.plots if isinstance(self.plots, list | tuple) else ()
        if not plots or any(name not in PLOTS for name in plots) or len(set(plots)) < len(plots):
            raise InputError(f"stories: plots must be different names out of {', '.join(PLOTS)}, not {self.plots!r}")
        object.__setattr__(self, "plots", tuple(plots))


@dataclass(frozen=True, slots=True)
class Story:
    """A story and the truth about it.

    Attributes:
        text: the story; sentences are parted by one space, question lines by one line break.
        events: one for each sentence, in order; `simulate(events)` gives the state after each.
        plot: name of the plot.
        people: in the order in which the reader meets them.
        objects: the things that are moved about.
        containers: (container, room in which it stands), as far as the story mentions them.
    """

    text: str
    events: tuple[Event, ...]
    plot: str
    people: tuple[str, ...]
    objects: tuple[str, ...]
    containers: tuple[tuple[str, str], ...]

    def to_json(self) -> dict[str, Any]:
        """Return the story in terms of JSON; empty event fields are left out."""
        record = {name: getattr(self, name) for name in self.__slots__}
        rows = [[(name, getattr(event, name)) for name in event.__slots__] for event in self.events]
        return record | {"events": [{name: value for name, value in row if value not in ("", ())} for row in rows]}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Story:
        """Return the story of a record that `to_json` made, also after a trip through JSON text.

        Raises:
            InputError: the record is not one of a story.
        """
        try:
            events = tuple(Event(**{**event, "people": tuple(event.get("people", ()))}) for event in record["events"])
            containers = tuple((str(container), str(room)) for container, room in record["containers"])
            names = {key: tuple(map(str, record[key])) for key in ("people", "objects")}
            story = cls(text=record["text"], events=events, plot=record["plot"], containers=containers, **names)
            spans = [(event.start, event.end) for event in events]
            sound = all(0 <= start < end <= len(story.text) for start, end in spans)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"story record: not as Story.to_json writes it ({type(error).__name__}: {error})"
            ) from error
        if not sound or any(event.kind not in KINDS for event in events):
            raise InputError("story record: an event has an unknown kind or a span outside the text")
        return story


def story(config: StoryConfig, index: int) -> Story:
    """Return the story of this number: a pure function of the seed, the index and the config's shares and plots.

    Args:
        index: 0 or more, without end; from `VAL_START` on they are validation stories.

    Raises:
        InputError: the index is not a whole number from 0.
    """
    if not isinstance(index, int) or index < 0:
        raise InputError(f"stories: index must be a whole number from 0, not {index!r}")
    random = Random((index << 64) | config.seed).random
    name = config.plots[int(random() * len(config.plots))]
    plot, least, most, n_objects = _PLOTS[name]
    n_people = most if random() < 0.5 else least
    stage = Stage(random, n_people, n_objects, config.belief_frac)
    plot(stage)
    if random() < config.question_frac:
        stage.question()
    return Story(
        text="".join(stage.parts),
        events=tuple(stage.events),
        plot=name,
        people=tuple(stage.met),
        objects=tuple(stage.objects),
        containers=tuple(stage.room_of.items()),
    )


def documents(config: StoryConfig, split: str = "train") -> Iterator[Story]:
    """Yield the stories of a split in order: `n_documents` of "train" or `n_val_documents` of "val".

    The two are disjoint ranges of indices, whatever the counts: more documents add to a split and change nothing else.

    Raises:
        InputError: there is no such split.
    """
    ranges = {"train": (0, config.n_documents), "val": (VAL_START, config.n_val_documents)}
    if split not in ranges:
        raise InputError(f"stories: split must be train or val, not {split!r}")
    start, count = ranges[split]
    return (story(config, index) for index in range(start, start + count))
