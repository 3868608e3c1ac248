"""Works that need runs, side by side: they share all places, and what one has trained the others take.

A work is a generator. It yields batches of jobs and goes on when they are over, so that several comparisons are
planned, tuned and trained at once and no device waits for the last run of one of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from homunculi.errors import Stopped
from homunculi.experiments.archive import write_key
from homunculi.experiments.fleet import (
    LOG,
    Batch,
    Job,
    JobState,
    Launch,
    Process,
    begin,
    environment_of,
    how_it_ended,
    words_of,
)
from homunculi.experiments.standing import Standing
from homunculi.runs.directory import METRICS, RunDirectory, state_of
from homunculi.runs.lines import find_last
from homunculi.runs.state import ALIVE
from homunculi.train.signals import listening

_BUSY_SECONDS = 90.0  # how long the process of an earlier fleet may still take to stop
_LOOK_SECONDS = 0.1
_SHOW_SECONDS = 1.0

Result = TypeVar("Result")
Work = Generator[Batch, None, Result]  # yields what it needs done, goes on when that is over


def run_all(batch: Batch, launch: Launch | None = None) -> list[JobState]:
    """Run jobs to their ends and say how each ended, in their order.

    Raises:
        Stopped: a signal asked for it; the runs have stopped after a checkpoint.
    """
    found: list[JobState] = []

    def report(states: list[JobState]) -> None:
        found[:] = states
        batch.report(states)

    def work() -> Work[list[JobState]]:
        yield replace(batch, report=report)
        return found

    return side_by_side([work()], launch)[0]


def side_by_side(works: Sequence[Work[Result]], launch: Launch | None = None) -> list[Result]:
    """Do several works at once, which share all places, and return what each returns.

    A work begins as soon as a place is free for which the works before it have no job. A job waits while one of the
    same key runs, and is then asked whether its result can be taken. Where one work fails, the others go on.

    Args:
        launch: starts the runs elsewhere than in processes of this machine.

    Raises:
        Stopped: a signal asked for it; the runs have stopped after a checkpoint.
        Exception: the first work that failed, once the others are over.
    """
    if launch is None:
        with closing(Standing()) as standing:
            return side_by_side(works, standing)
    fleet = _Fleet([_Doing(work) for work in works], launch)
    try:
        with fleet.stopping_all():
            fleet.work()
    except BaseException as error:
        made = fleet.close(error)
        if made is error:
            raise
        raise made from error
    for doing in fleet.doings:
        if doing.error is not None:
            raise doing.error
    return [doing.result for doing in fleet.doings]


@dataclass(slots=True)
class _Doing:
    """A work and how far it is: what it waits for, and in the end what it returned or how it failed."""

    work: Work[Any]
    batch: Batch | None = None
    states: list[JobState] = field(default_factory=list)
    begun: bool = False
    over: bool = False
    result: Any = None
    error: Exception | None = None

    def advance(self) -> None:
        """Let it go on to what it needs next, or to its end."""
        self.begun = True
        try:
            self.batch = next(self.work)
        except StopIteration as ended:
            self.over, self.result = True, ended.value
            return
        except Exception as error:
            self.over, self.error = True, error
            if isinstance(error, Stopped):
                raise
            return
        self.states = [begin(job) for job in self.batch.jobs]
        self.report()

    def report(self) -> None:
        if self.batch is None or self.over:
            return
        try:
            self.batch.report(self.states)
        except Stopped:
            raise
        except Exception as error:  # what it wanted to keep could not be kept: the others go on
            self.over, self.error = True, error


@dataclass(slots=True)
class _Started:
    process: Process
    began: float
    state: JobState


@dataclass(slots=True)
class _Fleet:
    """Works, and the processes that run for them."""

    doings: list[_Doing]
    launch: Launch
    running: list[_Started] = field(default_factory=list)
    waited_since: dict[Path, float] = field(default_factory=dict)

    def work(self) -> None:
        """Until every work is over.

        Raises:
            Stopped: a signal asked for it. While nothing runs, signals do what they always do.
        """
        while True:
            self._go_on()
            if all(doing.over for doing in self.doings):
                return
            with listening() as asked:
                self._run(asked.__bool__)
                if asked:
                    self.stop()
                    n_stopped = self._report_stopped()
                    raise Stopped(f"stopped, {n_stopped} unfinished runs after a checkpoint", asked.exit_code)

    def _run(self, asked: Callable[[], bool]) -> None:
        """Until no job is left or somebody asks to stop."""
        shown = time.monotonic()
        while not asked():
            changed = self._start_some() + self._collect()
            if changed or time.monotonic() - shown > _SHOW_SECONDS:
                self._read_progress()
                for doing in self.doings:
                    doing.report()
                shown = time.monotonic()
            if all(state.over for state in self._states()):
                return
            if self.running:
                self._go_on()
            time.sleep(_LOOK_SECONDS)

    def stop(self) -> None:
        """Ask every process to stop after a checkpoint, and wait for it."""
        for started in self.running:
            started.process.terminate()
        for started in self.running:
            started.process.wait()
        self._collect()

    @contextmanager
    def stopping_all(self) -> Iterator[None]:
        """Leave no process behind, whatever happens inside."""
        try:
            yield
        finally:
            self.stop()

    def _report_stopped(self) -> int:
        """Tell every work how it stands; how many runs have stopped."""
        for doing in self.doings:
            doing.report()
        return sum(state.state == "stopped" for state in self._states())

    def close(self, error: BaseException) -> BaseException:
        """Raise an error inside every work that is not over; what the first one makes of it, or the error itself."""
        made: list[BaseException] = []
        for doing in self.doings:
            if doing.begun and not doing.over:
                try:
                    doing.work.throw(error)
                except BaseException as raised:
                    made.append(raised)
        return made[0] if made else error

    def _states(self) -> list[JobState]:
        return [state for doing in self.doings if not doing.over for state in doing.states]

    def _go_on(self) -> None:
        """Let works go on whose jobs are over, then the next one begin if there is room for it."""
        for doing in self.doings:
            if doing.begun and not doing.over and all(state.over for state in doing.states):
                doing.advance()
        for doing in self.doings:
            if not doing.begun and self._is_room():
                doing.advance()
                return

    def _is_room(self) -> bool:
        """Whether no job waits for a place; each that may wait is counted, one that waits for another job is not."""
        open_now = [doing.batch for doing in self.doings if doing.batch is not None and not doing.over]
        return not open_now or not any(state.state == "waiting" and not self._leader(state) for state in self._states())

    def _start_some(self) -> int:
        """Start what has a place, in the order of works; how many jobs have changed."""
        n_changed = 0
        for doing in self.doings:
            if doing.batch is None or doing.over:
                continue
            for state in self._in_turn(doing.states):
                if state.state != "waiting" or self._leader(state):
                    continue
                if doing.batch.taken(state.job):
                    state.state = "done"
                    n_changed += 1
                else:
                    n_changed += self._start(state, doing.batch)
        return n_changed

    def _in_turn(self, states: list[JobState]) -> list[JobState]:
        """In the order in which whoever launches likes to have them; of equals the earlier first."""
        turn = getattr(self.launch, "turn", None)
        return states if turn is None else sorted(states, key=lambda state: turn(state.job))

    def _start(self, state: JobState, batch: Batch) -> bool:
        """Start a job on the device that has least to do, if one has a place left."""
        on_each = {device: sum(started.state.device == device for started in self.running) for device in batch.devices}
        device = min(batch.devices, key=lambda name: on_each[name])
        if on_each[device] >= batch.at_once or self._is_busy(state.job):
            return False
        state.device, state.state = device, "running"
        write_key(state.job.folder, state.job.key)
        environment = environment_of(device) | dict(batch.extra_env)
        process = self.launch(words_of(state.job), environment, state.job.folder / LOG)
        self.running.append(_Started(process, time.monotonic(), state))
        return True

    def _leader(self, state: JobState) -> JobState | None:
        """The running job that comes to the same as this one."""
        key = state.job.key
        return next((one.state for one in self.running if key and one.state.job.key == key), None)

    def _is_busy(self, job: Job) -> bool:
        """Whether the process of an earlier fleet is still writing the run; it has noticed and is about to stop."""
        since = self.waited_since.setdefault(job.folder, time.monotonic())
        waits = state_of(RunDirectory(job.folder)) in ALIVE
        return waits and time.monotonic() - since < _BUSY_SECONDS

    def _collect(self) -> int:
        n_ended = 0
        for started in list(self.running):
            code = started.process.poll()
            if code is None:
                continue
            self.running.remove(started)
            state = started.state
            state.exit_code, state.seconds = code, time.monotonic() - started.began
            state.state, state.message = how_it_ended(state.job, code)
            n_ended += 1
        return n_ended

    def _read_progress(self) -> None:
        for state in self._states():
            if state.state == "running":
                status = RunDirectory(state.job.folder).status()
                logged = find_last(state.job.folder / METRICS, "step") or {}  # fresher than the heartbeat
                state.step = max(_count(status.get("step")), _count(logged.get("step")))
                state.steps = _count(status.get("steps"))


def _count(value: object) -> int:
    return value if isinstance(value, int) else 0
