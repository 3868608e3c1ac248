"""The folder of runs as the page sees it: what may be read, the list of runs, one run by its key.

A key is a run's path below the folder. Nothing outside the folder is read: keys that leave it, and links that lead out
of it, name no run.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from homunculi.errors import InputError
from homunculi.report.numbers import number
from homunculi.runs import clock
from homunculi.runs.difference import flatten
from homunculi.runs.directory import EVENTS, INFO, METRICS, SAMPLES, STATUS, RunDirectory
from homunculi.runs.index import RunSummary, find_run_folders, summary_of
from homunculi.runs.lines import find_last
from homunculi.runs.state import state_from

READ_FOR_LIST = (INFO, STATUS, METRICS)
FILES = (INFO, STATUS, METRICS, EVENTS, SAMPLES, "report.html", "tokenizer.json")
# Settings that make repetitions of one experiment: groups are of runs equal in everything else.
SEEDS = frozenset({"seed", "data_seed"})
# Settings that say how a run was carried out, not what was asked.
CARRIED_OUT = frozenset({"device", "compile"})

_Stamp = tuple[tuple[int, int], ...]


class Refused(InputError):
    """The page does not show that: it lies outside the folder of runs, or there is no such thing."""


@dataclass(frozen=True)
class Listed:
    """One line of the list, as JSON. `group` is equal for runs that differ in nothing but the seed."""

    key: str
    name: str
    id: str
    architecture: str
    state: str
    step: int | None
    steps: int | None
    val_loss: float | None
    val_bpb: float | None
    train_loss: float | None
    parameters: float | None
    tokens: float | None
    seed: float | None
    created: float | None
    group: str


class Project:
    """A folder of runs. Safe to ask from several threads.

    Raises:
        InputError: `root` is no folder.
    """

    def __init__(self, root: Path | str) -> None:
        if not Path(root).is_dir():
            raise InputError(f"{root}: is no folder: give the folder that holds the runs with --runs")
        self.root = Path(root).resolve()
        self._known: dict[str, tuple[_Stamp, Listed, dict[str, Any]]] = {}
        self._lock = threading.Lock()

    def runs(self) -> list[dict[str, Any]]:
        """Every run below the folder, newest first. Files that did not change since the last call are not read."""
        now, listed = clock.now(), []
        with self._lock:
            seen = {}
            for path in find_run_folders(self.root, within=self.root):
                if self.holds(path, READ_FOR_LIST):
                    key = self.key_of(path)
                    stamp = _stamp(path)
                    known = self._known.get(key)
                    if known is None or known[0] != stamp:
                        known = (stamp, *_listed(key, path))
                    seen[key] = known
                    listed.append(_as_of(known[1], known[2], now))
            self._known = seen
        return sorted(listed, key=lambda run: (-(run["created"] or 0.0), run["key"]))

    def key_of(self, path: Path) -> str:
        """The key of a run's folder; `.` where the folder of runs is itself a run."""
        return path.relative_to(self.root).as_posix()

    def open(self, key: str) -> RunDirectory:
        """The run that a key names.

        Raises:
            Refused: the key leaves the folder, by itself or through a link, or there is no run.
        """
        path = self._below(key)
        if not (path / INFO).is_file() or not self.holds(path, READ_FOR_LIST):
            raise Refused(f"{_short(key)}: there is no such run below the folder")
        return RunDirectory(path)

    def file(self, key: str, name: str) -> Path:
        """One of FILES of a run, to be shown as it is.

        Raises:
            Refused: another file, one that is not there, or a link that leads out.
        """
        run = self.open(key)
        path = run.path / name
        if name not in FILES or not path.is_file() or not self.is_inside(path):
            raise Refused(f"{_short(name)}: no such file of this run")
        return path

    def holds(self, path: Path, names: tuple[str, ...]) -> bool:
        """Whether a folder and some files in it lie below the root, links followed."""
        if not self.is_inside(path):
            return False
        return all(not (path / name).is_symlink() or self.is_inside(path / name) for name in names)

    def is_inside(self, path: Path) -> bool:
        try:
            return path.resolve().is_relative_to(self.root)
        except (OSError, RuntimeError):
            return False

    def _below(self, key: str) -> Path:
        parts = key.split("/")
        plain = key == "." or not any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts)
        path = self.root / key
        if not plain or len(key) > 1000 or not self.is_inside(path):
            raise Refused(f"{_short(key)}: is no run below the folder")
        return path


def group_of(info: Mapping[str, Any]) -> str:
    """A short name for everything that was asked of a run but its seeds."""
    data = info.get("data")
    asked = {"architecture": info.get("architecture"), "config": settings_of(info)}
    asked["data"] = data.get("data_hash") if isinstance(data, Mapping) else None
    return hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()[:12]


def settings_of(info: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted name → value of the settings that make a group."""
    config = info.get("config")
    flat = dict(flatten(config)) if isinstance(config, Mapping) else {}
    return {name: value for name, value in flat.items() if name not in SEEDS | CARRIED_OUT}


def _listed(key: str, path: Path) -> tuple[Listed, dict[str, Any]]:
    summary, info, status = summary_of(RunDirectory(path))
    trained = find_last(path / METRICS, "train/loss") or {}
    config, budget = (value if isinstance(value, dict) else {} for value in (info.get("config"), info.get("budget")))
    more: dict[str, Any] = {
        "train_loss": number(trained.get("train/loss")),
        "parameters": number(budget.get("parameters")),
        "tokens": number(status.get("tokens")) or number(trained.get("tokens")),
        "seed": number(config.get("seed")),
        "group": group_of(info) if info else key,
    }
    return Listed(key=key, **_plain(summary), **more), status


def _plain(summary: RunSummary) -> dict[str, Any]:
    names = ("name", "id", "architecture", "state", "step", "steps", "val_loss", "val_bpb", "created")
    return {name: getattr(summary, name) for name in names}


def _as_of(run: Listed, status: Mapping[str, Any], now: float) -> dict[str, Any]:
    """The line with the state that the run has at this moment: a heartbeat grows old without any file changing."""
    state = run.state if run.state == "unreadable" else state_from(status, now)
    return asdict(run) | {"state": state}


def _stamp(path: Path) -> _Stamp:
    """Changes whenever one of the files does."""
    found = []
    for name in READ_FOR_LIST:
        try:
            about = os.stat(path / name)
            found.append((about.st_mtime_ns, about.st_size))
        except OSError:
            found.append((0, -1))
    return tuple(found)


def _short(text: str) -> str:
    return ascii(text[:80])
