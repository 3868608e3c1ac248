"""Figures of runs for a paper: losses, numbers over the steps of training, and what came when.

Runs that differ in their seeds alone are one line, their mean, with a band from the lowest to the highest seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from homunculi.interop.paper import (
    COLOURS,
    LINE,
    SOFT,
    Panel,
    draw_sheet,
    look_of,
    name_series,
    plain,
    rule,
    space_by_ratio,
    space_steps,
    write_numbers,
)
from homunculi.runs.chronology import Curve, HalfTime
from homunculi.runs.seeds import Course, course

# Metric → what stands at the vertical axis.
LOSSES = {
    "val/loss": "validation loss (nats per token)",
    "train/loss": "training loss (nats per token)",
    "val/bpb": "bits per byte of validation text",
}
_BOTH = {"train/loss": "training", "val/loss": "validation"}
_RATIO = 3.0  # largest over smallest from which on losses are spaced by ratio
_FEWEST, _MARKED = 2, 30
_SMOOTH = 60  # points of a line that a running mean leaves
_MOST_LINES = len(COLOURS)
_BOUNDS = (" low", " high", " null sd")

Curves = Mapping[str, Curve]


@dataclass(frozen=True)
class _Line:
    """A group's course of a number; `look` is the same in every panel of a sheet."""

    name: str
    course: Course
    look: int
    noisy: bool = False


def draw_losses(groups: Mapping[str, Sequence[Curves]]) -> dict[str, bytes] | None:
    """Losses over tokens, a line a group; of one group training and validation share a panel. None where nothing was
    logged.

    Args:
        groups: name → the curves (`homunculi.runs.chronology.curves_of`) of each of its runs.

    Raises:
        InputError: matplotlib is not installed.
    """
    found = {key: lines for key in LOSSES if (lines := _lines(groups, key))}
    if not found:
        return None
    panels = []
    if len(groups) == 1:
        both = [
            replace(line, name=name, look=look)
            for look, (key, name) in enumerate(_BOTH.items())
            for line in found.pop(key, [])
        ]
        panels += [_loss_panel(both, "loss (nats per token)")] if both else []
    panels += [_loss_panel(lines, LOSSES[key]) for key, lines in found.items()]
    if len(groups) > 1:
        panels.append(_names(groups))
    return draw_sheet(panels)


def _loss_panel(lines: Sequence[_Line], label: str) -> Panel:
    def draw(axes: Any) -> None:
        _losses(axes, lines)
        axes.set_ylabel(label)
        if {line.name for line in lines} <= set(_BOTH.values()):
            name_series(axes, len(lines))

    return Panel(draw, height=2.3)


def _names(groups: Mapping[str, Sequence[Curves]]) -> Panel:
    """The names of the lines of the other panels."""
    names = list(groups)
    words = ["Lines: mean over seeds.", "Bands: lowest to highest seed."] if max(map(len, groups.values())) > 1 else []
    words += [f"{len(names) - _MOST_LINES} more are not drawn."] if len(names) > _MOST_LINES else []

    def draw(axes: Any) -> None:
        axes.set_axis_off()
        for i, name in enumerate(names[:_MOST_LINES]):
            axes.plot([], [], label=plain(name, 40), **look_of(i))
        axes.legend(loc="upper left", title="\n".join(words), alignment="left", title_fontsize=7.5)

    return Panel(draw, height=0.2 * min(len(names), _MOST_LINES) + 0.4)


def _lines(groups: Mapping[str, Sequence[Curves]], key: str) -> list[_Line]:
    """What groups have of a number, those with enough of it and as many as can be told apart."""
    found = []
    for look, (name, runs) in enumerate(list(groups.items())[:_MOST_LINES]):
        curves = [curves[key] for curves in runs if key in curves]
        if curves and len((over := course(curves)).steps) >= _FEWEST:
            found.append(_Line(name, over, look, noisy=key.startswith("train/")))
    return found


def _losses(axes: Any, lines: Sequence[_Line]) -> None:
    """Lines with their bands; a running mean of those that are noisy, with what was logged behind a single run's."""
    by_tokens = all(np.isfinite(line.course.tokens).all() for line in lines)
    for line in lines:
        over, colour = line.course, COLOURS[line.look]
        x = over.tokens if by_tokens else over.steps
        window = _window(len(x)) if line.noisy else 1
        if over.n_runs > 1:
            ends = (_smooth(values, window) for values in (over.low, over.high))
            axes.fill_between(x, *ends, color=colour, alpha=0.18, lw=0)
        elif window > 1:
            axes.plot(x, over.mean, color=colour, linewidth=0.5, alpha=0.4)
        axes.plot(x, _smooth(over.mean, window), label=plain(line.name, 40), **_sparse(line.look, len(x)))
    values = np.concatenate([line.course.mean for line in lines])
    low, high = float(values.min()), float(values.max())
    if low > 0 and high >= _RATIO * low:
        axes.set_yscale("log")
        space_by_ratio(axes.yaxis, low, high)
    else:
        write_numbers(axes.yaxis)
    write_numbers(axes.xaxis)
    axes.set_xlim(left=0)
    axes.set_xlabel("tokens" if by_tokens else "steps")
    rule(axes)


def _sparse(look: int, count: int) -> dict[str, Any]:
    """A look with about a dozen markers on a long line, moved along so that lines do not share places."""
    every = max(1, count // 12)
    return look_of(look) | ({"markevery": (look * every // 3 % every, every)} if count > _MARKED else {})


def _window(count: int) -> int:
    return 1 if count < _SMOOTH else 2 * (count // _SMOOTH) + 1


def _smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Mean over a window around each point, fewer at the ends and as many on both sides."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    reach = np.minimum(window // 2, np.minimum(at, len(values) - 1 - at))
    return (total[at + reach + 1] - total[at - reach]) / (2 * reach + 1)


def scalars_of(groups: Mapping[str, Sequence[Curves]]) -> dict[str, list[str]]:
    """Instrument → the numbers that it followed over steps, without those that are bounds of another."""
    keys = {key for runs in groups.values() for curves in runs for key in curves}
    found: dict[str, list[str]] = {}
    for key in sorted(keys):
        instrument, slash, _ = key.partition("/")
        bound = any(key.endswith(end) and key.removesuffix(end) in keys for end in _BOUNDS)
        if slash and not bound:
            found.setdefault(instrument, []).append(key)
    return found


def draw_scalars(
    groups: Mapping[str, Sequence[Curves]], keys: Sequence[str], units: Mapping[str, str]
) -> dict[str, bytes] | None:
    """Numbers of an instrument over steps, a panel each; of a single run with the interval and the null that the
    instrument gives. None where no run has two points.

    Args:
        keys: ``<instrument>/<number>``; units: of the numbers, by the same keys.

    Raises:
        InputError: matplotlib is not installed.
    """
    panels = []
    for key in keys:
        if lines := _lines(groups, key):
            name, unit = key.partition("/")[2].replace("_", " "), units.get(key, "")
            drawn = _scalar(lines, _bounds(groups, key), f"{name} ({unit})" if unit else name)
            panels.append(Panel(drawn, height=1.6))
    if panels and len(groups) > 1:
        panels.append(_names(groups))
    return draw_sheet(panels) if panels else None


def _bounds(groups: Mapping[str, Sequence[Curves]], key: str) -> dict[str, Curve]:
    """Of a single run: ends of the interval of a number, and the deviation of its null."""
    runs = [curves for found in groups.values() for curves in found]
    return {end.strip(): runs[0][key + end] for end in _BOUNDS if len(runs) == 1 and key + end in runs[0]}


def _scalar(lines: Sequence[_Line], bounds: Mapping[str, Curve], label: str) -> Callable[[Any], None]:
    def draw(axes: Any) -> None:
        interval = "low" in bounds and "high" in bounds
        if interval:
            low, high = bounds["low"], bounds["high"]
            steps = np.intersect1d(low.steps, high.steps)
            ends = (curve.values[np.searchsorted(curve.steps, steps)] for curve in (low, high))
            axes.fill_between(steps, *ends, color=COLOURS[0], alpha=0.18, lw=0, label="interval")
        for line in lines:
            over = line.course
            if over.n_runs > 1:
                axes.fill_between(over.steps, over.low, over.high, color=COLOURS[line.look], alpha=0.18, lw=0)
            axes.plot(over.steps, over.mean, label="measured", **_sparse(line.look, len(over.steps)))
        if "null sd" in bounds:
            null, look = bounds["null sd"], {"color": SOFT, "linewidth": 0.9, "linestyle": (0, (1, 1.5))}
            axes.plot(null.steps, null.values, label="deviation by chance", **look)
        end = max(float(line.course.steps[-1]) for line in lines)
        space_steps(axes, end, [end])
        write_numbers(axes.yaxis)
        axes.set(xlabel="step", ylabel=plain(label, 34))
        rule(axes)
        if bounds:
            name_series(axes, 1 + interval + ("null sd" in bounds))

    return draw


def draw_chronology(found: Sequence[HalfTime]) -> dict[str, bytes] | None:
    """Half-times in the order of acquisition, a row each, with their intervals; None where there is none.

    Raises:
        InputError: matplotlib is not installed.
    """
    rows = [one for one in found if not one.reason]
    if not rows:
        return None

    def draw(axes: Any) -> None:
        for y, one in enumerate(rows):
            if math.isfinite(one.low) and math.isfinite(one.high):
                axes.plot([one.low, one.high], [y, y], color=COLOURS[0], linewidth=1.4, solid_capstyle="butt")
            axes.plot([one.step], [y], "o", color=COLOURS[0], markerfacecolor="white", markersize=4)
        space_steps(axes, max(max(one.step, np.nan_to_num(one.high)) for one in rows))
        axes.set_yticks(range(len(rows)), [plain(one.name, 48) for one in rows])
        axes.set(ylim=(len(rows) - 0.4, -0.6), xlabel="step of the half-time")
        axes.grid(axis="both", color=LINE, linewidth=0.5)
        axes.set_axisbelow(True)
        axes.tick_params(axis="y", length=0)

    return draw_sheet([Panel(draw, height=0.155 * len(rows) + 0.2, wide=True)])
