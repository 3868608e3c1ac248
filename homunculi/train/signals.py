"""Signals ask a run to stop at the next safe point; a second one stops it at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from homunculi.errors import INTERRUPTED, PREEMPTED, TERMINATED


class StopRequest:
    """Set by the first signal.

    Attributes:
        exit_code: of the process if it stops for this; 0 while nobody asked.
    """

    def __init__(self) -> None:
        self.exit_code = 0

    def __bool__(self) -> bool:
        return self.exit_code != 0


@contextmanager
def listening() -> Iterator[StopRequest]:
    """Turn SIGTERM and SIGINT into a request for the duration of the block (in a process's main thread)."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if request:
            os._exit(TERMINATED if number == signal.SIGTERM else INTERRUPTED)
        request.exit_code = PREEMPTED if number == signal.SIGTERM else INTERRUPTED

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
