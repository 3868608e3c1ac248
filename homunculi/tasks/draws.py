"""Random draws for many rows at once."""

from __future__ import annotations

import numpy as np

# Up to this many choices a row is shuffled whole; of more, rows with repeats are drawn again.
_SHUFFLED = 1024


def shuffled(rng: np.random.Generator, n_rows: int, n: int) -> np.ndarray:
    """A random order of 0…n−1 in each row. [n_rows, n] int64."""
    return np.argsort(rng.random((n_rows, n)), axis=1)


def distinct(rng: np.random.Generator, n_rows: int, n_choices: int, n_drawn: int) -> np.ndarray:
    """`n_drawn` different numbers of 0…n_choices−1 in each row, in random order. [n_rows, n_drawn] int64."""
    if n_choices <= max(_SHUFFLED, 2 * n_drawn**2):
        return shuffled(rng, n_rows, n_choices)[:, :n_drawn]
    numbers = rng.integers(n_choices, size=(n_rows, n_drawn))
    while (repeats := np.flatnonzero((np.diff(np.sort(numbers, axis=1), axis=1) == 0).any(axis=1))).size:
        numbers[repeats] = rng.integers(n_choices, size=(len(repeats), n_drawn))
    return numbers


def rounds(rng: np.random.Generator, n_rows: int, n: int, n_drawn: int) -> np.ndarray:
    """0…n−1 in random order, then again in another, and so on; never the same twice in a row. [n_rows, n_drawn]."""
    n_rounds = -(-n_drawn // n)
    orders_BRN = np.argsort(rng.random((n_rows, n_rounds, n)), axis=2)
    for at_round in range(1, n_rounds if n > 1 else 0):
        repeats = np.flatnonzero(orders_BRN[:, at_round, 0] == orders_BRN[:, at_round - 1, -1])
        orders_BRN[repeats, at_round] = np.roll(orders_BRN[repeats, at_round], -1, axis=1)
    return orders_BRN.reshape(n_rows, -1)[:, :n_drawn]


def weighted(rng: np.random.Generator, n_rows: int, weights_N: np.ndarray, n_drawn: int) -> np.ndarray:
    """Different places of `weights_N`, drawn one after the other in proportion to the weights left. [n_rows, n_drawn].

    By the largest of log weight + Gumbel noise, which is such a draw for all at once.
    """
    noisy = np.log(weights_N) + rng.gumbel(size=(n_rows, len(weights_N)))
    return np.argsort(-noisy, axis=1)[:, :n_drawn]


def at(values_BN: np.ndarray, places_BM: np.ndarray) -> np.ndarray:
    """``values_BN[b, places_BM[b, m]]``. [B, M]."""
    return np.take_along_axis(values_BN, places_BM, axis=1)


def put(target_BT: np.ndarray, places_BM: np.ndarray, values_BM: np.ndarray | int | bool) -> None:
    """Write ``target_BT[b, places_BM[b, m]] = values_BM[b, m]`` in place."""
    np.put_along_axis(target_BT, places_BM, values_BM, axis=1)
