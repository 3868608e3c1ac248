"""A run in another process: what it is told and may see, and how it ended.

`homunculi.experiments.side_by_side` has many of them made, `homunculi.experiments.standing` starts the processes. A run
goes on where it stopped, so what was killed at any instant is started again with the same jobs. Standard library only.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from homunculi.errors import DIVERGED, INTERRUPTED, PREEMPTED, InputError
from homunculi.runs.directory import INFO, RunDirectory, state_of

LOG = "log.txt"
OVER = ("done", "diverged", "failed", "stopped")
_LAST_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Job:
    """One run to be made: what `homunculi train RECIPE key=value… --run FOLDER` is told.

    Attributes:
        key: runs of the same key come to the same; empty: of no other.
    """

    name: str
    recipe: str
    assignments: tuple[str, ...]
    folder: Path
    key: str = ""


@dataclass(slots=True)
class JobState:
    """Where a job stands.

    Attributes:
        state: waiting, running, done, diverged, failed, or stopped on request.
        device: where it runs.
        step, steps: how far it has come, and of how many.
        exit_code: of its process; None while it has none, or where nothing had to be done.
        message: why it did not end well, in one line.
        seconds: how long its process took here.
    """

    job: Job
    state: str = "waiting"
    device: str = ""
    step: int = 0
    steps: int = 0
    exit_code: int | None = None
    message: str = ""
    seconds: float = 0.0

    @property
    def over(self) -> bool:
        return self.state in OVER


class Process(Protocol):
    """What a launcher returns: as much of `subprocess.Popen` as a fleet needs."""

    def poll(self) -> int | None: ...

    def terminate(self) -> None: ...

    def wait(self, timeout: float | None = None) -> int: ...


Launch = Callable[[Sequence[str], Mapping[str, str], Path], Process]
Report = Callable[[list[JobState]], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Jobs that are wanted together, and where they may go.

    Attributes:
        jobs: each with a folder of its own. A finished or diverged one is left as it is, an unfinished one resumed.
        at_once: processes on each device, those of other batches included.
        devices: cpu, mps, cuda:0, …; a process sees its own GPU only.
        report: told the states at each change and about once a second.
        extra_env: put over the environment of every process.
        taken: whether a job's result is there without a run; asked before it is started.

    Raises:
        InputError: two jobs share a folder, or there is no place to run.
    """

    jobs: Sequence[Job]
    at_once: int
    devices: Sequence[str]
    report: Report = lambda states: None
    extra_env: Mapping[str, str] = field(default_factory=dict)
    taken: Callable[[Job], bool] = lambda job: False

    def __post_init__(self) -> None:
        if self.at_once < 1 or not self.devices:
            raise InputError("at-once: at least one process on at least one device")
        if len({job.folder for job in self.jobs}) < len(self.jobs):
            raise InputError("fleet: two jobs share a folder; give each its own")


def begin(job: Job) -> JobState:
    """Where a job stands by its folder alone."""
    run = RunDirectory(job.folder)
    found, status = state_of(run), run.status()
    if found == "done":
        return JobState(job, "done")
    if found == "diverged":
        return JobState(job, "diverged", message=str(status.get("reason") or "diverged"))
    return JobState(job)


def words_of(job: Job) -> list[str]:
    if (job.folder / INFO).exists():
        own_file = ["--recipe", job.recipe] if ".py" in job.recipe else []
        return ["resume", str(job.folder), *own_file, "--json"]
    return ["train", job.recipe, *job.assignments, "--run", str(job.folder), "--json"]


def how_it_ended(job: Job, code: int) -> tuple[str, str]:
    """State and message of a job whose process ended with that code."""
    run = RunDirectory(job.folder)
    if code == 0 and state_of(run) == "done":
        return "done", ""
    reason = str(run.status().get("reason") or "") if code in (DIVERGED, PREEMPTED, INTERRUPTED) else ""
    said = reason or _last_line(job.folder / LOG)
    if code == DIVERGED:
        return "diverged", said or "diverged"
    if code in (PREEMPTED, INTERRUPTED):
        return "stopped", said or "stopped"
    if code < 0:
        name = signal.Signals(-code).name if -code in {int(number) for number in signal.Signals} else str(-code)
        hint = "; perhaps the memory is too small for so many at once" if -code == 9 else ""
        return ("stopped" if -code == signal.SIGTERM else "failed"), f"its process was ended by {name}{hint}"
    return "failed", said or f"its process ended with code {code}"


def _last_line(log: Path) -> str:
    """The last line that a process wrote, without the program's name."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _LAST_BYTES))
            lines = file.read().decode("utf-8", errors="replace").split("\n")
    except OSError:
        return ""
    said = [" ".join(line.split()) for line in lines if line.strip()]
    return said[-1].removeprefix("homunculi: ") if said else ""


def environment_of(device: str) -> dict[str, str]:
    """The environment of a process that shall see that device only; on a CPU with one thread unless it says more."""
    environment = dict(os.environ)
    root = Path(__file__).resolve().parents[2]
    if not {"site-packages", "dist-packages"} & set(root.parts):  # a checkout: other folders must find it too
        paths = [str(root), *filter(None, [environment.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
    kind, _, number = device.partition(":")
    if kind == "cuda":
        visible = [name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        place = int(number or 0)
        environment["CUDA_VISIBLE_DEVICES"] = visible[place] if place < len(visible) else str(place)
    else:
        environment["CUDA_VISIBLE_DEVICES"] = ""
        environment.setdefault("OMP_NUM_THREADS", "1")
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # neighbours want the same cores
    return environment
