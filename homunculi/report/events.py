"""The page of event averages and swapped orders: a small figure for each signal, its numbers in a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from homunculi.report.markup import Html, element, folded, section, table
from homunculi.report.numbers import number
from homunculi.report.plot import SMALL, Plot, Series, draw, legend
from homunculi.report.style import STYLE

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_MOST = 24  # signals with a figure


def render(about: Mapping[str, Any], average: Mapping[str, Any] | None, orders: Mapping[str, Any] | None) -> str:
    """The page, HTML.

    Args:
        about: `run`, `step`, `words`, `corpus`.
        average: `homunculi.experiments.events.Average.to_json`; orders: `compare_orders` of the same room.
    """
    title = f"{about.get('run') or 'model'}, step {about.get('step', 0):,}"
    parts = [
        section("around", f"Around {', '.join(about.get('words', []))}", *_around(about, average)) if average else None,
        section("orders", "When two words change places", *_orders(orders)) if orders else None,
    ]
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("title", f"{title} · homunculi events"),
        element("style", Html(STYLE)),
    )
    kicker = element("p", "homunculi · events", class_="kicker")
    main = element("main", kicker, element("h1", element("bdi", title)), *parts)
    return f"<!doctype html>\n{element('html', head, element('body', main), lang='en')}\n"


def _around(about: Mapping[str, Any], average: Mapping[str, Any]) -> Iterator[Html]:
    found = [i for i, p in enumerate(average["p"]) if p <= 0.05]
    said = (
        f"{average['n_events']} events in {average['n_texts']} texts of {about.get('corpus', 'a corpus')}. "
        f"{len(found)} of {len(average['p'])} signals do something else there than at words as frequent in the same "
        "part of the text (p at most 0.05, corrected for all signals and lags)."
    )
    yield element("p", said)
    order = sorted(range(len(average["p"])), key=lambda i: -average["t"][i])
    figures = [_figure(average, i) for i in order[:_MOST]]
    yield element("div", *figures, class_="pair")
    lags = average["lags"]
    rows = []
    for i in order:
        at = lags.index(average["peak"][i])
        cells = (average[key][i][at] for key in ("event", "control", "difference", "low", "high"))
        verdict = "responds" if average["p"][i] <= 0.05 else "nothing shown"
        rows.append([average["names"][i], f"{lags[at]:+d}", *map(_shown, cells), f"{average['p'][i]:.4f}", verdict])
    head = ["signal", "lag", "at the word", "at controls", "difference", "chance from", "to", "p", ""]
    yield folded("Numbers at the lag of the largest effect", table(head, rows))


def _figure(average: Mapping[str, Any], i: int) -> Html:
    lags = [float(lag) for lag in average["lags"]]
    lines = [
        Series("difference", _points(lags, average["difference"][i]), 0, "marked"),
        Series("95 % of chance", _points(lags, average["low"][i]), 7, "line"),
        Series("upper edge of chance", _points(lags, average["high"][i]), 7, "bare"),
    ]
    plot = Plot(
        key=f"event-{i}",
        title=f"{average['names'][i]} around the word",
        x_label="tokens from the word",
        y_label="difference",
        series=lines,
        size=SMALL,
        scale="linear",
    )
    p = average["p"][i]
    caption = element(
        "figcaption", element("strong", average["names"][i]), element("span", f"p {p:.2g}", class_="read")
    )
    return element("figure", caption, draw(plot), legend(lines[:2]))


def _points(lags: Sequence[float], values: Sequence[float | None]) -> list[tuple[float, float | None]]:
    return [(lag, number(value)) for lag, value in zip(lags, values, strict=True)]


def _orders(orders: Mapping[str, Any]) -> Iterator[Html]:
    said = (
        "Phasic distance: how differently a signal moves over the two sentences, in its deviations. Beside it that of "
        "a paraphrase, and the mean of random orders of the same words."
    )
    yield element("p", said)
    mean = orders["mean"]["phasic"]
    yield _distances(orders["names"], mean, orders["mean"]["tonic"])
    for pair in orders["pairs"]:
        other = f" / {pair['paraphrase']}" if pair["paraphrase"] else ""
        summary = f"{pair['sentence']} / {pair['swapped']}{other}"
        yield folded(summary, _distances(orders["names"], pair["phasic"], pair["tonic"]))


def _distances(names: Sequence[str], phasic: Mapping[str, Any], tonic: Mapping[str, Any]) -> Html:
    keys = ("swapped", "paraphrase", "same_words")
    rows = []
    for i, name in enumerate(names):
        cells = [_shown(part[key][i] if part[key] else None) for part in (phasic, tonic) for key in keys]
        rows.append([name, *cells])
    head = ["signal", *(f"{kind}, {key.replace('_', ' ')}" for kind in ("phasic", "tonic") for key in keys)]
    return table(head, rows)


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
