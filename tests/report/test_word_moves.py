"""What each step did to words stands on the page in words and numbers, and words stay text."""

from __future__ import annotations

import re
from dataclasses import replace

from homunculi.report.scan import render
from homunculi.report.word_moves import MOST_TOKENS, points
from homunculi.runs.scans import Lens, Scan, Token, scan_from_json, scan_to_json
from tests.report.test_scan_page import EVIL, Outline, made

N = 3


def traced(word: str = "frog", n: int = N) -> Scan:
    tokens = tuple(Token(i, f"␣t{i}", None if i == 0 else 1.0) for i in range(n))
    says = tuple((("the", 0.5),) for _ in range(n))
    up = (((word, 0.31), ("b", 0.02)), (("␣t2", 0.6), (word, 0.1)), *(((word, 0.1),) for _ in range(2, n)))
    down = (((f"{word}s", -0.25),), (), *(() for _ in range(2, n)))
    first = Lens(0, "layer 1", says, tuple([1] * n), up, down)
    second = Lens(1, "layer 2", says, tuple([9] * n), tuple(() for _ in range(n)), (((word, -0.004),), *[()] * (n - 1)))
    return Scan("run", 5, "text", tokens, lens=(first, second))


def opened(page: str) -> list[str]:
    return re.findall(r"<details([^>]*)>", page.split('id="moves"')[1].split("</section>")[0])


def test_each_step_shows_what_it_raised_and_lowered_in_percentage_points() -> None:
    page = render(traced())
    shown = " ".join(" ".join(Outline(page).texts).split())
    assert "Which step moved which word" in shown
    assert "frog +31" in shown and "b +2.0" in shown and "frogs −25" in shown and "frog −0.4" in shown
    assert "layer 1: frog +31" in shown and "layer 1: frogs −25" in shown
    assert not Outline(page).open


def test_the_word_that_came_is_marked_and_the_token_moved_most_stands_open() -> None:
    page = render(traced())
    assert page.count('class="up came"') == 1
    assert '<div class="up came" style="--part:100%"><bdi>␣t2</bdi> +60</div>' in page
    assert [" open" in one for one in opened(page)] == [False, True, False]
    assert all('name="moved"' in one for one in opened(page))


def test_bars_are_as_long_as_the_largest_of_their_column_allows() -> None:
    page = render(traced())
    assert '<div class="up" style="--part:100%"><bdi>frog</bdi> +31</div>' in page
    assert '<div class="up" style="--part:6%"><bdi>b</bdi> +2.0</div>' in page
    assert '<div class="down" style="--part:2%"><bdi>frog</bdi> −0.4</div>' in page


def test_words_of_a_text_stay_text() -> None:
    page = render(traced(EVIL))
    outline = Outline(page)
    assert not outline.open and "script" not in {tag for tag, _ in outline.tags}
    assert "\u202e" not in page and "&lt;script&gt;" in page
    assert not [name for _, about in outline.tags for name in about if name.startswith("on")]


def test_scans_of_before_are_drawn_without_it() -> None:
    value = scan_to_json(traced())
    for lens in value["lens"]:
        del lens["up"], lens["down"]
    assert "Which step moved" not in render(scan_from_json(value)) and "would say next" in render(scan_from_json(value))
    assert "Which step moved" not in render(made())


def test_tokens_without_a_move_are_counted_and_long_texts_are_cut() -> None:
    quiet = traced()
    still = replace(quiet.lens[0], up=(quiet.lens[0].up[0], (), ()))
    page = render(replace(quiet, lens=(still,)))
    assert len(opened(page)) == 1 and "No step moved a word after 2 tokens" in page
    long = render(traced(n=MOST_TOKENS + 2))
    assert len(opened(long)) == MOST_TOKENS and f"after the first {MOST_TOKENS} are in the JSON" in long


def test_points_have_a_sign_and_a_decimal_where_they_are_few() -> None:
    changes = (0.31, 0.0994, 0.0996, -0.25, -0.0012)
    assert [points(change) for change in changes] == ["+31", "+9.9", "+10", "−25", "−0.1"]
