"""The map of a certificate's leaks: which positions see which later ones, as a figure that needs no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from homunculi.report.markup import Html, element, join, table
from homunculi.report.numbers import brief, number

MOST_CELLS, MOST_PAIRS, MOST_MAPS = 64, 16, 8
_SIDE, _LEFT, _TOP, _GAP = 300, 64, 34, 14
# From which size of a difference on, relative to the logits, and how a cell of it is drawn.
_LEVELS = ((1e-2, "strong", "1 % or more"), (1e-6, "middle", "less than 1 %"), (0.0, "weak", "less than a millionth"))


def leak_maps(certificate: Mapping[str, Any]) -> Html | None:
    """Every mode that looks ahead, with what it looks at; None where nothing does."""
    listed = certificate.get("leaks")
    maps = [one for one in listed if isinstance(one, Mapping)] if isinstance(listed, list) else []
    return join(_one(found) for found in maps[:MOST_MAPS]) if maps else None


def _one(found: Mapping[str, Any]) -> Html:
    context, cells = number(found.get("context")), _cells(found.get("cells"))
    where = f"Looks ahead in {found.get('mode', 'some mode')}"
    title = where if context is None else f"{where}, in rows of {context:,.0f} tokens"
    parts = [element("h3", title), element("p", str(found.get("summary") or "")[:500])]
    pairs = _pairs(found)
    if cells and pairs:
        cell = max(1, int(number(found.get("cell")) or 1))
        parts.append(element("figure", _drawn(cells, cell, title), _legend(cell)))
    return element("div", *parts, pairs, class_="leak")


def _cells(listed: Any) -> list[list[float | None]]:
    """The square of differences; empty where it is none."""
    rows = listed if isinstance(listed, list) else []
    fits = 0 < len(rows) <= MOST_CELLS and all(isinstance(row, list) and len(row) == len(rows) for row in rows)
    return [[number(value) for value in row] for row in rows] if fits else []


def _drawn(cells: Sequence[Sequence[float | None]], cell: int, title: str) -> Html:
    """Readers from top to bottom, what they see from left to right; the past, which may be seen, is left empty."""
    n, side = len(cells), _SIDE / len(cells)
    squares = []
    for row, values in enumerate(cells):
        for column, value in enumerate(values):
            if column < row or (column == row and cell == 1):
                continue
            box = {"x": f"{_LEFT + column * side:.1f}", "y": f"{_TOP + row * side:.1f}"}
            size = f"{side - min(1.0, side / 8):.1f}"
            squares.append(element("rect", **box, width=size, height=size, class_=_level(value)))
    ticks = []
    for place in sorted({0, n // 2, n - 1}):
        middle = (place + 0.5) * side
        ticks.append(element("text", f"{place * cell:,}", x=f"{_LEFT + middle:.1f}", y=_TOP - 6, class_="tick x top"))
        ticks.append(element("text", f"{place * cell:,}", x=_LEFT - 6, y=f"{_TOP + middle:.1f}", class_="tick y"))
    across = element("text", "position that is seen", x=_LEFT + _SIDE / 2, y=12, class_="tick x top")
    turned = f"rotate(-90 12 {_TOP + _SIDE / 2:.0f})"
    down = element(
        "text", "position that sees", x=12, y=f"{_TOP + _SIDE / 2:.0f}", transform=turned, class_="tick x top"
    )
    width, height = _LEFT + _SIDE + _GAP, _TOP + _SIDE + _GAP
    described = element("title", title)
    return element(
        "svg", described, *squares, *ticks, across, down, role="img", viewBox=f"0 0 {width} {height}", class_="leaks"
    )


def _level(value: float | None) -> str:
    if value is None:
        return "unasked"
    return next((name for least, name, _ in _LEVELS if value > 0 and value >= least), "none")


def _legend(cell: int) -> Html:
    words = [(name, f"logits move by {said}") for _, name, said in _LEVELS]
    words += [("none", "not at all"), ("unasked", "not asked")]
    swatches = [
        element(
            "li",
            element(
                "svg",
                element("rect", x=1, y=1, width=12, height=12, class_=name),
                viewBox="0 0 14 14",
                width=14,
                height=14,
                class_="leaks",
                aria_hidden="true",
            ),
            f" {said}",
        )
        for name, said in words
    ]
    note = None if cell == 1 else element("p", f"A square stands for {cell} by {cell} positions.", class_="note")
    return join([element("ul", *swatches, class_="legend"), note])


def _pairs(found: Mapping[str, Any]) -> Html | None:
    """The worst pairs; None where no single token is seen."""
    listed = found.get("pairs")
    pairs = [one for one in listed if isinstance(one, Mapping)] if isinstance(listed, list) else []
    rows = [
        (f"position {brief(pair.get('reader'))}", f"sees {brief(pair.get('source'))}", brief(pair.get("difference")))
        for pair in pairs[:MOST_PAIRS]
    ]
    if not rows:
        return None
    count = number(found.get("n_pairs"))
    title = f"The worst pairs, of {count:,.0f} that leak" if count and count > len(rows) else "All pairs that leak"
    return element("details", element("summary", title), table(("", "", "logits move by, relative"), rows))
