"""The list of runs under a folder, quick enough to ask for at every refresh: no file of metrics is read whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from homunculi.errors import InputError
from homunculi.runs.clock import now, seconds_of
from homunculi.runs.directory import CHECKPOINTS, INFO, METRICS, RunDirectory, runs_root
from homunculi.runs.lines import find_last
from homunculi.runs.state import state_from

DEPTH = 5  # root / claim / its comparison / further seeds / runs / run
_NOT_ENTERED = frozenset({CHECKPOINTS, "measures", "__pycache__", "node_modules"})


@dataclass(frozen=True)
class RunSummary:
    """One line of the list. `val_loss` (nats a token) and `val_bpb` are of the last evaluation; `created` in seconds.

    `state` is that of `state_from`, or `unreadable` where run.json is damaged.
    """

    path: Path
    id: str
    name: str
    architecture: str
    state: str
    step: int | None
    steps: int | None
    val_loss: float | None
    val_bpb: float | None
    created: float | None


def find_runs(root: Path | str | None = None) -> list[RunSummary]:
    """Every run in `root` (default: the root of runs) and up to five folders below it, newest first.

    Raises:
        InputError: `root` is given and is no folder.
    """
    folder = runs_root() if root is None else Path(root)
    if root is not None and not folder.is_dir():
        raise InputError(f"{folder}: is no folder: give the folder that holds the runs")
    found = [summarise(path) for path in find_run_folders(folder)]
    return sorted(found, key=lambda run: (-(run.created or 0.0), str(run.path)))


def find_run_folders(root: Path, within: Path | None = None) -> Iterator[Path]:
    """Every folder with a run.json in `root` and up to five folders below it.

    Links to folders are followed; with `within` (a resolved path), only those that lead below it.
    """
    return _run_folders(root, DEPTH, within)


def summarise(path: Path | str) -> RunSummary:
    """The summary of the run in folder `path`; damaged files leave their fields empty."""
    return summary_of(RunDirectory(path))[0]


def summary_of(run: RunDirectory) -> tuple[RunSummary, dict[str, Any], dict[str, Any]]:
    """The summary of a run, and what its run.json (empty where it is damaged) and its status.json say, read once."""
    status = run.status()
    try:
        info, state = run.info(), state_from(status, now())
    except InputError:
        info, state = {}, "unreadable"
    evaluated = find_last(run.path / METRICS, "val/loss") or {}
    step = _count(status.get("step"))
    if step is None:
        step = _count((find_last(run.path / METRICS, "step") or {}).get("step"))
    summary = RunSummary(
        path=run.path,
        id=_text(info.get("id")),
        name=_text(info.get("name")) or run.path.name,
        architecture=_text(info.get("architecture")),
        state=state,
        step=step,
        steps=_count(status.get("steps")),
        val_loss=_number(evaluated.get("val/loss")),
        val_bpb=_number(evaluated.get("val/bpb")),
        created=seconds_of(info.get("created")),
    )
    return summary, info, status


def _run_folders(folder: Path, depth: int, within: Path | None) -> Iterator[Path]:
    try:
        with os.scandir(folder) as entries:
            names = sorted((entry.name, _is_folder(entry, within)) for entry in entries)
    except OSError:
        return
    if any(name == INFO for name, _ in names):
        yield folder
    for name, is_folder in names:
        if is_folder and depth and not name.startswith(".") and name not in _NOT_ENTERED:
            yield from _run_folders(folder / name, depth - 1, within)


def _is_folder(entry: os.DirEntry[str], within: Path | None) -> bool:
    try:
        if within is not None and entry.is_symlink() and not Path(entry.path).resolve().is_relative_to(within):
            return False
        return entry.is_dir()
    except (OSError, RuntimeError):
        return False


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else str(value)


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _number(value: Any) -> float | None:
    try:
        number = float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
    except OverflowError:
        return None
    return number if number is not None and abs(number) < float("inf") else None
