"""Which curves the report draws: each figure three times, over steps, tokens and FLOPs, of which the page shows one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from homunculi.report.markup import Html, element, folded
from homunculi.report.numbers import number
from homunculi.report.plot import SMALL, WIDE, Plot, Series, draw, legend
from homunculi.report.series import broken_at, mean_window, points_of, running_mean, thinned
from homunculi.report.snapshot import Snapshot

# (name of the choice, key in a line of metrics, title of the axis)
AXES = (("steps", "step", "steps"), ("tokens", "tokens", "tokens"), ("FLOPs", "flops", "training FLOPs"))
_POINTS = 1200
# Share of the run that figures of several runs leave to itself: everybody falls there, and nobody differs.
_FOCUS = 0.05
_MOST_OTHERS = 48
_AXIS_KEYS = frozenset({"step", "tokens", "flops", "seconds", "nonfinite", "time"})


@dataclass(frozen=True)
class Quantity:
    """One logged number and how it is drawn.

    Attributes:
        scale: see `Plot`.
        smooth: noisy, so that its running mean is drawn.
    """

    key: str
    title: str
    unit: str
    scale: str = "linear"
    smooth: bool = False


@dataclass(frozen=True)
class Drawing:
    """A figure over one choice of x axis, while it is put together."""

    name: str
    x_title: str
    lines: list[Series] = field(default_factory=list)
    breaks: list[float] = field(default_factory=list)


TRAIN = Quantity("train/loss", "Training loss", "nats per token", "auto", smooth=True)
VAL = Quantity("val/loss", "Validation loss", "nats per token", "auto")
BPB = Quantity("val/bpb", "Bits per byte", "validation text", "auto")
SIDE = (
    Quantity("lr", "Learning rate", "", "zero"),
    Quantity("train/grad_norm", "Gradient norm", "norm before clipping", "auto", smooth=True),
    Quantity("perf/tokens_per_s", "Throughput", "tokens per second", "zero", smooth=True),
    Quantity("perf/data_wait_frac", "Waiting for data", "share of the time", "zero", smooth=True),
)
_KNOWN = frozenset(quantity.key for quantity in (TRAIN, VAL, BPB, *SIDE))


def curves(runs: Sequence[Snapshot]) -> Html:
    """All figures of one run, or of several on the same axes, under a choice of the x axis that needs no script."""
    main = [_loss_of_one(runs[0])] if len(runs) == 1 else _losses_of_many(runs)
    focused = {BPB.key: _FOCUS} if len(runs) > 1 else {}
    drawn = [quantity for quantity in (BPB, *SIDE) if _logged(runs, quantity.key)]
    side = [_figure(runs, quantity, SMALL, focused.get(quantity.key, 0.0)) for quantity in drawn]
    return element(
        "div",
        *_choice(),
        element("div", *main, element("div", *side, class_="pair"), *others(runs), class_="figures"),
        class_="curves",
    )


def others(runs: Sequence[Snapshot]) -> Iterator[Html]:
    """Everything else that was logged, by its own name."""
    logged = {key for run in runs for line in run.metrics for key in line if number(line[key]) is not None}
    keys = sorted(logged - _KNOWN - _AXIS_KEYS)
    if keys:
        small = [_figure(runs, Quantity(key, key, "", smooth=True), SMALL) for key in keys[:_MOST_OTHERS]]
        rest = f", {_MOST_OTHERS} drawn" if len(keys) > _MOST_OTHERS else ""
        yield folded(f"Other recorded quantities ({len(keys)}{rest})", element("div", *small, class_="pair"))


def _choice() -> Iterator[Html]:
    yield element("span", "Horizontal axis:", class_="ask")
    for name, _, _ in AXES:
        key = f"by-{name.lower()}"
        yield element("input", type="radio", name="axis", id=key, checked=name == "steps")
        yield element("label", name, for_=key)


def _loss_of_one(run: Snapshot) -> Html:
    """Training and validation loss in one figure."""
    drawings = []
    for name, x_key, x_title in AXES:
        training = _curve(run, x_key, TRAIN, "training", 0, _POINTS, behind=True)
        validation = _curve(run, x_key, VAL, "validation", 1, _POINTS, behind=False)
        drawings.append(
            Drawing(name, x_title, [*training.lines, *validation.lines], training.breaks + validation.breaks)
        )
    return _framed(Quantity(TRAIN.key, "Loss", TRAIN.unit, TRAIN.scale), drawings, WIDE, 0.0, _means([run], TRAIN))


def _losses_of_many(runs: Sequence[Snapshot]) -> Iterator[Html]:
    for quantity in (VAL, TRAIN):
        if _logged(runs, quantity.key):
            yield _figure(runs, quantity, WIDE, _FOCUS)


def _figure(runs: Sequence[Snapshot], quantity: Quantity, size: tuple[int, int], focus: float = 0.0) -> Html:
    """One quantity, a line for each run; a single run also shows what was logged behind its running mean."""
    alone = len(runs) == 1
    limit = max(200, (_POINTS if size == WIDE else _POINTS // 2) // max(1, len(runs) // 2))
    drawings = []
    for name, x_key, x_title in AXES:
        drawing = Drawing(name, x_title)
        for look, run in enumerate(runs):
            label = quantity.title if alone else run.label
            curve = _curve(run, x_key, quantity, label, look, limit, behind=alone)
            drawing.lines.extend(curve.lines)
            drawing.breaks.extend(curve.breaks)
        drawings.append(drawing)
    return _framed(quantity, drawings, size, focus, _means(runs, quantity))


def _curve(run: Snapshot, x_key: str, quantity: Quantity, label: str, look: int, limit: int, behind: bool) -> Drawing:
    """The line of one run: its running mean where the quantity is noisy, and `behind` it what was logged."""
    points = points_of(run.metrics, x_key, quantity.key)
    window = mean_window(len(points)) if quantity.smooth else 1
    lines = [Series(label, thinned(points, limit), look, "faint")] if behind and window > 1 else []
    if points:
        style = "line" if quantity.smooth else "marked"
        lines.append(Series(label, thinned(running_mean(points, window), limit), look, style))
    return Drawing(x_key, "", lines, broken_at(points))


def _framed(
    quantity: Quantity, drawings: Sequence[Drawing], size: tuple[int, int], focus: float, note: str | None
) -> Html:
    """The drawings of a figure with caption, legend, notes and the line that a read-out writes into.

    A wide figure is drawn small as well, for narrow screens.
    """
    plots = []
    for drawing in drawings:
        plot = Plot(
            key=f"f-{_slug(quantity.key + quantity.title)}-{drawing.name.lower()}",
            title=f"{quantity.title} over {drawing.x_title}",
            x_label=drawing.x_title,
            y_label=quantity.unit,
            series=drawing.lines,
            size=size,
            scale=quantity.scale,
            breaks=sorted(drawing.breaks),
            focus=focus,
        )
        shapes = [draw(plot), draw(replace(plot, key=f"{plot.key}-s", size=SMALL)) if size == WIDE else None]
        plots.append(element("div", *shapes, class_=f"over over-{drawing.name.lower()}"))
    cut = f"The vertical axis is fitted to what follows the first {focus:.0%}." if focus else None
    crosses = "Crosses at the upper edge: the value was not finite." if drawings[0].breaks else None
    notes = " ".join(text for text in (note, cut, crosses) if text)
    return element(
        "figure",
        element("figcaption", element("strong", quantity.title), element("output", class_="read")),
        *plots,
        legend(drawings[0].lines),
        element("p", notes, class_="note") if notes else None,
        class_="main" if size == WIDE else None,
    )


def _means(runs: Sequence[Snapshot], quantity: Quantity) -> str | None:
    """What the running means span, in words; None where nothing is averaged."""
    spans = {mean_window(sum(quantity.key in line for line in run.metrics)) for run in runs} if quantity.smooth else {1}
    if spans == {1}:
        return None
    low, high = min(spans), max(spans)
    span = f"{high}" if low == high else f"{low} to {high}"
    behind = ", thin: each step logged" if len(runs) == 1 else ""
    return f"Lines: mean of {span} logged steps{behind}."


def _logged(runs: Sequence[Snapshot], key: str) -> bool:
    return any(key in line for run in runs for line in run.metrics)


def _slug(text: str) -> str:
    """An identifier made of any text: two texts give two identifiers."""
    return "".join(c if c.isascii() and c.isalnum() else f"_{ord(c):x}" for c in text)
