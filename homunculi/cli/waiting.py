"""How the threads of a matrix product wait for each other on a CPU. Imports no torch: it must be decided before.

A thread that spins for a moment before it sleeps makes small models train up to twice as fast on an idle machine, and
several times slower as soon as another process wants the core of the thread it waits for (docs/LOG.md has the figures).
So threads spin where nothing else runs at the start, and sleep at once elsewhere.
"""

from __future__ import annotations

import os
import time
from collections.abc import MutableMapping
from pathlib import Path

_STAT = Path("/proc/stat")
_WATCHED_SECONDS = 0.06
_SPINS = "20000"  # some tenths of a millisecond: longer than the gaps inside a step
_BUSY_CORES = 0.5


def decide(environment: MutableMapping[str, str]) -> None:
    """Set OpenMP's waiting in `environment`, unless it says something about it already."""
    if "OMP_WAIT_POLICY" in environment or "GOMP_SPINCOUNT" in environment:
        return
    environment["OMP_WAIT_POLICY"] = "PASSIVE"
    busy = busy_cores()
    if busy is not None and busy < _BUSY_CORES:
        environment["GOMP_SPINCOUNT"] = _SPINS


def busy_cores(stat: Path = _STAT, seconds: float = _WATCHED_SECONDS) -> float | None:
    """How many cores other processes keep busy while this one sleeps; None where the system does not tell."""
    try:
        before = _idle_and_total(stat)
        time.sleep(seconds)
        after = _idle_and_total(stat)
    except (OSError, ValueError, IndexError):
        return None
    total = after[1] - before[1]
    return (1 - (after[0] - before[0]) / total) * (os.cpu_count() or 1) if total > 0 else None


def _idle_and_total(stat: Path) -> tuple[int, int]:
    """Clock ticks that all cores together were idle or waited for a disk, and all ticks, since the system started."""
    ticks = [int(word) for word in stat.read_text().splitlines()[0].split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)
