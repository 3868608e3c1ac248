"""The report of a battery of skills: one self-contained HTML file from skills.json, in any state of the battery.

No architecture is told by its colour alone: each has a marker and a dash of its own, in every figure and in the legend.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from homunculi.errors import InputError
from homunculi.files import write_atomic
from homunculi.report.comparison_record import objects, part, spanned, text_of
from homunculi.report.differences import GREY, band
from homunculi.report.markup import Html, element, folded, join, pairs, section, table
from homunculi.report.numbers import brief, exact, number
from homunculi.report.plot import COLOURS, SMALL, Plot, Series, draw, legend
from homunculi.report.radar import MORE_STYLE, Spoke, draw_radar
from homunculi.report.style import POLICY, SCRIPT, STYLE
from homunculi.runs import clock

RECORD = "skills.json"
REPORT = "report.html"
FORMAT = 1
_FEWEST_SPOKES = 3
_MOST_BANDS = 4
_BANDS = """
.banded g.faint { stroke-width: .6; opacity: 1; fill-opacity: .16; stroke-opacity: .25; }
.banded g.c0 { fill: var(--c0); } .banded g.c1 { fill: var(--c1); } .banded g.c2 { fill: var(--c2); }
.banded g.c3 { fill: var(--c3); } .banded g.c4 { fill: var(--c4); } .banded g.c5 { fill: var(--c5); }
.banded g.c6 { fill: var(--c6); } .banded g.line, .banded g.marked { fill: none; }
.figures h3 { margin-bottom: 0; }
"""


@dataclass(frozen=True)
class Record:
    """skills.json, read with patience: whatever is missing or of another kind counts as not there."""

    raw: Mapping[str, Any]

    @cached_property
    def scores(self) -> list[Mapping[str, Any]]:
        return objects(self.raw.get("scores"))

    @cached_property
    def points(self) -> list[Mapping[str, Any]]:
        return objects(self.raw.get("points"))

    @cached_property
    def sides(self) -> dict[str, int]:
        """Name of an architecture → its look: never that of lines of reference."""
        listed = [str(one.get("name", "?")) for one in objects(self.raw.get("architectures"))]
        named = dict.fromkeys([*listed, *(str(one.get("architecture", "?")) for one in self.points)])
        return {name: place + place // GREY for place, name in enumerate(named)}

    @cached_property
    def tasks(self) -> list[Mapping[str, Any]]:
        return objects(self.raw.get("tasks"))

    def of(self, key: str, task: str, side: str | None = None) -> list[Mapping[str, Any]]:
        """Entries of a list that are about a task, and of one architecture if it is named."""
        return [
            one
            for one in objects(self.raw.get(key))
            if one.get("task") == task and side in (None, one.get("architecture"))
        ]


def write_skills_report(folder: Path) -> Path:
    """Write FOLDER/report.html, whole or not at all, and return its path.

    Raises:
        InputError: the folder has no skills.json, or it is not a JSON object.
        OSError: the folder cannot be written.
    """
    path = Path(folder) / RECORD
    try:
        raw = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{folder}: has no {RECORD}: name the folder of a battery") from None
    except (ValueError, RecursionError, OSError):
        raise InputError(f"{path}: cannot be read as JSON: restore it from a copy") from None
    if not isinstance(raw, dict):
        raise InputError(f"{path}: is not a JSON object: restore it from a copy")
    write_atomic(Path(folder) / REPORT, render_skills(Record(raw)))
    return Path(folder) / REPORT


def render_skills(record: Record) -> str:
    """The page of a battery."""
    content = [
        ("overview", "All tasks", _overview(record)),
        ("scores", "Scores", _scores(record)),
        ("curves", "Difficulty curves", _curves(record)),
        ("beyond", "Beyond training", _beyond(record)),
        ("depth", "Depth chosen and depth needed", _depth(record)),
        ("sizes", "Sizes", _sizes(record)),
        ("settings", "How it was measured", _settings(record)),
    ]
    there = [(key, title, body) for key, title, body in content if body]
    nav = element("nav", *(element("a", title, href=f"#{key}") for key, title, _ in there), aria_label="parts")
    moment = element("footer", f"Written {clock.written_out(clock.now())} from {RECORD}.")
    return _document(join([*_top(record), nav, *(section(*one) for one in there), moment]))


def _document(body: Html) -> str:
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("link", rel="icon", href="data:,"),
        element("title", "skills · homunculi"),
        element("style", Html(STYLE + _BANDS + MORE_STYLE)),
    )
    page = element("html", head, element("body", element("main", body), element("script", Html(SCRIPT))), lang="en")
    return f"<!doctype html>\n{page}\n"


def _top(record: Record) -> Iterator[Html | None]:
    settings = part(record.raw, "settings")
    words = f"{len(record.tasks)} tasks, {text_of(settings.get('seeds'))} seeds, accuracy at counted positions"
    yield element("p", "homunculi · skills", class_="kicker")
    yield element("h1", " · ".join(record.sides) or "no architectures")
    yield element("p", words, class_="under")
    for name, reason in part(record.raw, "refused").items():
        yield element("p", "Refused, not scored: ", element("bdi", name), f": {text_of(reason)}", class_="alert")
    failed = objects(record.raw.get("failed"))
    for one in failed[:12]:
        yield element("p", f"{text_of(one.get('cell'))} failed: {text_of(one.get('reason'))}", class_="alert")


def _looks(record: Record) -> Html | None:
    """Which marker, dash and colour belongs to whom."""
    return legend([Series(name, [], look, "marked") for name, look in record.sides.items()])


def _overview(record: Record) -> Html | None:
    """The radar of all tasks that every architecture has finished."""
    finished = [str(task.get("name")) for task in record.tasks]
    by_side = {
        side: {str(one.get("task")): one for one in record.scores if one.get("architecture") == side}
        for side in record.sides
    }
    shown = [name for name, scores in by_side.items() if scores]
    whole = [task for task in finished if shown and all(_value(by_side[name].get(task)) is not None for name in shown)]
    if len(whole) < _FEWEST_SPOKES:
        return None
    spokes = [
        Spoke(task, _share(record.of("scores", task)[0], "chance"), _share(record.of("scores", task)[0], "ceiling"))
        for task in whole
    ]
    lines = [(name, record.sides[name], [_value(by_side[name][task]) or 0.0 for task in whole]) for name in shown]
    note = (
        "From the middle (0) to the rim (1): mean accuracy over the swept dial. Dotted: chance; dashed: the best "
        "possible reader."
    )
    return element("figure", draw_radar("radar", spokes, lines), _looks(record), element("p", note, class_="note"))


def _value(entry: Mapping[str, Any] | None) -> float | None:
    return None if entry is None else number(entry.get("score"))


def _share(entry: Mapping[str, Any], key: str) -> float:
    return number(entry.get(key)) or 0.0


def _scores(record: Record) -> Html | None:
    """A row a task, a column an architecture."""
    rows = []
    for task in record.tasks:
        name = str(task.get("name"))
        found = record.of("scores", name)
        if not found:
            continue
        tag = element("small", text_of(task.get("question")), class_="tag")
        own = [next((one for one in found if one.get("architecture") == side), None) for side in record.sides]
        best = max((value for one in own if (value := _value(one)) is not None), default=math.nan)
        cells = [_cell(one, best) for one in own]
        known = (_decimals(found[0].get("chance")), _mean(task.get("ngram")), _decimals(found[0].get("ceiling")))
        rows.append((join([element("a", name, href=f"#task-{name}"), tag]), *cells, *known))
    if not rows:
        return None
    head = ("", *(element("bdi", side) for side in record.sides), "chance", "two tokens", "best possible")
    note = (
        "Mean accuracy over the swept dial, the area under the difficulty curve; small: 95 % interval over seeds. "
        "Bold: the highest mean of the row, whether or not the intervals part. Chance: a uniform guess among all "
        "answers; two tokens: the best reader of the last two tokens alone, who has not looked back."
    )
    return join([table(head, rows), element("p", note, class_="note")])


def _cell(entry: Mapping[str, Any] | None, best: float) -> Html | str:
    value = _value(entry)
    if entry is None or value is None:
        return "–"
    low, high = number(entry.get("low")), number(entry.get("high"))
    words = "one seed" if low is None or high is None else spanned(f"{low:.2f}", f"{high:.2f}")
    shown = element("strong", f"{value:.3f}") if value == best else element("span", f"{value:.3f}")
    return join([shown, element("small", words, class_="tag")])


def _decimals(value: Any) -> str:
    found = number(value)
    return "–" if found is None else f"{found:.3f}"


def _mean(values: Any) -> str:
    """Of a list of numbers; a dash where one is missing."""
    found = [number(value) for value in values] if isinstance(values, list) else []
    there = [value for value in found if value is not None]
    return f"{sum(there) / len(there):.3f}" if there and len(there) == len(found) else "–"


def _curves(record: Record) -> Html | None:
    figures = [figure for task in record.tasks if (figure := _curve(record, task))]
    if not figures:
        return None
    note = (
        "Accuracy on test rows against the swept dial, trained anew at every value. Bands: 95 % intervals over seeds. "
        "Grey: chance (below), the best possible reader (above)."
    )
    looks = element("p", note, class_="note")
    return join([_looks(record), looks, element("div", *figures, class_="pair banded figures")])


def _curve(record: Record, task: Mapping[str, Any]) -> Html | None:
    """One task: accuracy of all architectures over its swept dial."""
    name, points = str(task.get("name")), record.of("points", str(task.get("name")))
    if not points:
        return None
    series: list[Series] = [*_reference(points, "chance", 0), *_reference(points, "ceiling", 1)]
    lines = [
        _line(side, look, record.of("points", name, side), len(record.sides)) for side, look in record.sides.items()
    ]
    series = [one for bands, _ in lines for one in bands] + series + [one for _, one in lines if one.points]
    dial = f"{task.get('dial')}"
    settled = ", ".join(f"{key} {text_of(value)}" for key, value in part(task, "dials").items())
    plot = Plot(
        f"t-{name}", f"{name}: accuracy over {dial}", dial, "accuracy", series, SMALL, "zero", across=_across(points)
    )
    caption = element("figcaption", element("strong", str(task.get("title") or name)), element("output", class_="read"))
    words = f"{text_of(task.get('question'))} {settled}" + (
        f" ({text_of(task.get('source'))})" if task.get("source") else ""
    )
    return element("figure", caption, draw(plot), element("p", words, class_="note"), id=f"task-{name}")


def _across(points: Sequence[Mapping[str, Any]]) -> str:
    """By ratio where the dial doubles and doubles again."""
    values = [x for one in points if (x := number(one.get("value"))) is not None]
    return "log" if values and min(values) > 0 and max(values) >= 4 * min(values) else "linear"


def _reference(points: Sequence[Mapping[str, Any]], key: str, place: int) -> Iterator[Series]:
    """Chance or ceiling over the dial."""
    level = {number(one.get("value")): number(one.get(key)) for one in points}
    found = sorted((x, y) for x, y in level.items() if x is not None and y is not None)
    if found:
        yield Series(key, found, GREY + COLOURS * place, "bare")


def _line(side: str, look: int, points: Sequence[Mapping[str, Any]], n_sides: int) -> tuple[list[Series], Series]:
    rows = []
    for one in points:
        x, y = number(one.get("value")), number(one.get("score"))
        if x is not None and y is not None:
            rows.append((x, y, number(one.get("low")), number(one.get("high"))))
    rows.sort(key=lambda row: row[0])
    held = [(x, low, high) for x, _, low, high in rows if low is not None and high is not None]
    bands = [band(side, held, look)] if len(held) > 1 and n_sides <= _MOST_BANDS else []
    return bands, Series(side, [(x, y) for x, y, _, _ in rows], look, "marked")


def _beyond(record: Record) -> Html | None:
    """What was never trained: a row a dial value, a column an architecture."""
    rows: dict[tuple[str, str, float], dict[str, Mapping[str, Any]]] = {}
    for one in objects(record.raw.get("beyond")):
        if (value := number(one.get("value"))) is not None:
            key = (str(one.get("task")), str(one.get("dial")), value)
            rows.setdefault(key, {})[str(one.get("architecture"))] = one
    if not rows:
        return None
    body = []
    for (task, dial, value), found in rows.items():
        first = next(iter(found.values()))
        own = [found.get(side) for side in record.sides]
        best = max((number_ for one in own if (number_ := _value(one)) is not None), default=math.nan)
        tag = element("small", f"trained at {text_of(first.get('trained'))} at most", class_="tag")
        body.append(
            (
                join([f"{task}, {dial} {value:g}", tag]),
                *(_cell(one, best) for one in own),
                _decimals(first.get("chance")),
                _decimals(first.get("ceiling")),
            )
        )
    head = ("", *(element("bdi", side) for side in record.sides), "chance", "best possible")
    return table(head, body)


def _depth(record: Record) -> Html | None:
    found = [_one_depth(record, one, place) for place, one in enumerate(objects(record.raw.get("depth")))]
    if not found:
        return None
    note = (
        "Needed: sequential steps that an answer takes. Curves: accuracy when every token is given so many passes, "
        "a line for each needed depth. Below: passes that the model's router chose at these positions."
    )
    return join([element("p", note, class_="note"), *found])


def _one_depth(record: Record, one: Mapping[str, Any], place: int) -> Html:
    title = f"{text_of(one.get('architecture'))}, {text_of(one.get('task'))} at {text_of(one.get('value'))}"
    needed = [int(n) for n in one.get("needed", []) if number(n) is not None]
    forced = objects(one.get("forced"))
    figure = None
    if len(forced) > 1:
        series = [
            Series(f"needs {n}", [_forced(one, i) for one in forced], i + i // GREY, "marked")
            for i, n in enumerate(needed)
        ]
        plot = Plot(f"d-{place}", f"{title}: accuracy by forced passes", "passes", "accuracy", series, SMALL, "zero")
        figure = element("div", element("figure", draw(plot), legend(series)), class_="pair")
    return join([element("h3", element("bdi", title)), figure, _depth_table(one, needed)])


def _forced(one: Mapping[str, Any], place: int) -> tuple[float, float | None]:
    """Passes that every token takes, and the accuracy at one needed depth."""
    values = one.get("by_needed")
    there = isinstance(values, list) and place < len(values)
    return number(one.get("passes")) or 0.0, number(values[place]) if there else None  # type: ignore[index]


def _depth_table(one: Mapping[str, Any], needed: Sequence[int]) -> Html:
    """A column a needed depth: accuracy as it is, and the depth chosen."""
    rows: list[tuple[Any, ...]] = [("accuracy", *map(_decimals, part(one, "own").get("by_needed", [])))]
    chosen = part(one, "chosen")
    words = None
    if chosen:
        rows.append(("passes chosen", *map(_decimals, chosen.get("by_needed", []))))
        low, high = number(chosen.get("low")), number(chosen.get("high"))
        interval = "" if low is None or high is None else f" ({low:.2f} to {high:.2f} over seeds)"
        rho = number(chosen.get("rho"))
        said = "the depth chosen does not vary" if rho is None else f"rank correlation {rho:.2f}{interval}"
        words = element("p", f"Chosen against needed: {said}.", class_="note")
    return join([table(("needed", *map(str, needed)), rows), words])


def _sizes(record: Record) -> Html | None:
    rows = [
        (
            element("bdi", str(one.get("name"))),
            exact(one.get("parameters")),
            brief(one.get("state_bytes")),
            element("code", json.dumps(one.get("model"))[:2000]),
        )
        for one in objects(record.raw.get("architectures"))
    ]
    if not rows:
        return None
    length = text_of(objects(record.raw.get("architectures"))[0].get("state_length"))
    head = ("", "parameters beside tokens", f"bytes of state at {length} tokens", "shape at the first task")
    return table(head, rows)


def _settings(record: Record) -> Html:
    settings = dict(part(record.raw, "settings"))
    frame = settings.pop("frame", None)
    rows = [(key, text_of(value)) for key, value in settings.items()]
    rows += [(key, text_of(value)) for key, value in (frame or {}).items()]
    chosen = [
        (
            f"{text_of(one.get('architecture'))}, {text_of(one.get('task'))} {text_of(one.get('value'))}",
            text_of(one.get("lr")) + (" (edge)" if one.get("at_edge") else ""),
            text_of(one.get("weight_decay")),
            _decimals(one.get("score")),
            text_of(one.get("n")),
            text_of(one.get("steps_taken")),
            text_of(one.get("diverged") or None),
        )
        for one in record.points
    ]
    head = ("", "learning rate", "weight decay", "accuracy", "seeds", "steps taken", "diverged")
    small = settings.get("lrs") and len(settings["lrs"]) * len(settings.get("wds") or ()) == 1
    grid = (
        "One setting of the optimiser for all: nothing was selected."
        if small
        else ("The same grid for every architecture; selected by validation with the first seed, judged on test rows.")
    )
    command = text_of(record.raw.get("command"))
    return join([element("p", grid), element("pre", command), pairs(rows), folded("All points", table(head, chosen))])
