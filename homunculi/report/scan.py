"""The page of a scan: the text coloured by surprise, then every signal below its token, attention, lens, words
moved, numbers.

One file without a script. Whatever a colour shows stands in a tooltip and in a table.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from homunculi.report.markup import Html, element, escaped, folded, join, section, table
from homunculi.report.numbers import brief
from homunculi.report.scan_style import SCAN_STYLE
from homunculi.report.style import STYLE
from homunculi.report.word_moves import has_moves, moves
from homunculi.runs.scans import Lens, Panel, Scan
from homunculi.runs.shades import LEVELS, level

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
_NAMES = 312  # width of the column of names
_ROW, _HEAD = 17, 7  # height of a row, and of the air above the first of a panel
_TITLE = 44  # height of a title with its scale
_BARS = 44
_WIDTH = 1180  # a short text is stretched to it
_MOST_LENGTH = 14  # characters of a token's label above the tracks
_MOST_CELLS = 4000
_INK = (37, 120, 200)  # of attention, on light and dark ground


def render(scan: Scan) -> str:
    """The page, HTML."""
    title = f"{scan.run or 'model'}, step {scan.step:,}"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="referrer", content="no-referrer"),
        element("title", f"{title} · homunculi scan"),
        element("style", Html(STYLE + SCAN_STYLE)),
    )
    kicker = element("p", "homunculi · brain scan", class_="kicker")
    page = element("main", kicker, element("h1", element("bdi", title)), body(scan))
    return f"<!doctype html>\n{element('html', head, element('body', page, class_='scan'), lang='en')}\n"


def body(scan: Scan) -> Html:
    """All of the page below its heading; needs `STYLE` and `SCAN_STYLE`, inside an element of class ``scan``."""
    chips = [element("span", text, class_="chip") for text in scan.changes]
    return join(
        [
            element("p", "Changed while it read: ", *chips) if chips else None,
            section("text", "What it read", *_text(scan)),
            section("signals", "Inside, token by token", *_tracks(scan)),
            section("attention", "Who looks at whom", *_attention(scan)) if scan.attention else None,
            section("lens", "What each step would say next", *_lens(scan)) if scan.lens else None,
            section("moves", "Which step moved which word", *moves(scan)) if has_moves(scan) else None,
            section("measures", "Instruments", *_measures(scan.measures)) if scan.measures else None,
            section("numbers", "Numbers", *(_numbers(scan, panel) for panel in scan.panels)),
        ]
    )


def _text(scan: Scan) -> Iterator[Html]:
    surprisals = [token.surprisal for token in scan.tokens if token.surprisal is not None]
    top = max([*surprisals, 1e-9])
    spans = []
    for token in scan.tokens[1:] if scan.tokens[0].surprisal is None else scan.tokens:
        share = (token.surprisal or 0.0) / top
        look = f"background: color-mix(in srgb, var(--heat) {round(70 * share)}%, transparent)"
        plain = token.text.replace("␣", " ").replace("⏎", "\n").replace("⇥", "\t")
        spans.append(element("span", plain, style=look, title=f"surprise {_nats(token.surprisal)}"))
    mean = sum(surprisals) / len(surprisals) if surprisals else None
    yield element("p", *spans, class_="read-text")
    said = f"The stronger the colour, the less the token was expected; {_nats(mean)} a token in the mean."
    yield element("p", said, *(f" {note}" for note in scan.notes), class_="note")


def _nats(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f} nats"


def _tracks(scan: Scan) -> Iterator[Html]:
    """Tokens along the top, panels below; names stay at the left and tokens at the top when the rest moves."""
    width = min(46, max(16, _WIDTH // len(scan.tokens)))
    rows = [*_tokens(scan, width)]
    for panel in scan.panels:
        rows += _track(scan, panel, width)
    note = "Hover over a cell for its number. Orange: above neutral; blue with a dash: below. An empty frame: no value."
    yield element("p", note, class_="note")
    yield element("div", element("div", *rows), class_="tracks", tabindex="0", role="group", aria_label="signals")


def _tokens(scan: Scan, width: int) -> Iterator[Html]:
    """Bars of surprisal above the tokens."""
    shown = [_cut(token.text) for token in scan.tokens]
    flat = width >= 8 + 6.7 * max(map(len, shown))
    below = 20 if flat else 12 + round(6.8 * max(map(len, shown)))
    height = _BARS + 8 + below
    top = max([token.surprisal or 0.0 for token in scan.tokens] + [1e-9])
    parts = []
    for i, (token, word) in enumerate(zip(scan.tokens, shown, strict=True)):
        bar = (token.surprisal or 0.0) / top * _BARS
        about = element("title", f"{i}: {token.text} (id {token.id}), surprise {_nats(token.surprisal)}")
        x = i * width
        parts.append(
            element(
                "rect", about, x=x + 2, y=f"{_BARS + 2 - bar:.1f}", width=width - 4, height=f"{bar:.1f}", class_="bar"
            )
        )
        place = {"x": x + width / 2, "y": _BARS + 18, "text_anchor": "middle"}
        if not flat:
            place = {"transform": f"translate({x + width / 2 + 4} {height - 5}) rotate(-90)"}
        parts.append(element("text", word, about, class_="word", **place))
    yield element(
        "div",
        element(
            "svg",
            element("text", "surprise", x=10, y=14, class_="title"),
            element("text", "of each token, given those before", x=10, y=29, class_="soft"),
            element("text", f"up to {_nats(top)}", x=10, y=43, class_="soft"),
            width=_NAMES,
            height=height,
        ),
        class_="names top",
    )
    whole = element("svg", *parts, width=len(shown) * width, height=height, role="img", aria_label="tokens")
    yield element("div", whole, class_="top")


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_LENGTH else text[: _MOST_LENGTH - 1] + "…"


def _track(scan: Scan, panel: Panel, width: int) -> Iterator[Html]:
    """Names of a panel's rows with its scale, and its cells."""
    height = max(_HEAD + _ROW * len(panel.rows) + 5, _TITLE)
    names = [
        element("text", panel.title, x=10, y=18, class_="title"),
        *_scale(panel, 10, 26),
        element("line", x1=0, x2=_NAMES, y1=0.5, y2=0.5, class_="rule"),
    ]
    for r, row in enumerate(panel.rows):
        names.append(element("text", row, x=_NAMES - 8, y=_HEAD + _ROW * r + 12, text_anchor="end"))
    yield element("div", element("svg", *names, width=_NAMES, height=height), class_="names")
    whole = len(scan.tokens) * width
    rule = element("line", x1=0, x2=whole, y1=0.5, y2=0.5, class_="rule")
    cells = join(_cells(scan, panel, width))
    yield element("div", element("svg", rule, cells, width=whole, height=height, role="img", aria_label=panel.title))


def _cells(scan: Scan, panel: Panel, width: int) -> Iterator[Html]:
    words = [escaped(token.text) for token in scan.tokens]
    dashes = []
    for r, row in enumerate(panel.rows):
        y, name = _HEAD + _ROW * r, escaped(row)
        for i, value in enumerate(panel.values[r].tolist()):
            kind = level(panel, value)
            shown = "no value" if kind is None else f"{value:.4g}"
            yield Html(
                f'<rect x="{i * width + 1}" y="{y}" width="{width - 2}" height="{_ROW - 2}" class="{kind or "none"}">'
                f"<title>{words[i]} · {name}: {shown}</title></rect>"
            )
            if kind is not None and kind[0] == "n" and int(kind[1:]) >= LEVELS // 3:
                dashes.append(f"M{i * width + width / 2 - 3:g} {y + _ROW / 2 - 1:g}h6")
    if dashes:
        yield element("path", d="".join(dashes), class_="low")


def _scale(panel: Panel, x: float, y: float) -> Iterator[Html]:
    """The colours of a panel with the numbers at their ends."""
    if panel.neutral is None:
        kinds = [f"s{i}" for i in range(2 * LEVELS + 1)]
    else:
        kinds = [*(f"n{i}" for i in range(LEVELS, 0, -1)), *(f"p{i}" for i in range(LEVELS + 1))]
    low, high = brief(panel.low), brief(panel.high)
    start = x + 6.2 * len(low) + 4
    yield element("text", low, x=x, y=y + 9, class_="soft")
    for i, kind in enumerate(kinds):
        yield element("rect", x=start + 4 * i, y=y, width=4, height=10, class_=kind)
    end = start + 4 * len(kinds) + 4
    middle = "" if panel.neutral is None else f" (neutral {brief(panel.neutral)})"
    yield element("text", f"{high}{middle}", x=end, y=y + 9, class_="soft")


def _attention(scan: Scan) -> Iterator[Html]:
    note = "Down: the token that looks. Across: the token it looks at. The stronger, the more; 1 pixel a pair."
    yield element("p", note, class_="note")
    size = min(300, max(180, 3 * len(scan.tokens)))
    for one in scan.attention:
        heads = []
        for h, values in enumerate(one.values):
            where = f"{one.label}, head {h + 1}"
            image = element("img", src=picture(values), width=size, height=size, alt=f"attention of {where}")
            heads.append(element("figure", image, element("figcaption", f"head {h + 1}: {_habit(values)}")))
        yield element("h3", one.label)
        yield element("div", *heads, class_="heads")
    yield folded("Where each token looks most, heads together", _looks(scan))


def _habit(values: np.ndarray) -> str:
    """Where a head looks in the mean: at the start, at itself, just before, or elsewhere."""
    readers = values.sum(1) > 0
    readers[:2] = False
    n = max(int(readers.sum()), 1)
    parts = {
        "start": values[readers, 0].sum() / n,
        "itself": np.diagonal(values)[readers].sum() / n,
        "token before": np.diagonal(values, -1)[readers[1:]].sum() / n,
    }
    return ", ".join(f"{name} {share:.0%}" for name, share in parts.items())


def _looks(scan: Scan) -> Html:
    rows = []
    for i, token in enumerate(scan.tokens):
        cells: list[Any] = []
        for one in scan.attention:
            mean = one.values[:, i].mean(0)
            at = int(mean.argmax())
            cells.append(f"{scan.tokens[at].text} {mean[at]:.2f}" if mean[at] > 0 else "–")
        rows.append([f"{i} {token.text}", *cells])
    return _tall(["token", *(one.label for one in scan.attention)], rows)


def picture(values: np.ndarray) -> str:
    """Shares (T, T) as a PNG in a data: address: one colour, the stronger the larger (the root of a share)."""
    alpha = np.round(255 * np.sqrt(np.clip(np.nan_to_num(values), 0, 1))).astype(np.uint8)
    n_rows, n_columns = alpha.shape
    pixels = np.empty((n_rows, n_columns, 4), dtype=np.uint8)
    pixels[..., :3], pixels[..., 3] = _INK, alpha
    lines = b"".join(b"\0" + row.tobytes() for row in pixels)
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", n_columns, n_rows, 8, 6, 0, 0, 0)),
        (b"IDAT", zlib.compress(lines, 6)),
        (b"IEND", b""),
    ]
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(chunks)).decode("ascii")


def _lens(scan: Scan) -> Iterator[Html]:
    note = (
        "The likeliest next token after each step, with its probability; # is the rank of the token that came. Marked: "
        "it came."
    )
    yield element("p", note, class_="note")
    head = ["after token", *(lens.label for lens in scan.lens), "what came"]
    rows = []
    for i, token in enumerate(scan.tokens):
        came = scan.tokens[i + 1].text if i + 1 < len(scan.tokens) else "–"
        rows.append([f"{i} {token.text}", *(_said(lens, i) for lens in scan.lens), came])
    yield _tall(head, rows)


def _said(lens: Lens, i: int) -> Html:
    if not lens.words[i]:
        return element("td", "–")
    word, probability = lens.words[i][0]
    rank = lens.rank[i]
    others = ", ".join(f"{other} {share:.0%}" for other, share in lens.words[i])
    shown = [word, element("small", f"{probability:.0%}", "" if rank is None else f" #{rank}")]
    return element("td", *shown, title=others, class_="hit" if rank == 1 else None)


def _tall(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> Html:
    """A long table in a frame of its own."""
    lines = []
    for first, *cells in rows:
        made = [cell if isinstance(cell, Html) else element("td", cell) for cell in cells]
        lines.append(element("tr", element("th", first, scope="row"), *made))
    titles = element("thead", element("tr", *(element("th", title, scope="col") for title in head)))
    return element("div", element("table", titles, element("tbody", *lines)), class_="tall", tabindex="0")


def _numbers(scan: Scan, panel: Panel) -> Html:
    rows = []
    for i, token in enumerate(scan.tokens):
        values = panel.values[:, i].tolist()
        rows.append([f"{i} {token.text}", *(f"{v:.4g}" if np.isfinite(v) else "–" for v in values)])
    unit = f" ({panel.unit})" if panel.unit else ""
    return folded(f"{panel.title}{unit}", _tall(["token", *panel.rows], rows))


def _measures(measures: Sequence[dict[str, Any]]) -> Iterator[Html]:
    for one in measures:
        yield element("h3", str(one.get("title", one.get("instrument", ""))))
        yield element("p", str(one.get("question", "")), class_="note")
        for name, values in dict(one.get("values", {})).items():
            yield _array(str(name), values, one)


def _array(name: str, values: Any, one: dict[str, Any]) -> Html:
    """A small array as a table; of a large one its size."""
    found = np.array(values, dtype=np.float64)
    axes = [str(axis) for axis in dict(one.get("axes", {})).get(name, [])]
    if found.ndim == 0:
        return element("p", f"{name}: {found:.4g}")
    if found.ndim > 2 or found.size > _MOST_CELLS:
        size = " × ".join(map(str, found.shape))
        return element("p", f"{name}: {size} values ({', '.join(axes)}), in the JSON of this scan.", class_="note")
    known = dict(one.get("labels", {}))

    def labels(axis: int) -> list[str]:
        given = known.get(axes[axis]) if axis < len(axes) else None
        return [str(label) for label in given] if given else [str(i) for i in range(found.shape[axis])]

    grid = found[:, None] if found.ndim == 1 else found
    columns = labels(1) if found.ndim == 2 else [name]
    rows = [[label, *(f"{v:.4g}" for v in row)] for label, row in zip(labels(0), grid.tolist(), strict=True)]
    return table([" / ".join(axes) or name, *columns], rows)
