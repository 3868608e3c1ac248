"""Line plots as inline SVG: axes with round ticks, lines told apart by dash and marker as well as colour.

Colours come from the page's style (classes `c0` … `c7`), so one drawing serves light and dark.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from homunculi.report.markup import Html, element, join
from homunculi.report.scales import ROOM, Scale, linear_scale, log_scale

Point = tuple[float, float | None]

COLOURS = 8
DASHES = (None, "7 4", "2 3", "11 4 2 4", "4 2")
MARKERS = (
    "M-3.2 0a3.2 3.2 0 1 0 6.4 0a3.2 3.2 0 1 0 -6.4 0z",
    "M-2.9 -2.9h5.8v5.8h-5.8z",
    "M0 -3.8l3.6 6.4h-7.2z",
    "M0 -4l4 4l-4 4l-4 -4z",
    "M-3.2 -3.2l6.4 6.4m0 -6.4l-6.4 6.4",
    "M0 -4v8m-4 -4h8",
    "M0 3.8l3.6 -6.4h-7.2z",
    "M-3.6 0h7.2",
)
# Spans (largest over smallest value) that an axis by ratio serves.
_LOG_FROM, _LOG_TO = 3.0, 1e30
_UNNAMED = ("faint", "bare")
_MARKS = 12
_ALL_MARKS = 40
# How much wider than high the two sizes of a figure are, in drawing units; text has 13 of them.
WIDE, SMALL = (760, 350), (460, 250)
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 26, 28, 46


@dataclass(frozen=True)
class Series:
    """One line. A point whose y is None breaks it. `look` picks colour, dash and marker.

    `style`: `line`, `marked` (a marker at every point while there are few), `bare` (no markers) or `faint` (a thin
    background line). The last two have no entry in the legend.
    """

    name: str
    points: Sequence[Point]
    look: int = 0
    style: str = "line"


@dataclass(frozen=True)
class Plot:
    """What to draw.

    Attributes:
        key: unique on the page.
        scale: of the vertical axis: `linear`, `zero` (linear, and reaching down to zero), `log` (by ratio where all
            values are positive), or `auto` (by ratio where the largest is at least three times the smallest as well).
        across: of the horizontal axis: `linear`, and reaching down to zero, or `log`.
        breaks: places on the x axis where a value was not finite.
        focus: the first share of the x axis that the vertical axis need not hold; lines leave the frame there.
    """

    key: str
    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    size: tuple[int, int] = WIDE
    scale: str = "linear"
    breaks: Sequence[float] = ()
    focus: float = 0.0
    across: str = "linear"


def draw(plot: Plot) -> Html:
    """The plot as an `svg` element with a title and a description in words; without points, an empty frame."""
    xs = [x for series in plot.series for x, _ in series.points] + list(plot.breaks)
    ys = _fitted(plot, xs)
    n_ticks = 6 if plot.size == WIDE else 4
    by_ratio = plot.across == "log" and min(xs, default=0.0) > 0
    x_scale = log_scale(xs, n_ticks) if by_ratio else linear_scale(xs, n_ticks, floor=0.0, powers=True)
    y_scale = _vertical(plot, ys)
    frame = _Frame(plot.size, x_scale, y_scale)
    lines = [part for order in ("faint", "bare", "line", "marked") for part in _lines(plot.series, frame, order)]
    empty = (
        None if ys else element("text", "nothing recorded", x=frame.middle, y=frame.height / 2, text_anchor="middle")
    )
    return element(
        "svg",
        element("title", plot.title, id=f"{plot.key}-t"),
        element("desc", describe(plot), id=f"{plot.key}-d"),
        *_axes(frame, plot),
        _window(frame, lines) if plot.focus else join(lines),
        *_crosses(frame, plot.breaks),
        empty,
        role="img",
        aria_labelledby=f"{plot.key}-t {plot.key}-d",
        viewBox=f"0 0 {frame.width} {frame.height}",
        class_="plot big" if plot.size == WIDE else "plot",
        data_x=_data(x_scale, frame.left, frame.right, plot.x_label),
        data_y=_data(y_scale, frame.bottom, frame.top, ""),
    )


def _fitted(plot: Plot, xs: Sequence[float]) -> list[float]:
    """The values that the vertical axis must hold."""
    drawn = [(x, y) for series in plot.series for x, y in series.points if y is not None]
    start = min(xs) + plot.focus * (max(xs) - min(xs)) if xs else 0.0
    return [y for x, y in drawn if x >= start] or [y for _, y in drawn]


def _vertical(plot: Plot, values: Sequence[float]) -> Scale:
    low, high = (min(values), max(values)) if values else (0.0, 0.0)
    wide = _LOG_FROM * low <= high <= _LOG_TO * low
    if low > 0 and (plot.scale == "log" or (plot.scale == "auto" and wide)):
        return log_scale(values)
    return linear_scale(values, 5, 0.0 if plot.scale == "zero" else None, powers=True, room=ROOM)


def _window(frame: _Frame, lines: Sequence[Html]) -> Html:
    """An inner drawing that cuts off what rises above the frame, with room for markers at its other edges."""
    x, y, width, height = frame.left - 6, frame.top, frame.right - frame.left + 12, frame.bottom - frame.top + 6
    return element("svg", *lines, x=x, y=y, width=width, height=height, viewBox=f"{x} {y} {width} {height}")


def legend(series: Sequence[Series]) -> Html | None:
    """Names with a piece of their line; None for a single line."""
    named = [line for line in series if line.style not in _UNNAMED]
    if len(named) < 2:
        return None
    return element(
        "ul", *(element("li", _swatch(line), " ", element("bdi", line.name)) for line in named), class_="legend"
    )


def describe(plot: Plot) -> str:
    """The plot in words: where each line begins, ends and is lowest."""
    parts = [f"{plot.y_label or plot.title} against {plot.x_label}."]
    for series in plot.series:
        drawn = [(x, y) for x, y in series.points if y is not None]
        if drawn and series.style != "faint":
            (x0, first), (x1, last), low = drawn[0], drawn[-1], min(y for _, y in drawn)
            parts.append(f"{series.name}: from {first:.4g} at {x0:.6g} to {last:.4g} at {x1:.6g}, lowest {low:.4g}.")
    if plot.breaks:
        parts.append(f"Not finite at {len(plot.breaks)} points, first at {plot.breaks[0]:.6g}.")
    return " ".join(parts)


class _Frame:
    """Pixel positions of one plot."""

    def __init__(self, size: tuple[int, int], x_scale: Scale, y_scale: Scale) -> None:
        self.width, self.height = size
        self.left, self.right = _LEFT, self.width - _RIGHT
        self.top, self.bottom = _TOP, self.height - _BOTTOM
        self.middle = (self.left + self.right) / 2
        self.x_scale, self.y_scale = x_scale, y_scale

    def x(self, value: float) -> float:
        return round(self.left + self.x_scale.place(value) * (self.right - self.left), 2)

    def y(self, value: float) -> float:
        return round(self.bottom - self.y_scale.place(value) * (self.bottom - self.top), 2)


def _axes(frame: _Frame, plot: Plot) -> Iterator[Html]:
    for tick in frame.y_scale.ticks:
        y = frame.y(tick)
        yield element("line", class_="grid", x1=frame.left, x2=frame.right, y1=y, y2=y)
        yield element("text", frame.y_scale.label(tick), x=frame.left - 8, y=y, class_="tick y")
    yield element("line", class_="axis", x1=frame.left, x2=frame.right, y1=frame.bottom, y2=frame.bottom)
    for tick in frame.x_scale.ticks:
        x = frame.x(tick)
        yield element("line", class_="axis", x1=x, x2=x, y1=frame.bottom, y2=frame.bottom + 5)
        yield element("text", frame.x_scale.label(tick), x=x, y=frame.bottom + 9, class_="tick x")
    x_unit, y_unit = frame.x_scale.unit(), frame.y_scale.unit()
    unit = f"{plot.y_label} ({y_unit})" if y_unit and plot.y_label else plot.y_label or y_unit
    notes = [unit, "log scale" if frame.y_scale.log else ""]
    yield element("text", ", ".join(note for note in notes if note), x=8, y=14, class_="label")
    x_title = f"{plot.x_label} ({x_unit})" if x_unit else plot.x_label
    yield element("text", x_title, x=frame.right, y=frame.height - 5, class_="label", text_anchor="end")


def _lines(series: Sequence[Series], frame: _Frame, style: str) -> Iterator[Html]:
    alone = sum(line.style != "faint" for line in series) == 1
    for line in series:
        if line.style == style:
            pieces = [element("polyline", points=points) for points in _pieces(line.points, frame)]
            dash = None if style == "faint" else DASHES[line.look % len(DASHES)]
            plain = style in _UNNAMED or (style == "line" and alone and len(line.points) > _MARKS)
            marks = None if plain else _marks(line, frame)
            name = None if style == "faint" else line.name
            look = f"c{line.look % COLOURS} {'line' if style == 'bare' else style}"
            yield element("g", *pieces, marks, class_=look, stroke_dasharray=dash, data_name=name)


def _pieces(points: Sequence[Point], frame: _Frame) -> Iterator[str]:
    """The points between breaks, as SVG wants them."""
    piece: list[str] = []
    for x, y in [*points, (0.0, None)]:
        if y is not None:
            piece.append(f"{frame.x(x):g},{frame.y(y):g}")
        elif piece:
            yield " ".join(piece if len(piece) > 1 else piece * 2)
            piece = []


def _marks(line: Series, frame: _Frame) -> Html | None:
    """Markers: all points of a short marked line, else about a dozen, moved along so that lines do not share places."""
    drawn = [(x, y) for x, y in line.points if y is not None]
    if not drawn:
        return None
    every = 1
    if line.style != "marked" or len(drawn) > _ALL_MARKS:
        every = max(1, len(drawn) // _MARKS)
        drawn = drawn[(line.look * every // 3) % every :: every] if len(drawn) > 1 else drawn
    shape = MARKERS[line.look % len(MARKERS)]
    return join(element("path", d=shape, transform=f"translate({frame.x(x):g} {frame.y(y):g})") for x, y in drawn)


def _crosses(frame: _Frame, breaks: Sequence[float]) -> Iterator[Html]:
    """A cross at the upper edge wherever a value was not finite (the first forty)."""
    for x in breaks[:_ALL_MARKS]:
        at = f"translate({frame.x(x):g} {frame.top + 6})"
        yield element("path", d="M-4 -4l8 8m0 -8l-8 8", transform=at, class_="broken")


def _swatch(line: Series) -> Html:
    dash = DASHES[line.look % len(DASHES)]
    stroke = element("polyline", points="1,7 37,7")
    marker = element("path", d=MARKERS[line.look % len(MARKERS)], transform="translate(19 7)")
    group = element("g", stroke, marker, class_=f"c{line.look % COLOURS} line", stroke_dasharray=dash)
    return element("svg", group, viewBox="0 0 38 14", width="38", height="14", aria_hidden="true")


def _data(scale: Scale, start: float, end: float, label: str) -> str:
    """What the read-out needs to turn a place back into a value."""
    return "|".join([repr(scale.low), repr(scale.high), "log" if scale.log else "", str(start), str(end), label])
