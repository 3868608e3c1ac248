"""What instruments measured inside the model: the latest measurement of each, and single numbers over the steps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from homunculi.errors import InputError
from homunculi.report.markup import Html, element, join
from homunculi.report.numbers import number
from homunculi.report.plot import SMALL, Plot, Point, Series, draw
from homunculi.report.series import thinned
from homunculi.report.snapshot import Snapshot
from homunculi.report.views import slug, view_of
from homunculi.runs.measures import (
    COMPANIONS,
    companions,
    measured_instruments,
    measured_steps,
    read_about,
    read_measurement,
)

_MOST_STEPS, _MOST_SCALARS, _TEXT = 400, 12, 600


def inside(run: Snapshot) -> Html | None:
    """Every instrument that measured something, in order of its name, folded: together they are long. None where none
    did."""
    names = measured_instruments(run.path)
    return join(_instrument(run, name) for name in names) if names else None


def _instrument(of: Snapshot, name: str) -> Html:
    run = of.path
    steps = measured_steps(run, name)
    try:
        stored = read_measurement(run, name, steps[-1])
    except InputError as error:
        said = str(error).replace(f"{run}/", "")
        return element("div", element("h3", element("bdi", name)), element("p", said[:_TEXT], class_="alert"))
    found = stored.measurement
    when = f"At step {stored.step:,}" + (f", the last of {len(steps):,} measurements" if len(steps) > 1 else "")
    notes = "; ".join(found.notes)
    key = f"i-{slug(f'{of.label} {name}')}"
    drawn = [
        view_of(stored, value, f"{key}-v-{slug(value)}")
        for value, axes in found.axes.items()
        if axes and value in found.values
    ]
    return element(
        "details",
        element("summary", element("strong", element("bdi", stored.title)), " ", stored.question[:_TEXT]),
        element("p", f"{when} ({name}).", f" {notes[:_TEXT]}." if notes else None, class_="note"),
        *drawn,
        _over_steps(run, name, steps, key),
        class_="instrument",
    )


def _over_steps(run: Path, name: str, steps: list[int], prefix: str) -> Html | None:
    """A small figure for each number that stands alone."""
    abouts = [about for step in _some(steps) if (about := _about(run, name, step))]
    if not abouts:
        return None
    units = _mapping(abouts[-1], "units")
    figures = []
    names = companions(str(key) for key in _mapping(abouts[-1], "scalars"))
    for key, more in list(names.items())[:_MOST_SCALARS]:
        points = _points(abouts, key)
        if points:
            besides = {what: _points(abouts, other) for what, other in more.items()}
            title, unit = key.replace("_", " "), str(units.get(key) or "")
            figures.append(_figure(f"{prefix}-{slug(key)}", title, unit, points, besides))
    return element("div", *figures, class_="pair") if figures else None


def _points(abouts: list[dict[str, Any]], key: str) -> list[Point]:
    found = [(about["step"], number(_mapping(about, "scalars").get(key))) for about in abouts]
    return [(float(step), value) for step, value in found if value is not None]


def _figure(key: str, title: str, unit: str, points: list[Point], besides: Mapping[str, list[Point]]) -> Html:
    """A number over steps, the ends of its interval as thin lines, and in words how far chance alone takes it."""
    line = Series(title, thinned(points, _MOST_STEPS), style="marked")
    ends = [Series(f"{title} {what}", besides.get(what) or [], style="faint") for what in ("low", "high")]
    plot = Plot(key, f"{title} over steps", "steps", unit, [line, *ends], SMALL, "auto")
    said = f": {points[-1][1]:.4g}"
    low, high, chance = (besides[what][-1][1] if besides.get(what) else None for what in COMPANIONS)
    said += f" ({low:.4g} … {high:.4g})" if low is not None and high is not None else ""
    said += f", ± {chance:.2g} by chance alone" if chance is not None else ""
    caption = element("strong", title, said)
    return element("figure", element("figcaption", caption, element("output", class_="read")), draw(plot))


def _some(steps: list[int]) -> list[int]:
    """All steps, or every nth and the last where there are very many."""
    every = -(-len(steps) // _MOST_STEPS)
    return steps[(len(steps) - 1) % every :: every]


def _about(run: Path, name: str, step: int) -> dict[str, Any] | None:
    try:
        about = read_about(run, name, step)
    except InputError:
        return None
    return about if number(about.get("step")) is not None else None


def _mapping(about: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = about.get(key)
    return value if isinstance(value, Mapping) else {}
