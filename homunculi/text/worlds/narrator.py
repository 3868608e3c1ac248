"""The narrator, who turns events into prose and keeps the state they add up to, and the acts that plots are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeVar

from homunculi.text.worlds import grammar as g
from homunculi.text.worlds.belief import BeliefState, Event

_DRAWN = (("{why}", g.WHY), ("{errand}", g.ERRANDS), ("{manner}", g.MANNERS))
# Kinds that may begin with "Then" and the like.
_LED = frozenset(("put", "leave", "enter", "sleep", "wake", "search", "peek"))
_UNMENTIONED = frozenset(("find", "miss"))  # their sentences speak of the thing and leave the subject as it was
_SHOWN = frozenset(("put", "take", "give", "find", "tell", "peek"))  # what the agent believes is plain after these
_LONG = 72  # words after which optional sentences are left out
_LATE = 110  # words after which a search is given up
_NOBODY = ("", "", "")
_T = TypeVar("_T")


@cache
def _find_drawn(pattern: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    return tuple((slot, options) for slot, options in _DRAWN if slot in pattern)


class Narrator:
    """Writes a story sentence by sentence and keeps the state that the sentences add up to.

    Attributes:
        state: the state after the last sentence.
        events: one event a sentence.
        n_words: words written so far.
        room_of: container -> room in which it stands.
        scene: the room that the story is in.
        met: everybody whom the reader has met.
        doubtful: (person, other, object) whose second-order belief a reader might dispute; nothing is said about these.
    """

    def __init__(self, random: Callable[[], float], people: Sequence[str], objects: Sequence[str]) -> None:
        self.random, self.people, self.objects = random, people, objects
        self.state = BeliefState.blank(people, objects)
        self.events: list[Event] = []
        self.parts: list[str] = []
        self.length = self.n_words = self.streak = 0
        self.belief_frac = 0.0
        self.led = False  # whether the last sentence began with one of the leads
        self.weather = self.time = self.scene = self.separator = ""
        self.last_agent = self.last_other = self.last_object = ""
        self.room_of: dict[str, str] = {}
        self.met: dict[str, None] = {}
        self.doubtful: set[tuple[str, str, str]] = set()
        self.used: set[object] = set()

    def chance(self, share: float) -> bool:
        """Return True in this share of calls."""
        return self.random() < share

    def pick(self, options: Sequence[_T]) -> _T:
        """Return one of the options, all equally likely."""
        return options[int(self.random() * len(options))]

    def choose(self, patterns: Sequence[str]) -> str:
        """Return a pattern, one that the story has not used while there is any."""
        n = len(patterns)
        start = int(self.random() * n)
        for i in range(n):
            pattern = patterns[(start + i) % n]
            if pattern not in self.used:
                self.used.add(pattern)
                return pattern
        return patterns[start]

    def subject(self, agent: str, other: str) -> str:
        """Return the agent's name, or "he" or "she" where the sentence before leaves no doubt who that is."""
        she = g.PRONOUNS.get(agent, _NOBODY)[0]
        clear = agent == self.last_agent and she != g.PRONOUNS.get(self.last_other, _NOBODY)[0] and self.streak < 2
        if clear and she != g.PRONOUNS.get(other, _NOBODY)[0] and self.random() < 0.7:
            self.streak += 1
            return she
        self.streak = 0
        return agent

    def say(self, kind: str, patterns: Sequence[str], words: dict[str, str] | None = None, **fields: Any) -> Event:
        """Write one sentence and apply its event. `fields` are those of `Event`; `words` fill further slots."""
        pattern = self.choose(patterns)
        for slot, options in _find_drawn(pattern):
            pattern = pattern.replace(slot, self.pick(options))
        self.led = not self.led and kind in _LED and pattern[:3] == "{A}" and self.random() < 0.3
        if self.led:
            pattern = self.choose(g.LEADS) + pattern
        agent, other, thing = fields.get("agent", ""), fields.get("other", ""), fields.get("object", "")
        a, him, his = g.PRONOUNS.get(agent, _NOBODY)
        container, the_thing = fields.get("container", ""), f"the {thing}"
        slots = {
            **{"A": self.subject(agent, other), "N": agent, "a": a, "him": him, "his": his, "B": other},
            **{"O": the_thing, "o": the_thing, "n": thing, "c": container, "f": container, "r": fields.get("place")},
            **{"use": g.USE.get(thing, ""), "time": self.time, "weather": self.weather},
        }
        if thing == self.last_object and self.random() < 0.6:
            slots["o"] = "it"
        if words:
            slots.update(words)
        text = pattern.format_map(slots)
        event = self.write(kind, text[0].upper() + text[1:], fields)
        self.last_object = thing
        if kind not in _UNMENTIONED:
            self.last_agent, self.last_other = agent, other
        return event

    def write(self, kind: str, text: str, fields: dict[str, Any]) -> Event:
        """Append a sentence, note its event and apply it."""
        start = self.length + len(self.separator)
        self.parts += self.separator, text
        self.length, self.separator = start + len(text), " "
        self.n_words += text.count(" ") + 1
        event = Event(kind, start, self.length, **fields)
        self.state.apply(event)
        self.events.append(event)
        if event.people:
            self.met.update(dict.fromkeys(event.people))
        return event

    def breathe(self, share: float = 0.5) -> None:
        """Write, in this share of cases, a sentence that changes nothing: weather, or somebody who is there.

        A long story is spared it, unless the share is 1.
        """
        if self.random() >= share or (self.n_words > _LONG and share < 1):
            return
        around, roll = self.state.see_in(self.scene), self.random()
        if roll < 0.35 or not around:
            self.say("flavour", g.WEATHER[self.weather] + g.AMBIENT)
        elif roll < 0.7:
            self.say("flavour", g.PASTIMES, agent=self.pick(around), place=self.scene)
        else:
            near = [container for container, room in self.room_of.items() if room == self.scene]
            self.say("flavour", g.AROUND, agent=self.pick(around), place=self.scene, container=self.pick(near))

    def remark(self, event: Event) -> None:
        """Perhaps say something true about where the object is or who believes what, fitting the event just told."""
        thing = event.object or self.objects[0]
        if self.n_words > _LONG or self.random() >= self.belief_frac or self.state.loc[thing] is None:
            return
        roll, where = self.random(), self.state.loc[thing]
        if roll < 0.3:
            self.remark_second(thing)
        elif roll < 0.4 and not event.object and where in self.room_of:
            self.say("fact", g.FACT, object=thing, container=where)
        else:
            self.remark_first(event, thing)

    def remark_first(self, event: Event, thing: str) -> None:
        """Say where somebody believes the thing to be."""
        state = self.state
        quiet = (event.agent, event.other) if event.kind in _SHOWN else ()
        around = [person for person in self.met if person not in quiet]
        wrong = [person for person in around if state.b1[person][thing] not in (None, state.loc[thing])]
        if not wrong and self.random() < 0.3:
            return  # what everybody sees is often left unsaid
        around = wrong if wrong and self.random() < 0.85 else around
        agent = self.pick(around) if around else ""
        where = state.b1[agent][thing] if agent else ""
        guesses = where is None and event.kind != "miss"  # whoever is about to guess says so
        if where == agent or guesses or (agent, thing, where) in self.used:
            return
        self.used.add((agent, thing, where))
        saw = state.present[agent] is not None and state.present[agent] == event.place
        patterns: Sequence[str] = g.NO_IDEA
        if where is not None and where == state.loc[thing]:
            patterns = g.SAW if event.kind == "put" and saw else g.KNEW
        elif where is not None:
            patterns = g.UNSEEN if event.kind == "put" and not saw else g.THOUGHT
        words = {"that": g.say_where(thing, where)} if where else None
        self.say("belief", patterns, words, agent=agent, object=thing, container=where or "")

    def remark_second(self, thing: str) -> None:
        """Say where somebody believes that somebody else believes the thing to be."""
        b2, told = self.state.b2, self.used
        pairs = [(a, b) for a in self.met for b in self.met if a != b and (a, b, thing) not in self.doubtful]
        pairs = [
            (a, b) for a, b in pairs if b2[a][b][thing] in self.room_of and (a, b, thing, b2[a][b][thing]) not in told
        ]
        differing = [(a, b) for a, b in pairs if b2[a][b][thing] != self.state.b1[b][thing]]
        if pairs:
            a, b = self.pick(differing or pairs)
            where = b2[a][b][thing] or ""
            told.add((a, b, thing, where))
            self.say(
                "belief", g.SECOND, {"that": g.say_where(thing, where)}, agent=a, other=b, object=thing, container=where
            )


class Stage(Narrator):
    """The acts of which plots are made: each writes the sentences of one thing that somebody does."""

    def __init__(self, random: Callable[[], float], n_people: int, n_objects: int, belief_frac: float) -> None:
        self.random = random
        people, objects = self.deal(g.NAMES, n_people), self.deal(g.OBJECTS, n_objects)
        super().__init__(random, people, objects)
        self.belief_frac = belief_frac
        self.weather, self.time = self.pick(tuple(g.WEATHER)), self.pick(g.TIMES)
        self.home, self.next_room = self.deal([r for r in g.ROOMS if r != g.OUTDOOR or self.weather in g.FAIR], 2)
        self.boxes = self.deal(g.ROOMS[self.home], 4 if self.chance(0.4) else 3)
        self.next_boxes = self.deal([c for c in g.ROOMS[self.next_room] if c not in self.boxes], 2)
        self.first: dict[str, str] = {}

    def deal(self, options: Sequence[str], n: int) -> list[str]:
        """Return n different options in random order."""
        hand: list[str] = []
        while len(hand) < n:
            card = self.pick(options)
            if card not in hand:
                hand.append(card)
        return hand

    def begin(self, present: Sequence[str]) -> None:
        """Open the story: weather, room, who is there, what stands there; perhaps one comes a moment later."""
        present = self.deal(present, len(present))
        late = present.pop() if len(present) > 1 and self.chance(0.25) else ""
        self.scene = self.home
        who = g.join_phrases(present)
        if len(present) == 2 and self.chance(0.4):
            who = f"{present[0]} and {g.PRONOUNS[present[0]][2]} friend {present[1]}"
        patterns = g.OPENINGS if len(present) > 1 else g.OPENINGS_ALONE
        self.say("enter", patterns, {"who": who}, people=tuple(present), place=self.home)
        self.furnish(self.home, self.boxes)
        if late:
            self.back(late)

    def furnish(self, room: str, boxes: Sequence[str]) -> None:
        """Say which containers stand in a room."""
        looks = self.deal(g.LOOKS, len(boxes))
        phrases = [f"{look} {box}" if self.chance(0.4) else box for look, box in zip(looks, boxes, strict=True)]
        things = [g.with_article(phrase) for phrase in phrases]
        self.room_of.update(dict.fromkeys(boxes, room))
        self.say("setting", g.SETTINGS, {"things": g.join_phrases(things)}, place=room)

    def first_mention(self, agent: str, thing: str) -> dict[str, str]:
        """Return the words that bring a new object into the story: "a red ball" or "her red ball"."""
        phrase = f"{self.pick(g.ADJECTIVES[thing])} {thing}"
        return {"an_o": f"{g.PRONOUNS[agent][2]} {phrase}" if self.chance(0.5) else g.with_article(phrase)}

    def put(self, agent: str, thing: str, container: str) -> None:
        """Put a thing into a container: a new one, one in the agent's hand, or out of another container."""
        source, room = self.state.loc[thing], self.room_of[container]
        if source is None and self.chance(0.5):
            self.say("take", g.BRING, self.first_mention(agent, thing), agent=agent, object=thing, place=room)
            source = agent
        words = {"f": source or ""} if source else self.first_mention(agent, thing)
        patterns = g.PUT_NEW if source is None else g.MOVE if source in self.room_of else g.PUT
        self.first.setdefault(thing, container)
        self.remark(self.say("put", patterns, words, agent=agent, object=thing, container=container, place=room))

    def move(self, thing: str, container: str, rather: str = "") -> None:
        """Let somebody who is there and knows where the thing is move it; this person, if that is possible."""
        known = [a for a in self.state.see_in(self.home) if self.state.b1[a][thing] == self.state.loc[thing]]
        if known:
            self.put(rather if rather in known else self.pick(known), thing, container)

    def away(self, agent: str, asleep: float = 0.25) -> None:
        """Let somebody stop seeing the room: by leaving, or in this share of cases by falling asleep there."""
        kind = "sleep" if self.random() < asleep else "leave"
        people = () if kind == "sleep" else (agent,)
        patterns = g.SLEEP if kind == "sleep" else g.LEAVE
        self.remark(self.say(kind, patterns, agent=agent, place=self.state.room[agent], people=people))

    def back(self, agent: str) -> None:
        """Let somebody come into the room or wake up there."""
        self.scene = self.home
        if self.state.room[agent] is not None:
            event = self.say("wake", g.WAKE, agent=agent, place=self.state.room[agent])
        else:
            patterns = g.BACK if agent in self.met else g.ARRIVE
            event = self.say("enter", patterns, agent=agent, people=(agent,), place=self.home)
        self.remark(event)

    def go(self, agent: str) -> None:
        """Let somebody go from the first room to the second."""
        self.scene = self.next_room
        self.say("enter", g.GO, agent=agent, people=(agent,), place=self.next_room)
        if self.next_boxes[0] not in self.room_of:
            self.furnish(self.next_room, self.next_boxes)

    def tell(self, agent: str, other: str, thing: str, *, patterns: Sequence[str] = g.TELL, where: str = "") -> None:
        """Let somebody tell where a thing is: what they believe, or `where`. Off stage if the listener is away."""
        where, room = where or self.state.b1[agent][thing] or "", self.state.room[other] or ""
        self.doubtful.add((other, agent, thing))
        words = {"him_b": g.PRONOUNS[other][1]}
        self.say("tell", patterns, words, agent=agent, other=other, object=thing, container=where, place=room)

    def advisers(self, agent: str, thing: str) -> list[str]:
        """Return who is there and could tell the agent where the thing is, with nobody to overhear news."""
        state, room = self.state, self.state.present[agent]
        others = [b for b in state.see_in(room or "") if b != agent]
        fits = state.loc[thing] in self.room_of and all(state.b1[b][thing] == state.loc[thing] for b in others)
        return others if fits else []

    def seek(self, agent: str, thing: str, turns: int = 3) -> bool:
        """Let somebody look for a thing until it is found, nothing is left to try or patience ends."""
        state, tried = self.state, set[str]()
        self.scene = state.room[agent] or self.home
        for turn in range(turns):
            where = state.b1[agent][thing]
            kind = "search" if where else "try"
            near = [c for c, room in self.room_of.items() if room == self.scene and c not in tried]
            further = self.scene == self.home and self.next_boxes[0] in self.room_of
            if where is None and further and (not near or self.chance(0.6)):
                self.go(agent)
                near = self.next_boxes
            if (where is None and not near) or where in state.b1:
                break
            container = where or self.pick(near)
            if self.room_of[container] != self.scene:
                self.go(agent)
            patterns = g.SEARCH if where else g.TRY_NEXT if tried else g.TRY
            self.say(kind, patterns, agent=agent, object=thing, container=container, place=self.scene)
            if self.look(agent, thing, container, kind):
                return True
            tried.add(container)
            helpers = self.advisers(agent, thing)
            if self.n_words > _LATE:
                break
            if helpers and turn < turns - 1 and self.chance(0.75):
                self.tell(self.pick(helpers), agent, thing)
        return False

    def look(self, agent: str, thing: str, container: str, kind: str) -> bool:
        """Say what is in a container that was opened; return whether the thing is found."""
        fields: dict[str, Any] = {"agent": agent, "container": container, "place": self.scene}
        if self.state.loc[thing] == container:
            also = g.FIND_EXPECTED if kind == "search" else g.FIND_AT_LAST
            self.say("find", g.FIND + also, object=thing, **fields)
            if self.n_words < 130 and self.chance(0.5):
                self.say("take", g.TAKE_OUT, object=thing, **fields)
            return True
        gone = g.MISS_GONE if self.state.saw_last[agent][thing] == container else ()
        event = self.say("miss", g.MISS + gone, object=thing, **fields)
        inside = [other for other in self.objects if self.state.loc[other] == container]
        if inside:
            event = self.say("find", g.FIND_OTHER, object=inside[0], **fields)
        self.remark(event)
        return False

    def finish(self, agent: str, thing: str, found: bool | None) -> None:
        """Close the story: with joy or sorrow of who looked for the thing, or quietly (None)."""
        while self.n_words < 56:
            self.breathe(1.0)
        together = len(self.met) > 1 and self.state.see_in(self.scene) == list(self.met)
        if found is not None:
            self.say("flavour", g.JOY if found else g.SORROW, agent=agent, object=thing, place=self.scene)
        if found is None or (self.n_words < 100 and self.chance(0.3)):
            self.say("flavour", g.TOGETHER if together and self.chance(0.7) else g.QUIET)

    def hunt(self, agent: str, thing: str) -> None:
        """Let somebody look for a thing and close the story; where somebody is mistaken, it may end before that."""
        if self.state.false_beliefs() and self.chance(0.5):
            return self.finish(agent, thing, None)
        self.finish(agent, thing, self.seek(agent, thing))

    def question(self) -> None:
        """Write one or two question lines."""
        kinds = ("belief", "belief2", "reality", "memory") + ("belief",) * (3 if self.state.false_beliefs() else 0)
        for _ in range(2 if self.chance(0.5) else 1):
            if self.n_words < 148:
                self.ask(self.pick(kinds))

    def ask(self, kind: str) -> None:
        """Write a question line about the end of the story with its true answer, unless it has been asked."""
        thing, met, state = self.pick(self.objects), list(self.met), self.state
        agent, other, answer = "", "", state.loc[thing]
        patterns: Sequence[str] = g.ASK_REALITY
        if kind == "memory":
            answer, patterns = self.first[thing], g.ASK_MEMORY
        elif kind == "belief":
            wrong = [a for a in met if (a, thing) in state.false_beliefs()]
            agent = self.pick(wrong if wrong and self.chance(0.85) else met)
            answer = state.b1[agent][thing]
            patterns = g.ASK_BELIEF if answer in self.room_of else g.ASK_BELIEF[:1]
        elif kind == "belief2":
            pairs = [(a, b) for a in met for b in met if a != b and (a, b, thing) not in self.doubtful]
            pairs = [(a, b) for a, b in pairs if state.b2[a][b][thing] in self.room_of]
            differing = [(a, b) for a, b in pairs if state.b2[a][b][thing] != state.b1[b][thing]]
            if not pairs:
                return
            agent, other = self.pick(differing if differing and self.chance(0.7) else pairs)
            answer, patterns = state.b2[agent][other][thing], g.ASK_BELIEF2
        if (kind, agent, other, thing) in self.used or answer == agent != "":
            return
        self.used.add((kind, agent, other, thing))
        question = self.pick(patterns).format(A=agent, B=other, O=f"the {thing}")
        fields = {"agent": agent, "other": other, "object": thing, "asks": kind, "answer": answer or "unknown"}
        self.separator = "\n"
        self.write("question", f"{question} {g.reply_with(answer, agent)}", fields)
