"""Every task: right answers, stated scores, seeds, splits, extremes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from homunculi.tasks import registry
from homunculi.tasks.registry import SPLITS, Examples, Task
from tests.tasks.task_readers import READERS

NAMES = registry.names()


def rows(task: Task, n_rows: int, split: str = "train", seed: int = 0, **overrides: Any) -> Examples:
    return task.generate(np.random.default_rng(seed), n_rows, split=split, **overrides)


def some_dials(task: Task) -> list[dict[str, Any]]:
    """The defaults, and each dial in turn at each of its swept and only tested values, where they go together."""
    found = [{}]
    for name, dial in task.dials.items():
        found += [{name: value} for value in (*dial.values, *task.beyond.get(name, ()))]
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_slow_reader_of_the_tokens_so_far_gives_every_answer(name: str) -> None:
    task = registry.get(name)
    for split in SPLITS:
        dials = registry.settings(task, {})
        found = rows(task, 12, split)
        right = [
            READERS[name](row[: t + 1] if task.readout == "tokens" else [*row, t], dials) == target[t]
            for row, target, counted in zip(*map(np.ndarray.tolist, parts(found)), strict=True)
            for t in np.flatnonzero(counted).tolist()
        ]
        assert len(right) >= 12
        assert np.mean(right) == 1.0 == task.ceiling(**dials)


def parts(found: Examples) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return found.ids_BT, found.targets_BT, found.counted_BT


@pytest.mark.parametrize("name", NAMES)
def test_a_uniform_guess_scores_chance(name: str) -> None:
    task = registry.get(name)
    chance = task.chance(**registry.settings(task, {}))
    many = [rows(task, 200, seed=seed) for seed in range(5)]
    answers_N = np.concatenate([found.targets_BT[found.counted_BT] for found in many])
    possible = np.unique(answers_N)
    guesses_N = np.random.default_rng(7).choice(possible, size=len(answers_N))
    error = math.sqrt(chance * (1 - chance) / len(answers_N))
    assert abs((guesses_N == answers_N).mean() - chance) < 4 * error
    assert chance == pytest.approx(1 / len(possible))


@pytest.mark.parametrize("name", [name for name in NAMES if registry.get(name).ngram])
def test_the_stated_score_of_two_tokens_is_the_counted_one(name: str) -> None:
    task = registry.get(name)
    dials = registry.settings(task, {})
    n_answers = 30_000
    stated = registry.ngram_ceiling(task, dials)
    error = math.sqrt(stated * (1 - stated) / n_answers)
    assert abs(registry.counted_ngram(task, dials, n_answers) - stated) <= 4 * error


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides_every_byte(name: str) -> None:
    task = registry.get(name)
    first, again, other = (rows(task, 8, seed=seed) for seed in (3, 3, 4))
    for ours, same in zip(all_parts(first), all_parts(again), strict=True):
        assert ours.tobytes() == same.tobytes()
    assert first.ids_BT.tobytes() != other.ids_BT.tobytes()


def all_parts(found: Examples) -> list[np.ndarray]:
    optional = (found.needed_BT, found.best_BTV)
    return [*parts(found), *(part for part in optional if part is not None)]


@pytest.mark.parametrize("name", NAMES)
def test_no_row_is_in_two_splits(name: str) -> None:
    task = registry.get(name)
    seen = [{row.tobytes() for row in rows(task, 400, split, seed=1).ids_BT} for split in SPLITS]
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])


@pytest.mark.parametrize("name", NAMES)
def test_every_dial_works_at_its_values_and_its_ends(name: str) -> None:
    task = registry.get(name)
    for overrides in some_dials(task):
        well_formed(task, registry.settings(task, overrides), n_rows=4)


def well_formed(task: Task, dials: dict[str, Any], n_rows: int) -> None:
    for split in SPLITS:
        found = rows(task, n_rows, split, **dials)
        shape, n_ids = (n_rows, task.length(**dials)), task.vocabulary(**dials)
        assert found.ids_BT.shape == found.targets_BT.shape == found.counted_BT.shape == shape
        assert (found.ids_BT.dtype, found.targets_BT.dtype, found.counted_BT.dtype) == (np.int64, np.int64, np.bool_)
        assert found.ids_BT.min() >= 0 and found.ids_BT.max() < n_ids
        assert found.targets_BT.min() >= 0 and found.targets_BT.max() < n_ids
        assert found.counted_BT.any()
        if found.needed_BT is not None:
            assert found.needed_BT.dtype == np.int64 and (found.needed_BT[found.counted_BT] >= 1).all()
        if found.best_BTV is not None:
            assert np.allclose(found.best_BTV.sum(-1), 1)
    assert 0 < task.chance(**dials) <= task.ceiling(**dials) <= 1
