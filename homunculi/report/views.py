"""How an array of a measurement is shown: as lines, a heat map, a table or text, told by the instrument's view."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from homunculi.report.heatmap import heatmap
from homunculi.report.markup import Html, element, folded, join, table
from homunculi.report.plot import SMALL, Plot, Point, Series, draw, legend
from homunculi.report.series import broken_at, thinned
from homunculi.runs.measures import Measurement, Stored, figure_of, labels_of, places_of

_MOST_ROWS, _MOST_COLUMNS, _MOST_LINES, _MOST_PANELS, _OPEN_PANELS = 200, 24, 8, 16, 4
_OPEN_ROWS = 16
_POINTS = 600


def view_of(stored: Stored, name: str, key: str) -> Html:
    """One array with axes, as the instrument's view says; as a table where its shape fits no other.

    Args:
        key: unique on the page.
    """
    found, values = stored.measurement, stored.measurement.values[name]
    unit = found.units.get(name, "")
    title = element("figcaption", element("strong", name.replace("_", " ")), f" ({unit})" if unit else None)
    if values.size == 0:
        return element("figure", title, element("p", "nothing", class_="note"))
    draws: dict[str, tuple[Callable[[Stored, str], Html], tuple[int, ...]]] = {
        "line": (partial(_lines, key), (1, 2)),
        "heatmap": (_heatmaps, (2, 3)),
    }
    shape, fitting = draws.get(stored.view, (_table, (1, 2)))
    drawn = shape(stored, name) if values.ndim in fitting else _any_table(stored, name)
    return element("figure", title, drawn)


def slug(text: str) -> str:
    """An identifier made of any text: two texts give two identifiers."""
    return "".join(c if c.isascii() and c.isalnum() else f"_{ord(c):x}" for c in text)


def _lines(key: str, stored: Stored, name: str) -> Html:
    found = stored.measurement
    axes, values = found.axes[name], np.atleast_2d(found.values[name].astype(np.float64))
    names = labels_of(found, axes[0], len(values)) if len(axes) == 2 else [name.replace("_", " ")]
    n_places = values.shape[1]
    across = places_of(found, axes[-1], n_places) or [float(i) for i in range(n_places)]
    series = []
    for look, (label, row) in enumerate(zip(names[:_MOST_LINES], values, strict=False)):
        points: list[Point] = [
            (x, float(y) if math.isfinite(y) else None) for x, y in zip(across, row.tolist(), strict=True)
        ]
        series.append(Series(label, thinned(points, _POINTS), look))
    breaks = sorted({x for line in series for x in broken_at(line.points)})
    unit = found.units.get(name, "")
    plot = Plot(key, f"{stored.title}: {name}", axes[-1], unit, series, SMALL, breaks=breaks)
    more = len(values) - len(series)
    note = element("p", f"{more:,} more lines are in the run's measures.", class_="note") if more else None
    return element("div", element("output", class_="read"), draw(plot), legend(series), note, class_="narrow")


def _heatmaps(stored: Stored, name: str) -> Html:
    found = stored.measurement
    axes, values = found.axes[name], found.values[name].astype(np.float64)
    rows, columns = (labels_of(found, axis, size) for axis, size in zip(axes[-2:], values.shape[-2:], strict=True))
    if values.ndim == 2:
        return heatmap(values, axes, rows, columns, f"{stored.title}: {name}")
    panels = []
    for place, label in enumerate(labels_of(found, axes[0], len(values))[:_MOST_PANELS]):
        words = f"{axes[0]} {label}"
        drawn = heatmap(values[place], axes[1:], rows, columns, f"{stored.title}: {name}, {words}")
        title = element("bdi", words)
        panels.append(
            element("div", element("p", title), drawn) if place < _OPEN_PANELS else folded(title, drawn),
        )
    more = len(values) - len(panels)
    note = element("p", f"{more:,} more are in the run's measures.", class_="note") if more else None
    return join([element("div", *panels, class_="pair"), note])


def _any_table(stored: Stored, name: str) -> Html:
    """An array of any number of axes, the leading ones joined into rows."""
    found = stored.measurement
    axes, values = found.axes[name], found.values[name]
    shape = "×".join(f"{axis} {size}" for axis, size in zip(axes, values.shape, strict=True))
    if values.ndim <= 2:
        return _table(stored, name)
    rows = values.reshape(-1, values.shape[-1])
    return join([element("p", shape, class_="note"), _rows([str(i) for i in range(len(rows))], axes[-1], found, rows)])


def _table(stored: Stored, name: str) -> Html:
    found = stored.measurement
    axes, values = found.axes[name], found.values[name]
    labels = labels_of(found, axes[0], len(values))
    if values.ndim == 1:
        shown = [(element("bdi", a), figure_of(b)) for a, b in zip(labels, values[:_MOST_ROWS], strict=False)]
        return _folding(table((axes[0], name.replace("_", " ")), shown), len(values))
    return _rows(labels, axes[1], found, values, axes[0])


def _rows(labels: Sequence[str], across: str, found: Measurement, values: np.ndarray, down: str = "") -> Html:
    columns = labels_of(found, across, values.shape[1])[:_MOST_COLUMNS]
    rows = [
        (element("bdi", label), *map(figure_of, row[:_MOST_COLUMNS]))
        for label, row in zip(labels[:_MOST_ROWS], values, strict=False)
    ]
    shown = table((down, *(element("bdi", column) for column in columns)), rows)
    cut = values.shape[1] - len(columns)
    more = element("p", f"{cut:,} more columns are in the run's measures.", class_="note") if cut else None
    return join([_folding(shown, len(values)), more])


def _folding(shown: Html, n_rows: int) -> Html:
    """A long table opens on request."""
    left = n_rows - _MOST_ROWS
    more = element("p", f"{left:,} more rows are in the run's measures.", class_="note") if left > 0 else None
    return folded(f"{n_rows:,} rows", shown, more) if n_rows > _OPEN_ROWS else join([shown, more])
