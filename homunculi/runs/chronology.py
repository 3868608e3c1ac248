"""When in training a model acquires what: half-times of any number that was followed over steps.

The half-time of a curve is the step at which it has gone half of the way from where it began to where it ended. It is
said only of a curve that ended more than `MIN_DEVIATIONS` deviations of its null away from its beginning: the null of
an instrument that keeps one (``… null sd`` beside its number), else the noise of the curve itself. A curve that turns
back crosses the middle several times; the first crossing says when it was first there, the last when it was there to
stay. Between two measured steps the crossing is placed by the logarithm of the step, as measurements are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from homunculi.errors import InputError
from homunculi.runs.directory import open_run
from homunculi.runs.measures import measured_instruments, measured_steps, read_about

Rule = Literal["first", "last"]
MIN_DEVIATIONS = 5.0
FEWEST_POINTS = 6
ENDING = 0.1  # share of a curve's points, from the end, whose median is where it ended
DRAWS = 2000
# What a run writes down that nobody acquires, and what belongs to another number.
NOT_ACQUIRED = (
    *("step", "tokens", "seconds", "flops", "lr", "*/lr", "perf/*", "*/tokens"),
    *("* null sd", "* low", "* high", "* by luck"),
)
_GIANT = 1e300  # sums and differences of more leave the range of floating point

Numbers = NDArray[np.float64]
Points = dict[str, list[tuple[float, float, float]]]


@dataclass(frozen=True, slots=True)
class Curve:
    """A number over training.

    Attributes:
        name: of a metric, or ``<instrument>/<number>``.
        steps, values: ascending steps and finite values.
        tokens: read until each step; NaN where nobody wrote it down.
        null_sd: deviation of the value where there is nothing to find; None: its own noise stands for it.
    """

    name: str
    steps: Numbers
    values: Numbers
    tokens: Numbers
    null_sd: float | None = None


@dataclass(frozen=True, slots=True)
class HalfTime:
    """When a number had gone half of its way; NaN with a reason where that has no answer.

    Attributes:
        name: of the number.
        step, tokens: the crossing by the rule asked for.
        low, high: of one run, the measured steps on both sides; of several, 95 % bootstrap bounds of their geometric
            mean.
        start, end: values between which it went.
        crossings: how often it crossed the middle.
        n_runs: runs behind it.
        reason: why there is none; empty where there is one.
    """

    name: str
    step: float
    tokens: float
    low: float
    high: float
    start: float
    end: float
    crossings: int = 0
    n_runs: int = 1
    reason: str = ""


def half_time(curve: Curve, rule: Rule = "last", min_deviations: float = MIN_DEVIATIONS) -> HalfTime:
    """The half-time of one curve, from its first value on."""
    n = len(curve.steps)
    if n < FEWEST_POINTS:
        return _none(curve.name, f"{n} points, and it takes {FEWEST_POINTS}")
    start, end = float(curve.values[0]), float(np.median(curve.values[-max(1, round(ENDING * n)) :]))
    spread = noise(curve.values) if curve.null_sd is None else curve.null_sd
    if start == end or abs(end - start) <= min_deviations * spread:
        why = f"it moved by {abs(end - start):.3g}, not more than {min_deviations:g} deviations of {spread:.3g}"
        return replace(_none(curve.name, why), start=start, end=end)
    beyond = (curve.values - start) / (end - start) >= 0.5
    places = np.nonzero(beyond[1:] != beyond[:-1])[0]
    upward = places[beyond[places + 1]]
    place = int(upward[0] if rule == "first" else upward[-1])
    step, share = _crossing(curve, place, (start + end) / 2)
    tokens = float(curve.tokens[place] + share * (curve.tokens[place + 1] - curve.tokens[place]))
    low, high = float(curve.steps[place]), float(curve.steps[place + 1])
    return HalfTime(curve.name, step, tokens, low, high, start, end, len(places))


def _crossing(curve: Curve, place: int, level: float) -> tuple[float, float]:
    """Where a curve meets a level between two of its points: the step, and which share of the way in steps."""
    before, after = curve.values[place : place + 2]
    log_before, log_after = np.log1p(curve.steps[place : place + 2])
    step = math.expm1(log_before + (level - before) / (after - before) * (log_after - log_before))
    first, last = curve.steps[place : place + 2]
    return step, float((step - first) / (last - first))


def noise(values: Numbers) -> float:
    """Deviation of a curve around its course, from second differences of its second half (a median: jumps do not
    count); 0 of a straight line."""
    late = values[len(values) // 2 :]
    bends = np.abs(np.diff(late, 2))
    return float(np.median(bends) / 0.6745 / math.sqrt(6)) if len(bends) else 0.0


def over_runs(curves: Sequence[Curve], rule: Rule = "last", min_deviations: float = MIN_DEVIATIONS) -> HalfTime:
    """The half-time of one number in several runs: the geometric mean of theirs, bootstrapped over runs.

    Undefined where it is so in half of the runs or more; the interval is NaN with fewer than three that have one."""
    found = [half_time(curve, rule, min_deviations) for curve in curves]
    if len(found) == 1:
        return found[0]
    defined = [one for one in found if not one.reason]
    if 2 * len(defined) <= len(found):
        why = next((one.reason for one in found if one.reason), "no run has it")
        return replace(_none(curves[0].name if curves else "", f"{len(found) - len(defined)} runs: {why}"), n_runs=0)
    logs = np.log1p([one.step for one in defined])
    low = high = math.nan
    if len(defined) > 2:
        picks = np.random.default_rng(0).integers(len(logs), size=(DRAWS, len(logs)))
        low, high = map(float, np.expm1(np.quantile(logs[picks].mean(1), [0.025, 0.975])))
    start, end = (float(np.mean([getattr(one, name) for one in defined])) for name in ("start", "end"))
    tokens = float(np.expm1(np.log1p([one.tokens for one in defined]).mean()))
    crossings = max(one.crossings for one in defined)
    step = float(np.expm1(logs.mean()))
    return HalfTime(defined[0].name, step, tokens, low, high, start, end, crossings, len(defined))


def in_order(found: Iterable[HalfTime]) -> list[HalfTime]:
    """The order of acquisition: earliest first, those without a half-time last, by name."""
    return sorted(found, key=lambda one: (bool(one.reason), 0.0 if one.reason else one.step, one.name))


def chronology(runs: Path | Sequence[Path], patterns: Sequence[str] = ("*",), rule: Rule = "last") -> list[HalfTime]:
    """Half-times of what runs measured and logged, in the order of acquisition.

    Args:
        runs: a run's folder, or those of several runs of one recipe that differ in their seeds.
        patterns: names of metrics, or ``<instrument>/<number>``, with wildcards; what is no acquirement (clocks,
            rates, bounds) is left out unless it is named without one.

    Raises:
        InputError: no such run, or nothing in it goes by these names.
    """
    folders = [runs] if isinstance(runs, Path) else list(runs)
    by_name: dict[str, list[Curve]] = {}
    for folder in folders:
        for name, curve in curves_of(folder).items():
            if name in patterns or (_matches(name, patterns) and not _matches(name, NOT_ACQUIRED)):
                by_name.setdefault(name, []).append(curve)
    if not by_name:
        named = ", ".join(map(str, folders))
        raise InputError(f"{named}: nothing goes by {', '.join(patterns)}; train longer or name what was logged")
    return in_order(over_runs(curves, rule) for curves in by_name.values())


def curves_of(run: Path) -> dict[str, Curve]:
    """Every number that a run followed: its metrics, and what its instruments said by a number alone.

    Raises:
        InputError: there is no such run.
    """
    logged = list(open_run(run).logged_steps(lambda message: None).items())
    points: Points = {}
    for step, line in logged:
        for name, value in line.items():
            _add(points, name, step, line.get("tokens"), value)
    for instrument in measured_instruments(run):
        for step in measured_steps(run, instrument):
            try:
                about = read_about(run, instrument, step)
            except InputError:  # a damaged measurement leaves a gap
                continue
            scalars = about.get("scalars")
            for name, value in scalars.items() if isinstance(scalars, Mapping) else ():
                _add(points, f"{instrument}/{name}", step, about.get("tokens"), value)
    curves = {name: _curve(name, found) for name, found in points.items()}
    return {name: replace(curve, null_sd=_null_of(name, curves)) for name, curve in curves.items()}


def _add(points: Points, name: str, step: int, tokens: object, value: object) -> None:
    at, read, found = _finite(step), _finite(tokens), _finite(value)
    if at is not None and at >= 0 and found is not None:
        points.setdefault(name, []).append((at, math.nan if read is None else read, found))


def _finite(value: object) -> float | None:
    """A number that can be reckoned with; None for anything else."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not -_GIANT < value < _GIANT:
        return None
    return float(value)


def _curve(name: str, points: list[tuple[float, float, float]]) -> Curve:
    steps, tokens, values = np.array(sorted(points), dtype=np.float64).T
    return Curve(name, steps, values, tokens)


def _null_of(name: str, curves: Mapping[str, Curve]) -> float | None:
    """The deviation that an instrument keeps beside a number: that of its last measurement."""
    null = curves.get(f"{name} null sd")
    return None if null is None else float(null.values[-1])


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _none(name: str, reason: str) -> HalfTime:
    nan = math.nan
    return HalfTime(name, nan, nan, nan, nan, nan, nan, reason=reason)
