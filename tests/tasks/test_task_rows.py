"""Every task: right answers, stated scores, seeds, splits, extremes."""

from __future__ import annotations

import math
from itertools import combinations, product
from typing import Any

import numpy as np
import pytest

from homunculi.errors import InputError
from homunculi.tasks import registry
from homunculi.tasks.registry import SPLITS, Examples, Task
from homunculi.tasks.splits import in_split
from tests.tasks.task_readers import NEEDED, READERS

NAMES = registry.names()
CERTAIN = [name for name in NAMES if name != "hidden_markov"]  # which has a test file of its own
# Where the defaults leave more pairs of tokens than can be counted.
COUNTABLE: dict[str, dict[str, Any]] = {"s5": {"things": 3, "length": 4}, "parity": {"length": 8}}
# So few different rows that two splits would share some, were they not parted.
CROWDED: dict[str, dict[str, Any]] = {
    "parity": {"length": 8},
    "s5": {"length": 4, "things": 3},
    "add": {"digits": 4, "base": 2},
    "modular_arithmetic": {"operations": 4, "modulus": 2},
    "compression": {"tokens": 4, "vocabulary": 4},
    "copy": {"tokens": 4, "vocabulary": 8},
    "reverse": {"tokens": 4, "vocabulary": 8},
    "sort": {"tokens": 4, "vocabulary": 8},
    "selective_copy": {"tokens": 3, "vocabulary": 8, "noise": 0.0},
}


def rows(task: Task, n_rows: int, split: str = "train", seed: int = 0, **overrides: Any) -> Examples:
    return task.generate(np.random.default_rng(seed), n_rows, split=split, **overrides)


def parts(found: Examples) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return found.ids_BT, found.targets_BT, found.counted_BT


def turns(task: Task) -> list[dict[str, Any]]:
    """The defaults, then each dial in turn at each value of its curve and at those that are only tested."""
    return [{}] + [
        {name: value} for name, dial in task.dials.items() for value in (*dial.values, *task.beyond.get(name, ()))
    ]


@pytest.mark.parametrize("name", CERTAIN)
def test_a_slow_reader_of_the_tokens_so_far_gives_every_answer(name: str) -> None:
    task = registry.get(name)
    for turn, split in product(turns(task), SPLITS[::2]):
        dials, found = registry.settings(task, turn), rows(task, 3, split, **turn)
        n_right = n_read = 0
        for row, ids in enumerate(found.ids_BT.tolist()):
            for t in np.flatnonzero(found.counted_BT[row]).tolist():
                read = ids[: t + 1] if task.readout == "tokens" else [*ids, t]
                n_right += READERS[name](read, dials) == found.targets_BT[row, t]
                n_read += 1
                if found.needed_BT is not None:
                    assert NEEDED[name](read, dials) == found.needed_BT[row, t]
        assert n_read >= 2
        assert n_right / n_read == task.ceiling(**dials) == 1.0


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
    dials = registry.settings(task, COUNTABLE.get(name, {}))
    n_answers = 30_000
    stated = registry.ngram_ceiling(task, dials)
    error = math.sqrt(stated * (1 - stated) / n_answers)
    assert abs(registry.counted_ngram(task, dials, n_answers) - stated) <= 4 * error


@pytest.mark.parametrize("name", [name for name in NAMES if not registry.get(name).ngram])
def test_two_tokens_say_less_than_all(name: str) -> None:
    task = registry.get(name)
    dials = registry.settings(task, {})
    found = registry.counted_ngram(task, dials, 20_000)
    assert task.chance(**dials) * 0.9 < found < task.ceiling(**dials) - 0.05


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
    crowded = CROWDED.get(name, {})
    found = {split: rows(task, 600, split, seed=1, **crowded).ids_BT for split in SPLITS}
    seen = {split: {row.tobytes() for row in ids_BT} for split, ids_BT in found.items()}
    assert not any(seen[one] & seen[other] for one, other in combinations(SPLITS, 2))
    if name in CROWDED:
        assert len(seen["train"]) < 600  # rows repeat within a split, so they would also have done so between two
    if name != "modular_addition":  # which holds out pairs by a fixed list
        assert all(in_split(ids_BT, split).all() for split, ids_BT in found.items())


@pytest.mark.parametrize("name", NAMES)
def test_every_value_of_every_dial_gives_rows(name: str) -> None:
    task = registry.get(name)
    tried = [registry.settings(task, turn) for turn in turns(task)]
    for dials in tried:
        well_formed(task, dials, n_rows=3)
    assert {(dial, value) for dial, about in task.dials.items() for value in about.values} <= {
        item for dials in tried for item in dials.items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_the_ends_of_every_dial_work_or_say_what_to_change(name: str) -> None:
    task = registry.get(name)
    ends = [{dial: value} for dial, about in task.dials.items() for value in (about.low, about.high)]
    ends.append({dial: about.low for dial, about in task.dials.items()})
    n_working = 0
    for end in ends:
        try:
            dials = registry.settings(task, end)
        except InputError as error:
            message = str(error)
            assert message.startswith(f"{name}.") and "\n" not in message
            assert message.split(".")[1].split(":")[0] in task.dials and any(dial in message for dial in end)
            continue
        n_working += 1
        well_formed(task, dials, n_rows=2)
    assert n_working >= len(ends) / 2


def well_formed(task: Task, dials: dict[str, Any], n_rows: int) -> None:
    n_ids, shape = task.vocabulary(**dials), (n_rows, task.length(**dials))
    for split in ("train", "test"):
        found = rows(task, n_rows, split, **dials)
        assert found.ids_BT.shape == found.targets_BT.shape == found.counted_BT.shape == shape
        assert (found.ids_BT.dtype, found.targets_BT.dtype, found.counted_BT.dtype) == (np.int64, np.int64, np.bool_)
        assert found.ids_BT.min() >= 0 and found.ids_BT.max() < n_ids
        assert found.targets_BT.min() >= 0 and found.targets_BT.max() < n_ids
        if found.needed_BT is not None:
            assert found.needed_BT.dtype == np.int64 and (found.needed_BT[found.counted_BT] >= 1).all()
        if found.best_BTV is not None:
            assert np.allclose(found.best_BTV.sum(-1), 1) and found.best_BTV.shape == (*shape, n_ids)
    assert 0 < task.chance(**dials) <= task.ceiling(**dials) <= 1


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_has_answers_to_learn_from(name: str) -> None:
    task = registry.get(name)
    counted_BT = rows(task, 32).counted_BT
    assert counted_BT.any(axis=1).mean() > 0.9 and counted_BT.sum() >= 32


@pytest.mark.parametrize(
    ("name", "dial", "longest"),
    [
        ("parity", "length", 32),
        ("s5", "length", 32),
        ("dyck", "length", 64),
        ("modular_arithmetic", "operations", 33),
    ],
)
def test_longer_rows_are_scored_past_the_longest_of_training(name: str, dial: str, longest: int) -> None:
    task = registry.get(name)
    assert rows(task, 16, "test").counted_BT[:, :longest].any()
    for value in task.beyond[dial]:
        counted_BT = rows(task, 16, "test", **{dial: value}).counted_BT
        assert counted_BT[:, longest:].any() and not counted_BT[:, :longest].any()
        assert rows(task, 16, "train", **{dial: value}).counted_BT[:, :longest].any()


@pytest.mark.parametrize(
    ("name", "dial"), [("copy", "tokens"), ("reverse", "tokens"), ("sort", "tokens"), ("add", "digits")]
)
def test_rows_of_twice_the_size_are_longer_than_any_of_training(name: str, dial: str) -> None:
    task = registry.get(name)

    def sizes(**dials: Any) -> np.ndarray:
        return rows(task, 300, **dials).counted_BT.sum(axis=1)

    assert sizes(**{dial: 8}).max() < sizes(**{dial: 16}).min()
    assert len(np.unique(sizes(**{dial: 8}))) == 4


def test_steps_needed_differ_within_a_row_and_reach_the_most() -> None:
    for name, dial in (("pointer_chasing", "steps"), ("nested_brackets", "depth")):
        task = registry.get(name)
        for most in task.dials[dial].values:
            needed_BT = rows(task, 64, **{dial: most}).needed_BT
            assert needed_BT is not None and set(np.unique(needed_BT)) == set(range(most + 1))


def test_recall_has_the_sizes_and_distances_of_its_source() -> None:
    task = registry.get("recall")
    published = {"pairs": 64, "length": 512, "vocabulary": 8192, "power": 0.01, "repeats": 1}
    found = rows(task, 64, **published)
    assert (found.counted_BT.sum(axis=1) == 64).all() and not found.counted_BT[:, :128].any()
    near, far = found.counted_BT[:, 128:256].sum(), found.counted_BT[:, 384:].sum()
    assert near > 2 * far
    even = rows(task, 64, **published | {"power": 1.0}).counted_BT
    assert even[:, 128:256].sum() == pytest.approx(even[:, 384:].sum(), rel=0.15)
    keys = np.sort(found.ids_BT[found.counted_BT].reshape(64, 64), axis=1)
    assert (np.diff(keys, axis=1) > 0).all()  # each once
