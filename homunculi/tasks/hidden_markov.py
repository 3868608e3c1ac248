"""Hidden Markov emissions: what comes next, from a hidden state that can only be inferred?

The hidden process is in one of `states` regimes and has shown a symbol. Each regime has its own order of the symbols:
with a chance of 0.6 the next symbol is the one that follows the last in that order, else any. A regime lasts `dwell`
steps on average, then one of the others begins, each equally likely. The orders are fixed functions of the dials, the
same for every seed and split; regime and symbol start anywhere. One step says little of the regime, many say much.

Every position counts; its answer is the next symbol. That is not certain, so the rows hold the best possible
distribution of it (`best_BTV`), which Bayes' rule gives from all symbols so far, and the ceiling is the mean of its
greatest entry. The belief over regimes is that of `beliefs`; the residual stream of trained transformers was found to
hold such (Shai et al. 2024, arXiv 2405.15943).

Split: training, validation and test rows are disjoint by a hash of the row (`splits`). Legend: S regimes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from homunculi.tasks.registry import Dial, Examples, Split, task
from homunculi.tasks.splits import drawn, mixed

FOLLOWS = 0.6  # chance that the next symbol is that of the regime's order; else it is any, each equally likely
_CEILING_TOKENS = 1 << 17


@lru_cache(maxsize=64)
def followers(states: int, symbols: int) -> np.ndarray:
    """Which symbol follows each in the order of each regime. [S, V] int64."""
    numbers_SV = mixed(np.arange(states * symbols)).reshape(states, symbols)
    return np.argsort(numbers_SV, axis=1, kind="stable")


def beliefs(ids_BT: np.ndarray, states: int, symbols: int, dwell: float) -> np.ndarray:
    """Probability of each regime at the next step, after each symbol was read. [B, T, S] float64."""
    next_SV = followers(states, symbols)
    belief_BTS = np.full((*ids_BT.shape, states), 1 / states)
    for t in range(1, ids_BT.shape[1]):
        follows_BS = ids_BT[:, t, None] == next_SV[:, ids_BT[:, t - 1]].T
        joint_BS = belief_BTS[:, t - 1] * (FOLLOWS * follows_BS + (1 - FOLLOWS) / symbols)
        belief_BTS[:, t] = joint_BS / joint_BS.sum(1, keepdims=True) @ _moves(states, dwell)
    return belief_BTS


def best(ids_BT: np.ndarray, states: int, symbols: int, dwell: float) -> np.ndarray:
    """The best possible distribution of the next symbol after each. [B, T, V] float64."""
    belief_BTS = beliefs(ids_BT, states, symbols, dwell)
    best_BTV = np.full((*ids_BT.shape, symbols), (1 - FOLLOWS) / symbols)
    rows_B1, at_1T = np.ogrid[: ids_BT.shape[0], : ids_BT.shape[1]]
    for regime, next_V in enumerate(followers(states, symbols)):
        best_BTV[rows_B1, at_1T, next_V[ids_BT]] += FOLLOWS * belief_BTS[..., regime]
    return best_BTV


def _moves(states: int, dwell: float) -> np.ndarray:
    """From regime to regime in one step. [S, S]."""
    return np.eye(states) * (1 - 1 / dwell) + (1 - np.eye(states)) / (dwell * (states - 1))


def _emitted(rng: np.random.Generator, n: int, length: int, dials: tuple[int, int, float]) -> np.ndarray:
    states, symbols, dwell = dials
    next_SV = followers(states, symbols)
    symbols_BT, regime_B = rng.integers(symbols, size=(n, length)), rng.integers(states, size=n)
    follows_BT, leaves_BT = rng.random((n, length)) < FOLLOWS, rng.random((n, length)) < 1 / dwell
    for t in range(1, length):
        symbols_BT[:, t] = np.where(follows_BT[:, t], next_SV[regime_B, symbols_BT[:, t - 1]], symbols_BT[:, t])
        elsewhere_B = (regime_B + rng.integers(1, states, size=n)) % states
        regime_B = np.where(leaves_BT[:, t], elsewhere_B, regime_B)
    return symbols_BT


@lru_cache(maxsize=64)
def _ceiling(states: int, symbols: int, dwell: float, length: int) -> float:
    """Mean over rows of a fixed seed; its standard error is below 0.003."""
    n_rows = max(64, _CEILING_TOKENS // length)
    ids_BT = _emitted(np.random.default_rng(0), n_rows, length, (states, symbols, dwell))
    return float(best(ids_BT, states, symbols, dwell).max(-1).mean())


def _ceiling_of(states: int, symbols: int, dwell: float, length: int, **_: Any) -> float:
    return _ceiling(states, symbols, dwell, length)


@task(
    name="hidden_markov",
    title="Emissions of a hidden Markov process",
    question="How near does the model come to Bayes' rule over hidden states?",
    source="Shai et al. 2024, arXiv 2405.15943; the process is this laboratory's",
    dials={
        "states": Dial(4, (2, 4, 8, 16), 2, 64, "hidden regimes"),
        "symbols": Dial(16, (8, 16, 32), 4, 256, "different symbols"),
        "dwell": Dial(16.0, (8.0, 16.0, 32.0), 2.0, 1000.0, "mean steps of a regime"),
        "length": Dial(64, (64, 128), 12, 1024, "positions"),
    },
    swept="states",
    vocabulary=lambda symbols, **_: symbols,
    length=lambda length, **_: length,
    chance=lambda symbols, **_: 1 / symbols,
    ceiling=_ceiling_of,
)
def generate(
    rng: np.random.Generator, n_rows: int, *, split: Split, states: int, symbols: int, dwell: float, length: int
) -> Examples:
    """Rows of symbols; dials as described by the task."""

    def make(rng: np.random.Generator, n: int) -> Examples:
        emitted_BT = _emitted(rng, n, length + 1, (states, symbols, dwell))
        ids_BT, targets_BT = emitted_BT[:, :-1].copy(), emitted_BT[:, 1:].copy()
        return Examples(ids_BT, targets_BT, np.ones(ids_BT.shape, bool))

    found = drawn(rng, n_rows, split, make)
    best_BTV = best(found.ids_BT, states, symbols, dwell)
    return Examples(found.ids_BT, found.targets_BT, found.counted_BT, best_BTV=best_BTV)
