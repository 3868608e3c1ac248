"""Drawings: round ticks, lines told apart without colour, nothing that is no number."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homunculi.report.numbers import brief, bytes_of, decimals, duration, exact, number
from homunculi.report.plot import SMALL, Plot, Series, draw, legend
from homunculi.report.scales import ROOM, linear_scale, linear_ticks, log_scale
from homunculi.report.series import broken_at, mean_window, points_of, running_mean, thinned

NUMBERS = st.floats(-1e12, 1e12, allow_nan=False)


def plot(*series: Series, **fields: object) -> Plot:
    return Plot("k", "Loss over steps", "steps", "nats per token", series, **fields)


def parsed(drawing: str) -> ElementTree.Element:
    return ElementTree.fromstring(drawing)


def polylines(drawing: str) -> list[list[tuple[float, float]]]:
    texts = [element.get("points", "") for element in parsed(drawing).iter("polyline")]
    return [[(float(x), float(y)) for x, y in (pair.split(",") for pair in text.split())] for text in texts]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (0, 1000, [0, 200, 400, 600, 800, 1000]), (-3, 7, [-2, 0, 2, 4, 6])],
)
def test_linear_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert linear_ticks(low, high, 5) == pytest.approx(expected)


@settings(derandomize=True, deadline=None)
@given(st.lists(NUMBERS, min_size=1, max_size=20), st.booleans())
def test_any_values_get_a_few_distinct_ticks_that_hold_them(values: list[float], powers: bool) -> None:
    scale = linear_scale([number(value) or 0.0 for value in values], powers=powers, room=ROOM)
    assert scale.low < scale.high
    assert 2 <= len(scale.ticks) <= 12
    labels = [scale.label(tick) for tick in scale.ticks]
    assert len(set(labels)) == len(labels)
    assert all(-1e-6 <= scale.place(value) <= 1 + 1e-6 for value in values)


@settings(derandomize=True, deadline=None)
@given(st.lists(st.floats(1e-12, 1e12), min_size=1, max_size=20))
def test_a_log_axis_holds_all_positive_values(values: list[float]) -> None:
    scale = log_scale(values)
    assert all(-1e-6 <= scale.place(value) <= 1 + 1e-6 for value in values)
    assert 1 <= len(scale.ticks) <= 14
    assert all(scale.low <= tick <= scale.high for tick in scale.ticks)


def test_a_log_axis_of_losses_has_ticks_a_reader_expects() -> None:
    scale = log_scale([1.35, 7.6])
    assert [scale.label(tick) for tick in scale.ticks] == ["1.5", "2", "3", "4", "5", "7"]
    assert [log_scale([0.001, 1000]).label(tick) for tick in log_scale([0.001, 1000]).ticks][:3] == [
        "0.001",
        "0.01",
        "0.1",
    ]


def test_a_log_axis_of_even_ticks_shows_as_many_digits_at_each() -> None:
    scale = log_scale([3.75, 4.6])
    assert {len(scale.label(tick)) for tick in scale.ticks} == {3}


def test_large_numbers_are_labelled_in_words_or_powers() -> None:
    tokens = linear_scale([0, 32_000_000], powers=True)
    assert tokens.unit() == "million"
    assert [tokens.label(tick) for tick in tokens.ticks] == ["0", "5", "10", "15", "20", "25", "30"]
    assert linear_scale([0, 3e17], powers=True).unit() == "×10¹⁵"
    rate = linear_scale([0, 0.003], powers=True)
    assert (rate.unit(), rate.label(rate.ticks[-1])) == ("×10⁻³", "3.0")
    steps = linear_scale([0, 2000], powers=True)
    assert steps.unit() == "" and steps.label(1500) == "1,500"


def test_an_axis_reaches_its_floor_and_no_further() -> None:
    scale = linear_scale([80.0, 90.0], floor=0.0, room=ROOM)
    assert scale.low == 0.0
    assert scale.high > 90.0


def test_higher_values_are_drawn_higher_and_later_ones_further_right() -> None:
    (line,) = polylines(draw(plot(Series("a", [(0, 3.0), (1, 2.0), (2, 1.0)]))))
    assert [x for x, _ in line] == sorted(x for x, _ in line)
    assert [y for _, y in line] == sorted(y for _, y in line)


def test_a_drawing_has_role_title_and_description() -> None:
    root = parsed(draw(plot(Series("train", [(0, 3.0), (10, 1.0)]))))
    assert root.get("role") == "img"
    title, about = root.find("title"), root.find("desc")
    assert title is not None and about is not None
    assert root.get("aria-labelledby") == f"{title.get('id')} {about.get('id')}"
    assert title.text == "Loss over steps"
    assert "train: from 3 at 0 to 1 at 10, lowest 1" in (about.text or "")


def test_lines_differ_in_more_than_colour() -> None:
    series = [Series(f"run {look}", [(0, look), (1, look + 1)], look) for look in range(8)]
    groups = [group for group in parsed(draw(plot(*series))).iter("g") if group.get("data-name")]
    looks = {(group.get("stroke-dasharray"), group.find("path").get("d")) for group in groups}
    assert len(looks) == 8
    assert len({group.get("class") for group in groups}) == len({group.find("path").get("d") for group in groups}) == 8
    assert len({group.get("stroke-dasharray") for group in groups}) == 5
    names = parsed(legend(series)).itertext()
    assert [name.strip() for name in names if name.strip()] == [f"run {look}" for look in range(8)]


def test_a_break_interrupts_the_line_and_is_marked() -> None:
    points = [(0.0, 3.0), (1.0, 2.0), (2.0, None), (3.0, 1.0), (4.0, 1.5)]
    drawing = draw(plot(Series("a", points), breaks=broken_at(points)))
    assert [len(line) for line in polylines(drawing)] == [2, 2]
    crosses = [element for element in parsed(drawing).iter("path") if element.get("class") == "broken"]
    assert len(crosses) == 1
    assert "Not finite at 1 points, first at 2." in drawing


@pytest.mark.parametrize(
    "points", [[], [(5.0, None)], [(0.0, 0.0)], [(1.0, 2.0), (1.0, 2.0)], [(0.0, -1e299), (1.0, 1e299)]]
)
@pytest.mark.parametrize("scale", ["linear", "zero", "auto"])
@pytest.mark.parametrize("focus", [0.0, 0.05])
def test_odd_data_gives_a_sound_drawing(points: list, scale: str, focus: float) -> None:
    drawing = draw(plot(Series("a", points), scale=scale, size=SMALL, breaks=broken_at(points), focus=focus))
    parsed(drawing)
    assert not re.search(r"\b(nan|inf)\b", drawing)


@settings(derandomize=True, deadline=None)
@given(st.lists(st.tuples(NUMBERS, st.none() | NUMBERS), max_size=30), st.sampled_from(["linear", "zero", "auto"]))
def test_any_points_are_drawn_inside_the_frame(points: list, scale: str) -> None:
    points = sorted(points, key=lambda point: point[0])
    drawing = draw(plot(Series("a", points), scale=scale))
    for x, y in (point for line in polylines(drawing) for point in line):
        assert 0 <= x <= 760 and 0 <= y <= 350


def test_hostile_names_stay_text() -> None:
    name = '</svg><script>alert("1")</script>'
    root = parsed(draw(Plot("k", name, name, name, [Series(name, [(0, 1), (1, 2)])])))
    assert root.find(".//script") is None
    assert root.find("title").text == name
    assert parsed(legend([Series(name, [(0, 1)]), Series("b", [(0, 1)], 1)])).find(".//script") is None


def test_focus_fits_the_axis_to_what_follows_and_cuts_the_rest() -> None:
    points = [(0.0, 100.0), *((float(x), 2.0 - x / 100) for x in range(10, 101))]
    drawing = draw(plot(Series("a", points), focus=0.05))
    ticks = [float(text.text) for text in parsed(drawing).iter("text") if text.get("class") == "tick y"]
    assert max(ticks) <= 2.0
    inner = parsed(drawing).find("svg")
    assert inner is not None and inner.find(".//polyline") is not None


def test_thinning_keeps_ends_peaks_and_breaks() -> None:
    points = [(float(x), math.sin(x / 50)) for x in range(10_000)]
    points[5000] = (5000.0, 40.0)
    points[6000] = (6000.0, None)
    thin = thinned(points, 500)
    assert len(thin) <= 505
    assert (thin[0], thin[-1]) == (points[0], points[-1])
    assert points[5000] in thin and points[6000] in thin
    assert [x for x, _ in thin] == sorted({x for x, _ in thin})
    assert thinned(points[:100], 500) == points[:100]


def test_a_running_mean_keeps_constants_ends_and_breaks() -> None:
    points = [(float(x), 2.0) for x in range(9)]
    assert running_mean(points, 5) == points
    points[4] = (4.0, None)
    assert running_mean(points, 5) == points
    ramp = [(float(x), float(x)) for x in range(9)]
    assert running_mean(ramp, 5) == ramp
    assert running_mean([(0.0, 0.0), (1.0, 3.0), (2.0, 0.0)], 3)[1] == (1.0, 1.0)


def test_the_window_is_odd_and_grows_with_the_line() -> None:
    assert [mean_window(count) for count in (0, 59, 60, 600, 6000)] == [1, 1, 3, 21, 201]


def test_points_leave_out_what_was_not_logged_and_break_where_it_was_not_finite() -> None:
    metrics = [{"step": 2, "a": 1.0}, {"step": 1, "a": None}, {"step": 3}, {"a": 5.0}, {"step": 4, "a": "x"}]
    assert points_of(metrics, "step", "a") == [(1.0, None), (2.0, 1.0), (4.0, None)]


@pytest.mark.parametrize("value", [None, True, "1", float("nan"), float("inf"), 10**400, 1e301, [1]])
def test_what_cannot_be_drawn_is_no_number(value: object) -> None:
    assert number(value) is None
    assert brief(value) == exact(value) == decimals(value) == duration(value) == bytes_of(value) == "–"


def test_numbers_read_well() -> None:
    gap = "\u00a0"
    values = (0, 12, 999, 1000, 17_700_000, 2.4e9, 0.5, 1.86e16, 999_999)
    assert [brief(value).replace(gap, " ") for value in values] == [
        "0", "12", "999", "1.00 k", "17.7 M", "2.40 B", "0.5", "1.86 × 10¹⁶", "1.00 M",
    ]  # fmt: skip
    assert [duration(value).replace(gap, " ") for value in (0.5, 42, 80, 3700, 200_000)] == [
        "0.5 s", "42 s", "1 min 20 s", "1 h 1 min", "2 d 7 h",
    ]  # fmt: skip
    assert [decimals(value) for value in (1.41234, 0.00123, 12345.6)] == ["1.412", "0.00123", "1.235e+04"]
    assert [bytes_of(value).replace(gap, " ") for value in (12, 2048, 3 * 2**20)] == ["12 bytes", "2 KiB", "3 MiB"]
    assert exact(5242112) == "5,242,112"
