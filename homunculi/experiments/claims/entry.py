"""A claim as a value: what is said, how it is checked, what could make it fail, what that costs. No torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from homunculi.experiments.claims.evidence import Json, Rule
from homunculi.experiments.comparison import CLAIM_SEEDS

DEFAULT_SIZE = "medium"
MACHINES = {"small": "two CPU cores", "medium": "one H100", "full": "one H100"}
TRIALS_A_SIDE, TRIAL_FRAC = 3, 0.25  # of learning rates, as `homunculi.experiments.tuning` plans them at least
_SIDE = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9_-]*)=(?P<recipe>[^;=]+)(?P<own>(;[^;]+)*)")


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a plan: its name, its recipe, and its own assignments."""

    name: str
    recipe: str
    own: tuple[str, ...]

    def word(self, *more: str) -> str:
        """As `homunculi compare` takes it, with further assignments."""
        return ";".join([f"{self.name}={self.recipe}", *self.own, *more])


@dataclass(frozen=True, slots=True)
class Plan:
    """A comparison that a claim asks for.

    Attributes:
        sides: ``NAME=RECIPE;key=value…`` each; the first one is what the others are matched to.
        match: what is made equal.
        name: of the part of the result; a claim of one comparison has one part.
        common: assignments of all sides.
        factors: of learning rates that each side tries; empty: every side has the rate that it names; None: three, or
            what is asked for.

    Raises:
        ValueError: a side is not written like that.
    """

    sides: tuple[str, ...]
    match: tuple[str, ...] = ("parameters", "tokens")
    name: str = "main"
    common: tuple[str, ...] = ()
    factors: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for text in self.sides:
            if not _SIDE.fullmatch(text):
                raise ValueError(f"{text}: a side is written NAME=RECIPE;key=value")

    @property
    def parsed(self) -> list[Side]:
        found = [_SIDE.fullmatch(text) for text in self.sides]
        return [Side(m["name"], m["recipe"], tuple(m["own"].split(";")[1:])) for m in found if m]

    @property
    def names(self) -> list[str]:
        return [side.name for side in self.parsed]

    @property
    def options(self) -> list[str]:
        """What of it `homunculi compare` is told beside sides and assignments."""
        tried = ",".join(f"{factor:g}" for factor in self.factors or ())
        tuning = [] if self.factors is None else ["--tune", tried] if tried else ["--no-tune"]
        return ["--match", ",".join(self.match), *tuning]

    @property
    def n_trials(self) -> int:
        """Of learning rates, at least."""
        return len(self.sides) * (TRIALS_A_SIDE if self.factors is None else len(self.factors))


@dataclass(frozen=True, slots=True)
class Cost:
    """An estimate: runs, shorter trials of learning rates before them, and minutes of a machine for all of it."""

    runs: int
    trials: int
    minutes: float
    machine: str

    def __str__(self) -> str:
        time = f"{self.minutes:.0f} minutes" if self.minutes < 120 else f"{self.minutes / 60:.0f} hours"
        return f"{self.runs} runs and {self.trials} trials, about {time} of {self.machine}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """One row of the table.

    Attributes:
        id, system: short names.
        claim: what is said, in our words.
        figure: the figure that is claimed, with its source; empty where there is none.
        check: what is measured. control: what could make the claim fail.
        rule: how the verdict follows; None where nothing can be run yet.
        sizes: size → comparisons that are run at it; empty where nothing is trained.
        minutes: size → of one run on that size's machine, a rough guess.
        count: a measurement that needs no run, made whenever the table is shown; it is told the folder of results.
        shown: further figures, read from a record whenever the table is shown, whatever has been run; no verdict hears
            them. It is told the folder of results, and returns nothing where there is no record.
        beside: name in the result → a further measurement, made once a comparison has ended; see `running.Beside`.
        needs: what has to be there before it can be run; empty where it can.
        beyond: what of the claim this check leaves open.
    """

    id: str
    system: str
    claim: str
    figure: str = ""
    check: str
    control: str = ""
    rule: Rule | None = None
    sizes: Mapping[str, tuple[Plan, ...]] = field(default_factory=dict)
    minutes: Mapping[str, float] = field(default_factory=dict)
    count: Callable[[Path | None], Json] | None = None
    shown: Callable[[Path | None], Json] | None = None
    beside: Mapping[str, Callable[..., Json]] = field(default_factory=dict)
    needs: str = ""
    beyond: str = ""

    def __post_init__(self) -> None:
        if bool(self.needs) == bool(self.rule):
            raise ValueError(f"{self.id}: either a rule says how it is judged, or needs says what is missing")
        if self.rule and not (self.sizes or self.count):
            raise ValueError(f"{self.id}: has a rule and nothing to judge by it; give sizes or count")
        if self.sizes.keys() != self.minutes.keys():
            raise ValueError(f"{self.id}: sizes and minutes name different sizes")

    @property
    def runnable(self) -> bool:
        return bool(self.sizes)

    @property
    def default_size(self) -> str:
        return DEFAULT_SIZE if DEFAULT_SIZE in self.sizes else next(iter(self.sizes), "")

    def cost(self, size: str = "", seeds: int = CLAIM_SEEDS) -> Cost | None:
        """Of all its comparisons at a size; None where nothing is trained."""
        size = size or self.default_size
        if size not in self.sizes:
            return None
        runs = seeds * sum(len(plan.sides) for plan in self.sizes[size])
        trials = sum(plan.n_trials for plan in self.sizes[size])
        return Cost(runs, trials, (runs + TRIAL_FRAC * trials) * self.minutes[size], MACHINES[size])


FUNCTIONS: list[Callable[[], Claim]] = []


def claim(function: Callable[[], Claim]) -> Callable[[], Claim]:
    """Put a function that returns a claim on the list; the table shows them in the order of their files."""
    FUNCTIONS.append(function)
    return function
