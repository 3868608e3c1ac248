"""What the page shows of one run: its head, curves, samples and events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from homunculi.errors import InputError
from homunculi.report.numbers import number
from homunculi.report.snapshot import Snapshot
from homunculi.runs.difference import flatten
from homunculi.runs.directory import CHECKPOINTS, EVENTS, METRICS, SAMPLES, RunDirectory, state_of
from homunculi.runs.lines import read_lines
from homunculi.web.columns import LIMIT, Columns, Shelf, plain, thinned
from homunculi.web.project import FILES, Project, Refused

MOST_CURVES, MOST_SAMPLES, MOST_EVENTS, MOST_TEXT = 60, 400, 200, 20_000
ALIVE = ("preparing", "running")


def head(project: Project, shelf: Shelf, key: str) -> dict[str, Any]:
    """What a run is and how it stands: state in words, settings, size, damage, files.

    Raises:
        Refused: there is no such run.
    """
    run = project.open(key)
    columns, _ = shelf.read(run.path / METRICS, [], "step")
    notes: list[str] = []
    try:
        info, state = run.info(), state_of(run)
    except InputError as error:
        info, state = {}, "unreadable"
        notes.append(f"run.json cannot be used: {str(error).rpartition('run.json')[2].lstrip(': ')}")
    status = run.status()
    seen = Snapshot(run.path, info, status, state, [], [], [], (), key)
    last = columns.last_step()
    step = max((value for value in (number(status.get("step")), last) if value is not None), default=None)
    parts = {name: dict(flatten(part)) for name in _PARTS if isinstance(part := info.get(name), Mapping)}
    return {
        "key": key,
        "name": seen.name,
        "id": str(info.get("id") or ""),
        "architecture": seen.architecture,
        "state": state,
        "alive": state in ALIVE,
        "situation": seen.situation(),
        "step": step,
        "logged": last,
        "steps": seen.steps()[1],
        "tokens": number(status.get("tokens")),
        "created": number(info.get("created")),
        "heard": number(status.get("time")),
        "parts": parts,
        "notes": [*notes, *_damage(columns, state)],
        "nonfinite": columns.nonfinite(),
        "metrics": columns.names(),
        "checkpoints": _checkpoints(project, run),
        "files": [name for name in FILES if (run.path / name).is_file() and project.is_inside(run.path / name)],
        "version": columns.version,
    }


_PARTS = ("config", "budget", "data", "provenance", "plan")


def _damage(columns: Columns, state: str) -> list[str]:
    notes = []
    if columns.n_damaged:
        plural = "s are" if columns.n_damaged > 1 else " is"
        notes.append(f"{METRICS}: {columns.n_damaged} damaged line{plural} left out")
    if columns.torn and state not in ALIVE:
        notes.append(f"{METRICS}: the last line breaks off in its middle and is left out")
    return notes


def _checkpoints(project: Project, run: RunDirectory) -> list[int]:
    folder = run.path / CHECKPOINTS
    try:
        names = [path.name for path in folder.iterdir()] if project.is_inside(folder) else []
    except OSError:
        return []
    numbers = [name.removeprefix("step-") for name in names if name.startswith("step-")]
    return sorted(int(number) for number in numbers if number.isdecimal())


def curves(project: Project, shelf: Shelf, key: str, names: Sequence[str], axis: str = "step") -> dict[str, Any]:
    """Metrics of one run as lines of at most 500 points each; names that it did not log are left out.

    Raises:
        Refused: there is no such run.
    """
    run = project.open(key)
    asked = list(dict.fromkeys(names))[:MOST_CURVES]
    columns, lines = shelf.read(run.path / METRICS, asked, axis)
    return {
        "version": columns.version,
        "state": state_of(run),
        "last": columns.last_step(),
        "metrics": columns.names(),
        "axis": axis,
        "limit": LIMIT,
        "lines": {name: _drawn(x, y) for name, (x, y) in lines.items() if len(x)},
    }


def _drawn(x: Any, y: Any) -> dict[str, Any]:
    few_x, few_y = thinned(x, y)
    return {"x": plain(few_x), "y": plain(few_y), "n": len(x)}


def samples(project: Project, key: str) -> dict[str, Any]:
    """What the run said, the last 400 samples; each text up to 20,000 characters.

    Raises:
        Refused: there is no such run.
    """
    found = _lines_of(project, key, SAMPLES)
    kept = [_sample(line) for line in found if number(line.get("step")) is not None][-MOST_SAMPLES:]
    return {"samples": kept, "left_out": len(found) - len(kept)}


def _sample(line: Mapping[str, Any]) -> dict[str, Any]:
    texts = {name: str(line.get(name) or "")[:MOST_TEXT] for name in ("prompt", "text")}
    numbers = {name: number(line.get(name)) for name in ("step", "temperature", "seed")}
    return texts | numbers


def events(project: Project, key: str) -> dict[str, Any]:
    """The last 200 things that happened.

    Raises:
        Refused: there is no such run.
    """
    found = _lines_of(project, key, EVENTS)
    rows = []
    for line in found[-MOST_EVENTS:]:
        said = {name: value for name, value in line.items() if name not in ("time", "step", "kind")}
        words = "; ".join(f"{name} {value}" for name, value in islice(said.items(), 8))[:400]
        rows.append(
            {
                "time": number(line.get("time")),
                "step": number(line.get("step")),
                "kind": str(line.get("kind")),
                "words": words,
            }
        )
    return {"events": rows}


def _lines_of(project: Project, key: str, name: str) -> list[dict[str, Any]]:
    path: Path = project.open(key).path / name
    if not path.exists():
        return []
    if not project.is_inside(path):
        raise Refused(f"{name}: leads out of the folder of runs")
    return read_lines(path, on_damage=lambda _: None)
