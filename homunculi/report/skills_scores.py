"""Tables of a report of skills: architecture × task, and what lies beyond training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from homunculi.report.comparison_record import objects, spanned, text_of
from homunculi.report.markup import Html, element, join, table
from homunculi.report.numbers import number
from homunculi.report.skills_record import Record, decimals, value_of

# Of many architectures: names upright, the first column in sight, intervals on pointing.
TABLE_STYLE = """
table.skills th[scope=row] { position: sticky; left: 0; background: var(--ground); z-index: 1; min-width: 9rem; }
table.skills td { white-space: nowrap; }
table.skills strong { text-decoration: underline; text-underline-offset: .2em; }
table.skills strong::after { content: " ▲"; font-size: .7em; }
table.many th[scope=col] { writing-mode: vertical-rl; white-space: nowrap; vertical-align: bottom; }
table.many th[scope=col]:first-child { writing-mode: horizontal-tb; }
table.many td .tag, table.many th .tag { display: none; }
"""
_MANY = 6  # architectures, beyond which intervals are shown on pointing alone


def scores_table(record: Record) -> Html | None:
    """A row a task, a column an architecture."""
    rows = []
    for task in record.tasks:
        name = str(task.get("name"))
        found = record.of("scores", name)
        if not found:
            continue
        tag = element("small", text_of(task.get("question")), class_="tag")
        own = [next((one for one in found if one.get("architecture") == side), None) for side in record.sides]
        best = max((value for one in own if (value := value_of(one)) is not None), default=math.nan)
        cells = [_cell(one, best) for one in own]
        known = (decimals(found[0].get("chance")), _mean(task.get("ngram")), decimals(found[0].get("ceiling")))
        rows.append((join([element("a", name, href=f"#task-{name}"), tag]), *cells, *known))
    if not rows:
        return None
    head = ("", *(element("bdi", side) for side in record.sides), "chance", "two tokens", "best possible")
    note = (
        "Mean accuracy over the swept dial, the area under the difficulty curve; small: 95 % interval over seeds. "
        "Bold, with ▲: the highest mean of the row, whether or not the intervals part. Pointing at a score tells its "
        "interval and seeds. Chance: a uniform guess among all answers; two tokens: the best reader of the last two "
        "tokens alone, who has not looked back."
    )
    return join([table(head, rows, class_=_look(record)), element("p", note, class_="note")])


def _look(record: Record) -> str:
    return "skills many" if len(record.sides) > _MANY else "skills"


def _cell(entry: Mapping[str, Any] | None, best: float) -> Html | str:
    value = value_of(entry)
    if entry is None or value is None:
        return "–"
    low, high = number(entry.get("low")), number(entry.get("high"))
    words = "one seed" if low is None or high is None else spanned(f"{low:.2f}", f"{high:.2f}")
    said = f"{text_of(entry.get('architecture'))}: {words}, seeds: {text_of(entry.get('n'))}"
    shown = element("strong" if value == best else "span", f"{value:.3f}", title=said)
    return join([shown, element("small", words, class_="tag")])


def _mean(values: Any) -> str:
    """Of a list of numbers; a dash where one is missing."""
    found = [number(value) for value in values] if isinstance(values, list) else []
    there = [value for value in found if value is not None]
    return f"{sum(there) / len(there):.3f}" if there and len(there) == len(found) else "–"


def beyond_table(record: Record) -> Html | None:
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
        best = max((number_ for one in own if (number_ := value_of(one)) is not None), default=math.nan)
        tag = element("small", f"trained at {text_of(first.get('trained'))} at most", class_="tag")
        body.append(
            (
                join([f"{task}, {dial} {value:g}", tag]),
                *(_cell(one, best) for one in own),
                decimals(first.get("chance")),
                decimals(first.get("ceiling")),
            )
        )
    head = ("", *(element("bdi", side) for side in record.sides), "chance", "best possible")
    return table(head, body, class_=_look(record))
