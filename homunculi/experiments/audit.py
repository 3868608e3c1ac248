"""The audit: certificates for many models of other people, each made and asked in a process of its own.

A source is a module, given by its dotted name, with ``names()``, ``versions()`` and ``build(name)``; what `build`
returns has the attributes of `interop.families.Family`. A process may take so much time and memory. What is found about
a family is one line of `families.jsonl`, and a family that has a line for the same versions is not asked again.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from homunculi import __version__
from homunculi.errors import InputError
from homunculi.experiments.audit_family import COLUMNS, FORKS, not_asked
from homunculi.files import write_json
from homunculi.report.markup import inert
from homunculi.runs.lines import LineWriter, read_lines

ROWS, WHOLE = "families.jsonl", "audit.json"

_LOADING = 600.0  # seconds that loading packages may take
_WORDS = (("yes", True), ("no", False), ("not asked", None))
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}

Report = Callable[[dict[str, Any], int, int], None]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one family may take.

    Attributes:
        seconds: of wall time, from when packages are loaded.
        memory: GiB that its process may allocate; enforced where the system can (Linux).
    """

    seconds: float = 120.0
    memory: float = 4.0


def audit(
    source: str,
    wanted: list[str],
    folder: Path,
    *,
    at_once: int = 1,
    limits: Limits | None = None,
    again: bool = False,
    report: Report = lambda row, done, of: None,
) -> dict[str, Any]:
    """Ask the families that are wanted, each in a process of its own; what the folder knows is not asked again.

    Args:
        source: the module that makes them.
        wanted: names; empty for all.
        folder: where rows are kept, made if absent; `audit.json` in it is all it knows of these versions.
        at_once: processes at a time.
        limits: of one family.
        again: ask also what is known.
        report: told each new row, how many rows are there and how many there will be.

    Returns:
        versions, limits, counts by column, and one row for each family that was wanted.

    Raises:
        InputError: the source does not know a name, its package is not installed, or the folder is a file.
    """
    limits = limits or Limits()
    module: Any = importlib.import_module(source)
    chosen = _chosen(module.names(), wanted)
    versions = {**module.versions(), "homunculi": __version__}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"{folder}: not a folder; name another for the results") from error
    known = {} if again else {name: row for name, row in _known(folder, versions).items() if _stands(row, limits)}
    missing = [name for name in chosen if name not in known]
    nurseries = [_Nursery(source, limits) for _ in range(max(1, at_once))]
    with LineWriter(folder / ROWS) as writer, contextlib.closing(_rows(nurseries, missing)) as rows_as_they_come:
        for done, row in enumerate(rows_as_they_come, len(chosen) - len(missing) + 1):
            writer.append({**row, "versions": versions})
            report(row, done, len(chosen))
    rows = _known(folder, versions)
    write_json(folder / WHOLE, _whole([rows[name] for name in sorted(rows)], versions, limits))
    return _whole([rows[name] for name in chosen], versions, limits)


def _rows(nurseries: list[_Nursery], names: list[str]) -> Generator[dict[str, Any]]:
    """Rows as they come. However this ends, so do the processes."""
    idle: SimpleQueue[_Nursery] = SimpleQueue()
    for nursery in nurseries:
        idle.put(nursery)

    def ask(name: str) -> dict[str, Any]:
        nursery = idle.get()
        try:
            return nursery.ask(name)
        finally:
            idle.put(nursery)

    pool = ThreadPoolExecutor(max_workers=len(nurseries))
    try:
        for future in as_completed([pool.submit(ask, name) for name in names]):
            yield future.result()
    finally:
        for nursery in nurseries:
            nursery.close()
        pool.shutdown(cancel_futures=True)


def _whole(rows: list[dict[str, Any]], versions: Mapping[str, str], limits: Limits) -> dict[str, Any]:
    counts = {column: {word: sum(row[column] is value for row in rows) for word, value in _WORDS} for column in COLUMNS}
    return {**versions, "limits": asdict(limits), "counts": counts, "families": rows}


def _chosen(names: list[str], wanted: list[str]) -> list[str]:
    for name in wanted:
        if name not in names:
            near = get_close_matches(name, names, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are {len(names)}, from {names[0]} on"
            raise InputError(f"{inert(name)}: no such family is installed; {hint}")
    return list(dict.fromkeys(wanted)) or names


def _known(folder: Path, versions: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The latest row of each family that was asked in these versions."""
    lines = [line for line in read_lines(folder / ROWS) if {"family", "seconds", *COLUMNS} <= line.keys()]
    return {
        line["family"]: {key: value for key, value in line.items() if key != "versions"}
        for line in lines
        if line.get("versions") == versions
    }


def _stands(row: Mapping[str, Any], limits: Limits) -> bool:
    """A family that went beyond a limit is asked again where it may take more."""
    reached: Mapping[str, float] = row.get("reached") or {}
    return not any(value < getattr(limits, name) for name, value in reached.items())


class _Nursery:
    """A process that asks families one after the other, each in a process of its own."""

    def __init__(self, source: str, limits: Limits) -> None:
        self.source, self.limits = source, limits
        self.process: subprocess.Popen[str] | None = None
        self.lock = threading.Lock()
        self.closed = False

    def ask(self, name: str) -> dict[str, Any]:
        """The row of one family."""
        process = self._loaded()
        if process is None:
            return {"family": name, **not_asked("the packages behind it could not be loaded"), "seconds": 0.0}
        began = time.monotonic()
        with contextlib.suppress(BrokenPipeError):  # it has died: what it answers says so
            assert process.stdin
            process.stdin.write(f"{name}\n")
            process.stdin.flush()
        line = self._line(process, self.limits.seconds)
        if line is None:
            seconds = self.limits.seconds
            found = {**not_asked(f"took more than {seconds:g} s"), "reached": {"seconds": seconds}}
        else:
            found = json.loads(line) if line else not_asked(f"its process ended with {process.returncode}")
        if not FORKS:
            self._end()
        return {"family": name, **found, "seconds": round(time.monotonic() - began, 1)}

    def _line(self, process: subprocess.Popen[str], seconds: float) -> str | None:
        """The next line; empty when the process has ended, None when it took too long and was ended."""
        assert process.stdout
        line = process.stdout.readline() if select.select([process.stdout], [], [], seconds)[0] else None
        if not line:
            self._end()
        return line

    def _loaded(self) -> subprocess.Popen[str] | None:
        """The process, once it has loaded what families need; None where it cannot."""
        with self.lock:
            if self.closed:
                raise RuntimeError("no more families are asked")
            if self.process is not None:
                return self.process
            limits = [str(self.limits.seconds), str(self.limits.memory)]
            process = self.process = subprocess.Popen(
                [sys.executable, "-m", "homunculi.experiments.audit_family", self.source, *limits],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="utf-8",
                env=_environment(),
                start_new_session=True,  # so that it can be ended together with the family's process
            )
        return process if self._line(process, _LOADING) else None

    def _end(self) -> None:
        with self.lock:
            process, self.process = self.process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()

    def close(self) -> None:
        """End it, and let nothing else start."""
        self.closed = True
        self._end()


def _environment() -> dict[str, str]:
    """Offline, on one thread and no accelerator, with this package where this process has it."""
    here = str(Path(__file__).resolve().parents[2])
    paths = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, **_ENVIRONMENT, "PYTHONPATH": os.pathsep.join(paths)}
