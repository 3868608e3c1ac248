"""Several runs on the same axes, grouped by everything but the seed: means, bands, ends, and what differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from homunculi.errors import InputError
from homunculi.report.numbers import number
from homunculi.runs.difference import flatten, varying
from homunculi.runs.directory import METRICS, RunDirectory, state_of
from homunculi.web.columns import Floats, Shelf, logged_names, plain, thinned
from homunculi.web.project import CARRIED_OUT, SEEDS, Project, Refused, group_of, settings_of

MOST_RUNS, MOST_VARYING, _IN_NAMES = 64, 60, 3


@dataclass(frozen=True)
class Side:
    """Runs that differ in nothing but the seed, with one metric of each."""

    keys: list[str]
    infos: list[dict[str, Any]]
    states: list[str]
    lines: list[tuple[Floats, Floats]]


def compared(project: Project, shelf: Shelf, keys: Sequence[str], metric: str, axis: str) -> dict[str, Any]:
    """Groups of runs with the mean and the lowest and highest of `metric` over `axis` (step, tokens, seconds).

    Raises:
        Refused: a run that is not there, none, or more than 64.
    """
    asked = list(dict.fromkeys(keys))
    if not 0 < len(asked) <= MOST_RUNS:
        raise Refused(f"runs: name 1 to {MOST_RUNS} of them")
    groups: dict[str, list[tuple[str, RunDirectory, dict[str, Any]]]] = {}
    for key in asked:
        run = project.open(key)
        info = _info(run)
        groups.setdefault(group_of(info) if info else key, []).append((key, run, info))
    logged: dict[str, None] = {}
    sides = []
    for members in groups.values():
        lines = []
        for _, run, _ in members:
            logged |= dict.fromkeys(logged_names(run.path / METRICS))
            lines.append(shelf.pick(run.path / METRICS, metric, axis))
        keys_of, runs_of, infos = (list(part) for part in zip(*members, strict=True))
        sides.append(Side(keys_of, infos, [state_of(run) for run in runs_of], lines))
    return {
        "metric": metric,
        "axis": axis,
        "metrics": list(logged),
        "groups": [_side_json(side, name) for side, name in zip(sides, _names(sides), strict=True)],
        "varying": _varying([side.infos[0] for side in sides]),
    }


def _info(run: RunDirectory) -> dict[str, Any]:
    try:
        return run.info()
    except InputError:
        return {}


def _names(sides: Sequence[Side]) -> list[str]:
    """A run alone goes by its name, a group by its recipe; of those alike each has what differs, or its first key."""
    names = [str(side.infos[0].get("name" if len(side.keys) == 1 else "recipe") or side.keys[0]) for side in sides]
    found = list(names)
    for name in {name for name in names if names.count(name) > 1}:
        alike = [place for place, other in enumerate(names) if other == name]
        rows = varying([settings_of(sides[place].infos[0]) for place in alike])[:_IN_NAMES]
        for at, place in enumerate(alike):
            found[place] = " ".join([name, *(f"{key}={_short(values[at])}" for key, values in rows)])
    firsts = [f" ({side.keys[0]})" if found.count(name) > 1 else "" for name, side in zip(found, sides, strict=True)]
    return [name + first for name, first in zip(found, firsts, strict=True)]


def _side_json(side: Side, name: str) -> dict[str, Any]:
    drawn = [(x[np.isfinite(y)], y[np.isfinite(y)]) for x, y in side.lines]
    ends = [float(y[-1]) if len(y) else None for _, y in drawn]
    known = [end for end in ends if end is not None]
    runs = [
        {"key": key, "seed": _seed(info), "state": state, "end": end, "at": float(x[-1]) if len(x) else None}
        for key, info, state, end, (x, _) in zip(side.keys, side.infos, side.states, ends, drawn, strict=True)
    ]
    return {
        "name": name,
        "architecture": str(side.infos[0].get("architecture") or ""),
        "parameters": number(_part(side.infos[0], "budget").get("parameters")),
        "runs": runs,
        "n": len(known),
        "mean": float(np.mean(known)) if known else None,
        "low": min(known, default=None),
        "high": max(known, default=None),
        "line": band(drawn),
    }


def band(lines: Sequence[tuple[Floats, Floats]]) -> dict[str, Any]:
    """Mean, lowest and highest of several lines over the stretch that all of them have.

    Where their places agree, at those places; otherwise at the places of the line with the fewest, the others
    interpolated between their neighbours. Lines without points are left out; `n` says how many are in.
    """
    there = [(x, y) for x, y in lines if len(x)]
    if not there:
        return {"n": 0, "x": [], "mean": [], "low": [], "high": []}
    places = there[0][0]
    for x, _ in there[1:]:
        places = np.intersect1d(places, x)
    fewest = min((x for x, _ in there), key=len)
    start, end = max(x[0] for x, _ in there), min(x[-1] for x, _ in there)
    if len(places) < 0.5 * np.count_nonzero((fewest >= start) & (fewest <= end)) or not len(places):
        places = fewest[(fewest >= start) & (fewest <= end)]
    rows = np.stack([np.interp(places, x, y) for x, y in there]) if len(places) else np.empty((1, 0))
    parts = {"mean": rows.mean(0), "low": rows.min(0), "high": rows.max(0)}
    keep = _places_of_peaks(places, parts["mean"])
    return {"n": len(there), "x": plain(places[keep]), **{name: plain(row[keep]) for name, row in parts.items()}}


def _places_of_peaks(x: Floats, y: Floats) -> Any:
    """Which places stay when the line is thinned."""
    kept, _ = thinned(np.arange(len(x), dtype=np.float64), y)
    return kept.astype(int)


def _varying(infos: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Settings and data that are not the same in all groups, a value for each group, as short text."""
    asked = [{name: part for name in ("config", "data", "budget") if (part := _part(info, name))} for info in infos]
    flat = [dict(flatten(one)) for one in asked]
    rows = [row for row in varying(flat) if not _carried_out(row[0])]
    shown = [{"name": name, "values": [_short(value) for value in values]} for name, values in rows[:MOST_VARYING]]
    return {"rows": shown, "left_out": len(rows) - len(shown)}


def _carried_out(name: str) -> bool:
    return name.removeprefix("config.") in SEEDS | CARRIED_OUT or name.endswith("fingerprint")


def _part(info: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = info.get(name)
    return value if isinstance(value, Mapping) else {}


def _seed(info: Mapping[str, Any]) -> float | None:
    return number(_part(info, "config").get("seed"))


def _short(value: Any) -> str:
    return str(value)[:120]
