"""Batches depend on (seed, step, rank) alone and cover the text; a hash that goes on anywhere proves them equal."""

from __future__ import annotations

import hashlib
import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from homunculi.errors import InputError
from homunculi.text.batches import Batches, StreamHash, validation_windows
from homunculi.text.shards import WeightedStream
from homunculi.text.streams import TokenStream


def stream(n_tokens: int, first: int = 0) -> TokenStream:
    """Tokens that are their own places."""
    tokens = np.arange(first, first + n_tokens, dtype=np.uint32)
    return TokenStream(tokens, n_tokens, np.array([0], dtype=np.int64))


def text(**streams: tuple[float, TokenStream]) -> SimpleNamespace:
    return SimpleNamespace(streams=tuple(WeightedStream(name, *pair) for name, pair in streams.items()))


def batches(n_tokens: int = 1000, seq_len: int = 7, n_sequences: int = 6, seed: int = 0) -> Batches:
    found = text(all=(1.0, stream(n_tokens)))
    return Batches(found, seq_len=seq_len, n_sequences=n_sequences, seed=seed)  # type: ignore[arg-type]


def test_rows_are_whole_windows_of_consecutive_tokens() -> None:
    rows = batches().at(3)
    assert rows.shape == (6, 8) and rows.dtype == np.int64
    assert (np.diff(rows, axis=1) == 1).all()
    assert (rows[:, 0] % 7 == 0).all()


def test_an_epoch_shows_every_window_once_and_the_next_one_in_another_order() -> None:
    found = batches(n_tokens=7 * 60 + 1, n_sequences=6)
    assert found.n_windows == 60
    epochs = [[int(row[0]) // 7 for step in range(10 * e, 10 * e + 10) for row in found.at(step)] for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(60))
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_every_token_but_the_first_is_a_target_once_an_epoch() -> None:
    found = batches(n_tokens=7 * 60 + 1, n_sequences=6)
    targets = np.concatenate([found.at(step)[:, 1:].ravel() for step in range(10)])
    assert np.array_equal(np.sort(targets), np.arange(1, 7 * 60 + 1))


def test_a_batch_over_the_end_of_an_epoch_is_filled_from_the_next() -> None:
    found = batches(n_tokens=7 * 10 + 1, n_sequences=6)
    seen = [int(row[0]) // 7 for step in range(5) for row in found.at(step)]
    assert [sorted(seen[i : i + 10]) for i in (0, 10, 20)] == [list(range(10))] * 3


def test_more_rows_than_windows_are_several_epochs() -> None:
    rows = batches(n_tokens=7 * 2 + 1, n_sequences=8).at(0)
    assert sorted(int(row[0]) // 7 for row in rows) == [0] * 4 + [1] * 4


def test_the_same_step_is_the_same_batch_whatever_was_read_before() -> None:
    read = batches()
    for step in (5, 0, 10**9, 3):
        read.at(step)
    assert np.array_equal(read.at(7), batches().at(7))


def test_another_seed_is_another_order() -> None:
    assert not np.array_equal(batches(seed=0).at(0), batches(seed=1).at(0))


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_the_ranks_together_are_the_batch_of_one_process(world_size: int) -> None:
    for found in (batches(), mixture()):
        for step in (0, 41, 10**9):
            parts = [found.at(step, rank, world_size) for rank in range(world_size)]
            assert np.array_equal(np.concatenate(parts), found.at(step))


def test_a_batch_is_the_callers_own() -> None:
    found = batches()
    found.at(0)[:] = -1
    assert (found.at(0) >= 0).all()


def test_far_steps_are_batches_like_any_other() -> None:
    rows = batches().at(10**12)
    assert (np.diff(rows, axis=1) == 1).all()
    assert rows.min() >= 0 and rows.max() < 1000


def mixture(n_sequences: int = 6) -> Batches:
    found = text(large=(0.75, stream(7 * 500 + 1)), small=(0.25, stream(7 * 50 + 1, first=100_000)))
    return Batches(found, seq_len=7, n_sequences=n_sequences, seed=0)  # type: ignore[arg-type]


def test_a_mixture_has_exact_shares_in_every_thousand_sequences() -> None:
    found = mixture(n_sequences=100)
    for block in range(3):
        rows = np.concatenate([found.at(step) for step in range(10 * block, 10 * block + 10)])
        assert (rows[:, 0] >= 100_000).sum() == 250
        assert (np.diff(rows, axis=1) == 1).all()


def test_each_corpus_of_a_mixture_has_its_own_epochs() -> None:
    rows = np.concatenate([mixture(n_sequences=100).at(step) for step in range(20)])
    small = (rows[rows[:, 0] >= 100_000][:, 0] - 100_000) // 7
    assert np.bincount(small).tolist() == [10] * 50  # 500 sequences of 50 windows
    large = rows[rows[:, 0] < 100_000][:, 0] // 7
    assert np.bincount(large).tolist() == [3] * 500


def test_epochs_are_counted_for_the_corpus_that_is_repeated_most() -> None:
    assert batches(n_tokens=7 * 60 + 1, n_sequences=6).epoch_of(25) == 2.5
    assert mixture(n_sequences=100).epoch_of(10) == pytest.approx(5.0)


def test_a_corpus_shorter_than_a_sequence_is_refused_with_the_numbers() -> None:
    with pytest.raises(InputError, match="'all' has 7 training tokens and a sequence of 7 needs 8"):
        batches(n_tokens=7)
    assert batches(n_tokens=8).n_windows == 1


def test_ranks_that_cannot_share_the_batch_are_refused() -> None:
    with pytest.raises(InputError, match="6 sequences cannot be shared by 4 processes"):
        batches().at(0, 0, 4)
    with pytest.raises(ValueError, match="rank 2 of 2"):
        batches().at(0, 2, 2)
    with pytest.raises(InputError, match="at least 1"):
        batches(n_sequences=0)


def test_the_stream_hash_is_a_chain_of_sha256() -> None:
    first, second = batches().at(0), batches().at(1)
    found = StreamHash()
    found.update(first)
    found.update(second)
    link = hashlib.sha256(bytes(32) + first.astype("<i8").tobytes()).digest()
    assert found.hexdigest() == hashlib.sha256(link + second.astype("<i8").tobytes()).hexdigest()


def test_the_stream_hash_goes_on_from_its_hex_string_and_ignores_the_layout() -> None:
    whole, resumed = StreamHash(), StreamHash()
    for step in range(3):
        whole.update(batches().at(step))
    for step in range(3):
        resumed = StreamHash(resumed.hexdigest())
        resumed.update(np.asfortranarray(batches().at(step).astype(np.uint16)))
    assert resumed.hexdigest() == whole.hexdigest()
    other = StreamHash()
    for step in (1, 0, 2):
        other.update(batches().at(step))
    assert other.hexdigest() != whole.hexdigest()


@pytest.mark.parametrize("text_of_hash", ["", "zz", "ab" * 31])
def test_a_hash_that_is_none_is_refused(text_of_hash: str) -> None:
    with pytest.raises(InputError, match="64 hexadecimal digits"):
        StreamHash(text_of_hash)


@pytest.mark.parametrize("n_tokens", [2, 7, 8, 9, 15, 100])
def test_validation_predicts_every_target_exactly_once(n_tokens: int) -> None:
    windows = list(validation_windows(stream(n_tokens), 7))
    assert np.array_equal(np.concatenate([window[1:] for window in windows]), np.arange(1, n_tokens))
    assert all(window.dtype == np.int64 and 2 <= len(window) <= 8 for window in windows)
    assert all(len(window) == 8 for window in windows[:-1])
    assert all(one[-1] == other[0] for one, other in itertools.pairwise(windows))


@pytest.mark.parametrize("limit", [1, 7, 10, 10**6])
def test_validation_stops_at_its_limit(limit: int) -> None:
    targets = np.concatenate([window[1:] for window in validation_windows(stream(100), 7, limit)])
    assert np.array_equal(targets, np.arange(1, 1 + min(limit, 99)))


def test_validation_without_a_target_is_refused_with_the_numbers() -> None:
    with pytest.raises(InputError, match="has 1 tokens, and at least 2 are needed"):
        next(validation_windows(stream(1), 7))


def test_order_does_not_change_between_versions() -> None:
    """A run that was begun with an earlier version goes on with the same batches."""
    single, mixed = StreamHash(), StreamHash()
    for step in range(20):
        single.update(batches(seed=5).at(step))
        mixed.update(mixture().at(step))
    assert single.hexdigest()[:16] == "0f6287a7212df5ea"
    assert mixed.hexdigest()[:16] == "9e749f5bcaa945ae"
