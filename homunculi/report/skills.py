"""The report of a battery of skills: one self-contained HTML file from skills.json, in any state of the battery.

No architecture is told by its colour alone: each has a marker and a dash of its own, in every figure and in the legend.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from homunculi.errors import InputError
from homunculi.files import write_atomic
from homunculi.report.comparison_record import objects, part, text_of
from homunculi.report.differences import GREY, band
from homunculi.report.markup import Html, element, folded, join, pairs, section, table
from homunculi.report.numbers import brief, exact, number
from homunculi.report.plot import COLOURS, SMALL, Plot, Series, draw, legend
from homunculi.report.radar import MORE_STYLE, Spoke, draw_radar
from homunculi.report.skills_depth import depth_figures
from homunculi.report.skills_record import Record, decimals, value_of
from homunculi.report.skills_scores import TABLE_STYLE, beyond_table, scores_table
from homunculi.report.style import POLICY, SCRIPT, STYLE
from homunculi.runs import clock

RECORD = "skills.json"
REPORT = "report.html"
FORMAT = 1
_FEWEST_SPOKES = 3
_MOST_LINES = 8  # of a radar; of more nothing can be told apart
_MOST_BANDS = 4
_MOST_NAMES = 6  # of a title
_BANDS = """
.banded g.faint { stroke-width: .6; opacity: 1; fill-opacity: .16; stroke-opacity: .25; }
.banded g.c0 { fill: var(--c0); } .banded g.c1 { fill: var(--c1); } .banded g.c2 { fill: var(--c2); }
.banded g.c3 { fill: var(--c3); } .banded g.c4 { fill: var(--c4); } .banded g.c5 { fill: var(--c5); }
.banded g.c6 { fill: var(--c6); } .banded g.line, .banded g.marked { fill: none; }
.figures h3 { margin-bottom: 0; }
"""


def is_battery(folder: Path) -> bool:
    """Whether a folder is that of a battery of skills."""
    return (Path(folder) / RECORD).is_file()


def write_skills_report(folder: Path, out: Path | None = None) -> Path:
    """Write FOLDER/report.html, or `out`, whole or not at all, and return its path.

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
    place = out or Path(folder) / REPORT
    write_atomic(place, render_skills(Record(raw)))
    return place


def render_skills(record: Record) -> str:
    """The page of a battery."""
    content = [
        ("overview", "All tasks", _overview(record)),
        ("scores", "Scores", scores_table(record)),
        ("curves", "Difficulty curves", _curves(record)),
        ("beyond", "Beyond training", beyond_table(record)),
        ("depth", "Depth chosen and depth needed", depth_figures(record)),
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
        element("style", Html(STYLE + _BANDS + MORE_STYLE + TABLE_STYLE)),
    )
    page = element("html", head, element("body", element("main", body), element("script", Html(SCRIPT))), lang="en")
    return f"<!doctype html>\n{page}\n"


def _top(record: Record) -> Iterator[Html | None]:
    settings = part(record.raw, "settings")
    words = f"{len(record.tasks)} tasks, {text_of(settings.get('seeds'))} seeds, accuracy at counted positions"
    yield element("p", "homunculi · skills", class_="kicker")
    names, n = " · ".join(record.sides), len(record.sides)
    yield element("h1", f"{n} architectures" if n > _MOST_NAMES else names or "no architectures")
    yield element("p", words, class_="under")
    if n > _MOST_NAMES:
        yield element("p", names, class_="note")
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
    whole = [
        task for task in finished if shown and all(value_of(by_side[name].get(task)) is not None for name in shown)
    ]
    if len(whole) < _FEWEST_SPOKES or len(shown) > _MOST_LINES:
        return None
    spokes = [
        Spoke(task, _share(record.of("scores", task)[0], "chance"), _share(record.of("scores", task)[0], "ceiling"))
        for task in whole
    ]
    lines = [(name, record.sides[name], [value_of(by_side[name][task]) or 0.0 for task in whole]) for name in shown]
    note = (
        "From the middle (0) to the rim (1): mean accuracy over the swept dial. Dotted: chance; dashed: the best "
        "possible reader."
    )
    return element("figure", draw_radar("radar", spokes, lines), _looks(record), element("p", note, class_="note"))


def _share(entry: Mapping[str, Any], key: str) -> float:
    return number(entry.get(key)) or 0.0


def _curves(record: Record) -> Html | None:
    figures = [figure for task in record.tasks if (figure := _curve(record, task))]
    if not figures:
        return None
    drawn = any(len(_values(record.of("points", str(task.get("name"))))) > 1 for task in record.tasks)
    note = (
        "Accuracy on test rows against the swept dial, trained anew at every value. Bands: 95 % intervals over seeds. "
        "Grey: chance (below), the best possible reader (above)."
    )
    looks = element("p", note if drawn else "One value of each dial was trained, so there is no curve.", class_="note")
    return join([_looks(record) if drawn else None, looks, element("div", *figures, class_="pair banded figures")])


def _values(points: Sequence[Mapping[str, Any]]) -> set[float]:
    """Of the swept dial."""
    return {x for one in points if (x := number(one.get("value"))) is not None}


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
    values = _values(points)
    curve = draw(plot) if len(values) > 1 else None  # one value is in the table of scores
    if len(values) == 1:
        settled = ", ".join(filter(None, (f"{dial} {brief(*values)}", settled)))
    words = f"{text_of(task.get('question'))} {settled}" + (
        f" ({text_of(task.get('source'))})" if task.get("source") else ""
    )
    return element("figure", caption, curve, element("p", words, class_="note"), id=f"task-{name}")


def _across(points: Sequence[Mapping[str, Any]]) -> str:
    """By ratio where the dial doubles and doubles again."""
    values = _values(points)
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
    unequal = [
        f"{text_of(one.get('architecture'))} has {text_of(one.get('parameters'))} parameters "
        f"({decimals(one.get('ratio'))} times those of the others) at {text_of(one.get('tasks'))}."
        for one in objects(record.raw.get("unequal"))
    ]
    notes = (element("p", words, class_="note") for words in unequal)
    return join([table(head, rows), *notes])


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
            decimals(one.get("score")),
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
