"""Which step moved which word: a line for each token of a scan, which opens to what every step raised and lowered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from homunculi.report.markup import Html, element, escaped
from homunculi.runs.scans import Lens, Scan, Words

MOST_TOKENS = 160  # so many are drawn: a page stays small
_NEAR = 8  # the open one is among the first, where it is seen


def has_moves(scan: Scan) -> bool:
    """Whether the scan says which words its steps moved."""
    return any(lens.up for lens in scan.lens)


def moves(scan: Scan) -> Iterator[Html]:
    """What a reader has to know, then a line for each token; the one whose words were moved most stands open."""
    yield element(
        "p",
        "After each token the model has a guess of what comes next, and every step changes it. A line names the "
        "largest raise and the largest fall, in percentage points; it opens to those of each step. What a word loses "
        "may be spread over many. The largest of its column has the longest bar; ✓ marks the word that came. A state "
        "that is itself a distribution over words is read as what it is; of any other this is a lens, and an early "
        "state may hold more than it shows.",
        class_="note",
    )
    shown = range(min(len(scan.tokens), MOST_TOKENS))
    told = [i for i in shown if any(_at(lens.up, i) or _at(lens.down, i) for lens in scan.lens)]
    near = [i for i in told if i < _NEAR] or told[:1]
    most = max(near, key=lambda i: sum(change for lens in scan.lens for _, change in _at(lens.up, i)[:1]), default=None)
    yield element("div", *(_token(scan, i, i == most) for i in told), class_="moves", tabindex="0")
    quiet = f"No step moved a word after {len(shown) - len(told)} tokens. " if len(told) < len(shown) else ""
    left = f"The tokens after the first {MOST_TOKENS} are in the JSON." if len(scan.tokens) > MOST_TOKENS else ""
    if quiet or left:
        yield element("p", quiet + left, class_="note")


def _at(rows: Sequence[Words], i: int) -> Words:
    return rows[i] if rows else ()


def _token(scan: Scan, i: int, is_open: bool) -> Html:
    came = scan.tokens[i + 1].text if i + 1 < len(scan.tokens) else None
    longest = [max((abs(p) for rows in kind for _, p in _at(rows, i)), default=1.0) for kind in _kinds(scan.lens)]
    lines = [_step(lens, i, came, longest) for lens in scan.lens]
    head = ("step", "raised", "lowered", "then the likeliest was")
    titles = element("thead", element("tr", *(element("th", title, scope="col") for title in head)))
    token = element("bdi", f"{i} {scan.tokens[i].text}", class_="word")
    then = element("span", *("–",) if came is None else ("then ", element("bdi", came, class_="word")))
    summary = element("summary", element("span", token), then, *_in_short(scan.lens, i))
    table = element("table", titles, element("tbody", *lines))
    return element("details", summary, element("div", table, class_="scroll"), name="moved", open=is_open)


def _kinds(lenses: Sequence[Lens]) -> tuple[list[tuple[Words, ...]], list[tuple[Words, ...]]]:
    """What each step raised, and what it lowered."""
    return [lens.up for lens in lenses], [lens.down for lens in lenses]


def _in_short(lenses: Sequence[Lens], i: int) -> Iterator[Html]:
    """The largest move up and the largest down, with their steps."""
    for kind in _kinds(lenses):
        largest = [(*_at(rows, i)[0], lens.label) for lens, rows in zip(lenses, kind, strict=True) if _at(rows, i)]
        if largest:
            word, change, label = max(largest, key=lambda move: abs(move[1]))
            yield element("small", f"{label}: ", element("bdi", word), f" {points(change)}")


def _step(lens: Lens, i: int, came: str | None, longest: Sequence[float]) -> Html:
    """A row of the table; `longest`: the largest raise of the token, and the largest fall."""
    said = "–"
    if lens.words[i]:
        word, probability = lens.words[i][0]
        said = element("span", element("bdi", word, class_="word"), element("small", f"{probability:.0%}"))
    return element(
        "tr",
        element("th", lens.label, scope="row"),
        _bars(_at(lens.up, i), "up", came, longest[0]),
        _bars(_at(lens.down, i), "down", came, longest[1]),
        element("td", said, class_="hit" if lens.rank[i] == 1 else None),
    )


def _bars(words: Words, kind: str, came: str | None, longest: float) -> Html:
    """Words under each other, each on a bar as long as its change."""
    bars = []
    for word, change in words:
        width = f"{100 * abs(change) / longest:.0f}%" if longest > 0 else "0%"
        look = f"{kind} came" if word == came else kind
        bars.append(
            Html(f'<div class="{look}" style="--part:{width}"><bdi>{escaped(word)}</bdi> {points(change)}</div>')
        )
    return element("td", *bars) if bars else element("td", "–")


def points(change: float) -> str:
    """A change of probability in percentage points, with its sign."""
    size = 100 * abs(change)
    shown = f"{size:.0f}" if size >= 9.95 else f"{size:.1f}"
    return f"{'+' if change > 0 else '−'}{shown}"
