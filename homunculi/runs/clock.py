"""Moments: seconds since 1970 in every file of a run, read back whether a number stands there or ISO 8601."""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime
from typing import Any


def now() -> float:
    """Seconds since 1970, to the millisecond."""
    return round(time.time(), 3)


def seconds_of(value: Any) -> float | None:
    """The moment that `value` from a file names, or None where it names none (no zone means UTC)."""
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        return float(value) if abs(value) < 1e12 and math.isfinite(value) else None
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def written_out(seconds: float | None) -> str:
    """`2026-11-21 22:34:02 UTC`, or an empty string for None and for moments no calendar has."""
    if seconds is None:
        return ""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return ""
