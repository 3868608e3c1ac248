"""What a run is doing, judged by whoever reads it: a process that was killed cannot say so itself."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from homunculi.runs.clock import seconds_of

STATES = ("preparing", "running", "done", "failed", "preempted", "diverged")
ALIVE = ("preparing", "running")

# A training process renews its heartbeat every few seconds; one that reads a corpus or compiles may be silent for long.
RUNNING_STALE_S = 60.0
PREPARING_STALE_S = 600.0


def state_from(status: Mapping[str, Any], now: float) -> str:
    """One of STATES as the run wrote it, or `crashed` or `unknown`.

    `crashed`: it says that it goes on, but its heartbeat is older than 60 s (600 s while it prepares) or its process no
    longer exists on this machine. `unknown`: there is no readable status.
    """
    state = status.get("state")
    if state not in STATES:
        return "unknown"
    if state not in ALIVE:
        return str(state)
    beat = seconds_of(status.get("time"))
    limit = RUNNING_STALE_S if state == "running" else PREPARING_STALE_S
    if beat is None or now - beat > limit:
        return "crashed"
    here = status.get("host") == socket.gethostname()
    return "crashed" if here and not process_lives(status.get("pid")) else str(state)


def process_lives(pid: Any) -> bool:
    """Whether a process of this machine has this number and has not ended. Where that cannot be asked: True."""
    if not isinstance(pid, int) or isinstance(pid, bool) or pid <= 0:
        return False
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return not _ended_unseen(pid)


def _ended_unseen(pid: int) -> bool:
    """Whether the process has ended but its parent has not asked yet (Linux; elsewhere False)."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2]
    except OSError:
        return False
    return after_name.split()[:1] in ([b"Z"], [b"X"])
