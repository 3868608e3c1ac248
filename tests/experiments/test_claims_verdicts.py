"""Every kind of verdict finds what was planted: supported, refuted and inconclusive, and the reasons for each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from homunculi.experiments.claims.evidence import (
    INCONCLUSIVE,
    REFUTED,
    SUPPORTED,
    Evidence,
    Finding,
    Part,
    first_look,
)
from homunculi.experiments.claims.measures import converges, counts_to, stays_within, widens
from homunculi.experiments.claims.verdicts import all_better, beats, each_needed, ordered
from tests.experiments.planted import around, evidence, part, run, side

IDEA = beats("idea", over="plain", controls=("frozen",))


def ends(plain: float, idea: float, frozen: float, n: int = 5) -> dict[str, list[float]]:
    return {"plain": around(plain, n), "idea": around(idea, n), "frozen": around(frozen, n)}


# Lower than the baseline and than the control.


def test_an_idea_that_beats_baseline_and_control_is_supported() -> None:
    found = IDEA(evidence(ends(1.0, 0.95, 1.001)))
    assert found.verdict == SUPPORTED and found.n == 5
    assert found.difference is not None and found.low is not None and found.high is not None
    assert found.low < found.difference < found.high < 0 and found.difference == pytest.approx(-0.05, abs=0.005)
    assert found.figures["bits/byte of idea"] == pytest.approx(0.95, abs=0.03)
    assert found.figures["idea - frozen"][1] < found.figures["idea - frozen"][2] < 0 < found.figures["p"] < 0.05
    assert found.figures["change of the loss, %"] == pytest.approx(-5, abs=0.5)


def test_an_idea_that_is_worse_is_refuted() -> None:
    found = IDEA(evidence(ends(1.0, 1.05, 1.1)))
    assert found.verdict == REFUTED and found.low is not None and found.low > 0
    assert found.reason == "idea ends above plain"


def test_an_idea_whose_control_does_as_well_is_inconclusive() -> None:
    """All of the gain comes from something else than the mechanism."""
    found = IDEA(evidence(ends(1.0, 0.95, 0.95)))
    assert found.verdict == INCONCLUSIVE and "no difference shown between idea and frozen" in found.reason


def test_an_idea_that_its_control_beats_is_refuted() -> None:
    found = IDEA(evidence(ends(1.0, 0.95, 0.9)))
    assert found.verdict == REFUTED and found.reason == "idea ends above frozen"


def test_no_effect_is_inconclusive() -> None:
    found = IDEA(evidence({"plain": around(1.0), "idea": around(1.0003), "frozen": around(1.0001)}))
    assert found.verdict == INCONCLUSIVE and found.n == 5


def test_p_values_of_all_pairs_are_adjusted_together() -> None:
    """One pair alone would count at p = 0.03, of four it does not."""
    pair = {"plain": [1.0] * 5, "idea": [0.99, 0.995, 0.985, 1.001, 0.99]}
    alone = beats("idea", over="plain")(evidence(pair))
    assert alone.verdict == SUPPORTED and 0.0125 < alone.figures["p"] < 0.05
    others = {f"c{i}": [1.0] * 5 for i in range(3)}
    assert beats("idea", over="plain", controls=tuple(others))(evidence(pair | others)).verdict == INCONCLUSIVE


@pytest.mark.parametrize(("n", "verdict"), [(5, SUPPORTED), (4, INCONCLUSIVE), (2, INCONCLUSIVE)])
def test_fewer_than_five_seeds_are_inconclusive_and_say_so(n: int, verdict: str) -> None:
    found = first_look(beats("idea", over="plain")(evidence({"plain": [1.0] * n, "idea": [0.9] * n})))
    assert found.verdict == verdict and found.n == n and found.difference == pytest.approx(-0.1)
    assert (f"{n} seeds are a first look" in found.reason) == (n < 5)
    worse = first_look(beats("idea", over="plain")(evidence({"plain": [1.0] * n, "idea": [1.1] * n})))
    assert worse.verdict == (REFUTED if n == 5 else INCONCLUSIVE)


def test_a_single_seed_has_no_interval() -> None:
    found = first_look(IDEA(evidence(ends(1.0, 0.9, 1.0, n=1))))
    assert found.verdict == INCONCLUSIVE and "1 seeds in common" in found.reason and found.low is None


def test_without_the_control_nothing_is_supported_but_can_be_refuted() -> None:
    whole = ends(1.0, 0.95, 1.0)
    del whole["frozen"]
    found = IDEA(evidence(whole))
    assert found.verdict == INCONCLUSIVE and "there are no runs of frozen" in found.reason and found.n == 5
    assert IDEA(evidence({"plain": around(1.0), "idea": around(1.05)})).verdict == REFUTED


def test_the_claimed_size_refutes_where_the_interval_excludes_it() -> None:
    rule = beats("idea", over="plain", claimed={"full": -0.1})
    gain = {"plain": around(1.0), "idea": around(0.95)}
    assert rule(evidence(gain)).verdict == SUPPORTED  # the size is claimed of another one
    found = rule(evidence(gain, size="full"))
    assert found.verdict == REFUTED and "excludes the -10.0 %" in found.reason
    assert rule(evidence({"plain": around(1.0), "idea": around(0.899)}, size="full")).verdict == SUPPORTED


def test_one_form_is_enough_to_support_and_all_are_needed_to_refute() -> None:
    rule = beats("a", "b", over="plain")
    one = rule(evidence({"plain": around(1.0), "a": around(1.05), "b": around(0.95)}))
    assert one.verdict == SUPPORTED and one.reason == "b ends below plain"
    both = {"plain": around(1.0), "a": around(1.05), "b": around(1.06)}
    assert rule(evidence(both)).verdict == REFUTED
    del both["b"]
    assert rule(evidence(both)).verdict == INCONCLUSIVE


def test_more_parameters_than_the_claim_allows_are_not_supported() -> None:
    rule = beats("idea", over="plain", most_parameters=0.55)
    gain = {"plain": around(1.0), "idea": around(0.95)}

    def of(parameters: int) -> Finding:
        sides = [side("plain"), side("idea", budget=side("idea")["budget"] | {"non_embedding_parameters": parameters})]
        return rule(evidence(gain, match=("flops",), sides=sides))

    assert of(500_000).verdict == SUPPORTED and of(500_000).figures["share of the parameters"] == 0.5
    assert of(800_000).verdict == INCONCLUSIVE and "0.55" in of(800_000).reason


def test_diverged_runs_count_against_a_side() -> None:
    gain = {"plain": around(1.0, 6), "idea": around(0.95, 5)}
    lost = [{"side": "idea", "seed": 5, "state": "diverged", "reason": ""}]
    found = beats("idea", over="plain")(evidence(gain, failed=lost))
    assert found.verdict == INCONCLUSIVE and "diverged" in found.reason and found.figures["diverged runs of idea"] == 1
    lost = [{"side": "idea", "seed": seed, "state": "diverged", "reason": ""} for seed in range(5)]
    found = beats("idea", over="plain")(evidence({"plain": around(1.0), "idea": []}, failed=lost))
    assert (found.verdict, found.n) == (REFUTED, 5)


# Several pairs at once.


def test_every_part_has_to_be_needed() -> None:
    rule = each_needed("whole", {"x": "no-x", "y": "no-y"})
    assert rule(evidence({"whole": around(1.0), "no-x": around(1.05), "no-y": around(1.1)})).verdict == SUPPORTED
    half = rule(evidence({"whole": around(1.0), "no-x": around(1.05), "no-y": around(1.0004)}))
    assert half.verdict == INCONCLUSIVE and "no difference shown between whole and no-y" in half.reason
    assert rule(evidence({"whole": around(1.0), "no-x": around(1.05), "no-y": around(0.95)})).verdict == REFUTED
    missing = rule(evidence({"whole": around(1.0), "no-x": around(1.05)}))
    assert missing.verdict == INCONCLUSIVE and "no runs of no-y" in missing.reason


def test_an_order_of_three() -> None:
    rule = ordered("growing", "looped", "once")
    means = {"once": 1.0, "looped": 0.95, "growing": 0.9}
    assert rule(evidence({name: around(mean) for name, mean in means.items()})).verdict == SUPPORTED
    means["growing"] = 0.97
    assert rule(evidence({name: around(mean) for name, mean in means.items()})).verdict == REFUTED


def test_n_is_that_of_the_pair_with_the_fewest_seeds() -> None:
    rule = all_better(("a", "b"), ("a", "c"))
    found = rule(evidence({"a": [0.9] * 6, "b": [1.0] * 6, "c": [1.0] * 4}))
    assert found.n == 4 and first_look(found).verdict == INCONCLUSIVE


# What may stand beside what.

BROKEN: dict[str, dict[str, Any]] = {
    "not causal (token_edits)": {
        "certificate": {"causal": False, "causal_in_training": True, "failed": ["token_edits"]}
    },
    "no certificate": {"certificate": None},
    "1.05 times the parameters": {"budget": {"non_embedding_parameters": 1_050_000}},
    "2.00 times the tokens": {"config": side("idea")["config"] | {"steps": 200}},
}


@pytest.mark.parametrize("why", BROKEN)
def test_a_side_that_may_not_be_ranked_is_not(why: str) -> None:
    gain = {"plain": around(1.0), "idea": around(0.9)}
    found = beats("idea", over="plain")(evidence(gain, sides=[side("plain"), side("idea", **BROKEN[why])]))
    assert found.verdict == INCONCLUSIVE and why in found.reason and found.difference is None


@pytest.mark.parametrize(
    "changes",
    [{"stream": "other batches"}, {"data_hash": "another text"}, {"tokens": [1, 2, 3]}, {"stream": ""}],
    ids=["batches", "text", "cut short", "no hash"],
)
def test_a_run_that_did_something_else_does_not_count(changes: dict[str, Any]) -> None:
    gain = {"plain": around(1.0, 6), "idea": around(0.9, 6)}
    runs = [one | (changes if (one["side"], one["seed"]) == ("idea", 2) else {}) for one in part(gain)["runs"]]
    seen = evidence(gain, runs=runs)
    assert beats("idea", over="plain")(seen).n == 5 and seen.main.n_left_out == 1


# Convergence.


def curves(heights: Sequence[float], n: int = 5, **changes: Any) -> Evidence:
    """`mor` converges, `homunculi` takes the given course."""
    runs = [run("mor", seed, 1.0) for seed in range(n)]
    runs += [run("homunculi", seed, 1.0, val_bpb=list(heights)) for seed in range(n)]
    return evidence({"homunculi": [], "mor": []}, runs=runs, **changes)


def test_curves_that_fall_converge() -> None:
    found = converges("homunculi", "mor")(curves([2.0, 1.2, 1.0]))
    assert (found.verdict, found.n, found.reason) == (SUPPORTED, 5, "all 5 runs of homunculi converge")
    assert first_look(converges("homunculi", "mor")(curves([2.0, 1.2, 1.0], n=4))).verdict == INCONCLUSIVE


@pytest.mark.parametrize("heights", [[2.0, 1.0, 1.2], [1.0, 1.05, 1.0]], ids=["rises again", "never falls"])
def test_curves_that_do_not_fall_are_refuted(heights: list[float]) -> None:
    found = converges("homunculi", "mor")(curves(heights))
    assert found.verdict == REFUTED and found.figures["runs of homunculi that do not converge"] == 5


def test_a_model_above_a_count_model_has_not_converged() -> None:
    assert converges("homunculi", "mor")(curves([2.0, 1.2, 1.0], baselines=[{"val_bpb": 0.9}])).verdict != SUPPORTED
    assert converges("homunculi", "mor")(curves([2.0, 1.2, 1.0], baselines=[{"val_bpb": 1.1}])).verdict == SUPPORTED


def test_divergence_refutes_unless_the_control_diverges_as_well() -> None:
    lost = [{"side": "homunculi", "seed": 9, "state": "diverged", "reason": ""}]
    found = converges("homunculi", "mor")(curves([2.0, 1.2, 1.0], failed=lost))
    assert found.verdict == REFUTED and found.n == 6 and "1 of 6 runs" in found.reason
    lost.append(lost[0] | {"side": "mor"})
    assert converges("homunculi", "mor")(curves([2.0, 1.2, 1.0], failed=lost)).verdict == INCONCLUSIVE


# A gain over sizes.


def ladder(gains: Sequence[float], n: int = 5) -> Evidence:
    parts = {}
    for i, gain in enumerate(gains):
        millions = {"non_embedding_parameters": 1_000_000 * 2**i}
        plain = around(1.0 - 0.1 * i, n, seed=i)
        sides = [side(name, budget=side(name)["budget"] | millions) for name in ("gpt", "ncn")]
        jitter = around(1.0, n, spread=0.0005, seed=77)
        idea = [end * math.exp(-gain) * (1 + 0.02 * (j - 1.0)) for end, j in zip(plain, jitter, strict=True)]
        parts[f"d{i}"] = Part(part({"gpt": plain, "ncn": idea}, sides=sides))
    return Evidence(parts, {}, "small")


WIDENS = widens("ncn", "gpt", ["d0", "d1", "d2", "d3"])


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ((0.01, 0.02, 0.03, 0.04), SUPPORTED),
        ((0.04, 0.03, 0.02, 0.01), REFUTED),
        ((-0.04, -0.03, -0.02, -0.01), REFUTED),
    ],
    ids=["grows", "shrinks", "a loss that shrinks"],
)
def test_a_gain_over_sizes(gains: Sequence[float], verdict: str) -> None:
    found = WIDENS(ladder(gains))
    assert found.verdict == verdict and found.n == 5
    assert found.difference == pytest.approx((gains[-1] - gains[0]) / 3, abs=0.002)  # for each doubling
    assert found.figures["gain at 8.00 M, %"] == pytest.approx(100 * gains[-1], abs=0.2)
    exponent, low, high = found.figures["exponent of gpt"]
    assert low < exponent < high


def test_a_gain_that_does_not_change_with_size_is_inconclusive() -> None:
    parts = ladder((0.02, 0.02, 0.02, 0.02)).parts
    noise = [0.002, -0.003, 0.001, 0.003, -0.002]
    for i, name in enumerate(parts):
        for one in parts[name].stored["runs"]:
            if one["side"] == "ncn":
                one["val_bpb"] = [value * (1 + (-1) ** i * noise[one["seed"]]) for value in one["val_bpb"]]
    assert WIDENS(Evidence(parts)).verdict == INCONCLUSIVE


def test_a_ladder_needs_all_its_sizes() -> None:
    parts = dict(ladder((0.01, 0.02, 0.03, 0.04)).parts)
    del parts["d3"]
    found = WIDENS(Evidence(parts))
    assert found.verdict == INCONCLUSIVE and "3 of 4 sizes" in found.reason


# The range of a signal.

RANGE = stays_within("gain", 0.99, 1.05, side="regulated", free="free", sweep=("free", "regulated"))


def signals(regulated: tuple[float, float], free: tuple[float, float], n: int = 5) -> Evidence:
    """Runs whose gain has that mean and standard deviation."""
    runs = []
    for name, (mean, deviation) in (("free", free), ("regulated", regulated)):
        for seed in range(n):
            said = {"signal/gain/mean": mean + 0.0001 * seed, "signal/gain/variance": deviation**2}
            runs.append(run(name, seed, 1.0, statistics=said))
    return evidence({"free": [], "regulated": []}, runs=runs)


def test_a_signal_that_only_the_regulariser_holds_is_supported() -> None:
    found = RANGE(signals((1.02, 0.01), (1.3, 0.2)))
    assert found.verdict == SUPPORTED and found.n == 5 and found.high is not None and found.high < 0
    assert found.figures["gain of regulated"] == pytest.approx([1.0002, 1.0402])


def test_a_signal_that_leaves_its_range_is_refuted() -> None:
    found = RANGE(signals((1.02, 0.1), (1.3, 0.2)))
    assert found.verdict == REFUTED and found.low is not None and found.low > 0
    assert found.difference == pytest.approx(0.17, abs=0.01)  # 1.22 against 1.05 is more than 0.82 against 0.99


def test_a_signal_that_stays_by_itself_is_inconclusive() -> None:
    found = RANGE(signals((1.02, 0.01), (1.02, 0.01)))
    assert found.verdict == INCONCLUSIVE and "without the regulariser" in found.reason
    silent = evidence({"free": around(1.0), "regulated": around(1.0)})
    assert RANGE(silent).verdict == INCONCLUSIVE and "say what their gain does" in RANGE(silent).reason


# Counts.


def test_a_count_is_the_claimed_one_or_not() -> None:
    rule = counts_to("share, %", 1.56, 0.01)
    assert rule(Evidence({}, {"share, %": 1.562})).verdict == SUPPORTED
    found = rule(Evidence({}, {"share, %": 1.7, "speed": 0.9}))
    assert found.verdict == REFUTED and found.n is None and found.figures["speed"] == 0.9
    assert first_look(found) is found
