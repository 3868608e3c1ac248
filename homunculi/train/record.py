"""What a run writes as it goes: each metric line once, checked against the line of a step that is computed again."""

from __future__ import annotations

import math
import os
import socket
import threading
import time
from typing import Any

from homunculi.runs.directory import RunDirectory

HEARTBEAT_SECONDS = 10.0


class Record:
    """Metric lines of one run. A step that a crash undid is computed again; its line is already there and stays.

    Attributes:
        logged: step → line, of all lines in the file.
    """

    def __init__(self, run: RunDirectory) -> None:
        self.run = run
        self.logged: dict[int, dict[str, Any]] = run.logged_steps()

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        """Write the line of `step`, or compare it with the one that stands there.

        A difference is an event and a new line (readers take the last of a step): on a CPU it never happens, on a GPU
        it tells how far the repetition strayed.
        """
        line = {"step": step} | metrics
        known = self.logged.get(step)
        if known is not None:
            strayed = [key for key in line if _is_result(key) and not _same(line[key], known.get(key))]
            if not strayed:
                return
            self.run.log_event("repeated_differently", step=step, keys=strayed)
        self.run.log_metrics(line)
        self.logged[step] = line

    def val_losses(self) -> dict[int, float]:
        """Step → validation loss, of steps that were evaluated."""
        return {step: line["val/loss"] for step, line in self.logged.items() if line.get("val/loss") is not None}


def _is_result(key: str) -> bool:
    return not key.startswith("perf/") and key != "seconds"


def _same(a: Any, b: Any) -> bool:
    """Equal after a round trip through JSON, where what is not finite became null."""
    if isinstance(a, float) and not math.isfinite(a):
        return b is None
    return a == b


class Heartbeat:
    """Keeps status.json fresh from a thread of its own, so that long evaluations do not look like a crash."""

    def __init__(self, run: RunDirectory, steps: int) -> None:
        self.run = run
        self.fields: dict[str, Any] = {
            "state": "preparing",
            "step": 0,
            "steps": steps,
            "tokens": 0,
            "started": time.time(),
            "pid": os.getpid(),
            "host": socket.gethostname(),
        }
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._write()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="heartbeat")
        self._thread.start()

    def set(self, **fields: Any) -> None:
        """Change what the next beat writes."""
        with self._lock:
            self.fields |= fields

    def finish(self, **fields: Any) -> None:
        """Write the final state and stop beating."""
        self._over.set()
        self._thread.join()
        self.set(**fields)
        self._write()

    def _beat(self) -> None:
        while not self._over.wait(HEARTBEAT_SECONDS):
            try:
                self._write()
            except OSError:
                continue  # a full disk must not stop training here; the loop's own writes report it

    def _write(self) -> None:
        with self._lock:
            self.run.write_status(**self.fields, time=time.time())


class Silence:
    """The heartbeat of a process that does not write."""

    def set(self, **fields: Any) -> None:
        """Nothing is written."""

    def finish(self, **fields: Any) -> None:
        """Nothing is written."""
