"""Which learning rate a side gets from a few short trials."""

from __future__ import annotations

import pytest

from homunculi.experiments.tuning import TIE, best_factor, extended


def test_a_rate_that_is_better_by_chance_alone_changes_nothing() -> None:
    assert best_factor({0.5: 1.2438, 1.0: 1.2317, 2.0: 1.2307}) == 1.0
    assert best_factor({0.5: 1.20, 1.0: 1.2317, 2.0: 1.2307}) == 0.5


def test_a_rate_that_is_better_by_more_than_seeds_differ_is_taken() -> None:
    worse = 1.0 + 1.1 * TIE
    assert best_factor({1.0: worse, 2.0: 1.0}) == 2.0
    assert best_factor({0.5: 1.0, 1.0: worse, 2.0: worse}) == 0.5


@pytest.mark.parametrize("losses", [{0.5: 1.0, 2.0: 1.0}, {2.0: 0.9999, 0.5: 1.0}])
def test_of_two_as_good_and_as_near_the_lower_rate_is_taken(losses: dict[float, float]) -> None:
    assert best_factor(losses) == 0.5


def test_trials_that_did_not_end_are_no_choice() -> None:
    assert best_factor({1.0: None, 2.0: 3.0}) == 2.0
    assert best_factor({1.0: None}) is None


def test_the_grid_grows_only_where_an_edge_is_better_by_more_than_chance() -> None:
    grid = [0.5, 1.0, 2.0]
    assert extended(grid, {"a": {0.5: 2.0, 1.0: 1.0, 2.0: 0.999}}) == grid
    assert extended(grid, {"a": {0.5: 2.0, 1.0: 1.0, 2.0: 0.9}}) == [*grid, 4.0]
