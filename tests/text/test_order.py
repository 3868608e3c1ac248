"""Permutations are bijections that differ by epoch and seed, look uniform, and mixtures keep exact shares."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from homunculi.errors import InputError
from homunculi.text.order import BLOCK, choose_streams, permute, share_block


def permutation(n: int, seed: int = 0, epoch: int = 0) -> np.ndarray:
    return permute(np.arange(n), n, seed, "test", np.full(n, epoch))


def chi_square(counts: np.ndarray) -> float:
    """Standardised: about normal with mean 0 and deviation 1 when all cells are equally likely."""
    expected = counts.sum() / counts.size
    freedom = counts.size - 1
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom))


@pytest.mark.parametrize("n", [*range(1, 40), 64, 100, 999, 1000, 1024, 4097, 65_537])
def test_every_place_is_taken_once(n: int) -> None:
    for seed, epoch in ((0, 0), (0, 1), (7, 3)):
        found = permutation(n, seed, epoch)
        assert found.dtype == np.int64
        assert np.array_equal(np.sort(found), np.arange(n))


def test_every_place_is_taken_once_in_a_large_range_of_places() -> None:
    n = 10**15 + 3
    places = np.concatenate([np.arange(50_000), n - 1 - np.arange(50_000)])
    found = permute(places, n, 0, "test", np.zeros(100_000, dtype=np.int64))
    assert len(np.unique(found)) == 100_000
    assert found.min() >= 0 and found.max() < n


def test_one_place_is_the_same_alone_as_among_many() -> None:
    whole = permutation(1000, 3, 5)
    for place in (0, 1, 500, 999):
        assert permute(np.array([place]), 1000, 3, "test", np.array([5])) == whole[place]


def test_epochs_seeds_and_names_give_different_orders() -> None:
    orders = [permutation(500, seed, epoch) for seed in range(4) for epoch in range(4)]
    orders.append(permute(np.arange(500), 500, 0, "other", np.zeros(500, dtype=np.int64)))
    for one, other in itertools.combinations(orders, 2):
        # Two random orders of 500 agree in about one place.
        assert (one == other).sum() < 12


@pytest.mark.parametrize("n", [5, 12, 50])
def test_every_place_goes_everywhere_equally_often(n: int) -> None:
    n_epochs = 400 * n
    places, epochs = np.tile(np.arange(n), n_epochs), np.repeat(np.arange(n_epochs), n)
    found = permute(places, n, 1, "test", epochs)
    counts = np.zeros((n, n))
    np.add.at(counts, (places, found), 1)
    # A matrix of permutation counts has (n - 1)² degrees of freedom, a little fewer than its cells.
    assert abs(chi_square(counts)) < 4


def test_pairs_of_neighbours_go_everywhere_equally_often() -> None:
    n, n_epochs = 7, 42_000
    places, epochs = np.tile(np.arange(n), n_epochs), np.repeat(np.arange(n_epochs), n)
    found = permute(places, n, 2, "test", epochs).reshape(n_epochs, n)
    pairs = Counter(zip(found[:, 2].tolist(), found[:, 3].tolist(), strict=True))
    assert len(pairs) == 42
    assert abs(chi_square(np.array(list(pairs.values())))) < 4


def test_a_permutation_of_many_has_no_trend() -> None:
    n = 100_000
    found = permutation(n)
    assert abs(np.corrcoef(np.arange(n), found)[0, 1]) < 0.015
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.015


def test_shares_of_a_block_are_whole_and_sum_to_it() -> None:
    assert share_block([0.7, 0.3], ["a", "b"]).tolist() == [700, 300]
    assert share_block([1 / 3] * 3, list("abc")).sum() == BLOCK
    assert share_block([0.29, 0.71], ["a", "b"]).tolist() == [290, 710]
    assert share_block([1.0], ["a"]).tolist() == [BLOCK]


def test_a_share_too_small_for_a_block_is_refused() -> None:
    with pytest.raises(InputError, match="'b' has the share 1e-05"):
        share_block([0.99999, 0.00001], ["a", "b"])


def test_every_block_has_exact_shares_and_each_stream_counts_without_a_gap() -> None:
    counts = share_block([0.62, 0.3, 0.08], list("abc"))
    streams, own = choose_streams(np.arange(5 * BLOCK), counts, seed=4)
    for block in range(5):
        here = streams[block * BLOCK : (block + 1) * BLOCK]
        assert np.bincount(here).tolist() == counts.tolist()
    for stream, count in enumerate(counts):
        assert sorted(own[streams == stream].tolist()) == list(range(5 * count))


def test_streams_are_mixed_within_a_block_and_differently_in_each() -> None:
    counts = share_block([0.5, 0.5], ["a", "b"])
    streams, _ = choose_streams(np.arange(4 * BLOCK), counts, seed=0)
    blocks = streams.reshape(4, BLOCK)
    assert all(170 < blocks[b, :400].sum() < 230 for b in range(4))
    assert not np.array_equal(blocks[0], blocks[1])


def test_a_far_sequence_is_found_as_in_the_whole() -> None:
    counts = share_block([0.9, 0.1], ["a", "b"])
    near, own = choose_streams(np.arange(3000), counts, seed=1)
    for g in (0, 999, 1000, 2999):
        stream, number = choose_streams(np.array([g]), counts, seed=1)
        assert (stream[0], number[0]) == (near[g], own[g])
    _, far = choose_streams(np.array([10**12]), counts, seed=1)
    assert far[0] >= 10**12 // BLOCK * 100
