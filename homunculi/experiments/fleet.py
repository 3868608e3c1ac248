"""Runs in processes of their own, some at once on each device.

A run goes on where it stopped, so a fleet that was killed at any instant is started again with the same jobs. Each
process holds the reading end of a pipe from this one: when this one is gone, however it went, the pipe ends, and the
run stops itself after a checkpoint. Standard library only: the processes begin in this file, before torch is loaded.
"""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from homunculi.errors import DIVERGED, INTERRUPTED, PREEMPTED, TERMINATED, InputError, Stopped
from homunculi.runs.directory import INFO, METRICS, RunDirectory, state_of
from homunculi.runs.lines import find_last
from homunculi.runs.state import ALIVE
from homunculi.train.signals import listening

LOG = "log.txt"
OVER = ("done", "diverged", "failed", "stopped")
GRACE_SECONDS = 60.0  # from the request to stop until a run without its fleet ends at once
_BUSY_SECONDS = 90.0  # how long the process of an earlier fleet may still take to stop
_LOOK_SECONDS = 0.1
_SHOW_SECONDS = 1.0
_LAST_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Job:
    """One run to be made: what `homunculi train RECIPE key=value… --run FOLDER` is told."""

    name: str
    recipe: str
    assignments: tuple[str, ...]
    folder: Path


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


def launch_here(words: Sequence[str], environment: Mapping[str, str], log: Path) -> Process:
    """Start ``homunculi WORDS`` on this machine: the one function that another launcher replaces.

    Args:
        words: of the command line, after ``homunculi``.
        environment: of the process.
        log: file that what it says is appended to.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "homunculi.experiments.fleet", *words],
            stdin=subprocess.PIPE,  # never written to; it ends with this process
            stdout=subprocess.DEVNULL,
            stderr=said,
            env=dict(environment),
            start_new_session=True,  # Ctrl-C reaches this process alone, which then stops the others
        )


def run_all(
    jobs: Sequence[Job],
    *,
    at_once: int,
    devices: Sequence[str],
    report: Report = lambda states: None,
    extra_env: Mapping[str, str] | None = None,
    launch: Launch = launch_here,
) -> list[JobState]:
    """Run what is left of every job, and return how each ended, in the order of `jobs`.

    Args:
        jobs: each with a folder of its own. A finished or diverged one is left as it is, an unfinished one resumed.
        at_once: processes on each device.
        devices: cpu, mps, cuda:0, …; a process sees its own GPU only.
        report: told the states at each change and about once a second.
        extra_env: put over the environment of every process.
        launch: how a process is started.

    Raises:
        InputError: two jobs share a folder, or there is no place to run.
        Stopped: a signal asked for it; the runs have stopped after a checkpoint.
    """
    if at_once < 1 or not devices:
        raise InputError("at-once: at least one process on at least one device")
    if len({job.folder for job in jobs}) < len(jobs):
        raise InputError("fleet: two jobs share a folder; give each its own")
    fleet = _Fleet([_begin(job) for job in jobs], launch, dict(extra_env or {}))
    fleet.free = [device for _ in range(at_once) for device in devices]
    with listening() as asked, fleet.stopping_all():
        fleet.work(report, asked.__bool__)
        if asked:
            fleet.stop()
            report(fleet.states)
            running = sum(state.state == "stopped" for state in fleet.states)
            raise Stopped(f"stopped, {running} unfinished runs after a checkpoint", asked.exit_code)
    return fleet.states


def _begin(job: Job) -> JobState:
    """Where a job stands by its folder alone."""
    run = RunDirectory(job.folder)
    found, status = state_of(run), run.status()
    if found == "done":
        return JobState(job, "done")
    if found == "diverged":
        return JobState(job, "diverged", message=str(status.get("reason") or "diverged"))
    return JobState(job)


@dataclass(slots=True)
class _Started:
    process: Process
    began: float


@dataclass(slots=True)
class _Fleet:
    """Jobs, the processes of those that run, and the free places of every device."""

    states: list[JobState]
    launch: Launch
    extra_env: dict[str, str]
    free: list[str] = field(default_factory=list)
    running: dict[int, _Started] = field(default_factory=dict)
    waited_since: dict[int, float] = field(default_factory=dict)

    def work(self, report: Report, asked: Callable[[], bool]) -> None:
        """Until every job is over or somebody asks to stop."""
        report(self.states)
        shown = time.monotonic()
        while not asked() and not all(state.over for state in self.states):
            changed = self._start_some() + self._collect()
            if changed or time.monotonic() - shown > _SHOW_SECONDS:
                self._read_progress()
                report(self.states)
                shown = time.monotonic()
            time.sleep(_LOOK_SECONDS)

    def stop(self) -> None:
        """Ask every process to stop after a checkpoint, and wait for it."""
        for started in self.running.values():
            started.process.terminate()
        for started in list(self.running.values()):
            started.process.wait()
        self._collect()

    @contextmanager
    def stopping_all(self) -> Iterator[None]:
        """Leave no process behind, whatever happens inside."""
        try:
            yield
        finally:
            self.stop()

    def _start_some(self) -> int:
        n_started = 0
        for i, state in enumerate(self.states):
            if state.state != "waiting" or not self.free or self._is_busy(i):
                continue
            state.device = self.free.pop(0)
            state.state = "running"
            environment = environment_of(state.device) | self.extra_env
            words = _words_of(state.job)
            self.running[i] = _Started(self.launch(words, environment, state.job.folder / LOG), time.monotonic())
            n_started += 1
        return n_started

    def _is_busy(self, i: int) -> bool:
        """Whether the process of an earlier fleet is still writing the run; it has noticed and is about to stop."""
        since = self.waited_since.setdefault(i, time.monotonic())
        waits = state_of(RunDirectory(self.states[i].job.folder)) in ALIVE
        return waits and time.monotonic() - since < _BUSY_SECONDS

    def _collect(self) -> int:
        n_ended = 0
        for i, started in list(self.running.items()):
            code = started.process.poll()
            if code is None:
                continue
            del self.running[i]
            state = self.states[i]
            self.free.append(state.device)
            state.exit_code, state.seconds = code, time.monotonic() - started.began
            state.state, state.message = _how_it_ended(state.job, code)
            n_ended += 1
        return n_ended

    def _read_progress(self) -> None:
        for state in self.states:
            if state.state == "running":
                status = RunDirectory(state.job.folder).status()
                logged = find_last(state.job.folder / METRICS, "step") or {}  # fresher than the heartbeat
                state.step = max(_count(status.get("step")), _count(logged.get("step")))
                state.steps = _count(status.get("steps"))


def _words_of(job: Job) -> list[str]:
    if (job.folder / INFO).exists():
        own_file = ["--recipe", job.recipe] if ".py" in job.recipe else []
        return ["resume", str(job.folder), *own_file, "--json"]
    return ["train", job.recipe, *job.assignments, "--run", str(job.folder), "--json"]


def _how_it_ended(job: Job, code: int) -> tuple[str, str]:
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


def _count(value: object) -> int:
    return value if isinstance(value, int) else 0


def _stop_with_parent() -> None:
    """Wait for the end of the pipe from the fleet, then stop this process as a signal would, and at last at once."""
    while os.read(0, 1):
        continue
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os._exit(TERMINATED)


def _run_watched() -> None:
    """The program itself, in a process that a fleet started."""
    threading.Thread(target=_stop_with_parent, daemon=True, name="parent").start()
    runpy.run_module("homunculi", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _run_watched()
