"""Axes: from numbers to positions, with round ticks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from homunculi.report.numbers import power

_WORDS = {3: "thousand", 6: "million", 9: "billion", 12: "trillion"}
# Share of a vertical axis that stays free beyond the outermost values.
ROOM = 0.04
# Smaller differences are none: their logarithms and quotients leave the range of floating point.
_TINY = 1e-280
_MANTISSAS = ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0))


@dataclass(frozen=True)
class Scale:
    """One axis. `low` < `high` in the data's own unit; `ticks` lie within; `log` spaces by ratio (then low > 0).

    Labels show the value divided by 10**`exponent`.
    """

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False
    exponent: int = 0

    def place(self, value: float) -> float:
        """0 at `low`, 1 at `high`."""
        if self.log:
            return (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return (value - self.low) / (self.high - self.low)

    def label(self, tick: float) -> str:
        """A tick's text, with no more decimals than ticks need to differ."""
        scaled = tick / 10.0**self.exponent
        if scaled != 0 and not 1e-4 <= abs(scaled) < 1e6:
            return f"{scaled:.3g}".replace("e-0", "e-").replace("e+0", "e")
        return f"{scaled:,.{self._decimals(tick)}f}"

    def unit(self) -> str:
        """What a label must be multiplied with: an empty string, `million`, `×10¹⁵`."""
        return "" if self.exponent == 0 else _WORDS.get(self.exponent, f"×10{power(self.exponent)}")

    def _decimals(self, tick: float) -> int:
        """Where ticks lie evenly all show as many digits as the step has; on other log axes each shows its own."""
        steps = [b - a for a, b in pairwise(self.ticks)]
        even = all(math.isclose(step, steps[0], rel_tol=1e-6) for step in steps)
        values = [tick] if self.log and not even else list(self.ticks)
        for places in range(7):
            if all(
                math.isclose(round(v / 10.0**self.exponent, places), v / 10.0**self.exponent, abs_tol=1e-9)
                for v in values
            ):
                return places
        return 6


def linear_scale(
    values: Sequence[float], count: int = 5, floor: float | None = None, powers: bool = False, room: float = 0.0
) -> Scale:
    """A scale around finite `values` with about `count` ticks at 1, 2, 2.5 or 5 times a power of ten.

    Args:
        floor: a value that the axis reaches down to at least.
        powers: divide labels by a power of a thousand where the numbers have five digits or start behind two zeros.
        room: share of the range that stays free beyond the outermost values (not below the floor).
    """
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if floor is not None:
        low = min(low, floor)
    if high - low <= max(max(abs(low), abs(high)) * 1e-9, _TINY):
        margin = abs(high) * 0.1 if abs(high) > _TINY else 1.0
        low, high = (low if low == floor else low - margin), high + margin
    free = (high - low) * room
    low, high = (low if low == floor else low - free), high + free
    ticks = linear_ticks(low, high, count)
    top = max(abs(low), abs(high))
    exponent = 3 * int(math.log10(top) // 3) if powers and not 0.01 <= top < 1e4 else 0
    return Scale(low, high, ticks, exponent=exponent)


def linear_ticks(low: float, high: float, count: int) -> tuple[float, ...]:
    """Round numbers from `low` to `high`."""
    raw = (high - low) / count
    base = 10.0 ** math.floor(math.log10(raw))
    step = min((m * base for m in (1.0, 2.0, 2.5, 5.0, 10.0)), key=lambda candidate: abs(math.log(candidate / raw)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple(index * step for index in range(first, last + 1))


def log_scale(values: Sequence[float], count: int = 5) -> Scale:
    """A scale by ratio around positive finite `values`; where they span too little for round ticks, linear ticks."""
    low, high = min(values), max(values)
    if high / low < 1.02:
        low, high = low / 1.05, high * 1.05
    free = (high / low) ** ROOM
    low, high = low / free, high * free
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for mantissas in _MANTISSAS:
        ticks = tuple(m * 10.0**d for d in decades for m in mantissas if low <= m * 10.0**d <= high)
        if len(ticks) >= 3:
            thin = -(-len(ticks) // (count + 2))
            return Scale(low, high, ticks[::thin], log=True)
    return Scale(low, high, linear_ticks(low, high, count), log=True)
