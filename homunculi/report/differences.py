"""Figures and words of a comparison's pairs, and its learning curves with their bands.

Differences, intervals and verdicts are shown as the comparison's file gives them; nothing is computed anew here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from homunculi.report.comparison_record import UNITS, Curve, Pair, read_pair, signed
from homunculi.report.markup import Html, element, folded, join, table
from homunculi.report.numbers import brief, decimals, exact, number
from homunculi.report.plot import COLOURS, SMALL, Plot, Point, Series, draw, legend
from homunculi.report.scales import ROOM, Scale, linear_scale

BETTER, WORSE, NOTHING = "better", "worse", "no difference shown"
CLAIM_SEEDS = 5
_MOST_BANDS = 5
# The look whose colour is grey: sides never have it, so that lines of reference can.
GREY = 7
_LOOKS = {BETTER: "c0", WORSE: "c1"}
# Spans (largest over smallest value) from which on a scale by ratio shows more, as drawings choose it themselves.
_LOG_FROM = 3.0
_OPEN_VERDICTS, _OPEN_PANELS, _MOST_DOTS = 12, 6, 400
# Pairs whose extents differ more than this do not share an axis.
_REACH = 15.0
# Share of training that the vertical axes of differences leave to itself.
_FOCUS = 0.1
# Widths of a row of dots for wide and for narrow pages, heights of a row and of the axis below, room at both sides.
_STRIP, _STRIP_SMALL, _ROW, _AXIS, _SIDE = 620, 400, 40, 30, 26
_MINUS = str.maketrans("-", "\u2212")


@dataclass(frozen=True)
class View:
    """One choice of axes for the learning curves; `scale` and `focus` as in `Plot`, `words` says what they do."""

    key: str
    label: str
    x_title: str
    scale: str
    focus: float
    words: str


VIEWS = (
    View("tokens", "tokens", "tokens", "linear", 0.05, "The vertical axis is fitted to what follows the first 5%."),
    View("log", "tokens, log scale", "tokens", "auto", 0.0, "The vertical axis spaces by ratio."),
    View("late", "second half", "tokens", "linear", 0.5, "The vertical axis is fitted to the second half."),
    View("flops", "training FLOPs", "training FLOPs", "linear", 0.05, "Forward and backward of all tokens so far."),
)


def learning_curves(curves: Sequence[Curve], baselines: Sequence[tuple[str, float]], unit: str) -> Html | None:
    """All sides on the same axes, under a choice of axes that needs no script.

    Args:
        baselines: (name, value) of models without training, drawn as level lines where the frame reaches them.
    """
    if not curves:
        return None
    views = [view for view in VIEWS if _applies(view, curves)]
    chooser: list[Html] = [element("span", "Axes:", class_="ask")]
    drawn = []
    for view in views:
        key = f"by-{view.key}"
        chooser.append(element("input", type="radio", name="axis", id=key, checked=view is views[0]))
        chooser.append(element("label", view.label, for_=key))
        drawn.append(_view(view, curves, baselines, unit))
    incomplete = [f"{c.name}: {c.n_runs} of {c.n_expected} runs" for c in curves if c.n_runs < c.n_expected]
    so_far = f" Of those that have come furthest: {'; '.join(incomplete)}." if incomplete else ""
    caption = element(
        "figcaption", element("strong", f"Validation during training, {unit}"), element("output", class_="read")
    )
    lines = "Lines: mean" if len(curves) > 1 else f"Line: {curves[0].name}, mean"
    bands = " Bands: lowest to highest seed." if len(curves) <= _MOST_BANDS else ""  # more of them hide each other
    note = element("p", f"{lines} over seeds.{bands}{so_far}", class_="note")
    figure = element("figure", caption, *drawn, note, class_="main")
    return element("div", *chooser, element("div", figure, class_="figures banded"), class_="curves")


def _applies(view: View, curves: Sequence[Curve]) -> bool:
    values = [value for curve in curves for row in curve.rows for value in row[1:]]
    if view.scale == "auto":
        return bool(values) and min(values) > 0 and max(values) >= _LOG_FROM * min(values)
    return view.x_title == "tokens" or all(number((curve.flops or 0.0) * curve.rows[-1][0]) for curve in curves)


def _view(view: View, curves: Sequence[Curve], baselines: Sequence[tuple[str, float]], unit: str) -> Html:
    """The figure of one view, wide and small, with its legend and what is not in its frame."""
    bands, lines, fitted = [], [], []
    end = max(curve.rows[-1][0] * _stretch(view, curve) for curve in curves)
    for curve in curves:
        stretch = _stretch(view, curve)
        rows = [(x * stretch, *others) for x, *others in curve.rows]
        look = curve.place + curve.place // GREY
        if len(curves) <= _MOST_BANDS:
            bands.append(band(curve.name, [(x, low, high) for x, _, low, high in rows], look))
        lines.append(Series(curve.name, [(x, middle) for x, middle, _, _ in rows], look, "marked"))
        fitted += [value for x, *values in rows if x >= view.focus * end for value in values]
    room = 0.3 * (max(fitted) - min(fitted))
    level, outside = [], []
    for place, (name, y) in enumerate(baselines):
        if min(fitted) - room <= y <= max(fitted) + room:
            level.append(Series(name, [(0.0, y), (end, y)], GREY + COLOURS * place))
        else:
            outside.append(f"{name} {decimals(y)}")
    series = [*bands, *level, *lines]
    title = f"{unit} over {view.x_title}, {view.label}"
    plot = Plot(f"v-{view.key}", title, view.x_title, unit, series, scale=view.scale, focus=view.focus)
    small = replace(plot, key=f"{plot.key}-s", size=SMALL)
    words = f"{view.words} Beyond the frame: {'; '.join(outside)}." if outside else view.words
    return element(
        "div",
        *(draw(plot), draw(small), legend([*lines, *level]), element("p", words, class_="note")),
        class_=f"over over-{view.key}",
    )


def _stretch(view: View, curve: Curve) -> float:
    """From tokens to the view's x axis."""
    return 1.0 if view.x_title == "tokens" else curve.flops or 0.0


def probability(p: float | None) -> str:
    if p is None:
        return "–"
    return "<\u00a00.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def verdicts(pairs: Sequence[Pair], mean_of: Callable[[str], float | None]) -> Html | None:
    """What was found, a sentence a pair. `mean_of` gives a side's mean, from which the percentages are."""
    if not pairs:
        return None
    means = [mean_of(pair.a) if pair.metric in UNITS else None for pair in pairs]
    items = [
        element("li", _sentence(pair, mean), class_=_LOOKS.get(pair.verdict, "c7"))
        for pair, mean in zip(pairs, means, strict=True)
    ]
    rest = items[_OPEN_VERDICTS:]
    few = sorted({int(n) for pair in pairs if (n := pair.values["n"]) is not None and n < CLAIM_SEEDS})
    warning = f"With fewer than {CLAIM_SEEDS} seeds this is a first look and no claim." if few else None
    undecided = "No difference shown is not equality: anything within the interval may be true."
    parts = [
        element("ul", *items[:_OPEN_VERDICTS], class_="verdicts"),
        folded(f"{len(rest)} more pairs", element("ul", *rest, class_="verdicts")) if rest else None,
        element("p", warning, class_="alert") if warning else None,
        element("p", undecided, class_="note") if any(pair.verdict == NOTHING for pair in pairs) else None,
    ]
    return join(part for part in parts if part is not None)


def _sentence(pair: Pair, mean: float | None) -> Html:
    a, b = element("bdi", pair.a), element("bdi", pair.b)
    if pair.verdict in (BETTER, WORSE):
        start = join([element("strong", b, f" is {pair.verdict} than ", a), ": "])
    else:
        start = join([element("strong", pair.verdict[:1].upper(), pair.verdict[1:200], ", ", b, " against ", a), ": "])
    difference = pair.values["difference"]
    share = 100 * difference / mean if mean and difference and mean > 0 else 1e9
    relative = f" ({signed(share, 1)}\u00a0%)" if abs(share) < 1e4 else ""
    n = exact(pair.values["n"])
    interval = f"{pair.percent} interval {pair.interval()}" if pair.has_interval else pair.interval()
    facts = [interval, f"{n} paired {'seed' if n == '1' else 'seeds'}"]
    if pair.values["p"] is not None:
        facts.append(f"p\u00a0{_equals(pair.values['p'])}")
    if (adjusted := pair.values["adjusted_p"]) is not None and adjusted != pair.values["p"]:
        facts.append(f"corrected for all pairs {_equals(adjusted)}")
    return join([start, f"{pair.written('difference')} {pair.unit}{relative}; ", ", ".join(facts), "."])


def _equals(p: float | None) -> str:
    shown = probability(p)
    return shown if shown.startswith("<") else f"=\u00a0{shown}"


def numbers_of(pairs: Sequence[Pair]) -> Html:
    """All pairs in a table."""
    head = (
        "b against a",
        "verdict",
        "b \u2212 a",
        "interval",
        "n",
        "p",
        "corrected p",
        "mean over training, b \u2212 a",
    )
    rows = [
        (
            _versus(pair),
            _verdict(pair.verdict),
            join([pair.written("difference"), element("small", pair.unit, class_="tag")]),
            pair.interval(),
            exact(pair.values["n"]),
            probability(pair.values["p"]),
            probability(pair.values["adjusted_p"]),
            _area(pair),
            _reaching(pair),
        )
        for pair in pairs
    ]
    return table((*head, "tokens to reach a loss"), rows)


def _versus(pair: Pair) -> Html:
    return join([element("bdi", pair.b), element("small", "against ", element("bdi", pair.a), class_="tag")])


def _verdict(verdict: str) -> Html:
    return element("span", verdict[:200], class_={BETTER: "yes", WORSE: "no"}.get(verdict))


def _area(pair: Pair) -> Html | str:
    area = pair.raw.get("area")
    if not isinstance(area, Mapping):
        return "–"
    inner = read_pair(area, pair.metric)
    tag = element("small", inner.interval(), class_="tag")
    return join([inner.written("difference"), tag, _verdict(inner.verdict) if area.get("verdict") else None])


def _reaching(pair: Pair) -> Html | str:
    """When each side got to the loss that both were asked for."""
    found = pair.raw.get("tokens_to_reach")
    if not isinstance(found, Mapping) or number(found.get("loss")) is None:
        return "–"
    a, b = number(found.get("a")), number(found.get("b"))
    ratio = f", ×{b / a:.2f}" if a and b is not None and a > 0 else ""
    tag = element("small", f"loss {number(found['loss']):.4g}{ratio}", class_="tag")
    when = [f"{name} {'never' if value is None else brief(value)}" for name, value in (("b", b), ("a", a))]
    return join([", ".join(when), tag])


def dots(pairs: Sequence[Pair]) -> Html | None:
    """A row for each pair: every seed's difference, the mean and its interval, with zero marked."""
    drawn = [pair for pair in pairs if pair.differences or pair.values["difference"] is not None]
    figures = []
    for metric in dict.fromkeys(pair.metric for pair in drawn):
        groups = list(_groups([pair for pair in drawn if pair.metric == metric]))
        figures += [_rows(group, len(groups) > 1) for group in groups]
    return join(figures) if figures else None


def _groups(pairs: Sequence[Pair]) -> Iterator[list[Pair]]:
    """Pairs that can share an axis, in their order; small extents first."""
    left = list(pairs)
    while left:
        extents = [max(map(abs, pair.reach()), default=0.0) for pair in left]
        smallest = min((extent for extent in extents if extent > 0), default=0.0)
        near = [pair for pair, extent in zip(left, extents, strict=True) if extent <= _REACH * smallest]
        yield near
        left = [pair for pair in left if pair not in near]


def _rows(pairs: Sequence[Pair], own_axis: bool) -> Html:
    reach = [value for pair in pairs for value in pair.reach()]
    widths = (("strip big", _STRIP), ("strip", _STRIP_SMALL))
    scales = [linear_scale([0.0, *reach], 6 if width == _STRIP else 4, powers=True, room=ROOM) for _, width in widths]
    cells = []
    for pair in pairs:
        words = f"{pair.verdict}: {pair.written('difference')} ({pair.interval()})"
        cells.append(element("div", _versus(pair), element("small", words, class_="tag"), class_="what"))
        rows = [_row(pair, scale, *width) for scale, width in zip(scales, widths, strict=True)]
        cells.append(element("div", *rows))
    axes = [_axis(scale, *width) for scale, width in zip(scales, widths, strict=True)]
    unit = f"{pairs[0].unit} {scales[0].unit()}".strip()
    better = "Left of zero b is better. " if pairs[0].metric in UNITS else ""
    apart = " These pairs have an axis of their own." if own_axis else ""
    bar = f"Bar: mean with its {pairs[0].percent} interval; blue: better, orange: worse, grey: neither is shown."
    note = f"b \u2212 a in {unit}. {better}Dots: seeds. {bar}{apart}"
    grid = element("div", *cells, element("div"), element("div", *axes), class_="strips")
    caption = element("figcaption", element("strong", "Paired differences at the end of training"))
    return element("figure", caption, grid, element("p", note, class_="note"))


def _row(pair: Pair, scale: Scale, look: str, width: int) -> Html:
    def at(value: float) -> float:
        return round(_SIDE + scale.place(value) * (width - 2 * _SIDE), 2)

    low, mean, high = (pair.values[key] for key in ("low", "difference", "high"))
    parts = [element("line", class_="grid", x1=at(tick), x2=at(tick), y1=0, y2=_ROW) for tick in scale.ticks]
    parts.append(element("line", class_="zero", x1=at(0.0), x2=at(0.0), y1=0, y2=_ROW))
    colour = _LOOKS.get(pair.verdict, "c7")
    if low is not None and high is not None:
        bar = f"M{at(low):g} 13H{at(high):g}M{at(low):g} 8v10M{at(high):g} 8v10"
        parts.append(element("path", d=bar, class_=f"{colour} bar"))
    if mean is not None:
        parts.append(element("path", d=f"M{at(mean):g} 6.5l5 6.5l-5 6.5l-5 -6.5z", class_=f"{colour} mean"))
    spots = [f"M{at(value) - 3.5:g} 29a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0z" for value in pair.differences]
    parts += [element("path", d=spot, class_=f"{colour} dot") for spot in spots[:_MOST_DOTS]]
    text = f"{pair.b} against {pair.a}: {pair.written('difference')} {pair.unit}, interval {pair.interval()}"
    return element("svg", element("title", text), *parts, viewBox=f"0 0 {width} {_ROW}", class_=look, role="img")


def _axis(scale: Scale, look: str, width: int) -> Html:
    parts = [element("line", class_="axis", x1=_SIDE, x2=width - _SIDE, y1=0.5, y2=0.5)]
    for tick in scale.ticks:
        x = round(_SIDE + scale.place(tick) * (width - 2 * _SIDE), 2)
        parts.append(element("line", class_="axis", x1=x, x2=x, y1=0, y2=5))
        parts.append(element("text", scale.label(tick).translate(_MINUS), x=x, y=20, text_anchor="middle"))
    return element("svg", *parts, viewBox=f"0 0 {width} {_AXIS}", class_=look, aria_hidden="true")


def over_training(pairs: Sequence[Pair]) -> Html | None:
    """The difference of each pair at every evaluation, with its band and the zero line."""
    panels = [_panel(pair, index) for index, pair in enumerate(pairs) if len(pair.points) > 1]
    if not panels:
        return None
    rest = panels[_OPEN_PANELS:]
    fitted = f"Axes are fitted to what follows the first {_FOCUS:.0%}."
    note = f"b \u2212 a over training. Band: interval at that evaluation. {fitted}"
    more = folded(f"{len(rest)} more pairs", element("div", *rest, class_="pair banded")) if rest else None
    return join([element("div", *panels[:_OPEN_PANELS], class_="pair banded"), element("p", note, class_="note"), more])


def _panel(pair: Pair, index: int) -> Html:
    held = [(tokens, low, high) for tokens, _, low, high in pair.points if low is not None and high is not None]
    ends = (0.0, pair.points[-1][0])
    series = [
        band("interval", held, 0),
        Series("zero", [(x, 0.0) for x in ends], GREY, "faint"),
        Series("difference", [(tokens, difference) for tokens, difference, _, _ in pair.points], 0, "marked"),
    ]
    title = f"{pair.b} against {pair.a} over training"
    plot = Plot(f"over-{index}", title, "tokens", f"{pair.unit}, b \u2212 a", series, SMALL, focus=_FOCUS)
    caption = element("strong", element("bdi", pair.b), " against ", element("bdi", pair.a))
    return element("figure", element("figcaption", caption, element("output", class_="read")), draw(plot))


def band(name: str, edges: Sequence[tuple[float, float, float]], look: int) -> Series:
    """The area between low and high of (x, low, high): a faint line there and back again, which the style fills."""
    there: list[Point] = [(x, high) for x, _, high in edges]
    return Series(name, [*there, *((x, low) for x, low, _ in reversed(edges))], look, "faint")
