"""What a comparison concludes from its runs, and that it believes nothing else."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from homunculi.errors import InputError
from homunculi.experiments.comparison import RECORD, Comparison, Side, pairs, read, written

TOKENS = [100, 200, 300, 400]
CAUSAL = {"causal": True, "checks": []}
LEAKY = {"causal": False, "checks": [{"name": "token_edits", "passed": False, "value": 0.25, "limit": 1e-9}]}


def side(name: str, certificate: dict[str, Any] | None = CAUSAL) -> Side:
    return Side(name, name, ["steps=4"], {}, {}, {"parameters": 10}, {"parameters": 1.0}, 0.01, certificate)


def run(name: str, seed: int, curve: list[float], tokens: list[int] | None = None) -> dict[str, Any]:
    losses = [1.5 * value for value in curve]
    return {"side": name, "seed": seed, "run": f"runs/{name}-s{seed}", "tokens": tokens or TOKENS} | {
        "val_loss": losses,
        "val_bpb": curve,
        "stream": f"{seed:064x}",
    }


def comparison(folder: Path, sides: list[Side], runs: list[dict[str, Any]], n: int = 5) -> Comparison:
    return Comparison(folder, ["parameters"], list(range(n)), [], sides, runs=runs)


def noisy(name: str, shift: float, n: int = 5, noise: float = 0.005) -> list[dict[str, Any]]:
    """Runs whose curves share a seed's own height and differ from another side's by `shift` and noise."""
    draws = random.Random(f"{name} {shift}")
    runs = []
    for seed in range(n):
        height = 0.2 * seed + shift + draws.gauss(0, noise)
        runs.append(run(name, seed, [4 + height, 3 + height, 2.5 + height, 2 + height]))
    return runs


def test_a_planted_effect_is_found_in_its_direction_and_smaller_than_the_spread_of_seeds(tmp_path: Path) -> None:
    for shift, verdict in ((0.03, "worse"), (-0.03, "better")):
        (pair,) = pairs(comparison(tmp_path, [side("a"), side("b")], noisy("a", 0) + noisy("b", shift)))
        assert pair["verdict"] == verdict and pair["n"] == 5
        assert pair["low"] < shift < pair["high"] and not pair["low"] <= 0 <= pair["high"]
        assert pair["area"]["verdict"] == verdict
        assert [point["tokens"] for point in pair["points"]] == TOKENS
        assert all(point["low"] < shift < point["high"] for point in pair["points"])
        assert pair["differences"] == pytest.approx([shift] * 5, abs=0.03)


def test_noise_alone_shows_nothing(tmp_path: Path) -> None:
    (pair,) = pairs(comparison(tmp_path, [side("a"), side("b")], noisy("a", 0) + noisy("b", 1e-9)))
    assert pair["verdict"] == "no difference shown" and pair["low"] < 0 < pair["high"]


def test_the_same_runs_on_both_sides_differ_by_nothing(tmp_path: Path) -> None:
    again = [entry | {"side": "b"} for entry in noisy("a", 0)]
    (pair,) = pairs(comparison(tmp_path, [side("a"), side("b")], noisy("a", 0) + again))
    assert (pair["difference"], pair["low"], pair["high"], pair["p"]) == (0.0, 0.0, 0.0, 1.0)
    assert pair["verdict"] == "no difference shown"


def test_many_pairs_are_judged_together(tmp_path: Path) -> None:
    """A difference that counts by itself does not among ten."""
    weak = [run("b", s, [3.0, 2.0 + d], [200, 400]) for s, d in enumerate([0.05, 0.02, 0.06, 0.03, 0.02])]
    a = [run("a", s, [3.0, 2.0], [200, 400]) for s in range(5)]
    (alone,) = pairs(comparison(tmp_path, [side("a"), side("b")], a + weak))
    assert alone["verdict"] == "worse" and alone["adjusted_p"] == alone["p"]
    names = [f"c{i}" for i in range(9)]
    others = [run(name, s, [3.0, 2.0 + 0.01 * (s % 3 - 1)], [200, 400]) for name in names for s in range(5)]
    together = pairs(comparison(tmp_path, [side("a"), side("b"), *map(side, names)], a + weak + others))
    assert together[0]["p"] == alone["p"] and together[0]["adjusted_p"] > 0.05
    assert together[0]["verdict"] == "no difference shown"
    text = written(comparison(tmp_path, [side("a"), side("b"), *map(side, names)], a + weak + others))
    assert "among so many pairs it does not" in text[0]


def test_learning_faster_and_ending_better_are_told_apart(tmp_path: Path) -> None:
    a = [run("a", seed, [4, 3.5 + 0.01 * seed, 3, 2 - 0.001 * seed]) for seed in range(5)]
    b = [run("b", seed, [3, 2.8, 2.6 + 0.01 * seed, 2.5 + 0.002 * seed]) for seed in range(5)]
    found = comparison(tmp_path, [side("a"), side("b")], a + b)
    (pair,) = pairs(found)
    assert pair["verdict"] == "worse" and pair["area"]["verdict"] == "better"
    text = written(found)
    assert text[0].startswith("b is worse than a: +0.5060 bits/byte (") and "n = 5" in text[0]
    assert text[1].startswith("b learns faster than a: -0.")
    assert text[2].startswith("b does not reach the loss that a ends with")


def test_tokens_to_reach_the_first_sides_end_are_read_off_the_mean_curves(tmp_path: Path) -> None:
    a = [run("a", seed, [4, 3, 2.5, 2]) for seed in range(3)]
    b = [run("b", seed, [4, 2.5, 1.5, 1]) for seed in range(3)]
    (pair,) = pairs(comparison(tmp_path, [side("a"), side("b")], a + b, 3))
    assert pair["tokens_to_reach"] == {"loss": 3.0, "a": 400, "b": 250}


def test_runs_of_unequal_length_are_aligned_by_their_share(tmp_path: Path) -> None:
    """With equal FLOPs one side takes fewer tokens, and is evaluated as often."""
    runs = noisy("a", 0) + [entry | {"tokens": [50, 100, 150, 200]} for entry in noisy("b", 0.03)]
    (pair,) = pairs(comparison(tmp_path, [side("a"), side("b")], runs))
    assert pair["verdict"] == "worse" and [point["tokens"] for point in pair["points"]] == TOKENS
    odd = noisy("a", 0) + [run("b", seed, [4.03 + seed / 5, 2.03 + seed / 5], [200, 400]) for seed in range(5)]
    (pair,) = pairs(comparison(tmp_path, [side("a"), side("b")], odd))
    assert pair["points"] == [] and pair["area"] is None and pair["n"] == 5


def test_only_seeds_that_both_sides_have_make_a_pair(tmp_path: Path) -> None:
    runs = noisy("a", 0) + [entry for entry in noisy("b", 0.03) if entry["seed"] not in (1, 3)]
    (pair,) = pairs(comparison(tmp_path, [side("a"), side("b")], runs))
    assert pair["n"] == 3 and pair["seeds"] == [0, 2, 4] and len(pair["differences"]) == 3


def test_a_side_that_diverged_is_counted_and_not_dropped(tmp_path: Path) -> None:
    found = comparison(tmp_path, [side("a"), side("b")], noisy("a", 0) + noisy("b", 0.03)[:1])
    found.failed = [
        {"side": "b", "seed": seed, "run": f"runs/b-s{seed}", "state": "diverged", "reason": "loss nan"}
        for seed in range(1, 5)
    ]
    (pair,) = pairs(found)
    assert pair["n"] == 1 and pair["verdict"] is None and pair["low"] is None
    assert pair["failed"] == {"a": 0, "b": 4}
    text = "\n".join(written(found))
    assert "b against a: no verdict; 1 seeds" in text
    assert "b: 4 of 5 runs diverged, which counts against it" in text
    assert "runs/b-s3 did not end (diverged): loss nan" in text


def test_a_side_that_is_not_causal_is_never_in_a_pair(tmp_path: Path) -> None:
    runs = noisy("leaky", -1) + noisy("a", 0) + noisy("b", 0.03)
    found = comparison(tmp_path, [side("leaky", LEAKY), side("a"), side("b"), side("new", None)], runs)
    assert [(pair["a"], pair["b"]) for pair in pairs(found)] == [("a", "b")]
    assert found.sides[0].refusal == "not causal: token_edits 2.5e-01 (limit 1e-09)"


def test_few_seeds_are_called_a_first_look(tmp_path: Path) -> None:
    few = comparison(tmp_path, [side("a"), side("b")], noisy("a", 0, 3) + noisy("b", 0.03, 3), 3)
    enough = comparison(tmp_path, [side("a"), side("b")], noisy("a", 0) + noisy("b", 0.03))
    assert "first look" in written(few)[-1] and "first look" not in "".join(written(enough))


def test_what_a_file_says_of_verdicts_is_not_believed(tmp_path: Path) -> None:
    found = comparison(tmp_path, [side("a"), side("b")], noisy("a", 0) + noisy("b", 0.03))
    found.write()
    path = tmp_path / RECORD
    forged = json.loads(path.read_text())
    honest = forged["pairs"]
    forged["pairs"] = [honest[0] | {"verdict": "better", "difference": -1.0, "low": -1.1, "high": -0.9}]
    path.write_text(json.dumps(forged))
    again = read(tmp_path)
    assert again.to_json()["pairs"] == honest
    again.write()
    assert json.loads(path.read_text())["pairs"] == honest
    assert read(tmp_path) == found


SHORT = {"tokens": [1, 2], "val_bpb": [1.0], "val_loss": [1.0]}
OUTSIDE = {"name": "../x", "recipe": "", "assignments": [], "changes": {}, "config": {}, "budget": {}, "ratios": {}}
DAMAGED = [
    json.dumps({"format": 1, "sides": [OUTSIDE], "runs": []}),
    "",
    "[]",
    '{"format": 2}',
    '{"format": 1}',
    '{"format": 1, "sides": [{}]}',
]


@pytest.mark.parametrize("content", [*DAMAGED, json.dumps({"format": 1, "sides": [], "runs": [SHORT]})])
def test_a_damaged_file_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / RECORD).write_text(content)
    with pytest.raises(InputError, match=RECORD):
        read(tmp_path)


def test_a_folder_without_a_comparison_says_what_to_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="name at least two recipes"):
        read(tmp_path)
