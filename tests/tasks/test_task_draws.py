"""Draws for many rows at once are what they say, and a split without rows says so."""

from __future__ import annotations

import numpy as np
import pytest

from homunculi.errors import InputError
from homunculi.tasks.draws import distinct, rounds, weighted
from homunculi.tasks.registry import Examples
from homunculi.tasks.splits import buckets, drawn, in_split, mixed


@pytest.mark.parametrize(("n_choices", "n_drawn"), [(5, 5), (40, 8), (3000, 30), (1 << 40, 30)])
def test_distinct_numbers_are_distinct_and_equally_likely(n_choices: int, n_drawn: int) -> None:
    numbers = distinct(np.random.default_rng(0), 2000, n_choices, n_drawn)
    assert numbers.shape == (2000, n_drawn) and numbers.min() >= 0 and numbers.max() < n_choices
    assert (np.diff(np.sort(numbers, axis=1), axis=1) > 0).all()
    for column in numbers.T[:3]:
        assert column.mean() == pytest.approx((n_choices - 1) / 2, abs=4 * n_choices / np.sqrt(12 * 2000))


def test_weighted_places_follow_their_weights_and_come_once() -> None:
    weights_N = np.array([4.0, 2.0, 1.0, 1.0])
    drawn_BN = weighted(np.random.default_rng(0), 20_000, weights_N, 2)
    assert (drawn_BN[:, 0] != drawn_BN[:, 1]).all()
    first = np.bincount(drawn_BN[:, 0]) / 20_000
    assert first == pytest.approx(weights_N / 8, abs=0.015)
    second = np.bincount(drawn_BN[drawn_BN[:, 0] == 0, 1], minlength=4) / (drawn_BN[:, 0] == 0).sum()
    assert second == pytest.approx(np.array([0.0, 0.5, 0.25, 0.25]), abs=0.02)


def test_rounds_hold_everything_once_each_and_nothing_twice_in_a_row() -> None:
    found = rounds(np.random.default_rng(0), 500, 3, 11)
    assert found.shape == (500, 11) and (np.diff(found, axis=1) != 0).all()
    assert (np.sort(found[:, :9].reshape(500, 3, 3), axis=2) == np.arange(3)).all()
    assert rounds(np.random.default_rng(0), 2, 1, 3).tolist() == [[0, 0, 0], [0, 0, 0]]


def test_the_hash_parts_rows_evenly_and_by_every_token() -> None:
    ids_BT = np.random.default_rng(0).integers(16, size=(16_000, 12))
    assert np.bincount(buckets(ids_BT)) / 16_000 == pytest.approx(np.full(8, 1 / 8), abs=0.012)
    for t in range(12):
        changed_BT = ids_BT.copy()
        changed_BT[:, t] = (changed_BT[:, t] + 1) % 16
        assert (buckets(changed_BT) == buckets(ids_BT)).mean() == pytest.approx(1 / 8, abs=0.012)
    assert (buckets(ids_BT) != buckets(ids_BT[:, ::-1])).any()
    assert len(np.unique(mixed(np.arange(10_000)))) == 10_000


def test_a_split_that_no_row_belongs_to_is_refused() -> None:
    def make(rng: np.random.Generator, n: int) -> Examples:
        ids_BT = np.zeros((n, 4), np.int64)
        return Examples(ids_BT, ids_BT, ids_BT == 0)

    (own,) = [split for split in ("train", "valid", "test") if in_split(np.zeros((1, 4), np.int64), split).all()]
    assert drawn(np.random.default_rng(0), 5, own, make).ids_BT.shape == (5, 4)
    other = "test" if own == "train" else "train"
    with pytest.raises(InputError, match=f"{other} rows: these dials leave too few different rows; raise the length"):
        drawn(np.random.default_rng(0), 5, other, make)
