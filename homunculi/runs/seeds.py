"""Runs that differ in their seeds alone, and the course of a number over them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from homunculi.runs.chronology import Curve, Numbers

# Settings that two seeds of one recipe may differ in: none of them says what is trained.
NOT_THE_RECIPE = frozenset(
    {"seed", "data_seed", "device", "compile", "checkpoint_every", "sample_every", "output", "instruments"}
)
_SEED = re.compile(r"([-_/. ](s|seed))?[-_/. ]*\d*$")


@dataclass(frozen=True, slots=True)
class Group:
    """Runs of one recipe.

    Attributes:
        name: what their labels have in common, and how many they are.
        places: of the runs, in the order given.
    """

    name: str
    places: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Course:
    """A number over training: steps, tokens, mean and, of several runs, the lowest and the highest at each step."""

    steps: Numbers
    tokens: Numbers
    mean: Numbers
    low: Numbers
    high: Numbers
    n_runs: int


def seed_groups(infos: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> list[Group]:
    """Runs by recipe, in order of their first: the same configuration but for seeds, the same data.

    Args:
        infos: `run.json` of each; a run without a configuration stays alone.
        labels: of each, no two the same.
    """
    found: dict[str, list[int]] = {}
    for place, info in enumerate(infos):
        found.setdefault(_recipe(info) or f"alone {place}", []).append(place)
    names = [_shared([labels[place] for place in places]) for places in found.values()]
    if len(set(names)) < len(names):
        names = [labels[places[0]] for places in found.values()]
    groups = []
    for name, places in zip(names, found.values(), strict=True):
        groups.append(Group(name if len(places) == 1 else f"{name} ({len(places)} seeds)", tuple(places)))
    return groups


def _recipe(info: Mapping[str, Any]) -> str:
    config, data = info.get("config"), info.get("data")
    if not isinstance(config, Mapping) or not config:
        return ""
    kept = {key: value for key, value in config.items() if key not in NOT_THE_RECIPE}
    text = data.get("data_hash") if isinstance(data, Mapping) else None
    return json.dumps([info.get("architecture"), kept, text], sort_keys=True, default=str)


def _shared(labels: Sequence[str]) -> str:
    """What labels begin with, without the start of a seed's number."""
    if len(labels) == 1:
        return labels[0]
    first, last = min(labels), max(labels)
    size = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return _SEED.sub("", first[:size]) or labels[0]


def course(curves: Sequence[Curve]) -> Course:
    """One number in runs of one group: mean, lowest and highest of those runs that have come furthest, at the steps
    that all of them have.

    Raises:
        ValueError: there is no curve, or one has no points.
    """
    end = max(float(curve.steps[-1]) for curve in curves)
    kept = [curve for curve in curves if curve.steps[-1] == end]
    steps = kept[0].steps
    for curve in kept[1:]:
        steps = np.intersect1d(steps, curve.steps)
    values = np.stack([curve.values[np.searchsorted(curve.steps, steps)] for curve in kept])
    tokens = kept[0].tokens[np.searchsorted(kept[0].steps, steps)]
    return Course(steps, tokens, values.mean(0), values.min(0), values.max(0), len(kept))
