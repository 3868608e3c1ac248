"""The search over one number, and what a budget says of training."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homunculi.core.budget import Budget, fit, nearest
from homunculi.errors import InputError

SHAPES = {
    "line": lambda n: 12.0 * n + 700,
    "square": lambda n: 4.0 * n * n + 3 * n,
    "stairs": lambda n: 100.0 * (n // 7),
    "root": math.sqrt,
    "cliff": lambda n: 1.0 if n < 900 else 1e9 + n,
}


@settings(max_examples=200, deadline=None)
@given(
    shape=st.sampled_from(sorted(SHAPES)),
    low=st.integers(0, 50),
    width=st.integers(0, 2000),
    step=st.integers(1, 24),
    target=st.floats(0.1, 1e7),
)
def test_the_search_finds_what_asking_every_number_finds(
    shape: str, low: int, width: int, step: int, target: float
) -> None:
    size_of = SHAPES[shape]
    number, size = nearest(size_of, target, low=low, high=low + width, step=step)
    misses = {n: abs(size_of(n) - target) for n in range(low, low + width + 1, step)}
    assert size == size_of(number) and number in misses
    assert misses[number] == min(misses.values())
    near = min(misses.values()) <= 0.01 * target
    if near:
        assert fit(size_of, target, low=low, high=low + width, step=step) == number
    else:
        with pytest.raises(InputError, match=str(number)):
            fit(size_of, target, low=low, high=low + width, step=step)


def test_of_two_equally_near_numbers_the_smaller_is_taken() -> None:
    assert nearest(float, 4.5, low=0, high=9) == (4, 4.0)


def test_sizes_that_grow_almost_evenly_need_few_questions() -> None:
    asked: list[int] = []

    def size_of(n: int) -> float:
        asked.append(n)
        return 3 * n + n**1.1

    fit(size_of, size_of(50_000), low=1, high=10**6)
    assert len(asked) < 12


@pytest.mark.parametrize(("low", "high", "step", "target"), [(5, 4, 1, 1.0), (0, 4, 0, 1.0), (0, 4, 1, 0.0)])
def test_a_search_that_cannot_be_is_refused(low: int, high: int, step: int, target: float) -> None:
    with pytest.raises(InputError, match="budget"):
        fit(float, target, low=low, high=high, step=step)


def test_the_tolerance_is_a_share_of_the_target() -> None:
    assert fit(float, 100.9, low=0, high=100, tolerance=0.01) == 100
    with pytest.raises(InputError, match="within 1 %"):
        fit(float, 101.1, low=0, high=100, tolerance=0.01)


def test_training_costs_three_forwards_and_one_where_no_gradient_flows() -> None:
    budget = Budget(
        parameters=10,
        embedding_parameters=4,
        executed_parameters=9,
        flops_per_token=100,
        cache_bytes_per_token=8,
        forward_only_flops_per_token=20,
    )
    assert budget.training_flops_per_token == 3 * 80 + 20
    assert budget.non_embedding_parameters == budget.to_json()["non_embedding_parameters"] == 6
