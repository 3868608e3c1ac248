"""Rows of training, validation and test that are disjoint for certain: a hash of the row says to which it belongs.

A generator makes candidates and `drawn` keeps those of the split that is asked for. The hash depends on what is read
alone, so that a row has one split whatever the seed, and says nothing about the answers. Three rows of four are
training rows, one of eight is for validation, one of eight for the test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np

from homunculi.errors import InputError
from homunculi.tasks.registry import Examples, Split

# Of eight buckets.
BUCKETS: dict[Split, range] = {"train": range(6), "valid": range(6, 7), "test": range(7, 8)}
_MAX_ROUNDS = 64


def mixed(numbers: np.ndarray) -> np.ndarray:
    """A fixed bijection of uint64 whose bits all depend on all bits of the number (the finaliser of SplitMix64)."""
    mixed = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def buckets(ids_BT: np.ndarray) -> np.ndarray:
    """The bucket 0…7 of each row of ids. [B]."""
    weights_T = mixed(np.arange(ids_BT.shape[1])) | np.uint64(1)
    sums_B = ((ids_BT.astype(np.uint64) + np.uint64(1)) * weights_T).sum(axis=1, dtype=np.uint64)
    return (mixed(sums_B) % np.uint64(8)).astype(np.int64)


def in_split(ids_BT: np.ndarray, split: Split) -> np.ndarray:
    """Which rows belong to the split. [B] bool."""
    return np.isin(buckets(ids_BT), list(BUCKETS[split]))


def drawn(
    rng: np.random.Generator, n_rows: int, split: Split, make: Callable[[np.random.Generator, int], Examples]
) -> Examples:
    """`n_rows` rows of one split out of what `make(rng, n)` makes.

    Raises:
        InputError: the dials leave so few different rows that the split has none.
    """
    share = len(BUCKETS[split]) / 8
    kept: list[Examples] = []
    n_kept = 0
    for _ in range(_MAX_ROUNDS):
        candidates = make(rng, int((n_rows - n_kept) / share * 1.1) + 16)
        kept.append(_taken(candidates, np.flatnonzero(in_split(candidates.ids_BT, split))))
        n_kept += len(kept[-1].ids_BT)
        if n_kept >= n_rows:
            return _joined(kept, n_rows)
    raise InputError(f"{split} rows: these dials leave too few different rows; raise the length or the vocabulary")


def _taken(examples: Examples, rows_N: np.ndarray) -> Examples:
    """These rows alone."""
    parts: dict[str, Any] = {name: None if part is None else part[rows_N] for name, part in _parts(examples)}
    return replace(examples, **parts)


def _joined(many: list[Examples], n_rows: int) -> Examples:
    """The first `n_rows` rows of all."""
    parts: dict[str, Any] = {
        name: None if part is None else np.concatenate([getattr(one, name) for one in many])[:n_rows]
        for name, part in _parts(many[0])
    }
    return replace(many[0], **parts)


def _parts(examples: Examples) -> list[tuple[str, np.ndarray | None]]:
    return [(entry.name, getattr(examples, entry.name)) for entry in fields(examples)]


def unseen_positions(length: int, split: Split, longest: int) -> np.ndarray:
    """Positions that count where every one has an answer: all, but in test rows longer than `longest` those past it.

    So the score of a longer row is that of lengths which no row of training had. [T] bool.
    """
    at_T = np.arange(length)
    return at_T >= longest if split == "test" and length > longest else at_T >= 0
