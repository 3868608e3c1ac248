"""One run, one folder. Written by one process, read by anyone at any time, also on a copy.

    run.json       what was asked: configuration, provenance, data, budget
    status.json    what it is doing: state and heartbeat
    metrics.jsonl  one flat object a logged step
    events.jsonl   what happened
    samples.jsonl  what it said
    checkpoints/   step-00000500/ …
    measures/      what instruments found inside the model (`homunculi.runs.measures`)

run.json and status.json are replaced whole; the JSONL files only grow. Moments are seconds since 1970.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from homunculi.errors import InputError
from homunculi.files import alone_in, write_json
from homunculi.runs.lines import Damage, LineWriter, plain_object, read_lines, repair, warn
from homunculi.runs.state import ALIVE, state_from

from . import clock

FORMAT = 1
INFO, STATUS = "run.json", "status.json"
METRICS, EVENTS, SAMPLES = "metrics.jsonl", "events.jsonl", "samples.jsonl"
CHECKPOINTS = "checkpoints"


class RunDirectory:
    """The folder of one run. Making this object touches nothing on disk; `claim` and `open_run` check before."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._writers: dict[str, LineWriter] = {}
        self._lock = threading.Lock()

    def write_info(self, fields: Mapping[str, Any]) -> None:
        """Put `fields` into run.json over its present top-level fields; format, id, name and created are added."""
        with self._lock:
            known = self.info() if (self.path / INFO).exists() else {}
            name, run_id = _name_and_id(self.path)
            start = {"format": FORMAT, "id": run_id, "name": name, "created": clock.now()}
            write_json(self.path / INFO, plain_object({**start, **known, **fields}))

    def info(self) -> dict[str, Any]:
        """What run.json says. Raises InputError where it is missing or not a JSON object."""
        try:
            value = json.loads((self.path / INFO).read_bytes())
        except FileNotFoundError:
            raise InputError(f"{self.path}: has no {INFO}, so it is no run") from None
        except (ValueError, RecursionError, OSError) as error:
            raise InputError(f"{self.path / INFO}: cannot be read ({_short(error)}): restore it from a copy") from None
        if not isinstance(value, dict):
            raise InputError(f"{self.path / INFO}: is not a JSON object: restore it from a copy")
        return value

    def write_status(self, **fields: Any) -> None:
        """Put `fields` into status.json over what stands there, with a fresh heartbeat, this process and this host.

        A run that goes on (`preparing`, `running`) loses the reason and exit code of an earlier end. Safe from threads.
        """
        with self._lock:
            known = self.status()
            if fields.get("state") in ALIVE:
                known = {key: value for key, value in known.items() if key not in ("reason", "exit_code")}
            beat = {"time": clock.now(), "pid": os.getpid(), "host": socket.gethostname()}
            write_json(self.path / STATUS, plain_object({**known, **beat, **fields}))

    def status(self) -> dict[str, Any]:
        """What status.json says; empty where it is missing or damaged."""
        try:
            value = json.loads((self.path / STATUS).read_bytes())
        except (ValueError, RecursionError, OSError):
            return {}
        return value if isinstance(value, dict) else {}

    def log_metrics(self, values: Mapping[str, Any]) -> None:
        """Append one logged step. Raises ValueError without an integer `step`, OSError when the disk is full."""
        if _step_of(values) is None:
            raise ValueError("metrics need an integer 'step'")
        self._append(METRICS, values)

    def log_event(self, kind: str, step: int | None = None, **fields: Any) -> None:
        """Append what happened: `kind` is one word (started, resumed, checkpoint, warning, …)."""
        self._append(EVENTS, {"time": clock.now(), "step": step, "kind": kind, **fields})

    def log_sample(self, sample: Mapping[str, Any]) -> None:
        """Append a sample: step, prompt, text, temperature, seed."""
        self._append(SAMPLES, sample)

    def metrics(self, on_damage: Damage = warn) -> list[dict[str, Any]]:
        """Logged steps in order of their step; where a step stands twice, its last object."""
        return list(self.logged_steps(on_damage).values())

    def logged_steps(self, on_damage: Damage = warn) -> dict[int, dict[str, Any]]:
        """Step → its (last) object, in order of steps. A resumed loop skips what stands here already."""
        steps = {
            step: line for line in read_lines(self.path / METRICS, on_damage) if (step := _step_of(line)) is not None
        }
        return dict(sorted(steps.items()))

    def events(self, on_damage: Damage = warn) -> list[dict[str, Any]]:
        return read_lines(self.path / EVENTS, on_damage)

    def samples(self, on_damage: Damage = warn) -> list[dict[str, Any]]:
        return read_lines(self.path / SAMPLES, on_damage)

    def repair(self) -> list[str]:
        """After a crash: mend torn tails and remove half-written temporaries. Returns the names of what was mended.

        Only for the process that is about to write: see `reopen`.
        """
        for left in self.path.glob(".*.tmp"):
            left.unlink(missing_ok=True)
        return [name for name in (METRICS, EVENTS, SAMPLES) if repair(self.path / name)]

    def sync(self) -> None:
        """Make every appended line survive a power cut; worth it before a checkpoint counts as saved."""
        for writer in self._writers.values():
            writer.sync()

    def close(self) -> None:
        """Close the files that were appended to; a later append opens them again."""
        with self._lock:
            for writer in self._writers.values():
                writer.close()
            self._writers.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"RunDirectory({str(self.path)!r})"

    def _append(self, name: str, value: Mapping[str, Any]) -> None:
        with self._lock:
            if name not in self._writers:
                self._writers[name] = LineWriter(self.path / name)
            self._writers[name].append(value)


def runs_root() -> Path:
    """Where runs lie: $HOMUNCULI_RUNS, or `runs` in the current folder."""
    return Path(os.environ.get("HOMUNCULI_RUNS") or "runs")


def new_run_path(name: str) -> Path:
    """A path that nothing has yet: the root of runs, `name` made safe for file systems, six random hex digits."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-_")[:60].rstrip(".-_") or "run"
    while (path := runs_root() / f"{safe}-{secrets.token_hex(3)}").exists():
        pass
    return path


def claim(folder: Path | str) -> RunDirectory:
    """Make `folder` the folder of a new run, in state `preparing`. It may exist, as long as it holds no run.

    Raises:
        InputError: it has a run.json, holds results of a run, is being prepared by another process, or cannot be made.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with alone_in(folder):
            _refuse_taken(folder)
            run = RunDirectory(folder)
            run.write_status(state="preparing", step=0, started=clock.now())
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"{folder}: is a file or lies under one: choose another folder with --run") from None
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder}: cannot be made a run ({_short(error)}): choose another folder with --run"
        ) from None
    return run


def reopen(path: Path | str) -> RunDirectory:
    """Take over an existing run in order to write it on: `open_run`, then mend what a crash tore, state `preparing`.

    Raises:
        InputError: there is no run, or another process is writing it.
    """
    run = open_run(path)
    with alone_in(run.path):
        _refuse_busy(run)
        run.repair()
        run.write_status(state="preparing")
    return run


def open_run(path: Path | str) -> RunDirectory:
    """The run in folder `path`, to be read. Raises InputError where there is none, with the likely folder named."""
    path = Path(path)
    try:
        if (path / INFO).is_file():
            return RunDirectory(path)
        hint = _near_miss(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{str(path)!r}: is no path to a run ({_short(error)})") from None
    raise InputError(f"{path}: is no run (it has no {INFO}): {hint}")


def state_of(run: RunDirectory) -> str:
    """preparing, running, done, failed, preempted, diverged as the run wrote it; crashed, unknown as judged here."""
    return state_from(run.status(), clock.now())


def _near_miss(path: Path) -> str:
    for parent in list(path.absolute().parents)[:4]:
        if (parent / INFO).is_file():
            return f"it lies inside the run {parent}, give that folder"
    if path.is_dir():
        inner = sorted(child.parent for child in path.glob(f"*/{INFO}"))
        if inner:
            return f"it holds {len(inner)} run{'s' * (len(inner) > 1)}, give one of them, for example {inner[-1]}"
        return "give a folder that `homunculi train` made"
    if not path.is_absolute() and (runs_root() / path / INFO).is_file():
        return f"there is one at {runs_root() / path}, give that path"
    return "give a folder that `homunculi train` made" if path.exists() else "there is no such folder"


def _refuse_taken(folder: Path) -> None:
    if (folder / INFO).exists():
        raise InputError(f"{folder}: holds a run already: resume it, or choose another folder with --run")
    for name in (METRICS, CHECKPOINTS):
        left = folder / name
        if any(left.iterdir()) if left.is_dir() else left.is_file() and left.stat().st_size:
            raise InputError(
                f"{folder}: holds {name} of a run without {INFO}: move it away, or choose another --run folder"
            )
    _refuse_busy(RunDirectory(folder))


def _refuse_busy(run: RunDirectory) -> None:
    status = run.status()
    if state_from(status, clock.now()) in ALIVE and status.get("pid") != os.getpid():
        where = f"process {status.get('pid')} on {status.get('host')}"
        raise InputError(f"{run.path}: is being written by {where}: stop that first, or choose another folder")


def _name_and_id(path: Path) -> tuple[str, str]:
    """`quickstart-1a2b3c` is run 1a2b3c named quickstart; any other folder gets a fresh number."""
    folder = path.absolute().name
    match = re.fullmatch(r"(.+)-([0-9a-f]{6})", folder)
    return (match[1], match[2]) if match else (folder, secrets.token_hex(3))


def _step_of(line: Mapping[str, Any]) -> int | None:
    step = line.get("step")
    return step if isinstance(step, int) and not isinstance(step, bool) else None


def _short(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) and error.strerror else str(error)).replace("\n", " ")
