"""A heat map as inline SVG. The shade of a cell is never alone: numbers stand in the cells, or in a legend beside them.

Legend: R rows, C columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from homunculi.report.markup import Html, element, join
from homunculi.runs.measures import OWN_SCALE

_MOST_ROWS, _MOST_COLUMNS = 48, 96
_PRINTED_ROWS, _PRINTED_COLUMNS = 24, 12
_WIDTH, _TOP, _ROW, _LETTER = 640, 34, 20, 6.4
_FAINT, _STRONG = 0.05, 0.55  # numbers in the cells stay readable
_SHADES = 5


@dataclass(frozen=True)
class _Grid:
    """Cells to be drawn, R × C; `low` and `high` of each row's scale."""

    values: np.ndarray
    rows: Sequence[str]
    columns: Sequence[str]
    low: np.ndarray
    high: np.ndarray

    @property
    def printed(self) -> bool:
        return len(self.rows) <= _PRINTED_ROWS and len(self.columns) <= _PRINTED_COLUMNS

    def shade(self, row: int, value: float) -> float:
        span = self.high[row] - self.low[row]
        share = (value - self.low[row]) / span if span > 0 else 0.0
        return round(_FAINT + (_STRONG - _FAINT) * share, 3)


def heatmap(values: np.ndarray, axes: Sequence[str], rows: Sequence[str], columns: Sequence[str], title: str) -> Html:
    """Rows from top to bottom. All cells share a scale, but for rows of an axis ``measure``, which have one each.

    Args:
        values: (R, C); NaN is drawn as an empty cell. Large ones are drawn as means over neighbours.
        axes: names of both axes.
        rows, columns: labels.
    """
    own = axes[0] == OWN_SCALE
    down, across = (1 if own else -(-len(rows) // _MOST_ROWS)), -(-len(columns) // _MOST_COLUMNS)
    cells = _means(values, down, across)
    low, high = _ranges(cells, own)
    grid = _Grid(cells, list(rows[::down]), list(columns[::across]), low, high)
    if own and not grid.printed:
        ranges = [f"{label} ({low[i]:.3g} to {high[i]:.3g})" for i, label in enumerate(grid.rows)]
        grid = replace(grid, rows=ranges)
    joined = None
    if down * across > 1:
        joined = element("p", f"A cell is the mean of {down} by {across} values.", class_="note")
    scale = element("p", "Each row is shaded from its lowest to its highest.", class_="note") if own else _scale(grid)
    return join([_drawn(grid, axes, title), scale, joined])


def _means(values: np.ndarray, down: int, across: int) -> np.ndarray:
    """Means over blocks of cells, of those that are finite."""
    finite = np.where(np.isfinite(values), values, np.nan)
    if down * across == 1:
        return finite
    n_rows, n_columns = values.shape
    spare = ((0, -n_rows % down), (0, -n_columns % across))
    known, filled = np.pad(np.isfinite(finite), spare), np.pad(np.nan_to_num(finite), spare)
    shape = (known.shape[0] // down, down, known.shape[1] // across, across)
    count = known.reshape(shape).sum((1, 3))
    total = filled.reshape(shape).sum((1, 3))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _ranges(cells: np.ndarray, own: bool) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest of each row, or of all in every row; 0 where nothing is finite."""
    known = np.isfinite(cells)
    axis = 1 if own else None
    low = np.where(known, cells, np.inf).min(axis=axis)
    high = np.where(known, cells, -np.inf).max(axis=axis)
    any_known = known.any(axis=axis)
    n_rows = len(cells)
    return (
        np.broadcast_to(np.where(any_known, low, 0.0), n_rows),
        np.broadcast_to(np.where(any_known, high, 0.0), n_rows),
    )


def _drawn(grid: _Grid, axes: Sequence[str], title: str) -> Html:
    left = min(260.0, 14 + _LETTER * max((len(label) for label in grid.rows), default=0))
    side = (_WIDTH - left) / max(1, len(grid.columns))
    side = min(side, 72.0)
    height = _ROW if grid.printed else max(4.0, min(_ROW, 480 / len(grid.rows)))
    width, bottom = left + side * len(grid.columns) + 4, _TOP + height * len(grid.rows) + 4
    return element(
        "svg",
        element("title", title),
        element("desc", _words(grid, axes)),
        *_cells(grid, left, side, height),
        *_labels(grid, axes, left, side, height),
        role="img",
        viewBox=f"0 0 {width:.1f} {bottom:.1f}",
        width=f"{width:.0f}",
        class_="heat",
    )


def _cells(grid: _Grid, left: float, side: float, height: float) -> Iterator[Html]:
    gap = 1.0 if min(side, height) > 6 else 0.0
    for row, line in enumerate(grid.values.tolist()):
        y = f"{_TOP + row * height:.1f}"
        for column, value in enumerate(line):
            known = math.isfinite(value)
            yield element(
                "rect",
                x=f"{left + column * side:.1f}",
                y=y,
                width=f"{side - gap:.2f}",
                height=f"{height - gap:.2f}",
                class_=None if known else "none",
                fill_opacity=grid.shade(row, value) if known else None,
            )
            if grid.printed:
                place = {"x": f"{left + (column + 0.5) * side:.1f}", "y": f"{_TOP + (row + 0.5) * height:.1f}"}
                yield element("text", f"{value:.3g}" if known else "–", **place, class_="cell")


def _labels(grid: _Grid, axes: Sequence[str], left: float, side: float, height: float) -> Iterator[Html]:
    every = max(1, math.ceil(11 / height))
    for row, label in enumerate(grid.rows):
        if row % every == 0:
            text = _cut(label, int((left - 12) / _LETTER))
            yield element("text", text, x=f"{left - 6:.1f}", y=f"{_TOP + (row + 0.5) * height:.1f}", class_="row")
    room = max(1, math.ceil(8 * _LETTER / side))
    for column in range(0, len(grid.columns), room):
        text = _cut(grid.columns[column], max(3, int(room * side / _LETTER) - 1))
        yield element("text", text, x=f"{left + (column + 0.5) * side:.1f}", y=_TOP - 6, class_="column")
    yield element("text", f"{axes[0]} ↓  {axes[1]} →", x=2, y=11, class_="axes")


def _scale(grid: _Grid) -> Html:
    """Shades with the numbers that they stand for."""
    low, high = float(grid.low[0]), float(grid.high[0])
    items = []
    for i in range(_SHADES):
        value = low + (high - low) * i / (_SHADES - 1)
        box = element("rect", x=1, y=1, width=16, height=12, fill_opacity=grid.shade(0, value))
        swatch = element("svg", box, viewBox="0 0 18 14", width=18, height=14, class_="heat", aria_hidden="true")
        items.append(element("li", swatch, f" {value:.3g}"))
        if high == low:
            break
    return element("ul", *items, class_="legend")


def _words(grid: _Grid, axes: Sequence[str]) -> str:
    known = np.isfinite(grid.values)
    size = f"{len(grid.rows)} places of {axes[0]} by {len(grid.columns)} of {axes[1]}"
    if not known.any():
        return f"{size}; nothing to show."
    row, column = divmod(int(np.nanargmax(grid.values)), grid.values.shape[1])
    most, least = np.nanmax(grid.values), np.nanmin(grid.values)
    return f"{size}; from {least:.3g} to {most:.3g}, the highest at {grid.rows[row]}, {grid.columns[column]}."


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: max(1, most - 1)]}…"
