"""Claims that are really run, at a size of seconds: what is stored, how it adds up, and what is refused.

Long, because all of it needs the few runs that are made once at the top.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from homunculi.cli.compare import wanted_sides
from homunculi.errors import InputError, Stopped
from homunculi.experiments import certifying
from homunculi.experiments.claims import leak, running, store
from homunculi.experiments.claims.catalogue import find
from homunculi.experiments.claims.entry import Claim, Plan
from homunculi.experiments.claims.running import Asked, fitting, keep_folder
from homunculi.experiments.claims.table import row
from homunculi.experiments.claims.verdicts import beats
from homunculi.experiments.comparison import Comparison, Side, read
from homunculi.models import build
from tests.experiments.inside import TINY, Inside, Listener

CLAIM = "ncn-plasticity"
SMALL = (
    *("steps=16", "batch_tokens=128", "train.eval_tokens=512", "output.log_every=4", "device=cpu"),
    *("model.d_model=16", "model.n_heads=2", "model.d_control=8", "model.max_seq_len=16"),
    *("text.tokenizer=bytes", "corpus=stories?n_documents=40&n_val_documents=10"),
)
CAUSAL = {"causal": True, "causal_in_training": True, "checks": [{"name": "token_edits", "passed": True}]}
Outcome = tuple[running.Ran, Inside, Listener]


@dataclass
class Runner:
    """Runs a claim in a folder of the test."""

    base: Path
    claim: Claim
    common: tuple[str, ...] = ()

    def __call__(self, launch: Inside | None = None, **changes: Any) -> Outcome:
        launch, listener = launch or Inside(), Listener()
        given: dict[str, Any] = {"claim": self.claim, "results": self.base / "results", "folder": self.base / "runs"}
        given |= {"common": self.common, "seeds": 2, "at_once": 1, "factors": (), "baselines": False, "size": "small"}
        asked = Asked(**(given | changes))
        return running.run(asked, lambda words: wanted_sides(words, None), listener, launch), launch, listener

    def part(self) -> dict[str, Any]:
        """What is stored."""
        found = store.read(self.base / "results", self.claim.id)
        assert found is not None
        return found["parts"]["main"]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A real claim of three sides with two seeds; its certificate is real too, without the trial."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("homunculi.experiments.side_by_side._LOOK_SECONDS", 0.01)
        patch.setattr(certifying, "TRIAL_SECONDS", 0)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HOMUNCULI_CERTIFICATES", str(tmp_path_factory.mktemp("certificates")))
        base = tmp_path_factory.mktemp("ran")
        _, launch, _ = Runner(base, find(CLAIM), SMALL)()
        assert len(launch.folders) == 6
        yield base


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Claim:
    """A claim about plain transformers of a second."""
    path = tmp_path_factory.mktemp("recipes") / "tiny.py"
    path.write_text(TINY.replace("steps=24", "steps=8").replace("n_blocks=2", "n_blocks=1"))
    own = {"plain": "", "idea": ";model.d_mlp=32", "control": ";model.d_mlp=40"}
    plan = Plan(tuple(f"{name}={path}:tiny{words}" for name, words in own.items()), match=("tokens",))
    rule = beats("idea", over="plain", controls=("control",))
    return replace(find(CLAIM), id="toy", rule=rule, sizes={"small": (plan,), "medium": (plan,)})


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Certificates that are taken for granted, and no reports."""
    monkeypatch.setattr("homunculi.experiments.side_by_side._LOOK_SECONDS", 0.01)
    monkeypatch.setattr("homunculi.report.page.write_report", lambda run: None)
    monkeypatch.setattr(certifying, "make_certificate", lambda *model: dict(CAUSAL))


@pytest.fixture(scope="module")
def toy_ran(toy: Claim, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two seeds of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("homunculi.experiments.side_by_side._LOOK_SECONDS", 0.01)
        patch.setattr("homunculi.report.page.write_report", lambda run: None)
        patch.setattr(certifying, "make_certificate", lambda *model: dict(CAUSAL))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HOMUNCULI_CERTIFICATES", str(tmp_path_factory.mktemp("certificates")))
        base = tmp_path_factory.mktemp("toy")
        Runner(base, toy)()
        yield base


@pytest.fixture
def runner(toy: Claim, toy_ran: Path, tmp_path: Path, quick: None) -> Runner:
    """A copy of the toy's runs and result."""
    shutil.copytree(toy_ran, tmp_path / "base")
    return Runner(tmp_path / "base", toy)


@pytest.fixture
def fresh(toy: Claim, tmp_path: Path, quick: None) -> Runner:
    """The toy where nothing has been run."""
    return Runner(tmp_path / "fresh", toy)


def pairs(part: dict[str, Any]) -> list[tuple[str, int]]:
    return [(run["side"], run["seed"]) for run in part["runs"]]


def test_what_is_stored_is_enough_to_judge_by_and_holds_no_path(ran: Path) -> None:
    text = (ran / "results" / f"{CLAIM}.json").read_text()
    assert str(ran) not in text and len(text) < 40_000
    part = Runner(ran, find(CLAIM)).part()
    assert pairs(part) == [(name, seed) for name in ("off", "own", "shuffled") for seed in (0, 1)]
    for one in part["runs"]:
        assert one["tokens"] == [256 * k for k in range(1, 9)] and len(one["val_bpb"]) == 8 and one["stream"]
        assert one["statistics"]["signal/gain/mean"] == pytest.approx(1, abs=0.2)
    assert all(side["certificate"]["causal"] and not side["certificate"]["failed"] for side in part["sides"])
    assert part["sides"][1]["assignments"][-1] == "train.plasticity=own" and part["sides"][1]["config"]["steps"] == 16
    (origin,) = json.loads(text)["provenance"]
    assert origin["device"].startswith("cpu") and origin["versions"]["torch"] and origin["code"] and origin["date"]
    assert origin["command"].startswith("homunculi claims ncn-plasticity size=small steps=16") and origin["runs"]


def test_two_seeds_are_a_first_look(ran: Path) -> None:
    found = row(find(CLAIM), ran / "results")
    assert (found.finding.verdict, found.finding.n, found.size) == ("inconclusive", 2, "small")
    assert found.finding.low is not None and found.finding.high is not None
    assert found.finding.low <= (found.finding.difference or 0) <= found.finding.high


def test_what_is_stored_is_not_run_again(runner: Runner) -> None:
    before = (runner.base / "results" / "toy.json").read_bytes()
    shutil.rmtree(runner.base / "runs")
    outcome, launch, listener = runner()
    assert not launch.folders and not outcome.comparisons and "has all that is asked" in listener.messages[0]
    assert (runner.base / "results" / "toy.json").read_bytes() == before


def test_more_seeds_on_another_machine_add_up_to_the_same(runner: Runner, toy: Claim, tmp_path: Path) -> None:
    """There, with the stored result alone: only what it lacks is run, at its rates, to the same bits as here."""
    there = Runner(tmp_path / "there", toy)
    shutil.copytree(runner.base / "results", there.base / "results")
    _, launch, listener = there(seeds=4, factors=None)
    assert len(launch.folders) == 6 and any("learning rates are those" in text for text in listener.messages)
    _, launch, _ = runner(seeds=4)
    assert sorted(launch.folders) == [
        f"runs/{name}-s{seed}" for name in ("control", "idea", "plain") for seed in (2, 3)
    ]
    ours, theirs = runner.part(), there.part()
    assert pairs(ours) == pairs(theirs) and len(pairs(theirs)) == 12
    assert [run["val_bpb"] for run in ours["runs"]] == [run["val_bpb"] for run in theirs["runs"]]
    assert [run["stream"] for run in ours["runs"]] == [run["stream"] for run in theirs["runs"]]
    origins = (store.read(there.base / "results", "toy") or {})["provenance"]
    assert sorted(seed for _, seed in origins[1]["runs"]) == [2, 2, 2, 3, 3, 3]


def test_neither_the_order_of_assignments_nor_how_kernels_are_launched_makes_another_plan(fresh: Runner) -> None:
    words = ("output.log_every=4", "train.clip=0.5")
    fresh(common=words, seeds=2)
    fresh(common=(*reversed(words), "train.cuda_graphs=off"), seeds=3, folder=fresh.base / "later")
    assert len(pairs(fresh.part())) == 9


def test_a_first_seed_and_sides_may_be_named(fresh: Runner) -> None:
    _, launch, _ = fresh(first_seed=5, sides=("idea",))
    assert pairs(fresh.part()) == [("plain", 5), ("plain", 6), ("idea", 5), ("idea", 6)] and len(launch.folders) == 4
    fresh(first_seed=5, folder=fresh.base / "rest")
    assert len(pairs(fresh.part())) == 6  # the third side was added
    found = row(fresh.claim, fresh.base / "results").finding
    assert found.n == 2 and "no runs" not in found.reason


def test_what_another_process_stored_meanwhile_stays(runner: Runner) -> None:
    """Two calls with other seeds at the same time: the one that ends last adds to what the other wrote."""
    launch = Inside()

    def meanwhile(folder: Path) -> None:
        if len(launch.folders) == 1:
            runner(first_seed=4, folder=runner.base / "beside")

    launch.before = meanwhile
    runner(launch, first_seed=8, folder=runner.base / "later")
    assert {seed for _, seed in pairs(runner.part())} == {0, 1, 4, 5, 8, 9}


def test_another_plan_is_refused_before_anything_is_run(runner: Runner) -> None:
    before = (runner.base / "results" / "toy.json").read_bytes()
    for changes, field in (
        ({"common": ("steps=16",)}, 'common.steps is nothing there and "16" here'),
        ({"size": "medium"}, "size is"),
    ):
        launch = Inside()
        with pytest.raises(InputError, match=field):
            runner(launch, folder=runner.base / "other", **changes)
        assert not launch.folders and not (runner.base / "other").exists()
    with pytest.raises(InputError, match=r"lr of plain is 0\.02 there and 0\.001 here"):
        runner(folder=runner.base / "other", common=("lr=1e-3",), first_seed=7, factors=(1.0,), sides=("idea",))
    assert (runner.base / "results" / "toy.json").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": "huge"}, "size: toy runs at small, medium, not at huge"),
        ({"sides": ("none",)}, "--sides: toy has no side none; it has control, idea, plain"),
        ({"first_seed": -1}, "--first-seed: -1"),
        ({"seeds": 1}, "--seeds: 1"),
        ({"common": ("stepz=3",)}, "did you mean steps"),
    ],
)
def test_bad_wishes_are_one_line(changes: dict[str, Any], message: str, fresh: Runner) -> None:
    with pytest.raises(InputError) as refused:
        fresh(**changes)
    assert message in str(refused.value) and "\n" not in str(refused.value)
    assert not (fresh.base / "results").exists()


def test_a_plan_with_rates_of_its_own_tries_none_unasked_and_refuses_to(fresh: Runner) -> None:
    own = tuple(replace(plan, factors=()) for plan in fresh.claim.sizes["small"])
    fresh.claim = replace(fresh.claim, sizes={"small": own}, minutes={"small": 1.0})
    with pytest.raises(InputError, match="--tune: the sides of toy have the learning rates that it names"):
        fresh(factors=(0.5, 1.0))
    assert not (fresh.base / "results").exists()
    _, launch, _ = fresh(factors=None, sides=("idea",))
    assert len(launch.folders) == 4 and fresh.part()["tuning"] == [] and fresh.part()["factors"] == []
    tuned = replace(planned(), factors=[0.5, 1.0], sides=[side("plain", "gpt:small")])
    with pytest.raises(InputError, match="it tries learning rates, and the sides of the claim"):
        fitting(fresh.claim, tuned)


def test_a_claim_that_is_stopped_keeps_what_has_ended(fresh: Runner) -> None:
    launch = Inside()

    def stop(folder: Path) -> None:
        if len(launch.folders) == 5:
            raise Stopped("stopped", 75)

    launch.before = stop
    with pytest.raises(Stopped):
        fresh(launch)
    ended = pairs(fresh.part())
    assert {seed for _, seed in ended} == {0, 1} and 3 <= len(ended) < 6
    _, launch, _ = fresh()
    assert len(pairs(fresh.part())) == 6 and len(launch.folders) == 6 - len(ended)


def test_what_has_ended_is_kept_as_it_ends_and_enough_to_go_on_elsewhere(fresh: Runner, tmp_path: Path) -> None:
    """Broken off without a word, first in the trials and then in the runs; only the stored result is carried on."""
    undisturbed = Runner(tmp_path / "undisturbed", fresh.claim)
    _, whole, _ = undisturbed(factors=(0.5, 1.0))
    n_trials = sum("lr" in name for name in whole.folders)
    launched: list[str] = []
    for i, most in enumerate((2, n_trials, 3)):
        there, launch = Runner(tmp_path / f"machine-{i}", fresh.claim), Inside(most)
        if i:
            shutil.copytree(tmp_path / f"machine-{i - 1}" / "results", there.base / "results")
        with pytest.raises(KeyboardInterrupt):
            there(launch, factors=(0.5, 1.0))
        launched += launch.folders
    last = Runner(tmp_path / "last", fresh.claim)
    shutil.copytree(there.base / "results", last.base / "results")
    _, launch, _ = last(factors=None)
    ends = {(run["side"], run["seed"]): run["val_bpb"] for run in undisturbed.part()["runs"]}
    assert {(run["side"], run["seed"]): run["val_bpb"] for run in last.part()["runs"]} == ends and len(ends) == 6
    assert sorted([*launched, *launch.folders]) == sorted(whole.folders)  # everything once
    assert all(side["lr"] for side in last.part()["sides"])


def test_a_run_that_another_claim_has_is_taken_from_there(runner: Runner) -> None:
    """The other claim names its sides otherwise, and has one more."""
    path = runner.claim.sizes["small"][0].parsed[0].recipe
    plan = Plan((f"base={path}", f"wide={path};model.d_mlp=40", f"wider={path};model.d_mlp=48"), match=("tokens",))
    rule = beats("wide", over="base")
    other = replace(runner.claim, id="other", rule=rule, sizes={"small": (plan,)}, minutes={"small": 1.0})
    _, launch, _ = runner(claim=other, folder=runner.base / "others-runs", seeds=3)
    assert sorted(launch.folders) == ["runs/base-s2", "runs/wide-s2", *(f"runs/wider-s{seed}" for seed in (0, 1, 2))]
    stored = store.read(runner.base / "results", "other")
    assert stored is not None
    taken = {
        (run["side"], run["seed"]): run["taken"]["id"] for run in stored["parts"]["main"]["runs"] if "taken" in run
    }
    assert taken == {(side, seed): "toy" for side in ("base", "wide") for seed in (0, 1)}
    ends = {(run["side"], run["seed"]): run["val_bpb"] for run in stored["parts"]["main"]["runs"]}
    for run in runner.part()["runs"]:
        if run["side"] != "idea":
            assert ends[{"plain": "base", "control": "wide"}[run["side"]], run["seed"]] == run["val_bpb"]
    shown = row(other, runner.base / "results")
    assert "runs taken from other claims: 4" in shown.notes and shown.devices[0].startswith("cpu")
    assert (runner.base / "others-runs" / "report.html").exists()
    assert len(stored["provenance"]) == 1 and len(stored["provenance"][0]["runs"]) == 5


def test_another_code_or_text_is_another_run(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    other = replace(runner.claim, id="other")
    monkeypatch.setattr("homunculi.experiments.archive._code_hash", lambda: "another")
    _, launch, _ = runner(claim=other, folder=runner.base / "others-runs")
    assert len(launch.folders) == 6
    assert not any(
        "taken" in run for run in (store.read(runner.base / "results", "other") or {})["parts"]["main"]["runs"]
    )


def test_claims_side_by_side_train_once_what_they_share(fresh: Runner) -> None:
    second = replace(fresh.claim, id="second")
    launch, listener = Inside(), Listener()
    options = {"results": fresh.base / "results", "seeds": 2, "at_once": 1, "factors": (), "baselines": False}
    wishes = [
        Asked(claim=claim, folder=fresh.base / claim.id, size="small", **options) for claim in (fresh.claim, second)
    ]
    found = running.run_together(wishes, lambda words: wanted_sides(words, None), listener, launch)
    assert len(launch.folders) == 6 and [len(ran.comparisons[0].runs) for ran in found] == [6, 6]
    ours, theirs = (store.read(fresh.base / "results", name) for name in ("toy", "second"))
    assert ours is not None and theirs is not None
    assert [run["val_bpb"] for run in ours["parts"]["main"]["runs"]] == [
        run["val_bpb"] for run in theirs["parts"]["main"]["runs"]
    ]
    assert any(text.startswith("second: ") for text in listener.messages)


def test_a_side_that_is_not_causal_decides_nothing(fresh: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = {"name": "token_edits", "passed": False, "value": 1.0, "limit": 1e-9}
    leaky = {"causal": False, "causal_in_training": False, "checks": [failed]}
    monkeypatch.setattr(certifying, "make_certificate", lambda *model: dict(leaky))
    outcome, launch, _ = fresh()
    assert not launch.folders and outcome.comparisons[0].refused
    found = row(fresh.claim, fresh.base / "results").finding
    assert found.verdict == "inconclusive" and "not causal (token_edits)" in found.reason


def test_claims_that_train_nothing_are_left_as_they_are(fresh: Runner) -> None:
    for name in ("ncn-overhead", "ncn-kv"):
        outcome, launch, _ = fresh(claim=find(name))
        assert outcome.stored is None and not launch.folders and not (fresh.base / "results").exists()


# Comparisons that exist already.


def test_a_comparison_that_exists_becomes_a_result(ran: Path, tmp_path: Path) -> None:
    keep_folder(find(CLAIM), ran / "runs", tmp_path)
    ours, theirs = store.read(ran / "results", CLAIM), store.read(tmp_path, CLAIM)
    assert ours is not None and theirs is not None and theirs["parts"] == ours["parts"]
    assert {key: theirs[key] for key in ("size", "common")} == {key: ours[key] for key in ("size", "common")}
    before = (tmp_path / f"{CLAIM}.json").read_bytes()
    keep_folder(find(CLAIM), ran / "runs", tmp_path)
    assert (tmp_path / f"{CLAIM}.json").read_bytes() == before


def test_a_comparison_of_something_else_is_refused(ran: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is no comparison of ncn-homeostasis: its first side is off and not free"):
        keep_folder(find("ncn-homeostasis"), ran / "runs", tmp_path)
    with pytest.raises(InputError, match=r"has no comparison\.json"):
        keep_folder(find(CLAIM), tmp_path, tmp_path)


def side(name: str, recipe: str, *assignments: str) -> Side:
    return Side(name, recipe, list(assignments), {}, {}, {}, {})


def planned(*sides: Side, match: tuple[str, ...] = ("parameters", "tokens")) -> Comparison:
    return Comparison(Path("somewhere"), list(match), [0, 1], [], list(sides))


def test_the_plan_that_a_comparison_followed_is_found() -> None:
    shape = "model.n_blocks=6", "model.d_model=96", "model.n_heads=2"
    sides = [side(name, f"{name}:small", "steps=8", "seed=3", *shape) for name in ("gpt", "ncn")]
    size, plan, common = fitting(find("ncn-scaling"), planned(*sides))
    assert (size, plan.name, common) == ("small", "d96", ["steps=8"])


OWN = "model.n_blocks=6", "model.plasticity=gain"
OFF = side("off", "ncn:small", *OWN, "train.plasticity=off")
MISFITS = {
    "it matches flops": planned(OFF, match=("flops",)),
    "it has a side more": planned(OFF, side("more", "ncn:small")),
    "recipe of own is ncn:large": planned(OFF, side("own", "ncn:large", *OWN, "train.plasticity=own")),
    "own is not own=ncn:small": planned(OFF, side("own", "ncn:small", "train.plasticity=own")),
    "different assignments": planned(OFF, side("own", "ncn:small", "lr=1", "steps=9", *OWN, "train.plasticity=own")),
}


@pytest.mark.parametrize("why", MISFITS)
def test_how_a_comparison_differs_from_a_claim_is_said(why: str) -> None:
    with pytest.raises(InputError, match=r"somewhere: is no comparison of ncn-plasticity: ") as refused:
        fitting(find(CLAIM), MISFITS[why])
    assert why in str(refused.value)


# The price of a look ahead.


def windows(length: int = 24) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 16, (12, length + 1))


def test_a_causal_model_pays_nothing_for_reading_prefixes() -> None:
    torch.manual_seed(0)
    model = build("gpt", vocab_size=16, d_model=16, n_blocks=2, n_heads=2, max_seq_len=24).eval()
    whole_N, prefix_N = leak.both_ways(model, windows())
    assert whole_N.shape == (12,) and np.abs(whole_N - prefix_N).max() < 1e-5


def test_a_model_that_reads_ahead_is_found_to_lose_by_reading_prefixes() -> None:
    """The next token's logit is raised by what later tokens are, so an honest reading cannot be as good."""

    class Ahead(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(5.0))

        def forward(self, ids_BT: torch.Tensor) -> Any:
            later_BT = torch.cat([ids_BT[:, 1:], ids_BT[:, -1:]], 1)
            return type("Output", (), {"logits": self.scale * torch.nn.functional.one_hot(later_BT, 16)})

    ahead: Any = Ahead()
    whole_N, prefix_N = leak.both_ways(ahead, windows())
    assert (prefix_N - whole_N > 1).all()


def test_the_published_form_is_trained_beside_a_comparison_and_measured_both_ways(ran: Path, tmp_path: Path) -> None:
    comparison, listener = read(ran / "runs"), Listener()
    found = leak.price_of_leak(comparison, tmp_path, listener)
    assert found["causal"] is False and "token_edits" in found["failed"] and found["steps"] == 16
    assert len(found["differences"]) == leak.N_WINDOWS and 1 < found["whole"] < 8
    assert found["prefix"] - found["whole"] == pytest.approx(np.mean(found["differences"]), abs=1e-5)
    assert any("is not ranked" in text for text in listener.messages)
    again = leak.price_of_leak(comparison, tmp_path, Listener())  # the run that is there is taken
    assert again["differences"] == found["differences"]


def test_a_further_measurement_is_stored_once(runner: Runner) -> None:
    calls: list[Path] = []

    def measure(comparison: Comparison, folder: Path, reporter: object) -> dict[str, Any]:
        calls.append(folder)
        return {"differences": [0.1] * 3}

    claim = replace(runner.claim, beside={"leak": measure})
    runner(claim=claim, seeds=3)
    runner(claim=claim, seeds=4)
    stored = store.read(runner.base / "results", "toy")
    assert stored is not None and stored["measured"] == {"leak": {"differences": [0.1] * 3}}
    assert calls == [runner.base / "runs"]
    _, launch, listener = runner(claim=replace(claim, beside={"more": measure}), seeds=4)  # all runs are there
    assert not launch.folders and calls == [runner.base / "runs"] * 2
    _, _, listener = runner(claim=replace(claim, beside={"again": measure}), seeds=4, folder=runner.base / "gone")
    assert len(calls) == 2 and any("again is not measured" in text for text in listener.messages)
