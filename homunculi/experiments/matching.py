"""Equal budgets for the sides of a comparison: parameters, training FLOPs and tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any

from homunculi.core.budget import Budget, nearest
from homunculi.errors import InputError
from homunculi.experiments.costs import (
    QUANTITIES,
    Cost,
    Stages,
    budget_of,
    complete,
    cost_of,
    cost_of_shape,
    stages_of,
    vocabulary_of,
)
from homunculi.models import name_of
from homunculi.settings import changed, override, to_text
from homunculi.train.config import RunConfig

TOLERANCE = 0.01
NEAR = 0.005  # beyond which a side that fits is brought nearer, if a finer knob can

# What sides of a comparison may differ in: the idea itself, the learning rate that each is tuned to, the number of
# steps where FLOPs are matched by it, how a batch is cut up to fit into memory, and what is written for people.
# Of the model, vocabulary and context are equal nevertheless.
MAY_DIFFER = (
    "model",
    "lr",
    "steps",
    "train.plasticity",
    "train.interventions",
    "train.micro_tokens",
    "train.loss_chunks",
    "output",
    "instruments",
    "sample_every",
    "checkpoint_every",
)

# Knobs in the order in which they are tried, each by itself. A width is turned in steps of 8; in models without
# `d_model`, which are as wide as the vocabulary, where one more costs as much as a word of each map, in steps of 1.
WIDTHS = ("d_mlp", "d_expert", "d_model", "n_channels", "d_memory", "d_state", "d_slice", "rank")
FINE = ("d_mlp", "d_expert")  # those that together bring a side nearer
DERIVED = {"d_mlp": "hidden_width", "d_slice": "slice_size"}  # where a model without `d_model` says what a 0 stands for
COUNTS = ("n_blocks", "n_slots", "n_shared", "n_experts", "n_steps")
_REACH = 4  # how many times as large or as small a knob may become
_NEIGHBOURS = 7  # values of a knob that a search over several knobs tries
_FINE_NEIGHBOURS = 12  # the same where two feed-forward widths bring a side nearer
_WORDS = {"parameters": "parameters beside token tables", "flops": "training FLOPs"}


@dataclass(frozen=True, slots=True)
class Matched:
    """A side with its budget made equal to the baseline's.

    Attributes:
        config: what to run.
        changes: dotted setting → text; with these assignments the given configuration becomes `config`.
        budget: of an evaluation at the training context.
        ratios: each of `QUANTITIES` over the baseline's, matched or not.
    """

    config: RunConfig
    changes: dict[str, str]
    budget: Budget
    ratios: dict[str, float]

    @property
    def assignments(self) -> tuple[str, ...]:
        """`changes` as ``key=value``, for `homunculi.settings.override`."""
        return tuple(f"{name}={text}" for name, text in self.changes.items())


def matched(
    configs: Sequence[RunConfig], match: Sequence[str], baseline: int = 0, also: Sequence[str] = ()
) -> list[Matched]:
    """Give every configuration the budget of the one at `baseline`, each quantity within 1 %.

    FLOPs are matched by steps, and where tokens are matched too by the model's shape. Without "flops" all sides take
    the baseline's steps, so read the same batches, whether "tokens" is asked for or not. A shape is changed by one
    setting where that is enough (feed-forward width, an expert's, model width, depth, experts, in this order), else by
    the nearest combination of several. What comes within 0.5 % stays as it is; what comes within 1 % is brought as
    near by the feed-forward widths, where the architecture has one that can.

    Args:
        match: any of "parameters", "flops", "tokens".
        also: settings that sides may differ in beside `MAY_DIFFER`.

    Raises:
        InputError: the sides are not comparable, or no shape of a side comes within 1 %.
    """
    unknown = [name for name in match if name not in QUANTITIES]
    if unknown or not match:
        raise InputError(f"match: {', '.join(unknown) or 'nothing'}; name any of {', '.join(QUANTITIES)}")
    if not 0 <= baseline < len(configs):
        raise InputError(f"baseline: {baseline} is no side, there are {len(configs)}, counted from 0")
    check_comparable(configs, also)
    target, steps = cost_of(configs[baseline]), configs[baseline].steps
    found = []
    for i, config in enumerate(configs):
        changes = _changes(config, target, steps, match, f"side {i + 1} ({name_of(config.model)})")
        new = override(config, [f"{name}={text}" for name, text in changes.items()])
        found.append(Matched(new, changes, budget_of(new), cost_of(new).over(target)))
    return found


def check_comparable(configs: Sequence[RunConfig], also: Sequence[str] = ()) -> None:
    """Refuse sides that differ in more than `MAY_DIFFER`, settings in `also`, and the shape of their models.

    Raises:
        InputError: names the first setting that differs and both values.
    """
    may_differ = (*MAY_DIFFER, *also)
    for i, config in enumerate(configs[1:], 2):
        pairs = {name: pair for name, pair in changed(config, configs[0]).items() if not _is_in(name, may_differ)}
        pairs["model.vocab_size"] = vocabulary_of(configs[0]), vocabulary_of(config)
        pairs["model.max_seq_len"] = configs[0].model.max_seq_len, config.model.max_seq_len
        for name, (first, own) in pairs.items():
            if first != own:
                raise InputError(
                    f"{name}: {to_text(first) or 'empty'} on side 1 and {to_text(own) or 'empty'} on side {i}; "
                    f"set {name} to one value for all sides"
                )


def _is_in(name: str, settings: Sequence[str]) -> bool:
    return any(name == setting or name.startswith(setting + ".") for setting in settings)


def _changes(config: RunConfig, target: Cost, steps: int, match: Sequence[str], side: str) -> dict[str, str]:
    """What has to be set so that `config` costs what the target does."""
    by_steps = "flops" in match and "tokens" not in match
    new = config if by_steps else replace(config, steps=steps)
    wanted = tuple(name for name in ("parameters", "flops") if name in match and not (name == "flops" and by_steps))
    model = complete(new)
    stages = stages_of(model, new.steps)
    turned = {}
    if cost_of_shape(model, new, stages).miss(target, wanted) > NEAR:
        turned = Search(new, model, stages, target, wanted, side).solve()
        new = replace(new, model=replace(new.model, **turned))
    if by_steps:
        new = replace(new, steps=_steps_for(new, target, side))
    changes = {"steps": to_text(new.steps)} if new.steps != config.steps else {}
    return changes | {f"model.{name}": to_text(value) for name, value in turned.items()}


def _steps_for(config: RunConfig, target: Cost, side: str) -> int:
    """The steps in which training costs as many FLOPs as the target."""
    for _ in range(4):  # the mean cost of a step hardly depends on how many there are
        cost = cost_of(config)
        if cost.miss(target, ("flops",)) <= NEAR:
            return config.steps
        config = replace(config, steps=max(1, round(config.steps * target.flops / cost.flops)))
    if cost_of(config).miss(target, ("flops",)) > TOLERANCE:
        raise InputError(f"steps: {side} would train {config.steps} steps, too few to match FLOPs to 1 %; raise steps")
    return config.steps


@dataclass(frozen=True, slots=True)
class Search:
    """The shape of one side that costs what the target does.

    Attributes:
        config: tokens and steps of the side.
        model: the shape to begin with, its vocabulary set.
        stages: of the run; no knob changes them.
        wanted: what has to be within 1 %; the first is solved for, others are checked.
        side: what to call it in errors.
    """

    config: RunConfig
    model: Any
    stages: Stages
    target: Cost
    wanted: tuple[str, ...]
    side: str

    def solve(self) -> dict[str, int]:
        """Settings of the model to change.

        Raises:
            InputError: no shape within reach will do.
        """
        fitting = self.model if self._fits(self._cost(self.model)) else self._fitting()
        return self._difference(self._nearer(fitting))

    def _nearer(self, shape: Any) -> Any:
        """The first shape beside one that fits which is near enough, or the nearest of them."""
        nearest_yet = shape
        for other in self._beside(shape):
            if self.miss(other) < self.miss(nearest_yet):
                nearest_yet = other
            if self.miss(nearest_yet) <= NEAR:
                break
        return nearest_yet

    def _beside(self, shape: Any) -> Iterator[Any]:
        """The shape, then others by one feed-forward width, then by both, those that differ least first."""
        yield shape
        present = [knob for knob in self._knobs() if knob in FINE]
        for knob in present:
            if found := self._turn(shape, knob):
                yield found[0]
        for other in self._around(shape, FINE[1]) if len(present) > 1 else ():
            if found := self._turn(other, FINE[0]):
                yield found[0]

    def _around(self, shape: Any, knob: str) -> list[Any]:
        """Shapes with a knob near the value that it has; where that is derived, near the one that costs the same."""
        shapes, own = turned(shape, knob), self._ratio(self._cost(shape))
        try:
            middle, _ = nearest(lambda i: self._ratio(self._cost(shapes[i])), own, low=0, high=len(shapes) - 1)
        except InputError:
            return []
        near = sorted(range(len(shapes)), key=lambda i: abs(i - middle))[:_FINE_NEIGHBOURS]
        return [shapes[i] for i in near]

    def _fitting(self) -> Any:
        """The first shape that comes within 1 %.

        Raises:
            InputError: no shape within reach will do.
        """
        tried: list[Cost] = []
        start = self.model
        for knob in self._knobs():
            found = self._turn(self.model, knob)
            if found is not None:
                shape, cost = found
                if self._fits(cost):
                    return shape
                if knob == "d_model" and not 0.8 < self._ratio(self._cost(self.model)) < 1.25:
                    start = shape
                tried.append(cost)
        for combined in self._combinations(start):
            found = self._filled(combined)
            if found is not None:
                shape, cost = found
                if self._fits(cost):
                    return shape
                tried.append(cost)
        raise InputError(self._refusal(tried))

    def one_knob_nearer(self) -> Any:
        """The nearest of the shape itself and those that differ from it in one knob."""
        turned_ones = [found[0] for knob in self._knobs() if (found := self._turn(self.model, knob))]
        return min((self.model, *turned_ones), key=self.miss)

    def _knobs(self) -> list[str]:
        present = {field.name for field in fields(self.model)}
        return [knob for knob in (*WIDTHS, *COUNTS) if knob in present]

    def _cost(self, shape: Any) -> Cost:
        return cost_of_shape(shape, self.config, self.stages)

    def _ratio(self, cost: Cost) -> float:
        """What is solved for, over the target's."""
        return cost.over(self.target)[self.wanted[0]]

    def miss(self, shape: Any) -> float:
        """How far a shape's cost is from the target, as a share of it."""
        return self._cost(shape).miss(self.target, self.wanted)

    def _fits(self, cost: Cost) -> bool:
        return cost.miss(self.target, self.wanted) <= TOLERANCE

    def _difference(self, shape: Any) -> dict[str, int]:
        values = {knob: (getattr(shape, knob), getattr(self.model, knob)) for knob in self._knobs()}
        return {knob: new for knob, (new, old) in values.items() if new != old}

    def _turn(self, model: Any, knob: str) -> tuple[Any, Cost] | None:
        """The shape that comes nearest by that knob alone, and its cost; None: the knob cannot be turned."""
        shapes = turned(model, knob)
        try:
            best, _ = nearest(lambda i: self._ratio(self._cost(shapes[i])), 1.0, low=0, high=len(shapes) - 1)
            return shapes[best], self._cost(shapes[best])
        except InputError:
            return None

    def _combinations(self, start: Any) -> Iterator[Any]:
        """Shapes with all knobs but those that fill up turned, the nearest to `start` first."""
        knobs = [knob for knob in self._knobs() if knob not in (*FINE, self._filling)]
        if not self._filling:
            return
        axes = []
        for knob in knobs:
            middle = _present(start, knob)
            values = {middle, *(getattr(shape, knob) for shape in turned(start, knob))}
            axes.append(sorted((abs(math.log(value / middle)), value) for value in values)[:_NEIGHBOURS])
        for places in sorted(product(*axes), key=lambda places: sum(distance for distance, _ in places)):
            shape = _legal(start, {knob: value for knob, (_, value) in zip(knobs, places, strict=True)})
            if shape is not None:
                yield shape

    @property
    def _filling(self) -> str:
        """The knob that fills up what others leave: the feed-forward width, else the first width there is."""
        return next((knob for knob in WIDTHS if knob in self._knobs()), "")

    def _filled(self, shape: Any) -> tuple[Any, Cost] | None:
        """`shape` with the width that comes nearest; None: it is out of reach.

        Costs grow about evenly with a feed-forward width, so its ends tell whether any will do; where none will, the
        cost is what they tell.
        """
        shapes = turned(shape, self._filling)
        try:
            low, high = self._cost(shapes[0]), self._cost(shapes[-1])
        except (InputError, IndexError):
            return None
        below, above = self._ratio(low), self._ratio(high)
        if not below <= 1 <= above or below == above:
            return None
        share = (1 - below) / (above - below)
        told = Cost(*(a + share * (b - a) for a, b in zip(low, high, strict=True)))
        near = self._filling != "d_mlp" or told.miss(self.target, self.wanted) <= 3 * TOLERANCE
        return self._turn(shape, self._filling) if near else (shape, told)

    def _refusal(self, tried: list[Cost]) -> str:
        best = min(tried, key=lambda cost: cost.miss(self.target, self.wanted), default=self._cost(self.model))
        ratios = best.over(self.target)
        have = " and ".join(f"{ratios[name]:.2f} times the {_WORDS[name]}" for name in self.wanted)
        if len(self.wanted) > 1:
            return (
                f"match: {self.side}: parameters and flops exclude each other at equal tokens: the nearest shape has "
                f"{have} of the baseline; leave one of the three out, or change the recipe"
            )
        return (
            f"match: {self.side}: no {', '.join(self._knobs()) or 'knob'} within {_REACH} times its present value "
            f"comes within 1 %: the nearest has {have} of the baseline; change the recipe's shape"
        )


def turned(model: Any, knob: str) -> list[Any]:
    """Legal shapes that differ from `model` in one knob, by rising value."""
    middle = _present(model, knob)
    step = 8 if knob in WIDTHS and hasattr(model, "d_model") else 1
    low = step * max(1, math.ceil(middle / _REACH / step))
    shapes = (_legal(model, {knob: value}) for value in range(low, _REACH * middle + 1, step))
    return [shape for shape in shapes if shape is not None]


def _present(model: Any, knob: str) -> int:
    """The value of a knob; of a width that is derived about 4 times `d_model`, where there is none what the model
    says."""
    given: int = getattr(model, knob)
    return given or int(4 * model.d_model if hasattr(model, "d_model") else getattr(model, DERIVED[knob]))


def _legal(model: Any, values: dict[str, int]) -> Any:
    """The shape with knobs at these values; None where its architecture refuses it."""
    try:
        return replace(model, **values)
    except (InputError, ValueError, ArithmeticError):
        return None
