"""The page of a ladder of sizes: one self-contained HTML file from scale.json, in any state of the ladder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from homunculi.errors import InputError
from homunculi.files import write_atomic
from homunculi.report.comparison import MORE_STYLE
from homunculi.report.comparison_record import UNITS, objects, part, signed, spanned, text_of
from homunculi.report.differences import band
from homunculi.report.markup import Html, element, join, section, table
from homunculi.report.numbers import brief, decimals, exact, number
from homunculi.report.plot import SMALL, Plot, Series, draw, legend
from homunculi.report.style import POLICY, SCRIPT, STYLE
from homunculi.runs import clock

RECORD, REPORT = "scale.json", "report.html"
_LOOKS = (0, 1)  # of baseline and recipe
_GREY = 7
_PLACES = 4
_CLAIM_SEEDS = 5

Json = Mapping[str, Any]


def write_scaling_report(folder: Path) -> Path:
    """Write FOLDER/report.html, whole or not at all, and return its path.

    Raises:
        InputError: the folder has no scale.json, or it is no JSON object.
        OSError: the folder cannot be written.
    """
    path = Path(folder) / RECORD
    try:
        raw = json.loads(path.read_bytes())
    except (ValueError, RecursionError, OSError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}); name the folder of a ladder") from None
    if not isinstance(raw, dict):
        raise InputError(f"{path}: is not a JSON object; restore it from a copy")
    write_atomic(Path(folder) / REPORT, render_scaling(raw))
    return Path(folder) / REPORT


def render_scaling(raw: Json) -> str:
    """The page of a ladder. Its links are relative to the ladder's folder."""
    names = [text_of(raw.get(key)) for key in ("baseline", "recipe")]
    unit = UNITS.get(text_of(raw.get("metric")), text_of(raw.get("metric")))
    sizes = objects(raw.get("sizes"))
    content = [
        ("laws", "Loss over size", _laws(raw, names, unit)),
        ("gap", "Gap over size", _gaps(raw, names, unit)),
        ("sizes", "Sizes", _sizes(sizes, names, unit)),
    ]
    there = [section(key, title, body) for key, title, body in content if body]
    footer = element("footer", f"Written {clock.written_out(clock.now())} from {RECORD}.")
    return _document(f"{names[1]} against {names[0]}", join([*_top(raw, names, sizes), *there, footer]))


def _document(title: str, body: Html) -> str:
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("link", rel="icon", href="data:,"),
        element("title", f"{title} · homunculi ladder"),
        element("style", Html(STYLE + MORE_STYLE)),
    )
    page = element("html", head, element("body", element("main", body), element("script", Html(SCRIPT))), lang="en")
    return f"<!doctype html>\n{page}\n"


def _top(raw: Json, names: Sequence[str], sizes: Sequence[Json]) -> Iterator[Html]:
    n_planned = number(raw.get("n_sizes")) or len(sizes)
    state, look = ("complete", "done") if len(sizes) >= n_planned else ("unfinished", "running")
    yield element("p", "homunculi · report of a ladder of sizes", class_="kicker")
    yield element("h1", element("bdi", names[1]), " against ", element("bdi", names[0]))
    yield element("p", element("span", state, class_=f"state state-{look}"), f": {len(sizes)} of {n_planned:g} sizes")
    for one in [*objects(raw.get("refused")), *objects(raw.get("failed"))]:
        yield element("p", element("strong", text_of(one.get("run"))), ": ", text_of(one.get("reason")), class_="alert")
    yield element("ul", *(element("li", words, class_=f"c{look}") for look, words in _said(raw)), class_="verdicts")
    counts = [n for size in sizes if (n := number(part(size, "gap").get("n")))]
    if counts and min(counts) < _CLAIM_SEEDS:
        yield element("p", f"With fewer than {_CLAIM_SEEDS} seeds this is a first look and no claim.", class_="alert")


def _said(raw: Json) -> Iterator[tuple[int, Html]]:
    """The trend of the gap and the laws, in words, each with its colour."""
    trend, level = part(raw, "trend"), f"{100 * (number(raw.get('level')) or 0.95):g} % interval"
    if trend:
        slope, low, high = (signed(number(trend.get(key)), _PLACES) for key in ("per_doubling", "low", "high"))
        facts = f"{slope} bits per byte with each doubling of size ({level} {spanned(low, high)})"
        yield _GREY, join(["Gap: ", element("strong", text_of(trend.get("verdict"))), f", {facts}"])
    else:
        yield _GREY, join(["Gap: no trend can be fitted yet."])
    for place, one in enumerate(objects(raw.get("laws"))):
        law = part(one, "law")
        if law:
            power, first, last = (signed(_less(law.get(key)), _PLACES) for key in ("exponent", "high", "low"))
            words = f"loss goes with size to the power {power} ({level} {spanned(first, last)})"
            yield _LOOKS[place % 2], join([element("bdi", text_of(one.get("name"))), f": {words}"])


def _less(value: Any) -> float | None:
    found = number(value)
    return None if found is None else -found


def _laws(raw: Json, names: Sequence[str], unit: str) -> Html | None:
    """Both sides' losses, mean over seeds, with fitted lines and their bands, both axes by ratio."""
    series: list[Series] = []
    for look, (name, one) in enumerate(zip(names, objects(raw.get("laws")), strict=False)):
        rows = [[number(point.get(key)) for key in ("parameters", "low", "high", "loss")] for point in _points(one)]
        edges = [(x, low, high) for x, low, high, _ in rows if x and low is not None and high is not None]
        series.append(band(f"{name}, interval", edges, look))
        series.append(Series(f"{name}, law", [(x, loss) for x, _, _, loss in rows if x], look, "bare"))
        series.append(Series(name, _ends(raw, name), look, "marked"))
    drawn = [one for one in series if one.points]
    if not drawn:
        return None
    title = "Loss over parameters"
    plot = Plot("laws", title, "parameters beside token tables", unit, drawn, scale="log", across="log")
    note = "Mean over seeds at each size, and the fitted law with its interval. Both axes are by ratio."
    return join([_figure(plot, "Loss at the end of training"), element("p", note, class_="note")])


def _points(one: Json) -> list[Json]:
    return objects(one.get("band"))


def _ends(raw: Json, name: str) -> list[tuple[float, float | None]]:
    """(parameters, loss) of a side at each size, seeds averaged; not joined by lines."""
    found: list[tuple[float, float | None]] = []
    for size in objects(raw.get("sizes")):
        for side in objects(size.get("sides")):
            values = [value for end in part(side, "ends").values() if (value := number(end)) is not None]
            place = number(side.get("parameters"))
            if text_of(side.get("name")) == name and values and place:
                found += [(place, sum(values) / len(values)), (place, None)]
    return found


def _gaps(raw: Json, names: Sequence[str], unit: str) -> Html | None:
    """The gap at each size with its interval, the fitted line and zero."""
    rows: list[tuple[float, float, float | None, float | None]] = []
    for size in objects(raw.get("sizes")):
        gap, low, high = (number(part(size, "gap").get(key)) for key in ("difference", "low", "high"))
        if (place := number(size.get("parameters"))) and gap is not None:
            rows.append((place, gap, low, high))
    if not rows:
        return None
    edges = [(x, low, high) for x, _, low, high in rows if low is not None and high is not None]
    line = [(number(one.get("parameters")), number(one.get("gap"))) for one in objects(part(raw, "trend").get("line"))]
    series = [
        band("interval", edges, 0),
        Series("zero", [(x, 0.0) for x in (rows[0][0], rows[-1][0])], _GREY, "faint"),
        Series("gap", [(x, gap) for x, gap, _, _ in rows], 0, "marked"),
        Series("fitted line", [(x, y) for x, y in line if x], _GREY),
    ]
    label = f"{unit}, {names[1]} \u2212 {names[0]}"
    plot = Plot("gap-plot", "Gap over parameters", "parameters", label, [s for s in series if s.points], across="log")
    note = f"Below zero {names[1]} is better. Band: interval over seeds at each size."
    return join([_figure(plot, "Gap at the end of training"), element("p", note, class_="note")])


def _figure(plot: Plot, caption: str) -> Html:
    head = element("figcaption", element("strong", caption), element("output", class_="read"))
    shapes = [draw(plot), draw(replace(plot, key=f"{plot.key}-s", size=SMALL))]  # the second for narrow screens
    return element("div", element("figure", head, *shapes, legend(plot.series), class_="main"), class_="banded")


def _sizes(sizes: Sequence[Json], names: Sequence[str], unit: str) -> Html | None:
    """A row a size, with a link to its comparison."""
    rows: list[tuple[Any, ...]] = []
    for size in sizes:
        gap, folder = part(size, "gap"), str(size.get("folder") or "")
        sides = {text_of(side.get("name")): side for side in objects(size.get("sides"))}
        ends = [_mean(sides.get(name, {})) for name in names]
        low, high = (signed(number(gap.get(key)), _PLACES) for key in ("low", "high"))
        rows.append(
            (
                element("a", f"×{text_of(size.get('factor'))}", href=f"./{quote(folder, safe='')}/{REPORT}"),
                exact(size.get("parameters")),
                brief(sides.get(names[1], {}).get("tokens")),
                *map(decimals, ends),
                signed(number(gap.get("difference")), _PLACES),
                spanned(low, high),
                text_of(gap.get("verdict")),
            )
        )
    losses = (element("bdi", f"{name}, {unit}") for name in names)
    head = ("size", "parameters", "tokens", *losses, "gap", "interval", f"{names[1]} is")
    return table(head, rows) if rows else None


def _mean(side: Json) -> float | None:
    values = [value for end in part(side, "ends").values() if (value := number(end)) is not None]
    return sum(values) / len(values) if values else None
