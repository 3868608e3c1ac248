"""A measurement as a figure: each of its arrays by the instrument's view, as lines, shades or a table.

Legend: R rows, C columns.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from homunculi.interop.paper import (
    COLOURS,
    SOFT,
    Panel,
    draw_sheet,
    look_of,
    name_series,
    plain,
    rule,
    shades,
    write_numbers,
)
from homunculi.runs.measures import OWN_SCALE, Measurement, Stored, figure_of, labels_of, places_of

_MOST_LINES, _MOST_MAPS, _MOST_ROWS, _MOST_COLUMNS = len(COLOURS), 16, 60, 9
_PRINTED_ROWS, _PRINTED_COLUMNS = 24, 12
_VECTOR = 5000  # cells beyond which a heat map is a picture inside the SVG
_LONGEST = 24  # letters of a word along an axis
_EVERY = (1, 2, 5, 10, 20, 25, 50, 100, 200, 250, 500, 1000, 10**4, 10**5, 10**9)
_NARROW = 8  # columns of a heat map that half a sheet shows with their numbers


def draw_measurement(stored: Stored) -> dict[str, bytes] | None:
    """All arrays with axes as PNG and SVG; None where a measurement holds single numbers alone.

    Raises:
        InputError: matplotlib is not installed.
    """
    found = stored.measurement
    panels = [
        panel
        for name, axes in found.axes.items()
        if axes and name in found.values and found.values[name].size
        for panel in _panels(stored, name)
    ]
    return draw_sheet(panels) if panels else None


def _panels(stored: Stored, name: str) -> list[Panel]:
    found, values = stored.measurement, stored.measurement.values[name]
    unit = found.units.get(name, "")
    title = name.replace("_", " ") + (f" ({unit})" if unit else "")
    if stored.view == "line" and values.ndim in (1, 2):
        return [_lines(found, name, title)]
    if stored.view == "heatmap" and values.ndim in (2, 3):
        return _maps(found, name, title)
    return [_table(found, name, title)]


def _lines(found: Measurement, name: str, title: str) -> Panel:
    axes_of, values = found.axes[name], np.atleast_2d(found.values[name].astype(np.float64))
    names = labels_of(found, axes_of[0], len(values)) if len(axes_of) == 2 else [name]
    shown = min(len(values), _MOST_LINES)
    wide = shown > 4  # names beside the lines take room
    places, words = _across(found, axes_of[-1], values.shape[1])

    def draw(axes: Any) -> None:
        marked = values.shape[1] <= 40
        for i, (label, row) in enumerate(zip(names[:shown], values, strict=False)):
            look = look_of(i) if marked else look_of(i) | {"marker": None}
            axes.plot(places, row, label=plain(label, 30), **look)
        axes.set_xlabel(plain(axes_of[-1]))
        axes.set_ylabel(plain(title, 40))
        if words:
            _write_words(axes, places, words, wide)
        else:
            if len(places) <= 12:
                axes.set_xticks(places)
            write_numbers(axes.xaxis)
        write_numbers(axes.yaxis)
        rule(axes)
        name_series(axes, shown)
        _say(axes, f"{len(values) - shown:,} more lines are in the run's measures" if len(values) > shown else "")

    return Panel(draw, height=1.9, wide=wide)


def _across(found: Measurement, axis: str, size: int) -> tuple[list[float], list[str]]:
    """Places along the x axis, and words to write at them, if the labels are words."""
    places = places_of(found, axis, size)
    return (places, []) if places is not None else ([float(i) for i in range(size)], labels_of(found, axis, size))


def _write_words(axes: Any, places: Sequence[float], words: Sequence[str], wide: bool) -> None:
    """Words along the x axis: aslant where they would touch, every so many of numbers and of very many words."""
    letters = 96 if wide else 40
    longest = min(_LONGEST, max(map(len, words)))
    fitting = letters // (longest + 2)
    counted = all(word.isdecimal() for word in words)
    aslant = fitting < len(words) and not counted
    every = next(n for n in _EVERY if n * (letters // 3 if aslant else fitting) >= len(words))
    look = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if aslant else {}
    axes.set_xticks(list(places[::every]), [plain(word, _LONGEST) for word in words[::every]], **look)


def _maps(found: Measurement, name: str, title: str) -> list[Panel]:
    axes_of, values = found.axes[name], found.values[name].astype(np.float64)
    rows, columns = (labels_of(found, axis, n) for axis, n in zip(axes_of[-2:], values.shape[-2:], strict=True))
    if values.ndim == 2:
        return [_map(values, axes_of, (rows, columns), title)]
    places = labels_of(found, axes_of[0], len(values))[:_MOST_MAPS]
    panels = [
        _map(values[i], axes_of[1:], (rows, columns), f"{title}: {axes_of[0]} {label}")
        for i, label in enumerate(places)
    ]
    return panels


def _map(values: np.ndarray, axes_of: Sequence[str], labels: tuple[list[str], list[str]], title: str) -> Panel:
    """Cells of (R, C), from light to dark: all on one scale, or each row on its own where rows are of OWN_SCALE."""
    own = axes_of[0] == OWN_SCALE
    n_rows, n_columns = values.shape
    printed = n_rows <= _PRINTED_ROWS and n_columns <= _PRINTED_COLUMNS
    rows, columns = labels
    shares, low, high = _shares(values, own)
    scaled = not printed and not own
    if own and not printed:
        rows = [f"{row} ({figure_of(a)} to {figure_of(b)})" for row, a, b in zip(rows, low, high, strict=True)]
    wide = n_columns > _NARROW or max(map(len, rows)) > 24

    def draw(axes: Any) -> None:
        axes.patch.set(facecolor="white", hatch="////", edgecolor="#cfcdc7", linewidth=0)
        cells, ends = (values, (low[0], high[0] if high[0] > low[0] else low[0] + 1)) if scaled else (shares, (0, 1))
        look = {"cmap": shades(), "vmin": ends[0], "vmax": ends[1], "edgecolor": "face"}
        mesh = axes.pcolormesh(np.ma.masked_invalid(cells), **look)
        mesh.set(linewidth=0.2, rasterized=values.size > _VECTOR)
        axes.set(xlim=(0, n_columns), ylim=(n_rows, 0))
        _write_rows(axes, rows)
        _write_words(axes, [i + 0.5 for i in range(n_columns)], columns, wide)
        axes.set(xlabel=plain(axes_of[1]), ylabel="" if own else plain(axes_of[0]))
        axes.tick_params(length=0)
        for side in axes.spines.values():
            side.set_visible(False)
        if printed:
            _print(axes, values, shares)
        elif scaled:
            _scale(axes, mesh, title)
        _say(axes, "shaded row by row" if own else "")

    height = min(0.21 * n_rows + 0.1, 6.0) if printed or n_rows <= 30 else 4.5
    return Panel(draw, "" if scaled else title, max(height, 0.7), wide)


def _shares(values: np.ndarray, own: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values between 0 at the lowest and 1 at the highest of their scale, and both ends for each row."""
    known = np.where(np.isfinite(values), values, np.nan)
    axis = 1 if own else None
    filled = np.isfinite(known).any(axis=axis, keepdims=True)
    low = np.where(filled, np.where(np.isnan(known), np.inf, known).min(axis=axis, keepdims=True), 0.0)
    high = np.where(filled, np.where(np.isnan(known), -np.inf, known).max(axis=axis, keepdims=True), 0.0)
    span = np.where(high > low, high - low, 1.0)
    n = len(values)
    return (known - low) / span, np.broadcast_to(low.ravel(), n), np.broadcast_to(high.ravel(), n)


def _write_rows(axes: Any, rows: Sequence[str]) -> None:
    every = -(-len(rows) // 48)
    axes.set_yticks([i + 0.5 for i in range(0, len(rows), every)], [plain(row, 44) for row in rows[::every]])


def _print(axes: Any, values: np.ndarray, shares: np.ndarray) -> None:
    """The number in each cell, light on dark."""
    for (i, j), value in np.ndenumerate(values):
        if math.isfinite(value):
            colour = "white" if shares[i, j] > 0.55 else "black"
            axes.text(j + 0.5, i + 0.5, figure_of(value), ha="center", va="center", color=colour, fontsize=6.8)


def _scale(axes: Any, mesh: Any, title: str) -> None:
    """The shades beside the cells, with numbers."""
    bar = axes.figure.colorbar(mesh, ax=axes, pad=0.015, aspect=24, shrink=0.9)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=2, width=0.6)
    bar.ax.locator_params(nbins=5)
    write_numbers(bar.ax.yaxis)
    bar.set_label(plain(title, 40))


def _table(found: Measurement, name: str, title: str) -> Panel:
    """Numbers with the labels of their rows and columns; leading axes beyond two are joined into rows."""
    axes_of, values = found.axes[name], found.values[name]
    if values.ndim == 1:
        rows, columns, cells = labels_of(found, axes_of[0], len(values)), [title], values.reshape(-1, 1)
    else:
        cells = values.reshape(-1, values.shape[-1])
        rows = labels_of(found, axes_of[0], len(cells)) if values.ndim == 2 else _joined(found, axes_of, values.shape)
        columns = labels_of(found, axes_of[-1], values.shape[-1])
    left = [f"{len(rows) - _MOST_ROWS:,} more rows"] if len(rows) > _MOST_ROWS else []
    left += [f"{len(columns) - _MOST_COLUMNS:,} more columns"] if len(columns) > _MOST_COLUMNS else []
    note = f"{' and '.join(left)} are in the run's measures" if left else ""
    rows, columns = rows[:_MOST_ROWS], columns[:_MOST_COLUMNS]

    n_wide = len(columns) > 2 or max(map(len, rows)) > 24
    heads = _heads(columns, rows)

    def draw(axes: Any) -> None:
        _write_table(axes, rows, heads, cells)
        _say(axes, note)

    return Panel(draw, title, 0.17 * (len(rows) + _lines_of(heads)), wide=n_wide)


def _heads(columns: Sequence[str], rows: Sequence[str]) -> list[str]:
    """Titles of columns, broken into as many lines as they need."""
    room = max(8, round((1 - _first(rows, columns)) / len(columns) * 84))
    return ["\n".join(textwrap.wrap(plain(column, 3 * room), room)[:3]) for column in columns]


def _lines_of(heads: Sequence[str]) -> int:
    return max(head.count("\n") + 1 for head in heads)


def _first(rows: Sequence[str], columns: Sequence[str]) -> float:
    """Share of the width that the labels of rows take."""
    return min(0.5, 0.02 + 0.011 * max(map(len, rows))) if len(columns) > 2 else 0.6


def _joined(found: Measurement, axes_of: Sequence[str], shape: Sequence[int]) -> list[str]:
    parts = [labels_of(found, axis, size) for axis, size in zip(axes_of[:-1], shape[:-1], strict=True)]
    names = [""]
    for labels in parts:
        names = [f"{name}, {label}".removeprefix(", ") for name in names for label in labels]
    return names


def _write_table(axes: Any, rows: Sequence[str], heads: Sequence[str], cells: np.ndarray) -> None:
    """Rows from top to bottom: the first column is as wide as its words, numbers stand to the right."""
    top = _lines_of(heads)
    axes.set_axis_off()
    axes.set(xlim=(0, 1), ylim=(len(rows) + top, 0))
    first = _first(rows, heads)
    side = (1 - first) / len(heads)
    for j, head in enumerate(heads):
        look = {"ha": "right", "va": "bottom", "color": SOFT, "fontsize": 7.5, "linespacing": 1.1}
        axes.text(first + (j + 1) * side, top - 0.15, head, **look)
    axes.plot([0, 1], [top, top], color=SOFT, linewidth=0.7)
    for i, row in enumerate(rows):
        axes.text(0, i + top + 0.5, plain(row, 44), va="center", fontsize=7.5)
        for j in range(len(heads)):
            words = figure_of(cells[i, j].item())
            axes.text(first + (j + 1) * side, i + top + 0.5, words, ha="right", va="center", fontsize=7.5)


def _say(axes: Any, note: str) -> None:
    """What a reader has to know, small, at the lower right."""
    if note:
        look = {"ha": "right", "va": "top", "fontsize": 6.5, "color": SOFT, "textcoords": "offset points"}
        axes.annotate(note, (1, 1), (0, 9), xycoords="axes fraction", **look)
