"""Cells in processes of their own, several on each device. A process takes one cell after the other, of the same
architecture where it can; what is done is in the folder at once.

A process that dies takes the one cell that it was training with it; another goes on with the rest. When this process
is gone, each ends after its present cell.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch

from homunculi.errors import HomunculiError, Stopped
from homunculi.experiments.fleet import environment_of
from homunculi.experiments.skills.cells import Cell, Json, Store
from homunculi.experiments.skills.learning import learn
from homunculi.experiments.slots import threads_env
from homunculi.train.signals import listening

_LOOK_SECONDS = 0.2
_AHEAD = 64  # cells among which a place finds its own architecture: all architectures come on together
LOG = "log.txt"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a battery is: cells done of how many, what is being trained, and what failed with the reason."""

    done: int
    total: int
    running: tuple[str, ...]
    failed: int


Report = Callable[[Progress], None]


def title(cell: Cell) -> str:
    """A cell for people."""
    dials = ",".join(f"{name}={value:g}" for name, value in cell.dials.items())
    return f"{cell.side} {cell.task} {dials} lr={cell.lr:g} wd={cell.weight_decay:g} seed={cell.seed}"


@dataclass(slots=True)
class _Queue:
    """Cells that wait, handed to whoever is free."""

    waiting: list[Cell]
    total: int
    done: int = 0
    running: dict[int, Cell] = field(default_factory=dict)
    failed: list[Json] = field(default_factory=list)
    stopped: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, place: int, last: str) -> Cell | None:
        """Of the next few cells one of the architecture that this place had last, else of one that no place has, else
        the first."""
        with self.lock:
            if self.stopped or not self.waiting:
                return None
            taken = {cell.model["architecture"] for cell in self.running.values()}
            seed = self.waiting[0].seed  # all first ones before any second
            near = takewhile(lambda cell: cell.seed == seed, self.waiting[:_AHEAD])
            waiting = [cell.model["architecture"] for cell in near]
            others = (i for i, name in enumerate(waiting) if name not in taken)
            cell = self.waiting.pop(waiting.index(last) if last in waiting else next(others, 0))
            self.running[place] = cell
            return cell

    def end(self, place: int, reason: str = "") -> None:
        with self.lock:
            cell = self.running.pop(place)
            self.done += 1
            if reason:
                self.failed.append({"cell": title(cell), "key": cell.key, "reason": reason})

    def progress(self) -> Progress:
        with self.lock:
            running = tuple(title(cell) for cell in self.running.values())
            return Progress(self.done, self.total, running, len(self.failed))


def train_all(
    cells: Sequence[Cell], store: Store, devices: Sequence[str], at_once: int, report: Report = lambda progress: None
) -> list[Json]:
    """Train the cells that the store does not have; what failed, with reasons.

    Args:
        devices: cpu, cuda:0, …; each has `at_once` processes. at_once 0: in this process, one after the other.

    Raises:
        Stopped: a signal asked for it; finished cells are kept.
    """
    todo = [cell for cell in {cell.key: cell for cell in cells}.values() if store.find(cell) is None]
    queue = _Queue(todo, len(todo))
    report(queue.progress())
    if not todo:
        return []
    with listening() as request:
        if at_once == 0:
            _train_here(queue, store, torch.device(devices[0]), report, lambda: bool(request))
        else:
            places = [device for _ in range(at_once) for device in devices][: len(todo)]
            _train_there(queue, store, places, at_once, report, lambda: bool(request))
        if request:
            raise Stopped(f"stopped with {queue.done} of {queue.total} cells done", request.exit_code)
    return queue.failed


def _train_here(queue: _Queue, store: Store, device: torch.device, report: Report, stops: Callable[[], bool]) -> None:
    while not stops() and (cell := queue.take(0, "")) is not None:
        report(queue.progress())
        store.keep(cell, learn(cell, device))
        queue.end(0)
        report(queue.progress())


def _train_there(
    queue: _Queue, store: Store, places: Sequence[str], at_once: int, report: Report, stops: Callable[[], bool]
) -> None:
    extra = threads_env(list(dict.fromkeys(places)), at_once)
    hands = [_Hand(queue, store, number, device, extra) for number, device in enumerate(places)]
    for hand in hands:
        hand.thread.start()
    try:
        while any(hand.thread.is_alive() for hand in hands) and not stops():
            report(queue.progress())
            for hand in hands:
                hand.thread.join(_LOOK_SECONDS / len(hands))
    finally:
        queue.stopped = True
        for hand in hands:
            hand.close()
    report(queue.progress())


class _Hand:
    """A thread that feeds one process."""

    def __init__(self, queue: _Queue, store: Store, number: int, device: str, extra: Mapping[str, str]) -> None:
        self.queue, self.store, self.number, self.device, self.extra = queue, store, number, device, extra
        self.process: Any = None
        self.thread = threading.Thread(target=self._work, daemon=True, name=f"cells-{number}")

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()  # its present cell is lost, whole files are not

    def _work(self) -> None:
        last = ""
        while (cell := self.queue.take(self.number, last)) is not None:
            last = cell.model["architecture"]
            reason = self._ask(cell)
            if self.queue.stopped:
                return
            self.queue.end(self.number, reason)
        if self.process is not None:
            self.process.stdin.close()
            self.process.wait()

    def _ask(self, cell: Cell) -> str:
        """Have a cell trained; empty, or why it was not."""
        try:
            if self.process is None or self.process.poll() is not None:
                self.process = self._start()
            self.process.stdin.write(json.dumps(cell.to_json()) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except OSError as error:
            answer = ""
            self.close()
            said = str(error)
        else:
            said = "its process ended"
        if not answer:
            code = self.process.wait() if self.process is not None else 0
            self.process = None
            return f"{said} with code {code}; {self.store.folder / LOG} may say more"
        return str(json.loads(answer).get("failed") or "")

    def _start(self) -> subprocess.Popen[str]:
        self.store.folder.mkdir(parents=True, exist_ok=True)
        environment = environment_of(self.device) | dict(self.extra)
        kind = self.device.partition(":")[0]
        with (self.store.folder / LOG).open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "homunculi.experiments.skills.worker", str(self.store.folder), kind],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                text=True,
                encoding="utf-8",
                start_new_session=True,  # Ctrl-C reaches the first process alone
            )


def first_failure(failed: Sequence[Json], folder: Path) -> HomunculiError:
    """One line about cells that failed."""
    first = failed[0]
    return HomunculiError(
        f"{len(failed)} cells failed, the first {first['cell']}: {first['reason']}; the same command with "
        f"--results {folder} tries them again"
    )
