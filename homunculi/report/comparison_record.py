"""What comparison.json says, read with patience: whatever is missing or of another kind counts as not there."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from homunculi.errors import InputError
from homunculi.report.numbers import number

RECORD = "comparison.json"
# Units of the metrics that a lower value is better for.
UNITS = {"val/bpb": "bits per byte", "val/loss": "nats per token"}
# Of intervals, where the file is silent.
LEVEL = 0.95
_LONG = 6000
_MINUS = str.maketrans("-", "\u2212")


@dataclass(frozen=True)
class Pair:
    """One pair of sides: the difference b - a of a metric, its interval and its verdict of b against a.

    `values`: difference, low, high, n, p and adjusted_p. `points`: (tokens, difference, low, high) at each evaluation,
    in order. `level`: share of such intervals that hold the true difference. `raw`: the object of the file. What the
    file lacks, or has as something else than a number, is None.
    """

    a: str
    b: str
    metric: str
    verdict: str
    values: Mapping[str, float | None]
    differences: tuple[float, ...]
    points: tuple[tuple[float, float, float | None, float | None], ...]
    level: float
    raw: Mapping[str, Any]

    @property
    def unit(self) -> str:
        return UNITS.get(self.metric, self.metric)

    @property
    def percent(self) -> str:
        return f"{100 * self.level:.6g}\u00a0%"

    def written(self, key: str) -> str:
        """`difference`, `low` or `high` with a sign and as many decimals as the interval's width supports."""
        return signed(self.values[key], self._places())

    @property
    def has_interval(self) -> bool:
        return self.values["low"] is not None and self.values["high"] is not None

    def interval(self) -> str:
        return spanned(self.written("low"), self.written("high")) if self.has_interval else "no interval"

    def _places(self) -> int:
        """Decimals that show two figures of the interval's half width, or three of a difference without width."""
        low, high, middle = self.values["low"], self.values["high"], self.values["difference"] or 0.0
        width = 0.0 if low is None or high is None else high - low
        size, figures = (width / 2, 1) if width > 1e-9 * abs(middle) else (abs(middle), 2)
        return 3 if size < 1e-12 else max(0, min(8, figures - math.floor(math.log10(size))))

    def reach(self) -> list[float]:
        """All that a drawing of its end of training must hold."""
        named = (self.values[key] for key in ("low", "difference", "high"))
        return [*self.differences, *(value for value in named if value is not None)]


def read_pair(raw: Mapping[str, Any], metric: str, level: float = LEVEL) -> Pair:
    """A pair of comparison.json; `metric` and `level` stand in where it names none."""
    listed = raw.get("differences")
    dots = [number(value) for value in listed] if isinstance(listed, list) else []
    points = []
    for point in objects(raw.get("points")):
        tokens, difference = number(point.get("tokens")), number(point.get("difference"))
        if tokens is not None and tokens >= 0 and difference is not None:
            points.append((tokens, difference, number(point.get("low")), number(point.get("high"))))
    return Pair(
        a=str(raw.get("a", "?")),
        b=str(raw.get("b", "?")),
        metric=str(raw.get("metric") or metric),
        verdict=str(raw.get("verdict") or "no verdict"),
        values={key: number(raw.get(key)) for key in ("difference", "low", "high", "n", "p", "adjusted_p")},
        differences=tuple(value for value in dots if value is not None),
        points=tuple(sorted(points, key=lambda point: point[0])),
        level=number(raw.get("level")) or level,
        raw=raw,
    )


@dataclass(frozen=True)
class Curve:
    """A side's learning curve: `rows` of (tokens, mean, lowest, highest) over `n_runs` of its `n_expected` runs.

    `place`: of the side in the file. `flops`: of training, a token; None where the file has none.
    """

    name: str
    place: int
    rows: tuple[tuple[float, float, float, float], ...]
    n_runs: int
    n_expected: int
    flops: float | None


@dataclass(frozen=True)
class Record:
    """One comparison as it stands. Names and seeds are text here."""

    raw: Mapping[str, Any]

    @cached_property
    def metric(self) -> str:
        return str(self.raw.get("metric") or "val/bpb")

    @cached_property
    def unit(self) -> str:
        return UNITS.get(self.metric, self.metric)

    @cached_property
    def key(self) -> str:
        """The metric as runs, tuning and baselines spell it."""
        return self.metric.replace("/", "_")

    @cached_property
    def runs(self) -> list[Mapping[str, Any]]:
        return objects(self.raw.get("runs"))

    @cached_property
    def sides(self) -> dict[str, Mapping[str, Any]]:
        """By name, in the file's order; then those that only runs name, empty."""
        listed = {str(side.get("name", "?")): side for side in objects(self.raw.get("sides"))}
        return listed | {name: {} for run in self.runs if (name := side_of(run)) not in listed}

    @cached_property
    def pairs(self) -> list[Pair]:
        level = number(self.raw.get("level")) or LEVEL
        return [read_pair(raw, self.metric, level) for raw in objects(self.raw.get("pairs"))]

    @cached_property
    def baselines(self) -> list[Mapping[str, Any]]:
        return objects(self.raw.get("baselines"))

    def level_of(self, baseline: Mapping[str, Any]) -> tuple[str, float | None]:
        """Name and value of one of the baselines."""
        return str(baseline.get("name", "?")), number(baseline.get(self.key))

    @cached_property
    def seeds(self) -> list[str]:
        given = self.raw.get("seeds")
        listed = given if isinstance(given, list) else [run.get("seed") for run in self.runs]
        return list(dict.fromkeys(str(seed) for seed in listed))

    @cached_property
    def refused(self) -> dict[str, str]:
        """Reasons by side or run; a side whose certificate says that it is not causal is refused in any case."""
        listed = objects(self.raw.get("refused"))
        reasons = {str(one.get("run", "?")): str(one.get("reason") or "no reason given") for one in listed}
        leaking = [name for name, side in self.sides.items() if part(side, "certificate").get("causal") is False]
        return dict.fromkeys(leaking, "not causal") | reasons

    @cached_property
    def failed(self) -> list[Mapping[str, Any]]:
        """Runs that did not end, each with its state and its reason."""
        return objects(self.raw.get("failed"))

    @cached_property
    def ranked(self) -> list[str]:
        """Names of the sides that may stand beside each other."""
        return [name for name in self.sides if name not in self.refused]

    def runs_of(self, name: str) -> list[Mapping[str, Any]]:
        """A side's runs without those that were refused."""
        return [run for run in self.runs if side_of(run) == name and str(run.get("run")) not in self.refused]

    def missing(self) -> dict[str, list[str]]:
        """Seeds by side of the runs that are still to come: those that failed or were refused are not."""
        known = [*self.runs, *self.failed, *objects(self.raw.get("refused"))]
        there = {(side_of(run), str(run.get("seed"))) for run in known}
        left = {name: [seed for seed in self.seeds if (name, seed) not in there] for name in self.ranked}
        return {name: seeds for name, seeds in left.items() if seeds}

    def ends_of(self, name: str, key: str) -> list[float]:
        """The last values of those runs of a side that have come furthest, where they are finite."""
        end = self.tokens_of(name)
        ends = [found[-1] for run in self.runs_of(name) if (found := points_of(run, key))]
        return [value for tokens, value in ends if tokens == end and value is not None]

    def mean_of(self, name: str) -> float | None:
        """The mean of the metric at the end of training over a side's runs."""
        return mean(self.ends_of(name, self.key))

    def tokens_of(self, name: str) -> float | None:
        """How far the runs of a side have come."""
        return max((found[-1][0] for run in self.runs_of(name) if (found := points_of(run, self.key))), default=None)

    def curves(self) -> list[Curve]:
        """Each ranked side's mean over the runs that have come furthest: the same runs at every point."""
        return [curve for place, name in enumerate(self.sides) if (curve := self._curve(name, place))]

    def _curve(self, name: str, place: int) -> Curve | None:
        lines = [{x: y for x, y in points_of(run, self.key) if y is not None} for run in self.runs_of(name)]
        lines = [line for line in lines if line]
        if not lines or name not in self.ranked:
            return None
        end = max(max(line) for line in lines)
        kept = [line for line in lines if max(line) == end]
        rows = []
        for x in sorted(set(kept[0]).intersection(*kept)):
            values = [line[x] for line in kept]
            rows.append((x, sum(values) / len(values), min(values), max(values)))
        flops = training_flops_of(self.sides[name])
        return Curve(name, place, tuple(rows), len(kept), max(len(lines), len(self.seeds)), flops)


def read_record(folder: Path) -> Record:
    """The record of a comparison's folder.

    Raises:
        InputError: there is no comparison.json, or it is not a JSON object.
    """
    path = folder / RECORD
    try:
        raw = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{folder}: has no {RECORD}: name the folder of a comparison") from None
    except (ValueError, RecursionError, OSError):
        raise InputError(f"{path}: cannot be read as JSON: restore it from a copy") from None
    if not isinstance(raw, dict):
        raise InputError(f"{path}: is not a JSON object: restore it from a copy")
    return Record(raw)


def side_of(entry: Mapping[str, Any]) -> str:
    return str(entry.get("side", "?"))


def objects(value: Any) -> list[Mapping[str, Any]]:
    """The JSON objects of a list; empty where there is no list."""
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def part(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A nested object; empty where it is missing or something else."""
    found = value.get(key)
    return found if isinstance(found, Mapping) else {}


def training_flops_of(side: Mapping[str, Any]) -> float | None:
    """FLOPs of forward and backward a token: the backward costs twice the part of the forward that it goes through."""
    budget = part(side, "budget")
    flops, forward_only = number(budget.get("flops_per_token")), number(budget.get("forward_only_flops_per_token"))
    return None if flops is None or flops <= 0 else max(flops, 3 * flops - 2 * (forward_only or 0.0))


def points_of(run: Mapping[str, Any], key: str) -> list[tuple[float, float | None]]:
    """(tokens, value) of each evaluation of a run; None where the value was not finite."""
    tokens, values = run.get("tokens"), run.get(key)
    if not isinstance(tokens, list) or not isinstance(values, list):
        return []
    found = [(number(at), number(y)) for at, y in zip(tokens, values, strict=False)]
    return sorted(((x, y) for x, y in found if x is not None and x >= 0), key=lambda point: point[0])


def last_of(run: Mapping[str, Any], key: str) -> float | None:
    """The value of the last evaluation; None also where it was not finite."""
    found = points_of(run, key)
    return found[-1][1] if found else None


def mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def signed(value: float | None, places: int) -> str:
    """With its sign and so many decimals; in powers of ten where it is huge or vanishes; a dash for None."""
    if value is None:
        return "–"
    if abs(value) >= 1e6 or 0 < abs(value) < 1e-7:
        return f"{value:+.3g}".translate(_MINUS)
    text = f"{value:+.{places}f}"
    return (text if float(text) else text[1:]).translate(_MINUS)


def spanned(low: str, high: str) -> str:
    """`low to high`, on one line."""
    return f"{low}\u00a0to\u00a0{high}"


def text_of(value: Any) -> str:
    """A value of the file as text; a dash for none."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(text_of(item) for item in value)[:_LONG]
    return str(value)[:_LONG]
