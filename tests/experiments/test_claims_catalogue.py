"""The list of claims: complete, each with its control, and every comparison that it asks for can be made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from homunculi.cli.compare import wanted_sides
from homunculi.errors import InputError
from homunculi.experiments.claims.catalogue import claims, find
from homunculi.experiments.claims.entry import Claim, Plan
from homunculi.experiments.claims.evidence import Evidence, Part, first_look
from homunculi.experiments.claims.keeping import Asked
from homunculi.experiments.claims.ncn import SHARE, count_overhead
from homunculi.experiments.claims.table import row
from homunculi.experiments.costs import complete
from homunculi.experiments.matching import matched
from homunculi.train.interventions import check_interventions
from tests.experiments.planted import part, side

IDS = {
    "ncn": [
        "perplexity",
        "overhead",
        "specialise",
        "surprise",
        "homeostasis",
        "phasic",
        "skip",
        "kv",
        "plasticity",
        "scaling",
        "coherence",
        "gating",
        "context",
    ],
    "homunculi": ["converges", "plain", "regions", "depth", "packet", "mind"],
    "mor": ["pareto", "throughput"],
    "vocab": ["rank8", "rank64", "fourier", "multihop", "readable", "match", "attention", "stability", "algorithms"],
    "rys": ["middle", "single", "anatomy", "fragile"],
    "loop": ["trained", "dynamic", "grow", "bandwidth"],
}
OTHERS = [
    "vocab-shared-maps",
    "layer-pointers",
    "latent-thought",
    "bdh-parity",
    "bdh-sparse",
    "ctm-adaptive",
    "monet-experts",
    "moe-x",
    "dopamine-modes",
]
RUNNABLE = [claim for claim in claims() if claim.runnable]
PLANS = [(claim, size, plan) for claim in RUNNABLE for size, plans in claim.sizes.items() for plan in plans]


def test_every_claim_of_the_field_has_a_row() -> None:
    named = [f"{system}-{name}" for system, names in IDS.items() for name in names]
    assert sorted(claim.id for claim in claims()) == sorted([*named, *OTHERS])


@pytest.mark.parametrize("claim", claims(), ids=lambda claim: claim.id)
def test_a_row_says_what_is_claimed_how_it_is_checked_and_what_it_needs(claim: Claim, tmp_path: Path) -> None:
    assert claim.claim and claim.check and claim.system
    assert claim.control or claim.count, "without a control only what is counted"
    found = row(claim, tmp_path).finding
    if claim.needs:
        assert found.verdict == "not run" and found.reason == f"needs {claim.needs}"
    elif claim.runnable:
        assert found.verdict == "not run" and f"homunculi claims {claim.id}: " in found.reason
        assert "runs and" in found.reason and ("minutes" in found.reason or "hours" in found.reason)
    assert found.difference is None or claim.count


@pytest.mark.parametrize(("claim", "size", "plan"), PLANS, ids=[f"{c.id}-{s}-{p.name}" for c, s, p in PLANS])
def test_the_sides_of_every_plan_exist_and_can_be_matched(claim: Claim, size: str, plan: Plan) -> None:
    """Budgets within 1 %, without any text."""
    wanted = wanted_sides([*plan.common, *(side.word() for side in plan.parsed)], None)
    assert [side.name for side in wanted] == plan.names
    found = matched([side.config for side in wanted], plan.match, also=("seed", "device"))
    for one in found:
        check_interventions(complete(one.config), one.config.train.interventions)
        assert all(abs(one.ratios[quantity] - 1) <= 0.01 for quantity in plan.match)


def test_every_rule_names_sides_that_its_plans_have() -> None:
    """With runs of all sides nothing is missing; of two seeds nothing is decided."""
    for claim in RUNNABLE:
        for size, plans in claim.sizes.items():
            parts = {}
            for i, plan in enumerate(plans, 1):
                millions = {"non_embedding_parameters": i * 1_000_000}
                sides = [side(name, budget=side(name)["budget"] | millions) for name in plan.names]
                parts[plan.name] = Part(part({name: [1.0, 1.1] for name in plan.names}, plan.match, sides=sides))
            assert claim.rule is not None
            found = first_look(claim.rule(Evidence(parts, {}, size)))
            assert found.verdict == "inconclusive" and "no runs" not in found.reason, claim.id


def test_shares_of_the_controller_are_counted_not_stored(tmp_path: Path) -> None:
    found = row(find("ncn-overhead"), tmp_path).finding
    assert found.verdict == "supported" and found.n is None
    assert found.difference == found.low == found.high == pytest.approx(100 * 281_298 / 18_007_762)
    assert count_overhead(None).keys() == found.figures.keys() and SHARE in found.figures


def test_measured_speeds_are_read_where_they_lie(tmp_path: Path) -> None:
    bench = tmp_path / "results" / "bench_architectures_h100.json"
    bench.parent.mkdir()
    bench.write_text('{"cases": {"train-18m": {"tokens_per_s": 200}, "train-18m-ncn": {"tokens_per_s": 150}}}')
    assert count_overhead(tmp_path / "claims")["training speed of ours against plain"] == 0.75
    bench.write_text('{"cases": 3}')
    assert "training speed of ours against plain" not in count_overhead(tmp_path / "claims")


@pytest.mark.parametrize(
    ("given", "hint"),
    [("ncn-perplexty", "did you mean ncn-perplexity"), ("plasticity", "ncn-plasticity"), ("zzz", "lists all")],
)
def test_an_unknown_id_gets_near_ones(given: str, hint: str) -> None:
    with pytest.raises(InputError, match=f"{given}: no such claim; .*{hint}"):
        find(given)


def test_a_claim_without_a_rule_or_what_it_needs_is_refused() -> None:
    good = find("ncn-plasticity")
    for changes in ({"rule": None}, {"needs": "more"}, {"sizes": {}, "minutes": {}}, {"minutes": {}}):
        with pytest.raises(ValueError, match="ncn-plasticity: "):
            replace(good, **changes)
    with pytest.raises(ValueError, match="NAME=RECIPE"):
        Plan(("gpt:small",))


def test_costs_follow_from_sides_seeds_and_trials() -> None:
    claim = find("ncn-plasticity")
    cost = claim.cost("small", 4)
    assert cost is not None and (cost.runs, cost.trials) == (12, 9)
    assert cost.minutes == pytest.approx((12 + 9 / 4) * claim.minutes["small"]) and "CPU" in cost.machine
    assert find("ncn-kv").cost() is None


def test_a_plan_says_which_rates_are_tried_and_the_claim_about_named_rates_tries_none() -> None:
    claim = find("vocab-stability")
    cost = claim.cost(seeds=5)
    assert cost is not None and (cost.runs, cost.trials) == (60, 0)
    for plan in claim.sizes["medium"]:
        asked = Asked(claim=claim, results=Path("results"))
        assert asked.factors_of(plan) == () and plan.options == ["--match", "tokens", "--no-tune"]
    sides = ("a=gpt:small", "b=gpt:small")
    assert Plan(sides).options == ["--match", "parameters,tokens"] and Plan(sides).n_trials == 6
    two = Plan(sides, factors=(0.5, 2.0))
    assert two.options[2:] == ["--tune", "0.5,2"] and two.n_trials == 4
    assert Asked(claim=claim, results=Path("results"), factors=(1.0,)).factors_of(two) == (1.0,)
