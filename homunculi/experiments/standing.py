"""Processes that stay: each makes one run after another, so that nothing is loaded or compiled twice.

A process takes runs of any kind, rather of a kind that it has made before: models of one shape share what was compiled
for the first. It is told a run in a line on its input, and tells the exit code in a line on its output. When its input
ends, because the process that started it is gone, it stops the run that it is making after a checkpoint. What kills it
costs one run; another process is started for the next. Standard library only, until the first run is asked for.
"""

from __future__ import annotations

import gc
import json
import os
import queue
import runpy
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO, cast

from homunculi.errors import FAILURE, TERMINATED
from homunculi.experiments.fleet import Job

GRACE_SECONDS = 60.0  # from the request to stop until a run without its fleet ends at once
_CLOSE_SECONDS = 10.0  # an idle process may take to end
_SHAPES = 256  # that one process compiles before it goes on without compiling

Kind = tuple[str, ...]


def kind_of(words: Sequence[str]) -> Kind:
    """What runs share that can use the same compiled code: the recipe and what was set of the model."""
    return (*words[1:2], *(word for word in words[2:] if word.startswith("model.")))


class Errand:
    """A run that one of the processes makes, looked at as if it had a process of its own."""

    def __init__(self, process: _Process) -> None:
        self.process = process
        self.code: int | None = None
        self.over = threading.Event()

    def poll(self) -> int | None:
        return self.code

    def terminate(self) -> None:
        if not self.over.is_set():
            self.process.popen.terminate()

    def wait(self, timeout: float | None = None) -> int:
        if not self.over.wait(timeout) or self.code is None:
            raise subprocess.TimeoutExpired("a run", timeout or 0.0)
        return self.code


class _Process:
    """One of the processes, and what it has made so far."""

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        self.environment = dict(environment)
        self.kinds: set[Kind] = set()
        self.errand: Errand | None = None
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as said:  # what cannot be loaded is told in the log of its first run
            self.popen: subprocess.Popen[str] = subprocess.Popen(
                [sys.executable, "-m", "homunculi.experiments.standing"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                env=self.environment,
                start_new_session=True,  # Ctrl-C reaches the first process alone, which then stops the others
                text=True,
                encoding="utf-8",
            )
        self._asked, self._told = cast(TextIO, self.popen.stdin), cast(TextIO, self.popen.stdout)

    @property
    def is_idle(self) -> bool:
        return self.errand is None and self.popen.poll() is None

    def send(self, words: Sequence[str], log: Path) -> Errand:
        errand = self.errand = Errand(self)
        self.kinds.add(kind_of(words))
        threading.Thread(target=self._await, args=(errand,), daemon=True, name="errand").start()
        with suppress(OSError):  # if it has died, its code follows
            self._asked.write(json.dumps({"words": list(words), "log": str(log)}) + "\n")
            self._asked.flush()
        return errand

    def _await(self, errand: Errand) -> None:
        line = self._told.readline()
        errand.code = int(json.loads(line)["code"]) if line.endswith("\n") else self.popen.wait()
        self.errand = None
        errand.over.set()

    def close(self) -> None:
        """End it. It must be idle, or have been asked to stop."""
        with suppress(OSError):
            self._asked.close()
        try:
            self.popen.wait(_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
        if self.errand is None:  # nobody reads it any more
            self._told.close()


class Standing:
    """Starts ``homunculi WORDS`` on this machine, in processes that stay until `close`."""

    def __init__(self) -> None:
        self._processes: list[_Process] = []

    def __call__(self, words: Sequence[str], environment: Mapping[str, str], log: Path) -> Errand:
        """Have a run made.

        Args:
            words: of the command line, after ``homunculi``.
            environment: of the process.
            log: file that what it says is appended to.
        """
        idle = [one for one in self._processes if one.is_idle]
        fitting = [one for one in idle if one.environment == dict(environment)]
        fitting.sort(key=lambda one: kind_of(words) not in one.kinds)
        if not fitting:
            for one in idle:  # of another place or with other threads: its memory may be needed
                one.close()
            fitting = [_Process(environment, log)]
            self._processes = [one for one in self._processes if one.popen.poll() is None] + fitting
        return fitting[0].send(words, log)

    def turn(self, job: Job) -> int:
        """0 for a job like one that an idle process has made, 1 for one like no other, 2 for one like those of busy
        processes: in this order they are best started."""
        kind = kind_of(["train", job.recipe, *job.assignments])
        if any(kind in one.kinds for one in self._processes if one.is_idle):
            return 0
        return 2 if any(kind in one.kinds for one in self._processes) else 1

    def close(self) -> None:
        """End all processes; runs that are still being made stop after a checkpoint."""
        for one in self._processes:
            one.close()
        self._processes.clear()


def serve(asked: TextIO, told: TextIO) -> None:
    """Make run after run until the input ends; then stop the present one as a signal would, and at last at once."""
    waiting: queue.Queue[dict[str, Any] | None] = queue.Queue()
    busy = threading.Event()

    def read() -> None:
        for line in asked:
            busy.set()
            waiting.put(json.loads(line))
        waiting.put(None)
        if busy.is_set():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(GRACE_SECONDS)
            os._exit(TERMINATED)

    threading.Thread(target=read, daemon=True, name="parent").start()
    while (errand := waiting.get()) is not None:
        code = _made(errand["words"], Path(errand["log"]))
        busy.clear()
        try:
            told.write(json.dumps({"code": code}) + "\n")
            told.flush()
        except OSError:  # nobody is left to be told
            return
        _tidy()


def _made(words: list[str], log: Path) -> int:
    """The exit code of ``homunculi WORDS``, which writes into the log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 2)
    os.close(handle)
    sys.argv = ["homunculi", *words]
    try:
        runpy.run_module("homunculi", run_name="loaded")  # the program decides how threads wait before torch is loaded
        _compile_many()
        runpy.run_module("homunculi", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else FAILURE
    except BaseException:
        traceback.print_exc()
        return FAILURE
    return 0


def _compile_many() -> None:
    """Let one process compile many shapes: at eight, torch goes on without compiling."""
    import torch._dynamo.config as dynamo

    dynamo.recompile_limit = max(dynamo.recompile_limit, _SHAPES)
    dynamo.accumulated_recompile_limit = max(dynamo.accumulated_recompile_limit, 4 * _SHAPES)


def _tidy() -> None:
    """Leave the memory of a run to the next one, and to neighbours."""
    sys.stderr.flush()
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        if "torch._inductor.cudagraph_trees" in sys.modules:  # captured graphs hold the weights of the run
            torch._dynamo.reset()
        torch.cuda.empty_cache()


def main() -> None:
    """The real output is kept for codes; what runs print is thrown away, as what they say is in their logs."""
    codes = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.close(nothing)
    serve(sys.stdin, codes)


if __name__ == "__main__":
    main()
