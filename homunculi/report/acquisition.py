"""What came when: half-times of the numbers that a run followed, in the order of acquisition."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from homunculi.errors import InputError
from homunculi.report.markup import Html, element, folded, join, table
from homunculi.report.numbers import brief
from homunculi.report.snapshot import Snapshot
from homunculi.runs.chronology import HalfTime, chronology
from homunculi.runs.seeds import seed_groups

_OPEN_ROWS, _MOST_ROWS = 60, 400
_NAME = 200
# A row of the figure, in its own units, and the room left of step 0 and right of the last step.
_WIDTH, _HEIGHT, _SIDE = 300, 18, 12
_MEANING = (
    "Half-time: when a number had gone half of the way from its first value to where it ended, for good: "
    "of several crossings of the middle the last counts. The steps are spaced by ratio."
)


def acquisition(run: Snapshot) -> Html | None:
    """The order in which one run acquired what it was followed for; None where nothing has a half-time."""
    return _shown([run])


def acquisitions(runs: Sequence[Snapshot]) -> Html | None:
    """The same of several runs, those that differ in their seeds alone taken together."""
    groups = seed_groups([run.info for run in runs], [run.label for run in runs])
    found = [(group.name, _shown([runs[place] for place in group.places])) for group in groups]
    parts = [folded(element("bdi", name), content) for name, content in found if content]
    return join(parts) if parts else None


def _shown(runs: Sequence[Snapshot]) -> Html | None:
    try:
        found = chronology([run.path for run in runs])
    except InputError:  # nothing was logged, or a run cannot be read: its page says so elsewhere
        return None
    defined = [one for one in found if not one.reason]
    if not defined:
        return None
    end = max(max(run.steps()[0] for run in runs), *(_furthest(one) for one in defined), 1.0)
    rows = [_row(one, end) for one in defined]
    late = len(rows) - _OPEN_ROWS
    head = ("", "step", "tokens", _axis(end), "from, to", "crossings")
    whole = [table(head, rows[:_OPEN_ROWS], class_="when")]
    if late > 0:
        whole.append(folded(f"{late:,} later ones", table(head, rows[_OPEN_ROWS:_MOST_ROWS], class_="when")))
    return join([element("p", _words(runs), class_="note"), *whole, _rest([one for one in found if one.reason])])


def _words(runs: Sequence[Snapshot]) -> str:
    bar = "Bars: the measured steps on both sides of it."
    if len(runs) > 1:
        bar = f"Dots: geometric means over {len(runs)} runs; bars: 95\u00a0% intervals, from three runs on."
    ended = all(run.state == "done" for run in runs)
    return f"{_MEANING} {bar}" + ("" if ended else " Training has not ended: all of it is of the way so far.")


def _furthest(one: HalfTime) -> float:
    return max(one.step, 0.0 if math.isnan(one.high) else one.high)


def _row(one: HalfTime, end: float) -> tuple[Html | str, ...]:
    tokens = "–" if math.isnan(one.tokens) else brief(one.tokens)
    ends = f"{one.start:.4g} → {one.end:.4g}"
    crossings = f"{one.crossings:,}" if one.crossings > 1 else ""
    return element("bdi", one.name[:_NAME]), step_of(one.step), tokens, _dot(one, end), ends, crossings


def step_of(step: float) -> str:
    """A step between measured ones: three figures, whole from a hundred on."""
    return f"{step:,.0f}" if step >= 99.5 else f"{step:.3g}"


def _place(step: float, end: float) -> float:
    return round(_SIDE + math.log1p(step) / math.log1p(end) * (_WIDTH - 2 * _SIDE), 2)


def _ticks(end: float) -> list[int]:
    """0, powers of ten and the last step."""
    return [0, *(10**power for power in range(math.ceil(math.log10(end)))), round(end)]


def _dot(one: HalfTime, end: float) -> Html:
    middle = _HEIGHT / 2
    words = f"{one.name[:_NAME]}: step {step_of(one.step)}"
    parts = [
        element("line", class_="grid", x1=x, x2=x, y1=0, y2=_HEIGHT) for x in (_place(t, end) for t in _ticks(end))
    ]
    if not math.isnan(one.low + one.high):
        words += f", between {step_of(one.low)} and {step_of(one.high)}"
        low, high = _place(one.low, end), _place(one.high, end)
        parts.append(
            element("path", d=f"M{low:g} {middle - 3:g}v6M{low:g} {middle:g}H{high:g}m0 -3v6", class_="bar c0")
        )
    ring = f"M{_place(one.step, end) - 4:g} {middle:g}a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z"
    parts.append(element("path", d=ring, class_="dot c0"))
    size = {"viewBox": f"0 0 {_WIDTH} {_HEIGHT}", "width": _WIDTH, "height": _HEIGHT}
    return element("svg", element("title", words), *parts, role="img", **size)


def _axis(end: float) -> Html:
    size = {"viewBox": f"0 0 {_WIDTH} {_HEIGHT}", "width": _WIDTH, "height": _HEIGHT}
    return element("svg", *_numbers(end), aria_hidden="true", **size)


def _numbers(end: float) -> Iterator[Html]:
    """Steps along the axis, as many as have room, from the last one down."""
    free = math.inf
    for tick in reversed(_ticks(end)):
        x, text = _place(tick, end), f"{tick:,}" if tick < 1e5 else brief(tick)
        if x + 3.4 * len(text) < free:
            yield element("text", text, x=x, y=_HEIGHT - 5, text_anchor="end" if tick == round(end) else "middle")
            free = x - (6.8 if tick == round(end) else 3.4) * len(text) - 4


def _rest(without: Sequence[HalfTime]) -> Html | None:
    """Those that have none, each with its reason, on request."""
    if not without:
        return None
    rows = [(element("bdi", one.name[:_NAME]), one.reason) for one in without[:_MOST_ROWS]]
    noun = "number has" if len(without) == 1 else "numbers have"
    return folded(f"{len(without):,} {noun} no half-time", table(("", "why"), rows))
