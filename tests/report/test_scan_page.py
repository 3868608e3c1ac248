"""The page of a scan is one inert file in which every number can be read without a colour."""

from __future__ import annotations

import base64
import re
import struct
import zlib
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from homunculi.report.events import render as render_events
from homunculi.report.scan import body, picture, render
from homunculi.runs.scans import Attention, Lens, Panel, Scan, Token, numbers
from homunculi.runs.shades import colours

EVIL = '<script>alert("x")</script>\u202e&'
N = 5


class Outline(HTMLParser):
    """Tags that are opened, what they hold, and that each is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag != "img":
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def made(word: str = "word") -> Scan:
    values = np.array([[0.5, np.nan, 1.5, 1.0, 1.2345], [1.0, 0.9, 0.8, 0.7, 0.6]])
    attention = np.tril(np.ones((2, N, N)))
    return Scan(
        run=f"run {word}",
        step=1200,
        text=word * N,
        tokens=tuple(Token(i, f"␣{word}{i}", None if i == 0 else i / 2) for i in range(N)),
        panels=(
            Panel("gain", f"Gain {word}", "factor", (f"pass 1 {word}", "pass 2"), values, 0.5, 1.5, 1.0),
            Panel("depth", "Passes taken", "passes", ("passes",), np.array([[1.0, 2, 3, 2, 1]]), 0, 3),
        ),
        attention=(Attention("steps.0.attn.pattern", f"layer {word}", attention / attention.sum(-1, keepdims=True)),),
        lens=(Lens(0, "layer 1", tuple(((f"says {word}", 0.5),) for _ in range(N)), (1, 9, 3, 1, None)),),
        changes=(f"{word}=neutral:1",),
        notes=(f"note {word}",),
        measures=(
            {
                "instrument": "activation",
                "title": f"Activations {word}",
                "question": "How large?",
                "axes": {"grid": ["row", "column"], "alone": [], "deep": ["a", "b", "c"]},
                "labels": {"row": [word, "second"]},
                "values": {"grid": [[1.0, None], [3.0, 4.0]], "alone": 0.25, "deep": [[[1.0]]]},
            },
        ),
    )


def test_every_number_stands_in_a_tooltip_and_in_a_table() -> None:
    page = Outline(render(made()))
    titles = " ".join(page.texts)
    assert "␣word4 · pass 1 word: 1.234" in titles and "no value" in titles
    assert "surprise 1.50 nats" in titles and {"0.9", "0.8", "0.7", "0.6", "–"} <= set(page.texts)
    assert page.texts.count("␣word3") >= 1 and "run word, step 1,200" in page.texts
    assert not page.open


def test_cells_have_the_colour_of_their_level_in_light_and_dark() -> None:
    page = render(made())
    kinds = re.findall(r'<rect x="[\d.]+" y="[\d.]+" width="[\d.]+" height="15" class="(\w+)"><title>', page)
    assert kinds[:5] == ["n8", "none", "p8", "p0", "p4"] and kinds[10:13] == ["s5", "s11", "s16"]
    for dark in (False, True):
        assert all(f".{name} {{ fill: {colour}; }}" in page for name, colour in colours(dark).items())
    assert "prefers-color-scheme: dark" in page
    assert re.search(r'<path d="M[^"]+h6[^"]*" class="low">', page)  # what is below is marked beside its colour


def test_whatever_a_text_says_it_stays_text() -> None:
    page = render(made(EVIL))
    outline = Outline(page)
    assert not outline.open and {tag for tag, _ in outline.tags}.isdisjoint({"script", "iframe", "object", "a"})
    assert "\u202e" not in page and "&lt;script&gt;" in page
    assert not [name for _, about in outline.tags for name in about if name.startswith("on")]


def test_the_page_needs_nothing_from_outside() -> None:
    outline = Outline(render(made()))
    policies = [about["content"] for tag, about in outline.tags if about.get("http-equiv")]
    assert policies and str(policies[0]).startswith("default-src 'none'") and "script" not in str(policies[0])
    sources = [str(about["src"]) for _, about in outline.tags if "src" in about]
    assert sources and all(source.startswith("data:image/png;base64,") for source in sources)


def test_attention_is_a_picture_of_its_shares() -> None:
    shares = np.array([[1.0, 0.0], [0.25, 0.75]])
    data = base64.b64decode(picture(shares).split(",")[1])
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", data[16:24]) == (2, 2)
    (length,) = struct.unpack(">I", data[33:37])
    rows = zlib.decompress(data[41 : 41 + length])
    assert [rows[1 + 9 * r + 4 * c + 3] for r in range(2) for c in range(2)] == [255, 0, 128, 221]
    assert "head 1: start" in render(made())


@pytest.mark.parametrize("n_tokens", [1, 2, 300])
def test_texts_of_any_length_are_drawn(n_tokens: int) -> None:
    tokens = tuple(Token(i, "x" * (i % 20 + 1), None if i == 0 else 1.0) for i in range(n_tokens))
    panel = Panel("a", "A", "", ("r",), np.full((1, n_tokens), np.nan), 0.0, 1.0)
    scan = Scan("", 0, "x", tokens, (panel,))
    outline = Outline(render(scan))
    assert not outline.open and sum(tag == "rect" and a.get("class") == "none" for tag, a in outline.tags) == n_tokens


def test_what_a_scan_lacks_the_page_lacks() -> None:
    page = str(body(replace(made(), attention=(), lens=(), measures=(), changes=())))
    assert "Who looks at whom" not in page and "would say next" not in page and "Changed while" not in page


def test_instruments_are_shown_as_tables_or_by_their_size() -> None:
    texts = Outline(render(made())).texts
    assert "Activations word" in texts and "alone: 0.25" in texts
    assert any("1 × 1 × 1 values (a, b, c)" in text for text in texts)


def test_the_page_of_events_names_what_responds_and_escapes() -> None:
    rows = numbers(np.linspace(-1, 1, 34).reshape(2, 17))
    average = {
        **dict.fromkeys(("event", "control", "difference", "low", "high"), rows),
        "names": [f"salience {EVIL}", "gain"],
        "lags": list(range(-8, 9)),
        "peak": [1, 0],
        "p": [0.001, 0.6],
        "t": [9.0, 1.0],
        "n_texts": 20,
        "n_events": 31,
    }
    three = {"swapped": [0.5, 0.1], "paraphrase": None, "same_words": [0.4, 0.2]}
    pair = {
        "sentence": EVIL,
        "swapped": "b a",
        "paraphrase": None,
        "phasic": three,
        "tonic": three,
        "above": [0.1, 0.2],
    }
    orders = {"names": ["x", "y"], "pairs": [pair], "mean": {"phasic": three, "tonic": three}}
    page = render_events({"run": "r", "step": 5, "words": ["but", EVIL], "corpus": "stories"}, average, orders)
    outline = Outline(page)
    assert not outline.open and "script" not in {tag for tag, _ in outline.tags} and "\u202e" not in page
    assert "responds" in outline.texts and "nothing shown" in outline.texts
    assert any("1 of 2 signals" in text for text in outline.texts)
    assert "Around" not in render_events({"words": []}, None, orders)
