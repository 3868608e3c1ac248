"""The hidden Markov task: its best distribution is Bayes' rule, by sums over all paths and by counting."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from homunculi.tasks import registry
from homunculi.tasks.hidden_markov import FOLLOWS, beliefs, followers

TASK = registry.get("hidden_markov")
STATES, SYMBOLS, DWELL = 3, 4, 4.0


def weight_of_path(path: tuple[int, ...], ids: list[int]) -> float:
    """Joint probability of regimes, one for each step after the first symbol, and the symbols."""
    weight = 1 / STATES / SYMBOLS
    for step, regime in enumerate(path):
        if step:
            weight *= 1 - 1 / DWELL if regime == path[step - 1] else 1 / DWELL / (STATES - 1)
        if step + 1 < len(ids):
            follows = followers(STATES, SYMBOLS)[regime, ids[step]] == ids[step + 1]
            weight *= FOLLOWS * follows + (1 - FOLLOWS) / SYMBOLS
    return weight


def test_belief_and_best_distribution_are_sums_over_all_paths() -> None:
    dials = registry.settings(TASK, {"states": STATES, "symbols": SYMBOLS, "dwell": DWELL, "length": 12})
    found = TASK.generate(np.random.default_rng(0), 3, split="test", **dials)
    assert found.best_BTV is not None
    belief_BTS = beliefs(found.ids_BT, STATES, SYMBOLS, DWELL)
    for row, ids in enumerate(found.ids_BT[:, :6].tolist()):
        for t in range(6):
            by_regime, by_symbol = np.zeros(STATES), np.zeros(SYMBOLS)
            for path in product(range(STATES), repeat=t + 1):
                by_regime[path[-1]] += weight_of_path(path, ids[: t + 1])
                for symbol in range(SYMBOLS):
                    by_symbol[symbol] += weight_of_path(path, [*ids[: t + 1], symbol])
            assert belief_BTS[row, t] == pytest.approx(by_regime / by_regime.sum(), abs=1e-12)
            assert found.best_BTV[row, t] == pytest.approx(by_symbol / by_symbol.sum(), abs=1e-12)


@pytest.mark.parametrize("dials", [{}, {"states": 2}, {"states": 16, "symbols": 32, "dwell": 8.0}])
def test_the_best_reader_reaches_the_stated_ceiling_and_no_more(dials: dict[str, float]) -> None:
    ceiling = TASK.ceiling(**registry.settings(TASK, dials))
    found = TASK.generate(np.random.default_rng(5), 1500, split="train", **dials)
    assert found.best_BTV is not None
    right_B = (found.best_BTV.argmax(-1) == found.targets_BT).mean(axis=1)
    assert abs(right_B.mean() - ceiling) < 4 * right_B.std() / np.sqrt(len(right_B)) + 0.003
    others_B = (found.best_BTV.argsort(-1)[..., -2] == found.targets_BT).mean(axis=1)
    assert others_B.mean() < right_B.mean()


def test_the_best_distribution_is_calibrated() -> None:
    found = TASK.generate(np.random.default_rng(6), 1500, split="train")
    assert found.best_BTV is not None
    chance_N = np.take_along_axis(found.best_BTV, found.targets_BT[..., None], axis=-1)
    uniform_N, expected = 1 / found.best_BTV.shape[-1], (found.best_BTV**2).sum(-1).mean()
    assert chance_N.mean() == pytest.approx(expected, abs=0.01) and expected > 3 * uniform_N


def test_regimes_have_orders_of_their_own() -> None:
    next_SV = followers(4, 16)
    assert all(sorted(order) == list(range(16)) for order in next_SV.tolist())
    assert len({tuple(order) for order in next_SV.tolist()}) == 4
