"""Figures of runs for a paper: losses, numbers over the steps of training, and what came when.

Runs that differ in their seeds alone are one line, their mean, with a band from the lowest to the highest seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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


def draw_losses(groups: Mapping[str, Sequence[Curves]]) -> dict[str, bytes] | None:
    """Losses over tokens, a line a group; of one group training and validation share a panel. None where nothing was
    logged.

    Args:
        groups: name → the curves (`homunculi.runs.chronology.curves_of`) of each of its runs.

    Raises:
        InputError: matplotlib is not installed.
    """
    found = {key: lines for key in LOSSES if (lines := _courses(groups, key))}
    if not found:
        return None
    panels = []
    if len(groups) == 1:
        both = {name: line for key, name in _BOTH.items() for line in found.pop(key, {}).values()}
        panels += [_loss_panel(both, "loss (nats per token)", ["training"])] if both else []
    for key, lines in found.items():
        panels.append(_loss_panel(lines, LOSSES[key], list(lines) if key == "train/loss" else []))
    if len(groups) > 1:
        panels.append(_names(list(groups)))
    return draw_sheet(panels)


def _loss_panel(lines: Mapping[str, Course], label: str, noisy: Sequence[str]) -> Panel:
    return Panel(lambda axes: _losses(axes, lines, label, noisy), height=2.3)


def _names(names: Sequence[str]) -> Panel:
    """The names of the lines of the other panels."""

    def draw(axes: Any) -> None:
        axes.set_axis_off()
        for i, name in enumerate(names[:_MOST_LINES]):
            axes.plot([], [], label=plain(name, 40), **look_of(i))
        rest = f"\n{len(names) - _MOST_LINES} more are not drawn" if len(names) > _MOST_LINES else ""
        title = f"Lines: mean over seeds.\nBands: lowest to highest seed.{rest}"
        axes.legend(loc="upper left", title=title, alignment="left", title_fontsize=7.5)

    return Panel(draw, height=2.3)


def _courses(groups: Mapping[str, Sequence[Curves]], key: str) -> dict[str, Course]:
    """What groups have of a number, those with enough of it."""
    found = {}
    for name, runs in groups.items():
        curves = [curves[key] for curves in runs if key in curves]
        if curves and len((line := course(curves)).steps) >= _FEWEST:
            found[name] = line
    return found


def _losses(axes: Any, lines: Mapping[str, Course], label: str, noisy: Sequence[str]) -> None:
    """Lines with their bands; a running mean of those that are noisy, with what was logged behind a single run's."""
    by_tokens = all(np.isfinite(line.tokens).all() for line in lines.values())
    for i, (name, line) in enumerate(list(lines.items())[:_MOST_LINES]):
        x = line.tokens if by_tokens else line.steps
        window = _window(len(x)) if name in noisy else 1
        if line.n_runs > 1:
            ends = (_smooth(values, window) for values in (line.low, line.high))
            axes.fill_between(x, *ends, color=COLOURS[i], alpha=0.18, lw=0)
        elif window > 1:
            axes.plot(x, line.mean, color=COLOURS[i], linewidth=0.5, alpha=0.4)
        axes.plot(x, _smooth(line.mean, window), label=plain(name, 40), **_sparse(look_of(i), len(x), i))
    values = np.concatenate([line.mean for line in lines.values()])
    low, high = float(values.min()), float(values.max())
    if low > 0 and high >= _RATIO * low:
        axes.set_yscale("log")
        space_by_ratio(axes.yaxis, low, high)
    else:
        write_numbers(axes.yaxis)
    write_numbers(axes.xaxis)
    axes.set_xlim(left=0)
    axes.set(xlabel="tokens" if by_tokens else "steps", ylabel=label)
    rule(axes)
    if set(lines) <= set(_BOTH.values()):
        name_series(axes, len(lines))


def _sparse(look: dict[str, Any], count: int, place: int) -> dict[str, Any]:
    """About a dozen markers on a long line, moved along so that lines do not share places."""
    every = max(1, count // 12)
    return look | {"markevery": (place * every // 3 % every, every)} if count > _MARKED else look


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
        lines = _courses(groups, key)
        if lines:
            bounds = _bounds(groups, key)
            name = key.partition("/")[2].replace("_", " ")
            unit = units.get(key, "")
            panels.append(Panel(_scalar(lines, bounds, f"{name} ({unit})" if unit else name), height=1.6))
    return draw_sheet(panels) if panels else None


def _bounds(groups: Mapping[str, Sequence[Curves]], key: str) -> dict[str, Curve]:
    """Of a single run: ends of the interval of a number, and the deviation of its null."""
    runs = [curves for found in groups.values() for curves in found]
    return {end.strip(): runs[0][key + end] for end in _BOUNDS if len(runs) == 1 and key + end in runs[0]}


def _scalar(lines: Mapping[str, Course], bounds: Mapping[str, Curve], label: str) -> Any:
    def draw(axes: Any) -> None:
        n = 0
        if "low" in bounds and "high" in bounds:
            low, high = bounds["low"], bounds["high"]
            steps = np.intersect1d(low.steps, high.steps)
            ends = (curve.values[np.searchsorted(curve.steps, steps)] for curve in (low, high))
            axes.fill_between(steps, *ends, color=COLOURS[0], alpha=0.18, lw=0, label="interval")
            n += 1
        for i, (name, line) in enumerate(list(lines.items())[:_MOST_LINES]):
            if line.n_runs > 1:
                axes.fill_between(line.steps, line.low, line.high, color=COLOURS[i], alpha=0.18, lw=0)
            named = "measured" if bounds else plain(name, 24)
            axes.plot(line.steps, line.mean, label=named, **_sparse(look_of(i), len(line.steps), i))
            n += 1
        if "null sd" in bounds:
            null = bounds["null sd"]
            axes.plot(
                null.steps, null.values, color=SOFT, linewidth=0.9, linestyle=(0, (1, 1.5)), label="deviation by chance"
            )
            n += 1
        end = max(float(line.steps[-1]) for line in lines.values())
        space_steps(axes, end, [end])
        write_numbers(axes.yaxis)
        axes.set(xlabel="step", ylabel=plain(label, 34))
        rule(axes)
        name_series(axes, n)

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
