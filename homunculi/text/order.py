"""Order without state: keyed permutations of any size, and which stream of a mixture a sequence comes from.

A permutation of [0, n) is a Feistel network on a grid of a by b cells, a = ⌈√n⌉ and b = ⌈n / a⌉: the two coordinates
take turns in being shifted by a keyed function of the other, modulo a and b, which is a bijection of the grid. A value
that falls on one of the fewer than a cells beyond n is sent through the network again until it falls inside (cycle
walking), which keeps the map a bijection of [0, n). Nothing is stored, and any place of any epoch is found at once. The
round function is the finaliser of splitmix64 (Steele, Lea and Flood 2014).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np

from homunculi.errors import InputError

N_ROUNDS = 8
BLOCK = 1000  # sequences in which every stream of a mixture has exactly its share

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))


def permute(places: np.ndarray, n: int, seed: int, name: str, rounds: np.ndarray) -> np.ndarray:
    """Where each place lies in a permutation of [0, n).

    Args:
        places: (...) integers in [0, n).
        n: how many there are, from 1 to 2^60.
        seed, name: choose a family of permutations.
        rounds: (...) integers from 0 on, such as epochs: one permutation of the family for each.

    Returns: (...) int64 in [0, n); for one round a bijection.
    """
    n_rows = math.isqrt(n - 1) + 1
    n_columns = -(-n // n_rows)
    keys = _round_keys(seed, name, np.asarray(rounds))
    found = _feistel(np.asarray(places).astype(np.uint64), keys, n_rows, n_columns)
    outside = found >= n
    while outside.any():
        found[outside] = _feistel(found[outside], keys[:, outside], n_rows, n_columns)
        outside = found >= n
    return found.astype(np.int64)


def _round_keys(seed: int, name: str, rounds: np.ndarray) -> np.ndarray:
    """(N_ROUNDS, ...) uint64: a key for every layer of the network and every place."""
    digest = hashlib.sha256(f"{name}\n{seed}".encode()).digest()
    family = np.frombuffer(digest[:8], dtype="<u8")
    base = _mix(family + rounds.astype(np.uint64) * _GOLDEN)
    layers = np.arange(1, N_ROUNDS + 1, dtype=np.uint64).reshape(-1, *[1] * rounds.ndim)
    return _mix(base + layers * _GOLDEN)


def _feistel(values: np.ndarray, keys: np.ndarray, n_rows: int, n_columns: int) -> np.ndarray:
    """A bijection of [0, n_rows · n_columns)."""
    height, width = np.uint64(n_rows), np.uint64(n_columns)
    row, column = np.divmod(values, width)
    for key_row, key_column in zip(keys[::2], keys[1::2], strict=True):
        row = (row + _mix(column ^ key_row) % height) % height
        column = (column + _mix(row ^ key_column) % width) % width
    return row * width + column


def _mix(values: np.ndarray) -> np.ndarray:
    """A bijection of 64-bit integers in which every bit of the result depends on every bit of the input."""
    values = (values ^ (values >> _SHIFTS[0])) * _MULTIPLIERS[0]
    values = (values ^ (values >> _SHIFTS[1])) * _MULTIPLIERS[1]
    return values ^ (values >> _SHIFTS[2])


def share_block(weights: Sequence[float], names: Sequence[str]) -> np.ndarray:
    """(n_streams,) int64 that sum to `BLOCK`: how many of a block's sequences each stream gives (largest remainders).

    Args:
        weights: shares that sum to 1.
        names: of the streams, for the message.

    Raises:
        InputError: a share is too small to occur in a block.
    """
    exact = np.array(weights, dtype=np.float64) * BLOCK
    counts = np.floor(exact + 1e-9).astype(np.int64)
    order = np.argsort(counts - exact, kind="stable")
    counts[order[: BLOCK - int(counts.sum())]] += 1
    for name, count, weight in zip(names, counts, weights, strict=True):
        if count < 1:
            raise InputError(f"corpus {name!r} has the share {weight:.2g} of the mixture: give it at least 1/{BLOCK}")
    return counts


def choose_streams(sequences: np.ndarray, counts: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which stream each sequence comes from, and which of that stream's sequences it is.

    Every block of `BLOCK` sequences is a permutation of the same draw; a stream with count c gives, in block b, its
    sequences [b·c, (b+1)·c), each once.

    Args:
        sequences: (n,) int64, numbers of sequences from 0 on.
        counts: (n_streams,) of `share_block`.

    Returns: (n,) indices of streams, (n,) numbers of sequences of that stream.
    """
    blocks, places = np.divmod(sequences, BLOCK)
    drawn = permute(places, BLOCK, seed, "mixture", blocks)
    ends = np.cumsum(counts)
    streams = np.searchsorted(ends, drawn, side="right")
    own = blocks * counts[streams] + drawn - (ends - counts)[streams]
    return streams, own
