"""Metrics of a run as columns that follow the growing file, and lines of few points that keep every peak."""

from __future__ import annotations

import json
import os
import re
import threading
from array import array
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homunculi.report.numbers import number

LIMIT = 500
# How many numbers the runs that were looked at last may hold together (16 bytes each).
KEPT = 20_000_000
_AXES = ("step", "tokens", "seconds")
_NOT_DRAWN = frozenset({"step", "nonfinite"})
_STEP = re.compile(rb'"step"\s*:\s*(\d{1,15})\s*[,}]')
_KEY = re.compile(rb'"([^"\\\n]{1,200})"\s*:')
_HEAD, _TAIL = 1 << 16, 1 << 19

Floats = NDArray[np.float64]


@dataclass
class Column:
    """Steps and values of one metric in the order of the file; NaN where a value was not finite."""

    steps: array[int] = field(default_factory=lambda: array("q"))
    values: array[float] = field(default_factory=lambda: array("d"))


class Columns:
    """The metrics file of one run, read on from where the last call ended.

    Args:
        wanted: read only these metrics, many times faster than all of them. Their numbers are found in the text of a
            line: lines are flat objects, and quotes in strings are escaped, so a quoted name before a colon is a key.

    Attributes:
        n_lines: whole lines read; n_damaged: of these, lines that are no JSON object with a step.
        torn: whether the file ends in the middle of a line.
    """

    def __init__(self, path: Path, wanted: Iterable[str] | None = None) -> None:
        self.path = path
        self._patterns = None if wanted is None else [(name, _pattern(name)) for name in wanted if name != "step"]
        self.columns: dict[str, Column] = {}
        self.n_lines = self.n_damaged = self.n_numbers = 0
        self.torn = False
        self._offset, self._inode = 0, -1

    @property
    def version(self) -> str:
        """Changes when a later `follow` has read more."""
        return f"{self._inode}-{self._offset}"

    def follow(self) -> None:
        """Read what was added. A file that was replaced or cut is read anew; without a file there are no columns."""
        try:
            with open(self.path, "rb") as file:
                about = os.fstat(file.fileno())
                if about.st_ino != self._inode or about.st_size < self._offset:
                    self._forget(about.st_ino)
                file.seek(self._offset)
                data = file.read()
        except OSError:
            self._forget(-1)
            return
        end = data.rfind(b"\n") + 1
        self.torn = bool(data[end:].strip())
        for line in data[:end].splitlines():
            self._take(line)
        self._offset += end

    def names(self) -> list[str]:
        """Metrics with at least one number, in the order in which they came up."""
        return [name for name in self.columns if name not in _NOT_DRAWN]

    def line(self, name: str, axis: str = "step") -> tuple[Floats, Floats]:
        """x and y in order of x; where a step stands twice, its last value. `axis`: step, tokens or seconds."""
        column = self.columns.get(name)
        if column is None:
            return np.empty(0), np.empty(0)
        steps, values = _in_order(column)
        if axis == "step" or axis not in _AXES or axis not in self.columns:
            return steps.astype(np.float64), values
        at, x = _in_order(self.columns[axis])
        place = np.minimum(np.searchsorted(at, steps), len(at) - 1)
        there = (at[place] == steps) & np.isfinite(x[place])
        order = np.argsort(x[place][there], kind="stable")
        return x[place][there][order], values[there][order]

    def last_step(self) -> int | None:
        steps = [column.steps[-1] for column in self.columns.values() if column.steps]
        return max(steps, default=None)

    def nonfinite(self) -> list[tuple[int, str]]:
        """(step, metric) of the first hundred values that were not finite."""
        found = []
        for name in self.names():
            steps, values = _in_order(self.columns[name])
            found += [(int(step), name) for step in steps[~np.isfinite(values)][:100]]
        return sorted(found)[:100]

    def _take(self, line: bytes) -> None:
        if not line.strip():
            return
        self.n_lines += 1
        if self._patterns is not None:
            self._pick(line, self._patterns)
            return
        try:
            values = json.loads(line)
            step = values["step"]
            if not isinstance(step, int) or isinstance(step, bool):
                raise ValueError
            array("q", [step])
        except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
            self.n_damaged += 1
            return
        for name, value in values.items():
            if name not in _NOT_DRAWN:
                self._put(name, step, value)

    def _pick(self, line: bytes, patterns: list[tuple[str, re.Pattern[bytes]]]) -> None:
        step = _STEP.search(line)
        if step is None or not (line.startswith(b"{") and line.rstrip().endswith(b"}")):
            self.n_damaged += 1
            return
        for name, pattern in patterns:
            if found := pattern.search(line):
                self._put(name, int(step[1]), None if found[1] == b"null" else float(found[1]))

    def _put(self, name: str, step: int, value: Any) -> None:
        size = number(value)
        if size is None and value is not None:
            return
        column = self.columns.get(name)
        if column is None:
            column = self.columns[name] = Column()
        column.steps.append(step)
        column.values.append(float("nan") if size is None else size)
        self.n_numbers += 1

    def _forget(self, inode: int) -> None:
        self.columns.clear()
        self.n_lines = self.n_damaged = self.n_numbers = self._offset = 0
        self.torn, self._inode = False, inode


class Shelf:
    """The columns of the runs that were looked at last. Safe to ask from several threads."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._of: OrderedDict[tuple[Any, ...], tuple[Columns, threading.Lock]] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, path: Path, names: list[str], axis: str) -> tuple[Columns, dict[str, tuple[Floats, Floats]]]:
        """The columns of a metrics file as of now, and some of its lines, taken in one turn."""
        return self._read((path,), Columns(path), names, axis)

    def pick(self, path: Path, name: str, axis: str) -> tuple[Floats, Floats]:
        """One line of a metrics file as of now, without reading the others."""
        wanted = (name, axis)
        return self._read((path, *wanted), Columns(path, wanted), [name], axis)[1][name]

    def _read(
        self, key: tuple[Any, ...], fresh: Columns, names: list[str], axis: str
    ) -> tuple[Columns, dict[str, tuple[Floats, Floats]]]:
        with self._lock:
            columns, turn = self._of.setdefault(key, (fresh, threading.Lock()))
            self._of.move_to_end(key)
        with turn:
            columns.follow()
            lines = {name: columns.line(name, axis) for name in names}
        self._make_room()
        return columns, lines

    def _make_room(self) -> None:
        with self._lock:
            total = sum(columns.n_numbers for columns, _ in self._of.values())
            while total > self._kept and len(self._of) > 1:
                _, (columns, _) = self._of.popitem(last=False)
                total -= columns.n_numbers


def thinned(x: Floats, y: Floats, limit: int = LIMIT) -> tuple[Floats, Floats]:
    """At most `limit` points: the first, the last, and of each stretch between them the lowest and the highest.

    A stretch with values that are not finite keeps one of them: the line stays broken there. `limit`: 8 or more.
    """
    if len(x) <= limit:
        return x, y
    groups = (limit - 2) // 3
    edges = np.linspace(1, len(x) - 1, groups + 1).astype(int)
    kept = {0, len(x) - 1}
    for low, high in pairwise(edges.tolist()):
        part = y[low:high]
        finite = np.isfinite(part)
        if finite.any():
            kept |= {low + int(np.nanargmin(part)), low + int(np.nanargmax(part))}
        if not finite.all():
            kept.add(low + int(np.argmin(finite)))
    places = np.array(sorted(kept))
    return x[places], y[places]


def plain(values: Floats) -> list[float | None]:
    """As JSON has it: seven figures, None for what is not finite."""
    return [float(f"{value:.7g}") if np.isfinite(value) else None for value in values]


def logged_names(path: Path) -> list[str]:
    """Metrics that the beginning and the end of a file name, in their order, without reading what lies between."""
    try:
        with open(path, "rb") as file:
            data = file.read(_HEAD)
            file.seek(max(len(data), os.fstat(file.fileno()).st_size - _TAIL))
            data += b"\n" + file.read()
    except OSError:
        return []
    found = dict.fromkeys(name.decode("ascii", "replace") for name in _KEY.findall(data))
    return [name for name in found if name not in _NOT_DRAWN]


def _pattern(name: str) -> re.Pattern[bytes]:
    key = re.escape(json.dumps(name).encode("ascii"))
    return re.compile(key + rb"\s*:\s*(null|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)\s*[,}]")


def _in_order(column: Column) -> tuple[NDArray[np.int64], Floats]:
    steps, values = np.array(column.steps, dtype=np.int64), np.array(column.values, dtype=np.float64)
    if len(steps) < 2 or (np.diff(steps) > 0).all():
        return steps, values
    last = {int(step): place for place, step in enumerate(steps)}
    places = np.array([last[step] for step in sorted(last)])
    return steps[places], values[places]
