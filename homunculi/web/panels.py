"""What instruments measured, as the page draws it. Knows four views and no instrument by name."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homunculi.errors import InputError
from homunculi.report.numbers import number
from homunculi.runs.measures import (
    FOLDER,
    Stored,
    companions,
    measured_instruments,
    measured_steps,
    read_about,
    read_measurement,
)
from homunculi.web.project import Project, Refused

# Numbers of one array that are sent; longer axes are cut to their beginnings, and a note says so.
MOST_NUMBERS, MOST_PLACES = 120_000, 1024


class Panels:
    """Reads measurements of runs, and keeps the words of those that were asked for over training."""

    def __init__(self, project: Project) -> None:
        self._project = project
        self._scalars: dict[Path, tuple[int, dict[str, float | None]]] = {}
        self._lock = threading.Lock()

    def instruments(self, key: str) -> dict[str, Any]:
        """Every instrument of a run: name, title, question, view and the steps at which it measured.

        Raises:
            Refused: there is no such run.
        """
        path = self._folder(key)
        found = []
        for name in measured_instruments(path):
            steps = measured_steps(path, name)
            about = self._about_last(path, name, steps)
            words = {word: str(about.get(word) or "") for word in ("title", "question", "view")}
            found.append({"name": name, **words, "steps": steps, "title": words["title"] or name})
        return {"instruments": found}

    def measurement(self, key: str, instrument: str, step: int) -> dict[str, Any]:
        """One measurement with its numbers.

        Raises:
            Refused: there is no such run, or its files lead out of the folder.
            InputError: there is no such measurement, or it is damaged.
        """
        path = self._folder(key)
        self._check(path, instrument, step)
        return as_json(read_measurement(path, instrument, step))

    def scalars(self, key: str, instrument: str) -> dict[str, Any]:
        """Name → x (steps) and y of the measurements that are a number alone, with their `low`, `high` and `null sd`.

        Raises:
            Refused: there is no such run, or its files lead out of the folder.
        """
        path = self._folder(key)
        found = {step: self._numbers(path, instrument, step) for step in measured_steps(path, instrument)}
        names = dict.fromkeys(name for numbers in found.values() for name in numbers)
        lines: dict[str, dict[str, list[float | None]]] = {}
        for name, more in companions(names).items():
            steps = [step for step, numbers in found.items() if numbers.get(name) is not None]
            lines[name] = {"x": [*steps], "y": [found[step][name] for step in steps]}
            lines[name] |= {what: [found[step].get(other) for step in steps] for what, other in more.items()}
        return {"lines": {name: line for name, line in lines.items() if line["x"]}}

    def _numbers(self, path: Path, instrument: str, step: int) -> dict[str, float | None]:
        file = path / FOLDER / instrument / f"step-{step:08d}.json"
        try:
            stamp = file.stat().st_mtime_ns
            with self._lock:
                known = self._scalars.get(file)
            if known and known[0] == stamp:
                return known[1]
            self._check(path, instrument, step)
            found = read_about(path, instrument, step).get("scalars")
        except (OSError, InputError):
            return {}
        values = {str(name): number(value) for name, value in found.items()} if isinstance(found, dict) else {}
        with self._lock:
            self._scalars[file] = (stamp, values)
        return values

    def _about_last(self, path: Path, name: str, steps: list[int]) -> dict[str, Any]:
        for step in reversed(steps):
            try:
                self._check(path, name, step)
                return read_about(path, name, step)
            except InputError:
                continue
        return {}

    def _folder(self, key: str) -> Path:
        path = self._project.open(key).path
        if not self._project.is_inside(path / FOLDER):
            raise Refused(f"{FOLDER}: leads out of the folder of runs")
        return path

    def _check(self, path: Path, instrument: str, step: int) -> None:
        if "/" in instrument or "\0" in instrument or instrument in (".", ".."):
            raise Refused("no name of an instrument")
        for ending in ("json", "safetensors"):
            if not self._project.is_inside(path / FOLDER / instrument / f"step-{step:08d}.{ending}"):
                raise Refused(f"{FOLDER}: leads out of the folder of runs")


def as_json(stored: Stored) -> dict[str, Any]:
    """A measurement as the page draws it: nested lists with None for what is not finite."""
    found, notes = stored.measurement, list(stored.measurement.notes)
    figures = []
    for name, axes in found.axes.items():  # in the order of the instrument, which the arrays' file does not keep
        if name not in found.values:
            continue
        array = found.values[name]
        few = _few(array)
        if few.shape != array.shape:
            notes.append(f"{name}: {_by(few.shape)} of {_by(array.shape)} places are shown")
        figures.append(
            {
                "name": name,
                "unit": found.units.get(name, ""),
                "axes": list(axes),
                "labels": [_labels(found.labels.get(axis), size) for axis, size in zip(axes, few.shape, strict=True)],
                "shape": list(few.shape),
                "values": _nested(few),
            }
        )
    head = {name: getattr(stored, name) for name in ("instrument", "view", "title", "question", "step", "tokens")}
    return head | {"notes": notes, "figures": figures}


def _labels(labels: tuple[str, ...] | None, size: int) -> list[str] | None:
    return None if labels is None else [label[:200] for label in labels[:size]]


def _few(array: NDArray[Any]) -> NDArray[Any]:
    """The beginning of every axis, so that no more than MOST_NUMBERS numbers are left."""
    few = array[tuple(slice(0, MOST_PLACES) for _ in array.shape)]
    while few.size > MOST_NUMBERS:
        axis = int(np.argmax(few.shape))
        few = few[tuple(slice(0, -(-size // 2)) if at == axis else slice(None) for at, size in enumerate(few.shape))]
    return few


def _nested(array: NDArray[Any]) -> Any:
    if array.dtype.kind == "f":
        rounded = np.array([float(f"{value:.6g}") for value in array.ravel()], dtype=object).reshape(array.shape)
        rounded[~np.isfinite(array)] = None
        return rounded.tolist() if array.ndim else rounded.item()
    return array.tolist()


def _by(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))
