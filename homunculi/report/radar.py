"""A radar: one spoke a task, one closed line an architecture, told apart by marker and dash as well as colour."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from homunculi.report.markup import Html, element, join
from homunculi.report.plot import COLOURS, DASHES, MARKERS

RINGS = (0.25, 0.5, 0.75, 1.0)
_SIZE, _HEIGHT, _RADIUS = 640, 500, 190
MORE_STYLE = """
svg.radar { display: block; width: 100%; max-width: 46rem; height: auto; }
.radar text { font-size: 11px; fill: var(--soft); }
.radar .ring, .radar .spoke { stroke: var(--line); fill: none; }
.radar .chance { stroke: var(--c7); stroke-dasharray: 2 3; fill: none; }
.radar .ceiling { stroke: var(--c7); stroke-dasharray: 9 5; fill: none; }
"""

Line = tuple[str, int, Sequence[float]]


@dataclass(frozen=True)
class Spoke:
    """A task, and the accuracies of chance and of the best possible reader."""

    name: str
    chance: float
    ceiling: float


def draw_radar(key: str, spokes: Sequence[Spoke], lines: Sequence[Line]) -> Html:
    """The radar as an `svg` element with a title and a description in words.

    Args:
        lines: name, look, and a value between 0 and 1 for each spoke.
    """
    parts = [
        element("title", "Scores of all tasks", id=f"{key}-t"),
        element("desc", _described(spokes, lines), id=f"{key}-d"),
        *_rings(len(spokes)),
        *_spokes(spokes),
        _outline([spoke.chance for spoke in spokes], "chance"),
        _outline([spoke.ceiling for spoke in spokes], "ceiling"),
        *(_line(*line) for line in lines),
    ]
    named = f"{key}-t {key}-d"
    return element("svg", *parts, role="img", aria_labelledby=named, viewBox=f"0 0 {_SIZE} {_HEIGHT}", class_="radar")


def _place(i: int, n: int, value: float) -> tuple[float, float]:
    angle = 2 * math.pi * i / n - math.pi / 2
    reach = _RADIUS * min(1.0, max(0.0, value))
    return round(_SIZE / 2 + reach * math.cos(angle), 2), round(_HEIGHT / 2 + reach * math.sin(angle), 2)


def _points(values: Sequence[float]) -> str:
    return " ".join("{:g},{:g}".format(*_place(i, len(values), value)) for i, value in enumerate(values))


def _rings(n: int) -> Iterator[Html]:
    for ring in RINGS:
        yield element("polygon", points=_points([ring] * n), class_="ring")
        x, y = _place(0, n, ring)
        if ring < 1:  # there stands a name
            yield element("text", f"{ring:g}", x=x + 4, y=y - 3)


def _spokes(spokes: Sequence[Spoke]) -> Iterator[Html]:
    for i, spoke in enumerate(spokes):
        x, y = _place(i, len(spokes), 1.0)
        yield element("line", x1=_SIZE / 2, y1=_HEIGHT / 2, x2=x, y2=y, class_="spoke")
        angle = 2 * math.pi * i / len(spokes) - math.pi / 2
        anchor = "middle" if abs(math.cos(angle)) < 0.2 else "start" if math.cos(angle) > 0 else "end"
        beside = (x + 12 * math.cos(angle), y + 14 * math.sin(angle) + 4)
        yield element("text", spoke.name, x=round(beside[0], 2), y=round(beside[1], 2), text_anchor=anchor)


def _outline(values: Sequence[float], class_: str) -> Html:
    return element("polygon", points=_points(values), class_=class_)


def _line(name: str, look: int, values: Sequence[float]) -> Html:
    shape = MARKERS[look % len(MARKERS)]
    spots = [_place(i, len(values), value) for i, value in enumerate(values)]
    marks = join(element("path", d=shape, transform=f"translate({x:g} {y:g})") for x, y in spots)
    outline = element("polygon", points=_points(values))
    dash = DASHES[look % len(DASHES)]
    return element("g", outline, marks, class_=f"c{look % COLOURS} marked", stroke_dasharray=dash, data_name=name)


def _described(spokes: Sequence[Spoke], lines: Sequence[Line]) -> str:
    said = []
    for name, _, values in lines:
        each = ", ".join(f"{spoke.name} {value:.2f}" for spoke, value in zip(spokes, values, strict=True))
        said.append(f"{name}: {each}.")
    return " ".join(said)
