"""The desk: a process that keeps models loaded and answers JSON lines. Started at the first question, kept after it.

    > {"id": 1, "do": "sample", "run": "…", …}
    < {"id": 1, "piece": "Once"}        any number of times
    < {"id": 1, "result": {…}}          or {"id": 1, "error": "one line"}

One question at a time. The desk is asked to stop an answer that nobody waits for any more,

    > {"id": 2, "do": "stop", "of": 1}

and that is read to its end; a desk that does not come to it in time is ended, and the next question starts another.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

from homunculi.errors import HomunculiError

MODULE = "homunculi.experiments.desk"
ANSWER_S, DRAIN_S = 180.0, 15.0
LOOK_S = 0.1  # between two looks whether anybody still waits for an answer of which nothing has come
_START = re.compile(rb'\s*\{\s*"id"\s*:\s*(\d+)\s*,\s*"(piece|result|error)"\s*:')
_ENDED = b""


class DeskFailed(HomunculiError):
    """The desk said that something cannot be done, or it is gone. One line for the reader of the page."""


class DeskClient:
    """Talks to one desk from any number of threads; their questions take turns."""

    def __init__(self, command: Sequence[str] | None = None, answer_s: float = ANSWER_S) -> None:
        """`command`: what starts the desk. `answer_s`: how long it may be silent before it is ended, in seconds."""
        self._command = list(command) if command else [sys.executable, "-m", MODULE]
        self._answer_s = answer_s
        self._turn = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._said: deque[str] = deque(maxlen=20)
        self._last_id = 0
        self._closed = False

    def ask(self, question: Mapping[str, Any]) -> bytes:
        """The line of the answer as the desk wrote it, which is a JSON object with a `result`; pieces are left out.

        Raises:
            DeskFailed: it answered with an error, was silent too long, or ended.
        """
        return deque(self.stream(question, threading.Event()), maxlen=1).pop()

    def stream(self, question: Mapping[str, Any], given_up: threading.Event) -> Iterator[bytes]:
        """Lines of an answer as they come; the last one has the `result`. Ends early once `given_up` is set.

        Raises:
            DeskFailed: as `ask`.
        """
        with self._turn:
            if given_up.is_set():
                return
            number = self._send(question)
            finished = False
            try:
                for line in self._answer(number, self._answer_s, given_up):
                    kind = _kind(line)
                    finished = kind != "piece"
                    if kind == "error":
                        raise DeskFailed(_error_of(line))
                    yield line
                    if finished or given_up.is_set():
                        return
            finally:
                if not finished:
                    self._drain(number)

    def close(self) -> None:
        """End the desk; no question is answered after this."""
        self._closed = True
        self._stop()

    def _answer(self, number: int, silence_s: float, given_up: threading.Event | None = None) -> Iterator[bytes]:
        """Lines that belong to a question, none later than `silence_s` after the one before it; until `given_up`."""
        while (line := self._line(silence_s, given_up)) is not None:
            if line == _ENDED:
                self._stop()
                why = self._said[-1] if self._said else "it said nothing"
                raise DeskFailed(f"the desk ended: {why[:300]}")
            if _id_of(line) == number:
                yield line

    def _line(self, silence_s: float, given_up: threading.Event | None) -> bytes | None:
        """The next line of the desk, or None once nobody waits for it."""
        until = time.monotonic() + silence_s
        while given_up is None or not given_up.is_set():
            left = until - time.monotonic()
            try:
                return self._lines.get(timeout=max(0.0, left if given_up is None else min(left, LOOK_S)))
            except queue.Empty:
                if left > LOOK_S:
                    continue
            self._stop()
            raise DeskFailed(f"the desk did not answer within {silence_s:.0f} s and was ended")
        return None

    def _drain(self, number: int) -> None:
        """Have an answer that nobody wants stopped, and read it to its end, so that the next question is answered by
        its own lines."""
        if self._process is None:
            return
        self._last_id += 1
        with contextlib.suppress(OSError):  # a desk that ended says so below
            _write(self._process, {"id": self._last_id, "do": "stop", "of": number})
        until = time.monotonic() + DRAIN_S
        with contextlib.suppress(DeskFailed):
            for line in self._answer(number, DRAIN_S):
                if _kind(line) != "piece":
                    return
                if time.monotonic() > until:
                    break
        self._stop()

    def _send(self, question: Mapping[str, Any]) -> int:
        process = self._started()
        self._last_id += 1
        try:
            _write(process, {"id": self._last_id, **question})
        except OSError:
            self._stop()
            raise DeskFailed("the desk is gone; ask again") from None
        return self._last_id

    def _started(self) -> subprocess.Popen[bytes]:
        if self._closed:
            raise DeskFailed("the page is being closed")
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._stop()
        pipe = subprocess.PIPE
        try:
            process = subprocess.Popen(self._command, stdin=pipe, stdout=pipe, stderr=pipe, env=dict(os.environ))
        except OSError as error:
            raise DeskFailed(f"the desk cannot be started: {error}") from None
        self._lines = queue.SimpleQueue()
        self._said.clear()
        for read, pipe_of in ((_read_lines, process.stdout), (_read_words, process.stderr)):
            into = self._lines if read is _read_lines else self._said
            threading.Thread(target=read, args=(pipe_of, into), daemon=True).start()
        self._process = process
        return process

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(OSError):
            if process.stdin is not None:
                process.stdin.close()
        process.terminate()
        try:
            process.wait(timeout=3)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _write(process: subprocess.Popen[bytes], line: Mapping[str, Any]) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(line).encode("ascii") + b"\n")
    process.stdin.flush()


def _read_lines(pipe: IO[bytes], into: queue.SimpleQueue[bytes]) -> None:
    with contextlib.suppress(OSError, ValueError):
        for line in pipe:
            if line.strip():
                into.put(line)
    into.put(_ENDED)


def _read_words(pipe: IO[bytes], into: deque[str]) -> None:
    with contextlib.suppress(OSError, ValueError):
        for line in pipe:
            if words := line.decode("utf-8", "replace").strip():
                into.append(words)


def _id_of(line: bytes) -> int | None:
    """Of which question a line is. Long lines are not read whole for it."""
    if match := _START.match(line):
        return int(match[1])
    found = _object(line).get("id")
    return found if isinstance(found, int) else None


def _kind(line: bytes) -> str:
    if match := _START.match(line):
        return match[2].decode()
    found = _object(line)
    return next((kind for kind in ("piece", "result", "error") if kind in found), "error")


def _error_of(line: bytes) -> str:
    return " ".join(str(_object(line).get("error", "the desk's answer cannot be read")).split())[:500]


def _object(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
