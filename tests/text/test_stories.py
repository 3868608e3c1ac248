"""The generated stories: pure, told in clean sentences, and true by a second, slower account of the rules of belief."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homunculi.errors import BAD_INPUT, InputError
from homunculi.text.worlds import PLOTS, BeliefState, Event, Story, StoryConfig, documents, simulate, story
from homunculi.text.worlds.belief import KINDS
from homunculi.text.worlds.grammar import CONTAINERS, NAMES, OBJECTS, PRONOUNS, ROOMS
from homunculi.text.worlds.stories import VAL_START

Told = list[tuple[Story, list[BeliefState]]]
CONFIG = StoryConfig()
ACTS = frozenset(("put", "take", "give", "find", "miss", "search", "try"))
SENTENCE = re.compile(r'^["A-Z].*[.!?"]$')


@pytest.fixture(scope="module")
def told() -> Told:
    """Two thousand stories with the state after each event."""
    return [(s, simulate(s.events)) for s in (story(CONFIG, index) for index in range(2000))]


def digest(n: int) -> str:
    return hashlib.sha256("\n\n".join(repr(story(CONFIG, i)) for i in range(n)).encode()).hexdigest()


def test_a_story_is_a_pure_function_of_seed_and_index() -> None:
    forwards = [story(CONFIG, index) for index in range(200)]
    backwards = [story(replace(CONFIG, n_documents=7), index) for index in reversed(range(200))]
    assert forwards == backwards[::-1]
    assert story(CONFIG, 10**15) == story(CONFIG, 10**15)
    assert story(CONFIG, 3) != story(replace(CONFIG, seed=1), 3)


def test_stories_do_not_depend_on_the_hash_seed_of_the_process() -> None:
    program = "import test_stories; print(test_stories.digest(100))"
    paths = os.pathsep.join([str(Path(__file__).parent), *(path for path in sys.path if path)])
    for hash_seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": paths}
        run = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
        assert run.stdout.strip() == digest(100)


def check_text(s: Story) -> None:
    """Spans cover the text but for one character between sentences; each is one clean sentence."""
    assert s.events[0].start == 0 and s.events[-1].end == len(s.text)
    for event, following in pairwise(s.events):
        assert following.start == event.end + 1
        assert s.text[event.end] == ("\n" if following.kind == "question" else " ")
    sentences = [s.text[event.start : event.end] for event in s.events]
    for event, sentence in zip(s.events, sentences, strict=True):
        assert event.kind in KINDS and SENTENCE.match(sentence), sentence
        assert not re.search(r"[{}]|  | ,|\.\.", sentence), sentence
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", sentence), sentence
        assert sentence.count('"') in (0, 2)
        inside = re.sub(r'(^"?|\? |" ?|, ")[A-Z]', "", sentence)
        assert set(re.findall(r"\b[A-Z]\w*", inside)) <= set(NAMES), sentence
    assert all(one != two for one, two in pairwise(sentences)), s.text
    assert 60 <= len(s.text.split()) <= 175  # nearly all end by 160, see below


def test_spans_cover_the_text_and_slice_back_to_clean_sentences(told: Told) -> None:
    for s, _ in told:
        check_text(s)


def test_sentences_name_what_their_events_say(told: Told) -> None:
    for s, _ in told:
        for event in s.events:
            words = set(re.findall(r"\w+", s.text[event.start : event.end]))
            if event.kind in ("put", "take", "search", "try", "tell", "peek", "give", "belief", "fact", "question"):
                assert {event.object, "it"} & words
            if event.kind in ("put", "search", "try", "tell", "peek", "fact"):
                assert event.container in words
            if event.kind in ("enter", "leave") and len(event.people) > 1:
                assert set(event.people) <= words
            if event.other:
                assert event.other in words
            if event.agent and event.kind not in ("find", "miss", "flavour", "question"):
                assert {event.agent, *PRONOUNS[event.agent], PRONOUNS[event.agent][0].capitalize()} & words
            if event.kind == "question":
                assert (event.answer if event.answer != "unknown" else "know") in words


def test_a_sentence_that_begins_with_a_pronoun_follows_one_that_leaves_no_doubt(told: Told) -> None:
    seen = 0
    for s, _ in told:
        for i, event in enumerate(s.events):
            if s.text[event.start : event.end].split()[0] not in ("He", "She"):
                continue
            before = i - 1
            while s.events[before].kind in ("find", "miss"):
                before -= 1
            assert s.events[before].agent == event.agent, s.text
            others = {s.events[before].other, event.other} - {""}
            assert all(PRONOUNS[other] != PRONOUNS[event.agent] for other in others), s.text
            seen += 1
    assert seen > 1000


def test_two_thousand_stories_are_all_different_and_use_every_word(told: Told) -> None:
    assert len({s.text for s, _ in told}) == len(told)
    assert sum(len(s.text.split()) <= 160 for s, _ in told) >= 0.99 * len(told)
    vocabulary = {word.lower() for s, _ in told for word in re.findall(r"[A-Za-z]+", s.text)}
    assert 500 <= len(vocabulary) <= 700
    assert len(NAMES) == 40 and len(OBJECTS) == 30 and len(CONTAINERS) == 24 and len(ROOMS) == 10
    assert {word.lower() for word in (*NAMES, *OBJECTS, *CONTAINERS, *ROOMS)} <= vocabulary
    assert {s.plot for s, _ in told} == set(PLOTS)
    counts = Counter(event.kind for s, _ in told for event in s.events)
    assert set(counts) == set(KINDS) and min(counts[kind] for kind in ("search", "try", "belief", "question")) > 200


class Account:
    """The rules of belief once more, each question answered by reading the events backwards from the first `n`."""

    def __init__(self, events: Sequence[Event]) -> None:
        self.events = events

    def room(self, person: str, n: int) -> str | None:
        moves = [event for event in self.events[:n] if person in event.people]
        return moves[-1].place if moves and moves[-1].kind == "enter" else None

    def present(self, person: str, n: int) -> str | None:
        changes = [event for event in self.events[:n] if person in (*event.people, event.agent)]
        kinds = [event.kind for event in changes if event.kind in ("enter", "leave", "sleep", "wake")]
        return None if kinds[-1:] == ["sleep"] else self.room(person, n)

    def loc(self, thing: str, n: int) -> str | None:
        moves = [event for event in self.events[:n] if event.object == thing and event.kind in ("put", "take", "give")]
        return self.target(moves[-1]) if moves else None

    def target(self, event: Event) -> str:
        return {"take": event.agent, "give": event.other}.get(event.kind, event.container)

    def see(self, n: int, people: Sequence[str]) -> bool:
        return all(self.present(person, n) == self.events[n].place for person in people)

    def belief(self, people: tuple[str, ...], thing: str, n: int, hearsay: bool = True) -> str | None:
        """What the first believes, or the first believes that the second believes; or without hearsay last saw."""
        for i, event in reversed([*enumerate(self.events[:n])]):
            if event.object != thing or (event.kind in ("tell", "miss") and not hearsay):
                continue
            if event.kind in ("put", "find", "take", "give") and self.see(i, people):
                return self.target(event)
            knowing = all(person == event.agent or self.see(i, [person]) for person in people[:-1])
            if event.kind == "tell" and event.other == people[-1] and knowing:
                return event.container
            if event.kind == "peek" and (event.agent,) == people:
                return self.loc(thing, i)
            if event.kind == "miss" and self.see(i, people) and self.belief(people, thing, i) == event.container:
                return None
        return None


def check_rules(events: Sequence[Event]) -> None:
    account = Account(events)
    for n, state in enumerate(simulate(events), start=1):
        for a in state.present:
            assert (state.present[a], state.room[a]) == (account.present(a, n), account.room(a, n))
            for thing in state.loc:
                assert state.loc[thing] == account.loc(thing, n)
                assert state.b1[a][thing] == account.belief((a,), thing, n)
                assert state.saw_last[a][thing] == account.belief((a,), thing, n, hearsay=False)
                for b in state.b2[a]:
                    assert b != a and state.b2[a][b][thing] == account.belief((a, b), thing, n)


def test_a_second_account_of_the_rules_agrees_after_every_event(told: Told) -> None:
    for s, _ in told[:300]:
        check_rules(s.events)


@st.composite
def any_event(draw: st.DrawFn) -> Event:
    people, places = draw(st.permutations(("Mia", "Tom", "Zoe"))), st.sampled_from(("hall", "barn"))
    kind = draw(st.sampled_from(KINDS[:11]))
    fields: dict[str, Any] = {"agent": people[0], "place": draw(places)}
    if kind in ("enter", "leave"):
        return Event(kind, 0, 1, people=(people[0],), **fields)
    if kind in ("tell", "give"):
        fields["other"] = people[1]
    if kind not in ("sleep", "wake"):
        fields["object"] = draw(st.sampled_from(("ball", "key")))
        fields["container"] = draw(st.sampled_from(("box", "urn", "bag")))
    return Event(kind, 0, 1, **fields)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(events=st.lists(any_event(), min_size=1, max_size=14))
def test_the_accounts_agree_on_events_in_any_order(events: list[Event]) -> None:
    check_rules([Event("enter", 0, 1, people=("Mia", "Tom", "Zoe"), place="hall"), *events])


def test_the_rules_on_stories_that_everybody_knows() -> None:
    def act(kind: str, agent: str, container: str = "", other: str = "") -> Event:
        people = (agent,) if kind in ("enter", "leave") else ()
        return Event(kind, 0, 1, agent, other, "ball", container, "hall", people)

    start = [act("enter", "Mia"), act("enter", "Tom"), act("put", "Mia", "box")]
    unseen = simulate([*start, act("leave", "Mia"), act("put", "Tom", "urn"), act("enter", "Mia")])[-1]
    assert (unseen.loc["ball"], unseen.b1["Mia"]["ball"], unseen.b2["Tom"]["Mia"]["ball"]) == ("urn", "box", "box")
    assert unseen.false_beliefs() == [("Mia", "ball")]
    seen = simulate([*start, act("leave", "Mia"), act("enter", "Mia"), act("put", "Tom", "urn")])[-1]
    assert seen.b1["Mia"]["ball"] == "urn" and seen.false_beliefs() == []
    peeked = simulate([*start, act("leave", "Mia"), act("put", "Tom", "urn"), act("peek", "Mia", "urn")])[-1]
    assert (peeked.b1["Mia"]["ball"], peeked.b2["Tom"]["Mia"]["ball"]) == ("urn", "box")
    lied = simulate([*start, act("tell", "Tom", "bag", other="Mia")])[-1]
    assert (lied.b1["Mia"]["ball"], lied.b1["Tom"]["ball"], lied.saw_last["Mia"]["ball"]) == ("bag", "box", "box")
    chain = [act("leave", "Mia"), act("put", "Zoe", "urn"), act("enter", "Mia"), act("leave", "Tom")]
    chain += [act("put", "Zoe", "bag"), act("leave", "Mia"), act("put", "Zoe", "tin")]
    end = simulate([act("enter", "Zoe"), *start, *chain])[-1]  # four people's places, all different
    assert (end.loc["ball"], end.b1["Mia"]["ball"], end.b1["Tom"]["ball"]) == ("tin", "bag", "urn")
    assert end.b2["Mia"]["Tom"]["ball"] == end.b2["Tom"]["Mia"]["ball"] == "box"
    missed = simulate([*start, act("miss", "Mia", "box")])[-1]
    assert (missed.b1["Tom"]["ball"], missed.b2["Tom"]["Mia"]["ball"], missed.loc["ball"]) == (None, None, "box")


def check_truth(s: Story, states: Sequence[BeliefState]) -> None:
    """Searches go where the searcher believes and end as the world is; whatever is stated is true."""
    for i, event in enumerate(s.events):
        before = states[i - 1] if i else states[0]
        if event.kind in ("search", "try"):
            assert before.b1[event.agent][event.object] == (event.container if event.kind == "search" else None)
            result, inside = s.events[i + 1], before.loc[event.object] == event.container
            assert result.kind == ("find" if inside else "miss")
            assert (result.object, result.container) == (event.object, event.container)
        if event.kind == "miss":
            assert before.loc[event.object] != event.container and s.events[i - 1].kind in ("search", "try")
        if event.kind in ("find", "fact"):
            assert before.loc[event.object] == event.container
        if event.kind == "belief" and event.other:
            assert before.b2[event.agent][event.other][event.object] == event.container
        elif event.kind == "belief":
            believed = before.b1[event.agent][event.object]
            assert (believed or "") == event.container
            assert ("knew that" in s.text[event.start : event.end]) <= (believed == before.loc[event.object])
            assert ("still" in s.text[event.start : event.end]) <= (believed != before.loc[event.object])
        if event.kind == "question":
            assert event.answer == right_answer(s, event, states[-1])


def right_answer(s: Story, question: Event, end: BeliefState) -> str:
    thing = question.object
    if question.asks == "memory":
        return next(event.container for event in s.events if event.kind == "put" and event.object == thing)
    if question.asks == "belief2":
        return end.b2[question.agent][question.other][thing] or "unknown"
    where = end.loc[thing] if question.asks == "reality" else end.b1[question.agent][thing]
    return where or "unknown"


def check_stage(s: Story, states: Sequence[BeliefState]) -> None:
    """Who acts is there and awake, containers stand where they are used, and who moves a thing has it or knows it."""
    room_of = dict(s.containers)
    for event, before, after in zip(s.events[1:], states, states[1:], strict=False):
        agent, place, where = event.agent, event.place, before.loc.get(event.object)
        if event.kind in ACTS or (event.kind == "flavour" and agent and place):
            assert before.present[agent] == place != ""
        if event.kind in ("put", "find", "miss", "search", "try"):
            assert room_of[event.container] == place
        if event.kind == "put" and where is not None:
            assert before.b1[agent][event.object] == where != event.container
            assert where == agent or room_of[where] == place
        if event.kind in ("take", "give") and event.container:
            assert where == event.container
        if event.kind == "give":
            assert before.present[event.other] == place
        if event.kind == "peek":
            assert before.room[agent] is None and where == event.container
        if event.kind in ("sleep", "wake"):
            assert before.room[agent] is not None and (before.present[agent] is None) == (event.kind == "wake")
        if event.kind == "leave":
            assert all(before.present[person] == place for person in event.people)
        if event.kind == "enter":
            assert all(before.room[person] != place for person in event.people)
        if event.kind == "tell":
            assert before.present[agent] == before.present[event.other] == (place or None)
        held = [box for box in after.loc.values() if box in room_of]
        assert len(held) == len(set(held))


def test_every_search_statement_and_answer_is_true(told: Told) -> None:
    for s, states in told:
        check_truth(s, states)


def test_nobody_acts_where_they_are_not(told: Told) -> None:
    for s, states in told:
        check_stage(s, states)


def test_most_stories_hold_a_false_belief_and_questions_ask_for_true_and_false_ones_alike(told: Told) -> None:
    share = sum(any(state.false_beliefs() for state in states) for _, states in told) / len(told)
    assert 0.6 <= share <= 0.85
    asked = [(s, event, states[-1]) for s, states in told for event in s.events if event.asks == "belief"]
    true = [event.answer == end.loc[event.object] for _, event, end in asked if event.answer != "unknown"]
    assert 0.4 <= sum(true) / len(true) <= 0.6
    hits = [event.answer == [put.container for put in s.events if put.kind == "put"][-1] for s, event, _ in asked]
    assert sum(hits) / len(hits) < 0.5  # saying the last container is a poor guess
    assert 0.3 <= sum(s.events[-1].kind == "question" for s, _ in told) / len(told) <= 0.45


ANY_CONFIG = st.builds(
    StoryConfig,
    seed=st.integers(0, VAL_START),
    belief_frac=st.floats(0, 1),
    question_frac=st.floats(0, 1),
    plots=st.lists(st.sampled_from(PLOTS), min_size=1, unique=True).map(tuple),
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(config=ANY_CONFIG, index=st.integers(0, 2 * VAL_START))
def test_any_story_of_any_world_is_clean_and_true(config: StoryConfig, index: int) -> None:
    s = story(config, index)
    states = simulate(s.events)
    assert s == story(config, index) and s.plot in config.plots
    check_text(s)
    check_truth(s, states)
    check_stage(s, states)
    check_rules(s.events)


def test_shares_of_nothing_and_everything_are_kept() -> None:
    bare = [story(StoryConfig(belief_frac=0, question_frac=0), index) for index in range(200)]
    assert not {"belief", "fact", "question"} & {event.kind for s in bare for event in s.events}
    full = [story(StoryConfig(belief_frac=1, question_frac=1), index) for index in range(200)]
    n_bare = sum(event.kind == "belief" for s in bare for event in s.events)
    assert sum(event.kind == "belief" for s in full for event in s.events) > n_bare + 200
    assert sum(s.events[-1].kind == "question" for s in full) > 160


def test_train_and_validation_stories_are_disjoint_and_counted() -> None:
    config = StoryConfig(n_documents=1500, n_val_documents=400)
    train, val = list(documents(config)), list(documents(config, "val"))
    assert (len(train), len(val)) == (1500, 400) and not {s.text for s in train} & {s.text for s in val}
    assert train[7] == story(config, 7) and val[7] == story(config, VAL_START + 7)
    more = replace(config, n_documents=3000)
    assert list(islice(documents(more), 20)) == train[:20] and next(documents(more, "val")) == val[0]


BAD = {
    "n_documents": (0, 2.5, True),
    "n_val_documents": (0, 1e9),
    "seed": (-1, "x"),
    "belief_frac": (1.5, float("nan"), "0.3"),
    "question_frac": (-0.1, None),
    "plots": ((), ("moved", "moved"), ("opera",), "moved", [["moved"]]),
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in BAD.items() for value in values])
def test_a_bad_config_is_refused_in_one_line_that_names_the_field(field: str, value: object) -> None:
    with pytest.raises(InputError) as refusal:
        StoryConfig(**{field: value})  # type: ignore[arg-type]
    assert field in str(refusal.value) and "\n" not in str(refusal.value)
    assert refusal.value.exit_code == BAD_INPUT


def test_a_bad_index_or_split_is_refused_in_one_line() -> None:
    with pytest.raises(InputError, match="index must be"):
        story(CONFIG, -1)
    with pytest.raises(InputError, match="split must be train or val"):
        documents(CONFIG, "test")


def test_a_story_survives_the_trip_through_json(told: Told) -> None:
    for s, _ in told[:100]:
        assert Story.from_json(json.loads(json.dumps(s.to_json()))) == s


EVENT_SPOILS = ({"kind": "dance"}, {"end": 10**6}, {"start": "0"}, {"colour": "red"}, {"people": 3})
RECORD_SPOILS = ({"text": None}, {"events": 3}, {"events": ["rain"]}, {"containers": [["box"]]}, {"people": 3})


@pytest.mark.parametrize(("spoil", "deep"), [(s, True) for s in EVENT_SPOILS] + [(s, False) for s in RECORD_SPOILS])
def test_a_spoilt_record_is_refused_in_one_line(spoil: dict[str, object], deep: bool) -> None:
    record = json.loads(json.dumps(story(CONFIG, 0).to_json()))
    (record["events"][0] if deep else record).update(spoil)
    with pytest.raises(InputError, match="story record") as refusal:
        Story.from_json(record)
    assert "\n" not in str(refusal.value)
