"""Ladders: a recipe and its baseline at several sizes, the law that each follows, and whether the gap stays.

A rung is a usual comparison in a folder of its own, so a ladder that was killed goes on where it was. Sizes are
parameters beside token tables; they are reached by the width alone, the baseline's within 1 % of the recipe's, so depth
and numbers of heads and experts stay as they are. All runs of a seed read the same text in the same order.

A side's law is loss = c · size^-exponent, a straight line through logs, over all sizes and seeds. The gap is the loss
of the recipe less that of the baseline; its trend is its slope over the logarithm of size, fitted for each seed by
itself, with a t interval over seeds.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from homunculi.core.budget import nearest
from homunculi.errors import InputError
from homunculi.experiments.compare import Request, Wanted, compare
from homunculi.experiments.comparison import Comparison
from homunculi.experiments.costs import complete, cost_of, cost_of_shape, stages_of
from homunculi.experiments.execution import Reporter
from homunculi.experiments.fleet import Launch
from homunculi.experiments.ladder import analyse
from homunculi.experiments.matching import check_comparable, matched
from homunculi.files import write_json
from homunculi.report.scaling import RECORD, write_scaling_report
from homunculi.runs.directory import runs_root
from homunculi.settings import override
from homunculi.train.config import config_to_json

SIZES = (0.25, 0.5, 1.0, 2.0)
FEWEST = 4
MATCH = ("parameters", "tokens")
_FOLLOWING = ("d_mlp", "d_expert")  # widths that grow with the model's where they are given
_MOST = 8  # times as wide as the recipe, at most
_OWN = ("seed", "device")


@dataclass(frozen=True, slots=True)
class Rung:
    """One size: the baseline and the recipe there.

    Attributes:
        factor: of the recipe's own size that was asked for.
        parameters: that the recipe has there, beside token tables.
    """

    factor: float
    parameters: int
    sides: tuple[Wanted, Wanted]

    @property
    def folder(self) -> str:
        """Inside the ladder's folder."""
        return f"size-{self.factor:g}"


@dataclass(frozen=True, slots=True)
class Ladder:
    """What is to be run, smallest size first. `options`: of every rung's `Request`."""

    folder: Path
    rungs: tuple[Rung, ...]
    options: dict[str, Any]

    @property
    def names(self) -> tuple[str, str]:
        """Of baseline and recipe."""
        baseline, recipe = self.rungs[0].sides
        return baseline.name, recipe.name


def check_sizes(factors: Sequence[float]) -> list[float]:
    """Sizes in order.

    Raises:
        InputError: fewer than four, or one that is no finite number above 0.
    """
    sizes = sorted(set(factors))
    if wrong := next((size for size in sizes if not 0 < size < math.inf), None):
        raise InputError(f"--sizes: {wrong} is no factor of a size; use numbers above 0, such as 0.25,0.5,1,2")
    if len(sizes) < FEWEST:
        raise InputError(
            f"--sizes: {len(sizes)} different sizes show no law; give at least {FEWEST}, such as 0.25,0.5,1,2"
        )
    return sizes


def make_rungs(
    recipe: Wanted, baseline: Wanted, factors: Sequence[float], tokens_per_parameter: float = 0.0
) -> tuple[Rung, ...]:
    """The rungs of a ladder.

    Args:
        factors: of the recipe's parameters beside token tables.
        tokens_per_parameter: training tokens of each of them; 0: the recipe's steps at every size.

    Raises:
        InputError: sizes as `check_sizes`, sides that cannot be compared, or a size that no width reaches.
    """
    check_comparable([recipe.config, baseline.config], _OWN)
    own = cost_of(recipe.config).parameters
    rungs = [_rung(recipe, baseline, factor, factor * own, tokens_per_parameter) for factor in check_sizes(factors)]
    for smaller, larger in pairwise(rungs):
        if larger.parameters < 1.05 * smaller.parameters:
            raise InputError(
                f"--sizes: {smaller.factor:g} and {larger.factor:g} come to {smaller.parameters:,} and "
                f"{larger.parameters:,} parameters; choose sizes farther apart"
            )
    return tuple(rungs)


def _rung(recipe: Wanted, baseline: Wanted, factor: float, target: float, tokens_per_parameter: float) -> Rung:
    first = _resized(recipe, target)
    size = round(cost_of(first.config).parameters)
    steps = first.config.steps
    if tokens_per_parameter:
        steps = max(1, math.ceil(tokens_per_parameter * size / first.config.batch_tokens))
        first = _assigned(first, [f"steps={steps}"])
    second = _assigned(_resized(baseline, size), [f"steps={steps}"])
    found = matched([first.config, second.config], MATCH, also=_OWN)[1]
    return Rung(factor, size, (_assigned(second, found.assignments), first))


def _resized(side: Wanted, target: float) -> Wanted:
    """A side as wide as comes nearest to a number of parameters.

    Raises:
        InputError: no width comes near it.
    """
    model, config = complete(side.config), side.config
    stages = stages_of(model, config.steps)

    def size_of(shape: Any) -> float:
        return cost_of_shape(shape, config, stages).parameters

    shapes = _shapes(model)
    best, size = nearest(lambda i: size_of(shapes[i]), target, low=0, high=len(shapes) - 1)
    if not 0.8 < size / target < 1.25:
        raise InputError(
            f"--sizes: {side.name}: no d_model comes near {target:,.0f} parameters beside token tables; the nearest, "
            f"{shapes[best].d_model}, has {size:,.0f}; choose other sizes, or a wider recipe"
        )
    names = ["d_model", *(name for name in _FOLLOWING if getattr(model, name, 0))]
    words = [f"model.{name}={getattr(shapes[best], name)}" for name in names]
    return _assigned(side, [word for word in words if word not in [f"model.{n}={getattr(model, n)}" for n in names]])


def _shapes(model: Any) -> list[Any]:
    """A model's legal shapes by rising width, feed-forward widths that are given in proportion."""
    present = {field.name for field in fields(model)}
    if "d_model" not in present:
        raise InputError(f"{type(model).__module__}: has no d_model, so its size cannot be changed")
    found = []
    for width in sorted({*range(8, _MOST * model.d_model + 1, 8), model.d_model}):
        share = width / model.d_model
        given = [name for name in _FOLLOWING if name in present and getattr(model, name)]
        follow = {name: max(8, 8 * round(getattr(model, name) * share / 8)) for name in given if share != 1}
        try:
            found.append(replace(model, d_model=width, **follow))
        except (InputError, ValueError, ArithmeticError):
            continue  # a width that its heads do not divide
    return found


def _assigned(side: Wanted, words: Sequence[str]) -> Wanted:
    """A side with further assignments."""
    return replace(side, assignments=(*side.assignments, *words), config=override(side.config, words))


def default_folder(recipe: Wanted, baseline: Wanted, tokens_per_parameter: float, factors: Sequence[float]) -> Path:
    """A folder under the root of runs that follows from the sides: further sizes of them add to it."""
    configs = [config_to_json(replace(side.config, device="auto")) for side in (recipe, baseline)]
    described = [recipe.name, baseline.name, configs, tokens_per_parameter, list(factors)]
    key = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:6]
    return runs_root() / f"scale-{recipe.name}-{baseline.name}-{key}"


def describe(ladder: Ladder) -> list[str]:
    """The plan as lines for a person; the first word of each is its label."""
    baseline, recipe = ladder.names
    lines = [f"scale       {recipe} against {baseline}, {len(ladder.rungs)} sizes"]
    for rung in ladder.rungs:
        first, second = rung.sides
        widths = f"d_model {second.config.model.d_model} and {first.config.model.d_model}"
        tokens = second.config.steps * second.config.batch_tokens
        lines.append(f"size        ×{rung.factor:g}: {rung.parameters:,} parameters, {widths}, {tokens:,} tokens")
    return [*lines, f"folder      {ladder.folder}"]


def requests(ladder: Ladder) -> list[Request]:
    """A comparison for each rung."""
    return [
        Request(sides=rung.sides, match=MATCH, folder=ladder.folder / rung.folder, **ladder.options)
        for rung in ladder.rungs
    ]


def climb(
    ladder: Ladder, reporter_of: Callable[[], Reporter], launch: Launch | None = None
) -> tuple[dict[str, Any], list[Comparison]]:
    """Do what is left of every rung, the smallest size first; after each, scale.json and its page are written anew.

    Args:
        reporter_of: makes one for each rung.

    Returns: the object of scale.json, and the comparisons.

    Raises:
        InputError: as `compare`.
        Stopped: a signal asked for it; unfinished runs have a checkpoint.
    """
    found: list[Comparison] = []
    result: dict[str, Any] = {}
    for request in requests(ladder):
        found.append(compare(request, reporter_of(), launch))
        described = [(rung.factor, rung.folder) for rung in ladder.rungs[: len(found)]]
        result = analyse(found, described) | {"n_sizes": len(ladder.rungs)}
        write_json(ladder.folder / RECORD, result)
        write_scaling_report(ladder.folder)
    return result, found
