"""Depth chosen and forced against depth needed, in a report of skills."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from homunculi.report.comparison_record import objects, part, text_of
from homunculi.report.differences import GREY
from homunculi.report.markup import Html, element, join, table
from homunculi.report.numbers import number
from homunculi.report.plot import SMALL, Plot, Series, draw, legend
from homunculi.report.skills_record import Record, decimals


def depth_figures(record: Record) -> Html | None:
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
    rows: list[tuple[Any, ...]] = [("accuracy", *map(decimals, part(one, "own").get("by_needed", [])))]
    chosen = part(one, "chosen")
    words = None
    if chosen:
        rows.append(("passes chosen", *map(decimals, chosen.get("by_needed", []))))
        low, high = number(chosen.get("low")), number(chosen.get("high"))
        interval = "" if low is None or high is None else f" ({low:.2f} to {high:.2f} over seeds)"
        rho = number(chosen.get("rho"))
        said = "the depth chosen does not vary" if rho is None else f"rank correlation {rho:.2f}{interval}"
        words = element("p", f"Chosen against needed: {said}.", class_="note")
    return join([table(("needed", *map(str, needed)), rows), words])
