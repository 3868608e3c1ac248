"""Rules about how runs train find what was planted: learning by heart, leaps of the loss, and what is no evidence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from homunculi.experiments.claims.evidence import INCONCLUSIVE, REFUTED, SUPPORTED, Evidence, Finding, Part, first_look
from homunculi.experiments.claims.store import of_training
from homunculi.experiments.claims.training_curves import leaps_more, memorises
from tests.experiments.planted import part, run, side

RATES = ("", "-fast")
SIDES = tuple(f"{name}{rate}" for name in ("bank", "plain") for rate in RATES)
BY_HEART = memorises("large", than="small", ladder=("small", "large"))
LEAPS = leaps_more("bank", than="plain", settings=RATES, parts=("main", "unclipped"))


# Leaps.


def leaping(leaps: Mapping[str, Mapping[int, float]], diverged: Sequence[tuple[str, int]] = (), **rates: float) -> Part:
    """Side → seed → leaps of a run that ended, and the runs that diverged."""
    runs = [run(name, seed, 1.0, statistics={"training/leaps": n}) for name in leaps for seed, n in leaps[name].items()]
    failed = [{"side": name, "seed": seed, "state": "diverged", "reason": ""} for name, seed in diverged]
    sides = [side(name, lr=rates.get(name.replace("-", "_"), 0.01)) for name in SIDES]
    return Part(part({}, runs=runs, failed=failed, sides=sides))


def every(bank: Sequence[float], plain: Sequence[float]) -> dict[str, dict[int, float]]:
    """The same leaps, seed by seed, at each rate."""
    return {name: dict(enumerate(bank if name.startswith("bank") else plain)) for name in SIDES}


def of(*parts: Part) -> Finding:
    return first_look(LEAPS(Evidence(dict(zip(("main", "unclipped"), parts, strict=False)))))


def test_a_loss_that_leaps_more_often_over_five_seeds_is_found() -> None:
    found = of(leaping(every([2, 3, 2, 1, 2], [0, 0, 1, 0, 0])), leaping(every([2, 2, 2, 2, 2], [0, 0, 0, 0, 0])))
    assert found.verdict == SUPPORTED and found.n == 5 and found.unit == "leaps a run"
    assert found.difference == pytest.approx((1.8 + 2) / 2)
    assert (found.figures["leaps of bank-fast, main"], found.figures["leaps of plain, main"]) == (10, 1)


def test_settings_of_one_seed_are_no_further_seeds() -> None:
    part = leaping({name: {0: 2.0 * name.startswith("bank")} for name in SIDES})
    assert of(part, part).verdict == INCONCLUSIVE
    two = leaping(every([2, 2], [0, 0]))
    found = of(two, two)
    assert found.verdict == INCONCLUSIVE and found.n == 2 and "2 seeds are a first look" in found.reason


def test_a_run_that_is_not_there_yet_did_not_leap() -> None:
    found = of(leaping(every([0, 0, 0, 0, 0, 0], [0, 0])))
    assert found.n == 2 and found.difference == 0


def test_a_run_that_diverged_leapt_once() -> None:
    ended = every([0, 0, 0, 0], [0, 0, 0, 0, 0])
    found = of(leaping(ended, diverged=[("bank", 4), ("bank-fast", 4)]))
    assert found.n == 5 and found.difference == pytest.approx(0.2)


def test_less_than_half_a_leap_more_refutes_and_a_wide_interval_does_not() -> None:
    assert of(leaping(every([0, 1, 0, 0, 0], [0, 0, 1, 0, 0]))).verdict == INCONCLUSIVE
    assert of(leaping(every([0, 0, 0, 0, 0], [0, 0, 0, 0, 0]))).verdict == REFUTED
    assert of(leaping(every([0, 0, 1, 0, 0], [2, 2, 2, 1, 2]))).verdict == REFUTED


def test_rates_that_differ_at_one_setting_are_shown() -> None:
    found = of(leaping(every([0, 0], [0, 0]), bank_fast=0.06, plain_fast=0.015))
    assert {name: value for name, value in found.figures.items() if "rate" in name} == {
        "learning rate of bank-fast, main": 0.06,
        "learning rate of plain-fast, main": 0.015,
    }


@pytest.mark.parametrize(
    ("losses", "n"),
    [
        ([7.0, 5.0, 4.0, 4.3, 3.0], 0),
        ([7.0, 5.0, 5.6, 5.6, 4.0, 4.5], 2),
        ([7.0, 8.0, 5.0], 1),
        ([7.0, 5.0, math.nan, math.inf, 5.1, math.nan], 2),
    ],
)
def test_a_loss_leaps_where_it_rises_a_tenth_above_the_lowest_so_far(losses: list[float], n: int) -> None:
    assert of_training(losses)["training/leaps"] == n


def test_the_training_loss_is_the_mean_of_the_last_tenth_that_is_finite() -> None:
    assert of_training([9.0] * 18 + [2.0, 4.0])["training/loss"] == 3
    assert of_training([9.0] * 18 + [2.0, math.nan])["training/loss"] == 2
    assert "training/loss" not in of_training([9.0, math.nan]) and of_training([]) == {}


# Runs that learn nothing.

VOCABULARY = 1024
GUESS, LEARNT = math.log(VOCABULARY), 0.9 * math.log(VOCABULARY)


def ending(bank: Sequence[float], plain: Sequence[float], leaps: tuple[int, int], n_diverged: int = 0) -> Part:
    """Both sides at both rates: where each seed ends, in nats, and leaps of each run."""
    both = {"bank": (bank, leaps[0]), "plain": (plain, leaps[1])}
    runs = [
        run(name, seed, end, statistics={"training/leaps": both[name.partition("-")[0]][1]})
        for name in SIDES
        for seed, end in enumerate(both[name.partition("-")[0]][0])
    ]
    seeds = range(len(bank), len(bank) + n_diverged)
    failed = [{"side": f"bank{rate}", "seed": k, "state": "diverged", "reason": ""} for rate in RATES for k in seeds]
    sides = [side(name) for name in SIDES]
    for one in sides:
        one["config"]["model"]["vocab_size"] = VOCABULARY
    return Part(part({}, runs=runs, failed=failed, sides=sides))


def test_a_side_that_stays_at_guessing_cannot_leap_and_refutes_nothing() -> None:
    part = ending([GUESS] * 5, [LEARNT] * 4 + [GUESS], leaps=(0, 1))
    found = of(part, part)
    assert found.verdict == INCONCLUSIVE and (found.difference, found.n, found.unit) == (-1, 5, "leaps a run")
    cannot = "and what does not fall cannot leap"
    assert found.reason == f"bank learns nothing in 20 of 20 runs (it ends at guessing), {cannot}"
    assert found.figures["runs of bank that learn nothing"] == 20
    assert found.figures["runs of plain that learn nothing"] == 4


def test_a_side_that_learns_is_judged_as_before() -> None:
    calm, wild = (ending([LEARNT] * 5, [LEARNT] * 5, leaps=leaps) for leaps in ((0, 1), (2, 0)))
    assert of(calm, calm).verdict == REFUTED and of(wild, wild).verdict == SUPPORTED
    assert of(calm).reason == "the training loss of bank leaps 1.00 times a run less than plain's"
    assert of(calm).figures["runs of bank that learn nothing"] == 0


def test_the_parts_count_together_and_half_of_the_runs_is_enough() -> None:
    idle, learnt = (ending([end] * 5, [LEARNT] * 5, leaps=(0, 1)) for end in (GUESS, LEARNT))
    assert of(idle, learnt).verdict == REFUTED and of(idle).verdict == INCONCLUSIVE
    most = ending([GUESS] * 3 + [LEARNT] * 2, [LEARNT] * 5, leaps=(0, 1))
    assert of(most, most).verdict == INCONCLUSIVE and "12 of 20 runs" in of(most, most).reason


def test_a_little_below_guessing_is_not_learnt_yet() -> None:
    assert of(ending([0.951 * GUESS] * 5, [LEARNT] * 5, leaps=(0, 1))).verdict == INCONCLUSIVE
    assert of(ending([0.949 * GUESS] * 5, [LEARNT] * 5, leaps=(0, 1))).verdict == REFUTED


def test_leaps_of_a_side_that_ends_at_guessing_support_nothing_and_are_told() -> None:
    found = of(ending([GUESS] * 5, [LEARNT] * 5, leaps=(2, 0)))
    assert found.verdict == INCONCLUSIVE and "bank leaps 2.00 times a run more" in found.reason
    assert found.reason.endswith("; but bank learns nothing in 10 of 10 runs (it ends at guessing)")


def test_runs_that_diverged_are_none_that_stay_at_guessing() -> None:
    found = of(ending([GUESS] * 2, [LEARNT] * 6, leaps=(0, 0), n_diverged=4))
    assert found.verdict == SUPPORTED and found.figures["runs of bank that learn nothing"] == 4


def test_a_model_that_does_not_say_how_large_its_vocabulary_is_is_judged_by_its_leaps_alone() -> None:
    part = ending([GUESS] * 5, [LEARNT] * 5, leaps=(0, 1))
    for one in part.stored["sides"]:
        del one["config"]["model"]["vocab_size"]
    found = of(part)
    assert found.verdict == REFUTED and not any("learn nothing" in name for name in found.figures)


# By heart.


def learning(small: tuple[float, float], large: tuple[float, float], n: int = 5, **changes: Any) -> Finding:
    """Training and validation loss at the end, by side; every seed a little different."""
    runs = [
        run(name, seed, valid + 0.01 * seed, statistics={"training/loss": train + 0.01 * seed + 0.002 * (seed % 2)})
        for name, (train, valid) in (("small", small), ("large", large))
        for seed in range(n)
    ]
    return first_look(BY_HEART(Evidence({"main": Part(part({"small": [], "large": []}, runs=runs, **changes))})))


def test_a_wider_gap_at_a_higher_loss_on_new_text_is_learning_by_heart() -> None:
    found = learning(small=(1.0, 1.1), large=(0.5, 1.3))
    assert found.verdict == SUPPORTED and found.n == 5 and found.difference == pytest.approx(0.2)
    assert found.figures["gap of large, nats a token"] == pytest.approx(0.8, abs=0.01)
    assert found.figures["difference of the gaps, nats a token"][0] == pytest.approx(0.7)


def test_what_is_better_on_new_text_was_not_learnt_by_heart_whatever_the_gap() -> None:
    assert learning(small=(1.0, 1.1), large=(0.2, 1.0)).verdict == REFUTED


def test_a_narrower_gap_refutes_and_no_difference_does_not() -> None:
    assert learning(small=(0.5, 1.1), large=(1.0, 1.2)).verdict == REFUTED
    assert learning(small=(1.0, 1.1), large=(1.0, 1.1)).verdict == INCONCLUSIVE
    found = learning(small=(1.0, 1.1), large=(0.5, 1.1))
    assert found.verdict == INCONCLUSIVE and "at no price shown" in found.reason


def test_runs_that_do_not_say_how_they_train_are_inconclusive() -> None:
    runs = [run(name, seed, 1.0) for name in ("small", "large") for seed in range(5)]
    found = BY_HEART(Evidence({"main": Part(part({"small": [], "large": []}, runs=runs))}))
    assert found.verdict == INCONCLUSIVE and "how they train" in found.reason
    assert learning(small=(1.0, 1.1), large=(0.5, 1.3), n=4).verdict == INCONCLUSIVE
