"""Figures for papers: PNG and SVG by matplotlib, which the extra `report` brings. Colours are those of the pages.

Everything is placed by hand on one sheet whose unit is a pixel of the PNG, so that a figure is the same wherever it is
made.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from homunculi.errors import optional
from homunculi.runs.scans import Panel, Scan
from homunculi.runs.shades import LEVELS, colours, level

WIDTH = 1400
_DPI = 100
_LEFT, _RIGHT, _TOP = 300, 30, 84
_ROW, _GAP, _TITLE = 17, 9, 36
_BARS, _WORDS = 56, 92
_WIDEST, _LABELLED = 44, 9  # pixels of a token; the fewest at which its word is written
_INK, _SOFT, _LINE, _HEAT, _BLANK = "#1d1d1f", "#5c5c63", "#dcdad4", "#e0741f", "#fbfaf8"
_MAPS = 6  # of attention, in a row


class Sheet:
    """A matplotlib figure of so many pixels, drawn on from the upper left corner."""

    def __init__(self, width: int, height: int) -> None:
        optional("matplotlib", "report")
        from matplotlib import rcParams
        from matplotlib.figure import Figure

        rcParams["svg.hashsalt"], rcParams["svg.fonttype"] = "homunculi", "none"
        self.figure: Any = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
        self.axes: Any = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set_axis_off()
        self.axes.set_xlim(0, width)
        self.axes.set_ylim(height, 0)

    def text(self, x: float, y: float, words: str, size: float = 11, **look: Any) -> None:
        """`y` is the base line; `size` in pixels."""
        look = {"color": _INK, "va": "baseline", "parse_math": False} | look
        self.axes.text(x, y, words, fontsize=size * 72 / _DPI, **look)

    def boxes(self, corners: Sequence[tuple[float, float]], size: tuple[float, float], fill: Sequence[str]) -> None:
        """Boxes of one size by their upper left corners."""
        from matplotlib.collections import PolyCollection

        w, h = size
        shapes = [[(x, y), (x + w, y), (x + w, y + h), (x, y + h)] for x, y in corners]
        self.axes.add_collection(PolyCollection(shapes, facecolors=list(fill), linewidths=0))

    def line(self, x: tuple[float, float], y: tuple[float, float], colour: str = _LINE, width: float = 0.7) -> None:
        self.axes.plot(x, y, color=colour, linewidth=width, solid_capstyle="butt")

    def image(self, values: np.ndarray, place: tuple[float, float, float], colour: str) -> None:
        """Numbers from 0 to 1 as a square picture: `place` is its upper left corner and its side."""
        from matplotlib.colors import LinearSegmentedColormap

        x, y, side = place
        ramp = LinearSegmentedColormap.from_list("ramp", ["#f4f3f0", colour])
        self.axes.imshow(
            values, extent=(x, x + side, y + side, y), cmap=ramp, vmin=0, vmax=1, interpolation="nearest", aspect="auto"
        )

    def save(self) -> dict[str, bytes]:
        """The PNG and the SVG, by the ending of their files; the same sheet gives the same bytes."""
        found = {}
        for kind, about in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": "homunculi"})):
            buffer = io.BytesIO()
            self.figure.savefig(buffer, format=kind, dpi=_DPI, metadata=about)
            found[kind] = buffer.getvalue()
        return found


def draw_scan(scan: Scan) -> dict[str, bytes]:
    """A scan as PNG and SVG: tokens with their surprise, panels below, attention (mean over heads) by step.

    Raises:
        InputError: matplotlib is not installed.
    """
    heights = [max(_ROW * len(panel.rows), _TITLE) + _GAP for panel in scan.panels]
    across = min(max(len(scan.attention), 4), _MAPS)
    side = (WIDTH - 30 - _RIGHT - 24 * (across - 1)) / across
    below = 62 + side if scan.attention else 20
    sheet = Sheet(WIDTH, round(_TOP + _BARS + _WORDS + sum(heights) + below))
    name = f"{scan.run or 'model'}, step {scan.step:,}"
    sheet.text(30, 40, "What happened inside while it read", size=20, weight="bold")
    changed = f"   changed: {', '.join(scan.changes)}" if scan.changes else ""
    sheet.text(30, 62, _cut(f"{name}{changed}", 170), size=12.5, color=_SOFT)
    width = min(_WIDEST, (WIDTH - _LEFT - _RIGHT) / len(scan.tokens))
    _tokens(sheet, scan, width)
    top = float(_TOP + _BARS + _WORDS)
    for panel, height in zip(scan.panels, heights, strict=True):
        _panel(sheet, panel, top, width)
        top += height
    if scan.attention:
        _attention(sheet, scan, top + 34, side)
    return sheet.save()


def _tokens(sheet: Sheet, scan: Scan, width: float) -> None:
    surprise = np.array([np.nan if t.surprisal is None else t.surprisal for t in scan.tokens])
    most = float(np.nanmax(surprise)) if np.isfinite(surprise).any() else 1.0
    ground = _TOP + _BARS
    sheet.text(30, ground - 22, "Surprise", size=12.5, weight="bold")
    sheet.text(30, ground - 7, f"up to {most:.1f} nats a token", size=10.5, color=_SOFT)
    for i, token in enumerate(scan.tokens):
        x, height = _LEFT + i * width, float(np.nan_to_num(surprise[i])) / max(most, 1e-9) * (_BARS - 6)
        sheet.boxes([(x + width * 0.12, ground - height)], (width * 0.76, height), [_HEAT])
        if width >= _LABELLED:
            look = {"rotation": 90, "va": "top", "ha": "center", "family": "monospace"}
            sheet.text(x + width / 2, ground + 5, _cut(token.text, 13), size=min(11, width * 0.78), **look)


def _panel(sheet: Sheet, panel: Panel, top: float, width: float) -> None:
    sheet.line((30, WIDTH - _RIGHT), (top - _GAP / 2 - 1, top - _GAP / 2 - 1))
    sheet.text(30, top + 12, panel.title, size=12.5, weight="bold")
    _scale(sheet, panel, top + 18)
    corners, fills, low = [], [], []
    palette = colours(dark=False)
    for r, row in enumerate(panel.rows):
        y = top + _ROW * r
        sheet.text(_LEFT - 9, y + 12, _cut(row, 18), size=11, ha="right")
        for i, value in enumerate(panel.values[r].tolist()):
            kind = level(panel, value)
            corners.append((_LEFT + i * width, y))
            fills.append(_BLANK if kind is None else palette[kind])
            if kind and kind[0] == "n" and int(kind[1:]) >= LEVELS // 3 and width >= _LABELLED:
                low.append((_LEFT + (i + 0.5) * width, y + _ROW / 2 - 1))
    gap = 1.5 if width >= _LABELLED else 0.0
    sheet.boxes(corners, (width - gap, _ROW - 1.5), fills)
    for x, y in low:
        sheet.line((x - 3, x + 3), (y, y), colour="#55585f")


def _scale(sheet: Sheet, panel: Panel, top: float) -> None:
    """The colours of a panel between the numbers at their ends."""
    palette = colours(dark=False)
    if panel.neutral is None:
        kinds = [f"s{i}" for i in range(2 * LEVELS + 1)]
    else:
        kinds = [*(f"n{i}" for i in range(LEVELS, 0, -1)), *(f"p{i}" for i in range(LEVELS + 1))]
    low = _brief(panel.low)
    start = 30 + 6.4 * len(low) + 5
    sheet.text(30, top + 9, low, size=10, color=_SOFT)
    sheet.boxes([(start + 4 * i, top) for i in range(len(kinds))], (4.2, 9), [palette[kind] for kind in kinds])
    sheet.text(start + 4 * len(kinds) + 5, top + 9, _brief(panel.high), size=10, color=_SOFT)


def _attention(sheet: Sheet, scan: Scan, top: float, side: float) -> None:
    """Pictures of attention, a mean over heads, of at most a row of steps spread over the depth."""
    sheet.line((30, WIDTH - _RIGHT), (top - 28, top - 28))
    sheet.text(30, top - 8, "Who looks at whom", size=12.5, weight="bold")
    sheet.text(178, top - 8, "down: who looks, across: at whom, mean over heads", size=10.5, color=_SOFT)
    n = len(scan.attention)
    chosen = sorted({round(i * (n - 1) / max(1, min(n, _MAPS) - 1)) for i in range(min(n, _MAPS))})
    for place, i in enumerate(chosen):
        one, x = scan.attention[i], 30 + place * (side + 24)
        sheet.image(np.sqrt(np.clip(np.nan_to_num(one.values.mean(0)), 0, 1)), (x, top + 2, side), "#0b3f75")
        sheet.text(x, top + side + 17, one.label, size=11)


def draw_lines(
    title: str, lags: Sequence[int], panels: Mapping[str, Mapping[str, tuple[Sequence[float], ...]]]
) -> dict[str, bytes]:
    """Event averages as PNG and SVG: title of a panel → name of a line → its values, or values with low and high.

    Raises:
        InputError: matplotlib is not installed.
    """
    columns, wide, high = 3, 430, 250
    n_rows = -(-len(panels) // columns)
    sheet = Sheet(WIDTH, 90 + n_rows * high)
    sheet.text(30, 40, title, size=18, weight="bold")
    for i, (name, lines) in enumerate(panels.items()):
        box = (40 + wide * (i % columns) + 20, 80 + high * (i // columns), wide - 60, high - 70)
        sheet.text(box[0], box[1] + 4, name, size=12.5, weight="bold")
        _lines(sheet, lags, lines, (box[0], box[1] + 16, box[2], box[3] - 16))
    return sheet.save()


def _lines(
    sheet: Sheet,
    lags: Sequence[int],
    lines: Mapping[str, tuple[Sequence[float], ...]],
    box: tuple[float, float, float, float],
) -> None:
    x, y, w, h = box
    drawn = np.array([value for parts in lines.values() for part in parts for value in part], dtype=float)
    finite = drawn[np.isfinite(drawn)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    high = high if high > low else low + 1

    def across(values: Sequence[float]) -> np.ndarray:
        return y + h - (np.array(values, dtype=float) - low) / (high - low) * h

    places = x + (np.array(lags) - lags[0]) / (lags[-1] - lags[0]) * w
    zero = float(np.interp(0, lags, places))
    sheet.line((zero, zero), (y, y + h), width=1)
    for colour, dash, parts in zip(("#0b62a8", "#c4501b"), ("-", (0, (5, 2))), lines.values(), strict=False):
        if len(parts) == 3:
            sheet.axes.fill_between(places, across(parts[1]), across(parts[2]), color=colour, alpha=0.15, linewidth=0)
        sheet.axes.plot(places, across(parts[0]), color=colour, linestyle=dash, linewidth=1.6)
    for lag in (lags[0], 0, lags[-1]):
        sheet.text(float(np.interp(lag, lags, places)), y + h + 16, f"{lag:+d}" if lag else "0", size=10, ha="center")
    for value, place in ((low, y + h), (high, y + 6)):
        sheet.text(x - 6, place, _brief(value), size=10, color=_SOFT, ha="right")


def _brief(value: float) -> str:
    return f"{value:.3g}" if abs(value) >= 1e-3 or not value else f"{value:.0e}"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
