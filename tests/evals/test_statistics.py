"""Intervals against tables and simulation, verdicts in words, curves against arithmetic, laws against planted ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.false_positives import simulate, spread_seen
from homunculi.errors import InputError
from homunculi.evals.statistics import (
    Interval,
    area_under,
    bootstrap_interval,
    fit_power_law,
    fit_power_law_with_floor,
    holm,
    paired_interval,
    t_quantile,
    t_tail,
    tokens_to_reach,
    verdict,
)

FINITE = st.floats(-1e3, 1e3, allow_nan=False)


@pytest.mark.parametrize(
    ("degrees", "probability", "value"),
    [
        (1, 0.975, 12.7062),
        (2, 0.975, 4.3027),
        (3, 0.975, 3.1824),
        (4, 0.975, 2.7764),
        (4, 0.95, 2.1318),
        (4, 0.995, 4.6041),
        (5, 0.90, 1.4759),
        (7, 0.975, 2.3646),
        (9, 0.9995, 4.7809),
        (29, 0.975, 2.0452),
        (120, 0.975, 1.9799),
    ],
)
def test_t_quantiles_are_those_of_the_printed_tables(degrees: int, probability: float, value: float) -> None:
    assert t_quantile(probability, degrees) == pytest.approx(value, abs=5e-5)
    assert t_quantile(1 - probability, degrees) == pytest.approx(-value, abs=5e-5)


def test_the_tail_equals_the_closed_forms_of_one_and_two_degrees() -> None:
    for t in (-30.0, -2.0, -0.1, 0.0, 0.3, 1.0, 7.0, 1e4):
        assert t_tail(t, 1) == pytest.approx(0.5 - math.atan(t) / math.pi, rel=1e-9, abs=1e-15)
        assert t_tail(t, 2) == pytest.approx(0.5 * (1 - t / math.sqrt(2 + t * t)), rel=1e-7, abs=1e-15)
    assert t_tail(1e200, 3) == 0.0 and t_tail(-1e200, 3) == 1.0


def test_many_degrees_approach_the_normal_distribution() -> None:
    assert t_tail(1.959964, 1e7) == pytest.approx(0.025, abs=1e-6)


@settings(deadline=None, derandomize=True)
@given(st.floats(0.001, 0.999), st.integers(1, 200))
def test_quantile_and_tail_are_inverse(probability: float, degrees: int) -> None:
    assert t_tail(t_quantile(probability, degrees), degrees) == pytest.approx(1 - probability, abs=1e-10)


def test_the_paired_interval_of_a_worked_example() -> None:
    # Differences 1, 2, 3, 4, 5: mean 3, standard error sqrt(2.5 / 5), 2.77645 standard errors to either side.
    found = paired_interval([10, 10, 10, 10, 10], [11, 12, 13, 14, 15])
    assert (found.difference, found.n) == (3.0, 5)
    assert (found.low, found.high) == pytest.approx((3 - 1.96324, 3 + 1.96324), abs=1e-4)
    assert found.p == pytest.approx(0.013236, abs=1e-5)


@settings(deadline=None, derandomize=True)
@given(st.lists(st.tuples(FINITE, FINITE), min_size=2, max_size=8))
def test_exchanged_sides_give_the_mirrored_interval(pairs: list[tuple[float, float]]) -> None:
    a, b = zip(*pairs, strict=True)
    there, back = paired_interval(a, b), paired_interval(b, a)
    assert (there.low, there.high, there.p) == pytest.approx((-back.high, -back.low, back.p))
    assert there.low <= there.difference <= there.high


@settings(deadline=None, derandomize=True)
@given(st.lists(st.tuples(FINITE, FINITE), min_size=2, max_size=8))
def test_p_is_below_five_percent_exactly_where_the_interval_leaves_zero_out(pairs: list[tuple[float, float]]) -> None:
    found = paired_interval(*zip(*pairs, strict=True))
    if abs(found.p - 0.05) > 1e-6:
        assert (found.p < 0.05) == (found.low > 0 or found.high < 0)


def test_equal_differences_have_no_spread() -> None:
    assert paired_interval([1.0, 2.0], [1.5, 2.5]) == Interval(0.5, 0.5, 0.5, 2, 0.0)
    assert paired_interval([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]) == Interval(0.0, 0.0, 0.0, 3, 1.0)


def test_a_planted_effect_is_found_and_its_direction_named() -> None:
    a, lower = [2.00, 2.01, 1.99, 2.02, 2.00], [1.90, 1.92, 1.90, 1.91, 1.89]
    assert verdict(paired_interval(a, lower)) == "better"
    assert verdict(paired_interval(lower, a)) == "worse"
    assert verdict(paired_interval(a, lower), lower_is_better=False) == "worse"
    assert verdict(paired_interval(lower, a), lower_is_better=False) == "better"


def test_nothing_is_said_where_nothing_is_shown() -> None:
    a = [2.00, 2.01, 1.99, 2.02, 2.00]
    assert verdict(paired_interval(a, a)) == "no difference shown"
    assert verdict(paired_interval(a, [2.01, 2.00, 2.00, 2.01, 2.01])) == "no difference shown"
    assert verdict(Interval(-1.0, -2.0, 0.0, 5, 0.05)) == "no difference shown"


def test_an_adjusted_p_takes_the_place_of_the_interval_s_own() -> None:
    found = Interval(-1.0, -1.5, -0.5, 5, 0.02)
    assert verdict(found) == "better"
    assert verdict(found, adjusted_p=0.08) == "no difference shown"
    assert verdict(found, alpha=0.01) == "no difference shown"


def test_holm_on_a_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([0.04]) == [0.04]
    assert holm([]) == []


@settings(deadline=None, derandomize=True)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=10))
def test_holm_lies_between_the_given_and_bonferroni_and_keeps_the_order(p: list[float]) -> None:
    adjusted = holm(p)
    for given_p, found in zip(p, adjusted, strict=True):
        assert given_p <= found <= min(1.0, max(given_p * len(p), max(adjusted)))
    order = sorted(range(len(p)), key=lambda i: p[i])
    assert [adjusted[i] for i in order] == sorted(adjusted)
    assert min(adjusted) == pytest.approx(min(1.0, min(p) * len(p)))


def test_the_area_is_the_mean_height_over_the_tokens() -> None:
    assert area_under([0, 10], [4.0, 2.0]) == 3.0
    assert area_under([0, 1, 11], [5.0, 3.0, 3.0]) == pytest.approx((4 + 30) / 11)
    assert area_under([5, 10, 20], [2.0, 2.0, 2.0]) == 2.0


def test_tokens_to_reach_interpolates_the_first_crossing() -> None:
    tokens, losses = [100, 200, 300, 400], [4.0, 3.0, 3.5, 1.0]
    assert tokens_to_reach(tokens, losses, 3.25) == 175.0
    assert tokens_to_reach(tokens, losses, 3.0) == 200.0
    assert tokens_to_reach(tokens, losses, 2.25) == 350.0
    assert tokens_to_reach(tokens, losses, 5.0) == 100.0
    assert tokens_to_reach(tokens, losses, 0.5) is None


def test_an_exact_power_law_is_recovered_without_an_interval_to_speak_of() -> None:
    sizes = [1e5, 4e5, 1.6e6, 6.4e6]
    law = fit_power_law(sizes, [7.0 * size**-0.076 for size in sizes])
    assert (law.exponent, law.low, law.high) == pytest.approx((0.076, 0.076, 0.076), abs=1e-9)
    assert law.coefficient == pytest.approx(7.0) and law.floor == 0.0 and law.n == 4
    assert law.at(1e6) == pytest.approx(7.0 * 1e6**-0.076)


def test_the_interval_of_the_slope_on_a_worked_example() -> None:
    # Logs of size 0, 1, 2, 3; of loss 3, 2, 2, 0: slope -0.9, squared residuals 0.7, standard error sqrt(0.35 / 5).
    law = fit_power_law(np.exp([0, 1, 2, 3]), np.exp([3, 2, 2, 0]))
    assert law.exponent == pytest.approx(0.9)
    reach = 4.302653 * math.sqrt(0.35 / 5)
    assert (law.low, law.high) == pytest.approx((0.9 - reach, 0.9 + reach), abs=1e-5)


def test_the_interval_of_the_exponent_covers_the_truth_as_often_as_it_says() -> None:
    random, sizes = np.random.default_rng(0), np.array([1e5, 4e5, 1.6e6, 6.4e6])
    laws = [fit_power_law(sizes, 7 * sizes**-0.1 * np.exp(0.02 * random.standard_normal(4))) for _ in range(1000)]
    covered = np.mean([law.low <= 0.1 <= law.high for law in laws])
    assert 0.93 < covered < 0.97


def test_a_planted_floor_is_recovered() -> None:
    sizes = np.array([1e5, 3e5, 1e6, 3e6, 1e7])
    law = fit_power_law_with_floor(sizes, 1.5 + 20 * sizes**-0.3)
    assert (law.exponent, law.floor, law.coefficient) == pytest.approx((0.3, 1.5, 20.0), rel=1e-6)
    noisy = fit_power_law_with_floor(sizes, 1.5 + 20 * sizes**-0.3 + np.array([0.01, -0.01, 0.01, -0.01, 0.005]))
    assert noisy.low < 0.3 < noisy.high and noisy.high - noisy.low > 0.01


def test_a_law_without_a_floor_gets_the_floor_zero() -> None:
    sizes = np.array([1e5, 3e5, 1e6, 3e6, 1e7])
    wobble = np.array([1.0, 1.0, 1.0, 1.0, 0.97])  # bends downwards, which no floor explains
    law = fit_power_law_with_floor(sizes, 20 * sizes**-0.3 * wobble)
    assert law.floor == 0.0 and law.low < law.exponent < law.high


def test_the_bootstrap_interval_of_many_items_is_that_of_the_normal_approximation() -> None:
    values = np.random.default_rng(1).standard_normal(2000) + 3
    found = bootstrap_interval(values, seed=2)
    reach = 1.96 * values.std() / math.sqrt(2000)
    assert (found.mean, found.n) == (pytest.approx(values.mean()), 2000)
    assert (found.low, found.high) == pytest.approx((values.mean() - reach, values.mean() + reach), abs=0.005)
    assert bootstrap_interval(values, seed=2) == found != bootstrap_interval(values, seed=3)


def test_weighted_items_give_the_ratio_of_sums() -> None:
    n_bytes = np.random.default_rng(0).integers(1, 2000, size=300)
    found = bootstrap_interval(0.8 * n_bytes, weights=n_bytes)
    assert (found.mean, found.low, found.high) == pytest.approx((0.8, 0.8, 0.8))
    mixed = bootstrap_interval([1.0] * 20 + [0.0] * 20, weights=[1.0] * 20 + [3.0] * 20)
    assert mixed.mean == 0.25 and mixed.low < 0.25 < mixed.high


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: paired_interval([1.0], [2.0]), "1 seed a side .*--seeds 5"),
        (lambda: paired_interval([], []), "0 seed"),
        (lambda: paired_interval([1.0, 2.0], [2.0]), "2 values of a and 1 of b"),
        (lambda: paired_interval([1.0, math.nan], [2.0, 3.0]), "a: value 1 is nan: leave it out"),
        (lambda: paired_interval([1.0, 2.0], [2.0, math.inf]), "b: value 1 is inf"),
        (lambda: paired_interval([1.0, None], [2.0, 1.0]), "a: value 1 is nan"),  # type: ignore[list-item]
        (lambda: paired_interval(["x", "y"], [2.0, 1.0]), "a: not all are numbers"),  # type: ignore[list-item]
        (lambda: paired_interval(np.ones((2, 2)), np.ones((2, 2))), "2 dimensions"),
        (lambda: paired_interval([1.0, 2.0], [2.0, 3.0], level=95), "level: 95"),
        (lambda: holm([0.1, 1.2]), r"\[0, 1\]"),
        (lambda: holm([math.nan]), "p_values: value 0 is nan"),
        (lambda: t_quantile(1.0, 4), "between 0 and 1"),
        (lambda: t_tail(1.0, 0), "degrees of freedom"),
        (lambda: area_under([1], [2.0]), "evaluate at least twice"),
        (lambda: area_under([1, 1], [2.0, 2.0]), "do not increase"),
        (lambda: tokens_to_reach([], [], 1.0), "0 tokens and 0 losses"),
        (lambda: tokens_to_reach([1, 2], [1.0], 1.0), "2 tokens and 1 losses"),
        (lambda: fit_power_law([1, 2, 2], [3, 2, 2]), "measure at least 3"),
        (lambda: fit_power_law([1, 2, 0], [3, 2, 1]), "above 0"),
        (lambda: fit_power_law([1, 2, 3], [3, 2]), "3 sizes and 2 losses"),
        (lambda: fit_power_law_with_floor([1, 2, 3], [3, 2, 1]), "measure at least 4"),
        (lambda: fit_power_law_with_floor([1, 2, 3, 4], [1, 2, 3, 4]), "do not fall"),
        (lambda: bootstrap_interval([0.1] * 5), "too few for a bootstrap: .*paired_interval"),
        (lambda: bootstrap_interval([0.1] * 20, n_draws=10), "n_draws: 10"),
        (lambda: bootstrap_interval([0.1] * 20, weights=[1.0] * 19), "one for each of the 20"),
        (lambda: bootstrap_interval([0.1] * 20, weights=[-1.0] * 20), "none below 0"),
    ],
)
def test_bad_input_is_one_line_that_says_what_to_do(call: Callable[[], Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_identical_systems_are_told_apart_in_at_most_five_percent() -> None:
    found = simulate(draws=400, seed=0)
    assert found["passes"]
    normal = [cell for cell in found["false_positives"] if cell["noise"] == "normal"]
    assert [cell["seeds"] for cell in normal] == [3, 4, 5, 6, 7, 8]
    assert all(0.02 < cell["share"] < 0.085 for cell in normal)
    # The same simulation sees an interval that is too narrow: it could have failed.
    assert normal[0]["bootstrap"]["low"] > 0.15 and normal[2]["bootstrap"]["low"] > 0.10
    family = {(cell["pairs"], cell["seeds"]): cell for cell in found["five_identical_sides"]}
    five = family["every pair", 5]
    assert five["holm"]["share"] < 0.085 < five["uncorrected"]["low"]


def test_effects_of_three_standard_deviations_are_found_with_five_seeds() -> None:
    found = simulate(draws=400, seed=1)
    five = next(cell for cell in found["power"] if cell["seeds"] == 5)
    shares = [cell["share"] for cell in five["found"].values()]
    assert shares == sorted(shares) and shares[-1] > 0.95
    smallest = {cell["seeds"]: cell for cell in found["smallest_effect_found_in_80_percent"]}
    assert smallest[5]["sd"] == pytest.approx(1.68, abs=0.05)  # 1.682 by the noncentral t distribution
    assert smallest[3]["bpb"] > smallest[5]["bpb"] > smallest[8]["bpb"]


def test_the_spread_comes_from_sides_that_ran_with_two_seeds() -> None:
    seen = spread_seen()
    assert 0.001 < seen["sd_bpb"] < 0.005
    assert seen["pairs"] == len(seen["sides"]) * (len(seen["sides"]) - 1) // 2 >= 10
