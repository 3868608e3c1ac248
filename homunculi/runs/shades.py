"""Colours of a scan. Lightness alone orders a scale without a neutral value; below one, a dash marks cells."""

from __future__ import annotations

import math

from homunculi.runs.scans import Panel

LEVELS = 8  # of a colour scale, on each side of its neutral value; twice as many where it has none

_LIGHT = {
    "s": ("#eef1f5", "#7fb2dc", "#0b3f75"),
    "n": ("#efeeea", "#86aedb", "#174f96"),
    "p": ("#efeeea", "#eea774", "#b23f0c"),
}
_DARK = {
    "s": ("#25292f", "#3b78b0", "#c4e6ff"),
    "n": ("#2a2c31", "#3f75b5", "#a6d3ff"),
    "p": ("#2a2c31", "#b5672f", "#ffc48f"),
}


def _mixed(stops: tuple[str, str, str], share: float) -> str:
    """The colour at a share of the way through three stops."""
    start, end = (stops[0], stops[1]) if share < 0.5 else (stops[1], stops[2])
    at = share * 2 if share < 0.5 else share * 2 - 1
    pairs = ((int(start[i : i + 2], 16), int(end[i : i + 2], 16)) for i in (1, 3, 5))
    return "#" + "".join(f"{round(a + (b - a) * at):02x}" for a, b in pairs)


def colours(dark: bool) -> dict[str, str]:
    """Class of a cell → its colour: s0 … s16 of a scale without a neutral value, n8 … n0 below one, p0 … p8 above."""
    found: dict[str, str] = {}
    for kind, stops in (_DARK if dark else _LIGHT).items():
        n = 2 * LEVELS if kind == "s" else LEVELS
        found |= {f"{kind}{i}": _mixed(stops, i / n) for i in range(n + 1)}
    return found


def level(panel: Panel, value: float) -> str | None:
    """The class of a value's colour (`colours`); None: there is no value."""
    if not math.isfinite(value):
        return None
    if panel.neutral is None:
        share = (value - panel.low) / (panel.high - panel.low)
        return f"s{round(min(max(share, 0.0), 1.0) * 2 * LEVELS)}"
    above = value >= panel.neutral
    span = panel.high - panel.neutral if above else panel.neutral - panel.low
    share = min(abs(value - panel.neutral) / span, 1.0) if span > 0 else 0.0
    return f"{'p' if above else 'n'}{round(share * LEVELS)}"
