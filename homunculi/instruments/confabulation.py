"""Confident answers to what the story never gave.

Pairs of prompts share one story of the generated world and ask where a person thinks that a thing is: a person who saw
it put away, and one who has met no word of it. After the question the model is heard twice: whether it begins the
answer that names a place ("In the …") or the one that says that the person does not know, and, "In the" given, which
of the story's containers it favours, by the first token in which they differ. Its confidence in an answer is the
product of both. To confabulate is to be as confident where nothing was told.

A text model that was trained on other stories has never seen the answer that says so; compare it with itself.

Legend: P prompts, T positions, V vocabulary, C answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from homunculi.instruments.observation import Observation
from homunculi.instruments.observing import observe
from homunculi.instruments.registry import instrument
from homunculi.instruments.tokenwise import DRAWS, Numbers, numbers, widened
from homunculi.runs.measures import Measurement
from homunculi.text.worlds import StoryConfig, simulate, story
from homunculi.text.worlds.grammar import ASK_BELIEF, reply_with
from homunculi.text.worlds.stories import VAL_START

N_PAIRS, FEWEST_PAIRS = 6, 4
MOST_NUMBERS = 1 << 24  # logits at once
COLUMNS = ("names a place", "favourite place", "does not know", "right place")


@dataclass(frozen=True, slots=True)
class Pair:
    """Two questions about one story.

    Attributes:
        told, untold: story and question about who knows, and about who was told nothing.
        knower, stranger: these two.
        places: the containers of the story.
        place: the one that the knower thinks of.
    """

    told: str
    untold: str
    knower: str
    stranger: str
    places: tuple[str, ...]
    place: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt in ids, the beginning of an answer behind it.

    Attributes:
        ids: story, question, and what all answers that name a place begin with.
        asked: how many of them come before such answers part from the one that the person does not know.
        refusal: id with which that one parts.
        places: ids with which the containers part; place: that of the right one.
    """

    ids: tuple[int, ...]
    asked: int
    refusal: int
    places: tuple[int, ...]
    place: int


@instrument(
    "confabulation",
    view="table",
    title="Confabulation",
    question="Does the model name a place as confidently where the story gave none?",
)
def measure(seen: Observation) -> Measurement | None:
    if seen.encode is None:
        return None
    longest = getattr(getattr(seen.model, "config", None), "max_seq_len", None)
    prompts = encoded(seen.encode, seen.logits_BTV.shape[-1], longest or seen.ids_BT.shape[1])
    if len(prompts) < FEWEST_PAIRS:
        return None
    flat = [prompt for pair in prompts for prompt in pair]
    answers = np.array(_heard(seen, flat)).reshape(len(prompts), 2, -1)
    told, untold = answers[:, 0], answers[:, 1]
    gap = told[:, 1] - untold[:, 1]
    low, high, deviation = _bounds(gap)
    values = {
        "answers": answers.mean(0),
        "confabulation": np.array(untold[:, 1].mean()),
        "confidence when told": np.array(told[:, 1].mean()),
        "confidence that telling adds": np.array(gap.mean()),
        "confidence that telling adds low": np.array(low),
        "confidence that telling adds high": np.array(high),
        "confidence that telling adds null sd": np.array(deviation),
        "does not know when not told": np.array(untold[:, 2].mean()),
        "does not know when told": np.array(told[:, 2].mean()),
        "right when told": np.array(told[:, 3].mean()),
    }
    axes = {"answers": ("prompt", "probability")}
    labels = {"prompt": ("told", "never told"), "probability": COLUMNS}
    return Measurement(values, axes, labels, {}, _notes(len(prompts)))


def _notes(n: int) -> tuple[str, ...]:
    return (
        f"{n} pairs of questions, each pair about one story; interval from a bootstrap over pairs, null sd from signs "
        "of their differences turned by chance",
        "favourite place: probability of naming a place, times that of the likeliest container; right place: share of "
        "prompts whose likeliest container is where the knower saw the thing put (a story has three or four)",
    )


@lru_cache(maxsize=1)
def pairs() -> tuple[Pair, ...]:
    """Pairs from validation stories, the shortest first: a story is cut where for the first time somebody knows where
    its thing is and somebody who has been named was never told."""
    config = StoryConfig(belief_frac=0.0, question_frac=0.0, plots=("gift", "lost", "stale"))
    found = [pair for index in range(VAL_START, VAL_START + 120) if (pair := _pair_of(config, index)) is not None]
    return tuple(sorted(found, key=lambda pair: len(pair.told)))


def _pair_of(config: StoryConfig, index: int) -> Pair | None:
    told = story(config, index)
    thing, boxes = told.objects[0], dict(told.containers)
    informed: set[str] = set()
    met: dict[str, None] = {}
    for event, state in zip(told.events, simulate(told.events), strict=True):
        met.update(dict.fromkeys(event.people))
        informed.update(person for person in met if state.b1[person].get(thing) is not None)
        where = state.loc.get(thing)
        knowers = [person for person in met if where in boxes and state.b1[person][thing] == where]
        strangers = [person for person in met if person not in informed]
        if knowers and strangers and where is not None:
            text = told.text[: event.end]
            asked = [f"{text}\n{ASK_BELIEF[0].format(A=a, O=f'the {thing}')}" for a in (knowers[0], strangers[0])]
            places = tuple(box for box in boxes if f" {box}" in text)
            return Pair(asked[0], asked[1], knowers[0], strangers[0], places, where)
    return None


def encoded(encode: Callable[[str], list[int]], n_ids: int, longest: int) -> list[tuple[Prompt, Prompt]]:
    """Pairs in ids, at most `N_PAIRS`; those are left out that are too long, or that this vocabulary cannot tell: ids
    that the model does not have, an answer that changes the ids before it, two answers that begin alike."""
    found: list[tuple[Prompt, Prompt]] = []
    for pair in pairs():
        told = _prompt(encode, pair.told, pair.knower, pair)
        untold = _prompt(encode, pair.untold, pair.stranger, pair)
        if told is None or untold is None:
            continue
        if max(len(told.ids), len(untold.ids)) <= longest and max(*told.ids, *untold.ids, *told.places) < n_ids:
            found.append((told, untold))
        if len(found) == N_PAIRS:
            break
    return found


def _prompt(encode: Callable[[str], list[int]], text: str, person: str, pair: Pair) -> Prompt | None:
    asked, refusal = encode(text), encode(f"{text} {reply_with(None, person)}")
    answers = [encode(f"{text} {reply_with(place, person)}") for place in pair.places]
    stem = _shared(answers)
    lead = len(_shared([stem, refusal]))
    whole = 0 < len(asked) <= lead < min(len(stem), len(refusal)) and refusal[: len(asked)] == asked
    if not whole or any(len(ids) == len(stem) for ids in answers) or pair.place not in pair.places:
        return None
    first = {place: ids[len(stem)] for place, ids in zip(pair.places, answers, strict=True)}
    return Prompt(tuple(stem), lead, refusal[lead], tuple(sorted(set(first.values()))), first[pair.place])


def _shared(rows: Sequence[Sequence[int]]) -> list[int]:
    """The ids with which all rows begin."""
    n = next((i for i, ids in enumerate(zip(*rows, strict=False)) if len(set(ids)) > 1), min(map(len, rows), default=0))
    return list(rows[0][:n])


def _heard(seen: Observation, prompts: Sequence[Prompt]) -> list[Numbers]:
    """Of each prompt what `COLUMNS` names. Shorter prompts are filled up behind their end, which a causal model does
    not see."""
    n_at_once = max(1, MOST_NUMBERS // (max(len(p.ids) for p in prompts) * seen.logits_BTV.shape[-1]))
    found = []
    for start in range(0, len(prompts), n_at_once):
        some = prompts[start : start + n_at_once]
        width = max(len(prompt.ids) for prompt in some)
        rows = [[*prompt.ids, *[prompt.ids[0]] * (width - len(prompt.ids))] for prompt in some]
        ids_PT = torch.tensor(rows, dtype=seen.ids_BT.dtype, device=seen.ids_BT.device)
        logits_PTV = observe(seen.model, ids_PT, ()).logits_BTV
        found += [_answers(logits_TV, prompt) for logits_TV, prompt in zip(logits_PTV, some, strict=True)]
    return found


def _answers(logits_TV: Tensor, prompt: Prompt) -> Numbers:
    said = logits_TV[prompt.asked - 1 : len(prompt.ids)].float().softmax(-1)
    p_TV = numbers(said)
    stem = prompt.ids[prompt.asked :]
    names_place = float(np.prod([p_TV[i, token] for i, token in enumerate(stem)]))
    place_C = p_TV[len(stem), list(prompt.places)]
    right = prompt.places[int(place_C.argmax())] == prompt.place
    return np.array([names_place, names_place * place_C.max(), p_TV[0, prompt.refusal], float(right)])


def _bounds(gap: Numbers) -> tuple[float, float, float]:
    """95 % bootstrap bounds of the mean, and its deviation under signs turned by chance."""
    draw = np.random.default_rng(0)
    means = gap[draw.integers(len(gap), size=(DRAWS, len(gap)))].mean(1)
    turned = (gap * draw.choice([-1.0, 1.0], size=(DRAWS, len(gap)))).mean(1)
    low, high = map(float, np.quantile(means, [0.025, 0.975]))
    return *widened(float(gap.mean()), (low, high), len(gap)), float(turned.std())
