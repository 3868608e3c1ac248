"""From logged steps to lines: gaps where a value is missing or not finite, fewer points, a running mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from homunculi.report.numbers import number
from homunculi.report.plot import Point


def points_of(metrics: Sequence[Mapping[str, Any]], x_key: str, y_key: str) -> list[Point]:
    """(x, y) of every step that logged `y_key`, in order of x. Not finite: y is None, which breaks the line."""
    found = [(number(line.get(x_key)), number(line[y_key])) for line in metrics if y_key in line]
    return sorted(((x, y) for x, y in found if x is not None), key=lambda point: point[0])


def broken_at(points: Sequence[Point]) -> list[float]:
    return [x for x, y in points if y is None]


def thinned(points: Sequence[Point], limit: int) -> list[Point]:
    """At most about `limit` points that keep every peak: of each group the lowest, the highest and a break, if any."""
    if len(points) <= limit:
        return list(points)
    groups = max(1, limit // 2)
    kept: list[Point] = [points[0]]
    for group in range(groups):
        part = range(1 + group * (len(points) - 2) // groups, 1 + (group + 1) * (len(points) - 2) // groups)
        drawn = [index for index in part if points[index][1] is not None]
        chosen = {next((index for index in part if points[index][1] is None), None)}
        if drawn:
            chosen |= {min(drawn, key=lambda i: points[i][1] or 0.0), max(drawn, key=lambda i: points[i][1] or 0.0)}
        kept += [points[index] for index in sorted(index for index in chosen if index is not None)]
    return [*kept, points[-1]]


def mean_window(count: int) -> int:
    """How many logged steps the running mean of a line with `count` points spans: odd, 1 for short lines."""
    return 1 if count < 60 else 2 * (count // 60) + 1


def running_mean(points: Sequence[Point], window: int) -> list[Point]:
    """Mean over the `window` points around each (fewer at the ends, as many on both sides); breaks stay breaks."""
    totals, counts = [0.0], [0]
    for _, y in points:
        totals.append(totals[-1] + (y or 0.0))
        counts.append(counts[-1] + (y is not None))
    smooth: list[Point] = []
    for index, (x, y) in enumerate(points):
        reach = min(window // 2, index, len(points) - 1 - index)
        low, high = index - reach, index + reach + 1
        smooth.append((x, None if y is None else (totals[high] - totals[low]) / (counts[high] - counts[low])))
    return smooth
