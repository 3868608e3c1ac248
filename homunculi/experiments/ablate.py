"""Ablations: a model against itself without each of its parts, one at a time, in one comparison.

The parts are those that an architecture declares (`homunculi.models.Part`). A part can be missing in four ways, each a
side of the comparison with the whole model:

- removed: configured away, and the model made as large as before by its width;
- replaced: a plain part of the same size in its place, where the architecture has one;
- neutral: there, but what it says is held at the value at which it does nothing;
- shuffled: there, but what it says of a token is what it said of an earlier one.

The last two act in training and evaluation (`homunculi.train.interventions`). What a part is worth follows from the
pairs of the comparison; all of them are judged together.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from homunculi.errors import InputError
from homunculi.experiments.compare import Wanted
from homunculi.experiments.comparison import CLAIM_SEEDS, NOTHING, RECORD, Comparison, Json, pairs, read
from homunculi.experiments.costs import complete
from homunculi.experiments.matching import matched
from homunculi.models import Part, get, name_of
from homunculi.runs.directory import runs_root
from homunculi.settings import changed, override, to_text
from homunculi.train.config import RunConfig, config_to_json
from homunculi.train.interventions import taps_of

HOW = ("removed", "replaced", "neutral", "shuffled")
WHOLE = "whole"
_INTERVENTIONS = "train.interventions"
# What is done, and what it means where the model then is worse, or better.
_WORDS = {
    "removed": ("removing it", "it helps", "it harms"),
    "replaced": ("a plain part of its size in its place", "it helps more than its size", "the plain part helps more"),
    "neutral": ("holding its signal at neutral", "its signal helps", "its signal harms"),
    "shuffled": ("shuffling its signal", "what it says of a token helps", "what it says of a token harms"),
}


@dataclass(frozen=True, slots=True)
class Variant:
    """A model that lacks a part in one of the ways of `HOW`: what is assigned to the whole model's configuration."""

    part: str
    how: str
    assignments: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of its side in the comparison."""
        return f"{self.part}-{self.how}"


def parts_of(config: RunConfig) -> list[Part]:
    """The parts that a configuration has of those that its architecture declares."""
    return [part for part in get(name_of(config.model)).parts if part.when(config.model) and _takes_part(part, config)]


def _takes_part(part: Part, config: RunConfig) -> bool:
    if part.removed:
        return bool(_differing(part.removed, config))
    return any(_assignments(part, how, config) for how in HOW)


def variants(
    config: RunConfig, names: Sequence[str], how: Sequence[str], match: Sequence[str]
) -> tuple[list[Variant], dict[str, str]]:
    """Models that lack a part each, and those left out, by name, with the reason.

    Left out is what has no configuration, or no budget equal to the whole model's.

    Args:
        names: of parts; empty: all that there are.
        how: of `HOW`. match: as in a comparison.

    Raises:
        InputError: an unknown part or way, or nothing can be taken out.
    """
    if unknown := [one for one in how if one not in HOW]:
        raise InputError(f"--how: {unknown[0]} is no way to do without a part; there are {', '.join(HOW)}")
    chosen = _chosen(config, names)
    made, left_out = [], {}
    for part in chosen:
        for one in how:
            try:
                assignments = _assignments(part, one, config)
                if assignments:
                    matched([config, override(config, assignments)], match)
                    made.append(Variant(part.name, one, tuple(assignments)))
            except InputError as error:
                left_out[f"{part.name}-{one}"] = str(error).replace("side 2", f"{part.name}-{one}")
    if not made:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        named = ", ".join(part.name for part in chosen)
        raise InputError(
            f"{named}: {reasons}" if reasons else f"{named}: cannot be {' or '.join(how)}; {_ways(config)}"
        )
    return made, left_out


def _chosen(config: RunConfig, names: Sequence[str]) -> list[Part]:
    """The parts of those names, in the order in which they are declared.

    Raises:
        InputError: there is no part of that name, or none at all.
    """
    there, architecture = parts_of(config), name_of(config.model)
    known = [part.name for part in there]
    if not known:
        declared = ", ".join(part.name for part in get(architecture).parts)
        more = f" as it is configured; it could have {declared}" if declared else "; its architecture declares none"
        raise InputError(f"{architecture}: has no part that can be taken out{more}")
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}? it has" if near else "it has"
            raise InputError(f"{name}: no such part of {architecture} as configured; {hint} {', '.join(known)}")
    return [part for part in there if not names or part.name in names]


def _ways(config: RunConfig) -> str:
    """How each part can be missing, for a person."""
    ways = {part.name: [how for how in HOW if _assignments(part, how, config)] for part in parts_of(config)}
    return "there are " + ", ".join(f"{name} ({', '.join(found)})" for name, found in ways.items())


def _assignments(part: Part, how: str, config: RunConfig) -> list[str]:
    """What makes a configuration one that lacks the part; empty: it cannot be missing that way."""
    if how in ("removed", "replaced"):
        return _differing(part.removed if how == "removed" else part.replaced, config)
    if how == "shuffled" and part.misdirected:
        return _differing(part.misdirected, config)
    if how == "neutral":
        texts = {pattern: f"{pattern}=neutral:{float(value)!r}" for pattern, value in part.neutral.items()}
    else:
        shuffled = part.shuffled if part.shuffled is not None else tuple(part.neutral)
        texts = {pattern: f"{pattern}=shuffled" for pattern in shuffled}
    passed = [tap.name for tap in taps_of(complete(config))] if texts else []
    there = [text for pattern, text in texts.items() if any(fnmatchcase(name, pattern) for name in passed)]
    return [_intervening(config, there)] if there else []


def _differing(settings: Any, config: RunConfig) -> list[str]:
    """Assignments for settings of a part that differ from a configuration's."""
    words = []
    for name, given in settings.items():
        value = given(config.model) if callable(given) else given
        dotted = name if "." in name else f"model.{name}"
        words.append(_intervening(config, value) if dotted == _INTERVENTIONS else f"{dotted}={to_text(value)}")
    differing = changed(override(config, words), config)
    return [word for word in words if word.partition("=")[0] in differing]


def _intervening(config: RunConfig, texts: Sequence[str]) -> str:
    """The assignment of interventions beside those that there are."""
    return f"{_INTERVENTIONS}={to_text((*config.train.interventions, *texts))}"


def sides_of(
    recipe: str, given: Sequence[str], config: RunConfig, made: Sequence[Variant], folder: Path
) -> list[Wanted]:
    """The sides of an ablation: the whole model, then the sides that a folder has already, then further ones.

    Args:
        given: what was assigned to the recipe, so that it gives `config`.
    """
    known = read(folder).sides if (folder / RECORD).exists() else []
    own = {side.name: tuple(side.assignments) for side in known} | {v.name: (*given, *v.assignments) for v in made}
    own.pop(WHOLE, None)
    lacking = [Wanted(name, recipe, words, override(config, words)) for name, words in own.items()]
    return [Wanted(WHOLE, recipe, tuple(given), config), *lacking]


def default_folder(recipe: str, config: RunConfig, match: Sequence[str], factors: Sequence[float]) -> Path:
    """A folder under the root of runs that follows from the whole model: further parts of it add to the folder."""
    described = [config_to_json(replace(config, device="auto")), list(match), list(factors)]
    key = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:6]
    short = "".join(letter if letter.isalnum() else "-" for letter in recipe.rpartition("/")[2])
    return runs_root() / f"ablate-{short[:60]}-{key}"


# Results.


def findings(comparison: Comparison) -> list[Json]:
    """What each pair says of a part: part, how it was missing, the difference that this made, and what follows.

    The verdict is `helps` where the model without the part is worse, `harms` where it is better, else
    `no difference shown`; None without two seeds.
    """
    whole = comparison.side(WHOLE)
    architecture = whole.config["model"]["architecture"] if whole else ""
    notes = {part.name: part.note for part in get(architecture).parts} if architecture else {}
    judged = {"worse": "helps", "better": "harms"}
    kept = ("difference", "low", "high", "n", "p", "adjusted_p", "differences")
    found = []
    for pair in pairs(comparison):
        part, _, how = pair["b"].rpartition("-")
        if how in HOW:
            said = {"part": part, "how": how, "side": pair["b"], "note": notes.get(part, "")}
            verdict = judged.get(pair["verdict"], pair["verdict"])
            found.append(said | {name: pair[name] for name in kept} | {"verdict": verdict})
    return found


def written(comparison: Comparison) -> Iterator[str]:
    """The findings in sentences, and what did not end or is not ranked."""
    found = findings(comparison)
    yield from (_sentence(one) for one in found)
    notes = {one["part"]: one["note"] for one in found if one["note"]}
    yield from (f"{part}: {note}" for part, note in notes.items())
    yield from (f"{run['run']} did not end ({run['state']}): {run['reason']}" for run in comparison.failed)
    yield from (f"{one['run']} is not ranked: {one['reason']}" for one in comparison.refused)
    if any(0 < one["n"] < CLAIM_SEEDS for one in found):
        yield f"fewer than {CLAIM_SEEDS} seeds are a first look; a claim needs --seeds {CLAIM_SEEDS} or more"


def _sentence(one: Json) -> str:
    done, helps, harms = _WORDS[one["how"]]
    if one["verdict"] is None:
        return f"{one['part']}: {done}: no verdict; {one['n']} seeds have ended on both sides, and 2 are needed"
    size = f"{one['difference']:+.4f} bits/byte ({one['low']:.4f} … {one['high']:.4f}), n = {one['n']}"
    if one["verdict"] == NOTHING:
        return f"{one['part']}: {done} changes {size}: {NOTHING}"
    verb, meaning = ("costs", helps) if one["verdict"] == "helps" else ("gains", harms)
    return f"{one['part']}: {done} {verb} {size}: {meaning}"
