"""Comparisons of runs of a second: what they show, what they refuse, and how they go on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from homunculi.cli.compare import wanted_sides
from homunculi.errors import InputError
from homunculi.experiments import certifying
from homunculi.experiments.compare import Request, compare
from homunculi.experiments.comparison import RECORD, Comparison, read, written
from homunculi.models import architecture, registry
from homunculi.models.gpt import GPT, Config
from tests.experiments.inside import TINY, Inside, Listener

WIDE = ["corpus=stories?n_documents=40&n_val_documents=10"]
made: dict[str, dict[str, Any]] = {}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fleets that look more often, and each certificate once for all tests, without training on random tokens."""
    monkeypatch.setattr("homunculi.experiments.side_by_side._LOOK_SECONDS", 0.01)
    monkeypatch.setattr(certifying, "TRIAL_SECONDS", 0)
    certify = certifying.make_certificate

    def once(model: Any) -> dict[str, Any]:
        key = repr(model)
        if key not in made:
            made[key] = certify(model)
        return dict(made[key])

    monkeypatch.setattr(certifying, "make_certificate", once)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("recipes") / "tiny.py"
    path.write_text(TINY)
    return str(path)


@dataclass
class Maker:
    """Compares sides, given as on the command line, in a folder of the test."""

    recipe: str
    folder: Path

    def __call__(self, *words: str, launch: Inside | None = None, **options: Any) -> Comparison:
        folder = options.pop("folder", self.folder / "comparison")
        spelled = [word.replace("TINY", f"{self.recipe}:tiny") for word in words]
        chosen = {"seeds": 2, "match": ("tokens",), "factors": (), "baselines": False, "at_once": 1} | options
        self.listener = Listener()
        request = Request(sides=wanted_sides(spelled, folder), folder=folder, **chosen)
        return compare(request, self.listener, launch or Inside())


@pytest.fixture
def make(tiny: str, tmp_path: Path) -> Maker:
    return Maker(tiny, tmp_path)


@pytest.fixture(scope="module")
def finished(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A comparison of two seeds, to be copied."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("homunculi.experiments.side_by_side._LOOK_SECONDS", 0.01)
        patch.setattr(certifying, "TRIAL_SECONDS", 0)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HOMUNCULI_CERTIFICATES", str(tmp_path_factory.mktemp("certificates")))
        maker = Maker(tiny, tmp_path_factory.mktemp("finished"))
        maker("a=TINY", "b=TINY;model.d_mlp=32", match=("tokens",))
        yield maker.folder / "comparison"


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "comparison")
    return tmp_path / "comparison"


A_AND_B = ("a=TINY", "b=TINY;model.d_mlp=32")


def test_a_recipe_against_itself_shows_nothing(make: Maker) -> None:
    found = make("TINY", "TINY")
    assert [side.name for side in found.sides] == ["tiny", "tiny-2"]
    (pair,) = found.to_json()["pairs"]
    assert pair["differences"] == [0.0, 0.0] and pair["verdict"] == "no difference shown"
    assert any("are the same model" in line for line in make.listener.plans)
    streams = {seed: {run["stream"] for run in found.runs if run["seed"] == seed} for seed in (0, 1)}
    assert len(streams[0]) == 1 and streams[0].isdisjoint(streams[1])


def test_a_side_with_other_initial_weights_reads_the_same_batches(make: Maker) -> None:
    found = make("TINY", "again=TINY;seed=100")
    (pair,) = found.to_json()["pairs"]
    assert all(pair["differences"]) and len(found.runs) == 4 and not found.refused


def test_a_crippled_side_is_found_worse(make: Maker) -> None:
    found = make("TINY", "crippled=TINY;lr=1e-6", seeds=3)
    (pair,) = found.to_json()["pairs"]
    assert pair["verdict"] == "worse" and pair["low"] > 0 and pair["n"] == 3
    assert pair["area"]["verdict"] == "worse" and len(pair["points"]) == 8
    assert written(found)[0].startswith("crippled is worse than tiny: +")
    assert (found.folder / "report.html").read_text().count("crippled") > 3


def test_budgets_are_made_equal_and_the_runs_follow_the_plan(make: Maker) -> None:
    found = make("TINY", "narrow=TINY;model.d_mlp=16;steps=12", match=("parameters", "tokens"), seeds=2)
    assert found.sides[1].changes["steps"] == "24" and found.sides[1].ratios["parameters"] == pytest.approx(1, abs=0.01)
    config = json.loads((found.folder / "runs/narrow-s1/run.json").read_text())["config"]
    assert config["steps"] == 24 and (config["seed"], config["data_seed"]) == (1, 1)
    assert {tuple(run["tokens"]) for run in found.runs} == {tuple(range(768, 6145, 768))}


def test_each_side_gets_its_learning_rate_with_the_same_budget(make: Maker) -> None:
    """The rates of one side lie below the best one, so the grid grows for all."""
    found = make("TINY", "low=TINY;lr=1e-3", factors=(0.5, 1.0))
    rates = {
        side.name: [entry["factor"] for entry in found.tuning if entry["side"] == side.name] for side in found.sides
    }
    assert rates["tiny"] == rates["low"] and len(rates["low"]) > 2 and max(rates["low"]) > 1
    for side in found.sides:
        own = {entry["lr"]: entry["val_bpb"] for entry in found.tuning if entry["side"] == side.name}
        assert side.lr == min(own, key=lambda lr: own[lr])
        config = json.loads((found.folder / f"runs/{side.name}-s0/run.json").read_text())["config"]
        assert config["lr"] == side.lr
    trial = json.loads((found.folder / found.tuning[0]["run"] / "run.json").read_text())["config"]
    assert trial["steps"] == 6 and trial["data_seed"] not in found.seeds
    assert {entry["tokens"] for entry in found.tuning} == {6 * 256}


@pytest.fixture
def leaky() -> Iterator[type]:
    """A registered architecture whose tokens see the mean of all."""
    config = type("LeakyConfig", (Config,), {"__slots__": ()})

    @architecture("leaky_toy", config)
    class Leaky(GPT):
        def trunk(self, ids_BT: Tensor, *more: Any, **others: Any) -> Any:
            hidden = super().trunk(ids_BT, *more, **others)
            return replace(hidden, x_BTD=hidden.x_BTD + hidden.x_BTD.mean(1, keepdim=True))

    yield config
    del registry._REGISTERED["leaky_toy"]


def test_a_side_that_looks_ahead_is_refused_and_the_others_are_ranked(
    make: Maker, leaky: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides = wanted_sides([f"{make.recipe}:tiny", f"b={make.recipe}:tiny;lr=1e-6"], None)
    shape = {"d_model": 16, "n_blocks": 2, "n_heads": 2, "max_seq_len": 32}
    sides.insert(0, replace(sides[0], name="peeks", config=replace(sides[0].config, model=leaky(**shape))))
    launch = Inside()
    folder = make.folder / "comparison"
    request = Request(sides=sides, seeds=2, match=("tokens",), factors=(), baselines=False, folder=folder, at_once=1)
    found = compare(request, Listener(), launch)
    (refused,) = found.refused
    assert refused["run"] == "peeks" and refused["reason"].startswith("not causal: token_edits")
    assert not any("peeks" in name for name in launch.folders) and len(launch.folders) == 4
    assert [(pair["a"], pair["b"], pair["verdict"]) for pair in found.to_json()["pairs"]] == [("tiny", "b", "worse")]
    assert found.sides[0].certificate and found.sides[0].certificate["causal"] is False
    assert any("peeks is not ranked: not causal" in line for line in written(found))


def test_nothing_is_trained_for_one_side_alone(make: Maker, leaky: type) -> None:
    (side,) = wanted_sides([f"{make.recipe}:tiny"], None)
    shape = {"d_model": 16, "n_blocks": 2, "n_heads": 2, "max_seq_len": 32}
    peeks = replace(side, name="peeks", config=replace(side.config, model=leaky(**shape)))
    launch = Inside()
    found = compare(Request(sides=[side, peeks], seeds=2, folder=make.folder / "c"), Listener(), launch)
    assert not launch.folders and not found.runs and len(found.refused) == 1
    assert (make.folder / "c" / "report.html").exists()


def test_a_side_that_cannot_be_certified_is_refused(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_down(model: Any, *more: Any, **others: Any) -> None:
        raise RuntimeError("no forward\nin sight")

    monkeypatch.undo()
    monkeypatch.setattr(certifying, "certify", break_down)
    found = make("a=TINY", "b=TINY;model.d_mlp=32", launch=Inside(0))
    assert [one["reason"] for one in found.refused] == [
        "not causal: it could not be certified (RuntimeError: no forward)"
    ] * 2


def test_a_finished_comparison_trains_and_certifies_nothing_again(
    make: Maker, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = json.loads((copy / RECORD).read_text())
    monkeypatch.setattr(certifying, "make_certificate", lambda model: pytest.fail("certified again"))
    found = make(launch=Inside(0), seeds=None, match=None, factors=None)
    assert found.runs == before["runs"] and found.to_json()["pairs"] == before["pairs"]
    assert make(*A_AND_B, launch=Inside(0)).runs == before["runs"]


def test_more_seeds_and_another_side_add_to_it(make: Maker, copy: Path) -> None:
    launch = Inside()
    found = make(*A_AND_B, launch=launch, seeds=3)
    assert launch.folders == ["runs/a-s2", "runs/b-s2"] and found.to_json()["pairs"][0]["n"] == 3
    launch = Inside()
    found = make("c=TINY;model.d_mlp=40", launch=launch, seeds=None)
    assert launch.folders == ["runs/c-s0", "runs/c-s1", "runs/c-s2"]
    assert [(pair["a"], pair["b"], pair["n"]) for pair in found.to_json()["pairs"]] == [("a", "b", 3), ("a", "c", 3)]


def test_a_comparison_broken_off_at_any_run_ends_with_the_same_bits(make: Maker, finished: Path) -> None:
    undisturbed = json.loads((finished / RECORD).read_text())
    for most in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            make(*A_AND_B, launch=Inside(most))
    assert [entry["run"] for entry in read(make.folder / "comparison").runs] == ["runs/a-s0", "runs/b-s0", "runs/a-s1"]
    launch = Inside()
    found = make(launch=launch, seeds=None, match=None, factors=None)
    assert launch.folders == ["runs/b-s1"]
    kept = ("side", "seed", "tokens", "val_loss", "val_bpb", "stream", "sample")
    assert [{key: run[key] for key in kept} for run in found.runs] == [
        {key: run[key] for key in kept} for run in undisturbed["runs"]
    ]


@pytest.mark.parametrize(
    ("words", "options", "named"),
    [
        (("a=TINY;steps=20", "b=TINY;model.d_mlp=32"), {}, "a was planned with steps=24 and now has 20"),
        (("a=TINY", "b=TINY;model.d_mlp=40"), {}, "b was planned with model.d_mlp=32 and now has 40"),
        (A_AND_B, {"match": ("parameters", "tokens")}, "--match tokens and now has parameters,tokens"),
        (A_AND_B, {"factors": (1.0,)}, "--tune nothing and now has 1.0"),
        (A_AND_B, {"seeds": 1}, "--seeds: 1"),
        (("b=TINY;model.d_mlp=32", "a=TINY"), {}, "compares with a"),
    ],
)
def test_another_plan_for_the_folder_is_refused(
    words: tuple[str, ...], options: dict[str, Any], named: str, make: Maker, copy: Path
) -> None:
    before = (copy / RECORD).read_bytes()
    with pytest.raises(InputError, match=named):
        make(*words, launch=Inside(0), **options)
    assert (copy / RECORD).read_bytes() == before


def test_fewer_seeds_than_have_begun_are_refused(make: Maker, copy: Path) -> None:
    make(*A_AND_B, seeds=3)
    with pytest.raises(InputError, match="3 have begun"):
        make(*A_AND_B, seeds=2)


def test_a_text_that_changed_is_refused(make: Maker, tmp_path: Path) -> None:
    text = tmp_path / "corpus.txt"
    text.write_text("red green blue over under " * 400)
    words = [f"a=TINY;corpus={text}", f"b=TINY;corpus={text};model.d_mlp=32"]
    with pytest.raises(KeyboardInterrupt):
        make(*words, launch=Inside(1))
    text.write_text("red green blue under over " * 400)
    with pytest.raises(InputError, match="is not the text that"):
        make(*words)


def test_a_run_of_other_batches_is_not_ranked(make: Maker, copy: Path) -> None:
    """As if the text had changed while the comparison ran."""
    events = copy / "runs/b-s1/events.jsonl"
    lines = [json.loads(line) for line in events.read_text().splitlines()]
    lines[-1]["stream_hash"] = "0" * 64
    events.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = make(*A_AND_B)
    assert [one["run"] for one in found.refused] == ["runs/b-s1"]
    assert "the corpus or the code changed between runs" in found.refused[0]["reason"]
    (pair,) = found.to_json()["pairs"]
    assert pair["n"] == 1 and pair["verdict"] is None


def test_a_folder_that_holds_another_run_is_left_alone(make: Maker, copy: Path) -> None:
    shutil.rmtree(copy / "runs/b-s0")
    shutil.copytree(copy / "runs/a-s0", copy / "runs/b-s0")
    with pytest.raises(InputError, match=r"b-s0: was trained with model\.d_mlp=0, this comparison needs 32"):
        make(*A_AND_B)


def test_a_diverged_run_counts_against_its_side_and_is_not_tried_again(make: Maker) -> None:
    found = make("a=TINY", "b=TINY;lr=1e30")
    assert {(one["side"], one["seed"], one["state"]) for one in found.failed} == {
        ("b", 0, "diverged"),
        ("b", 1, "diverged"),
    }
    assert all("loss" in one["reason"] for one in found.failed)
    assert any(line.startswith("b: 2 of 2 runs diverged") for line in written(found))
    (pair,) = found.to_json()["pairs"]
    assert pair["n"] == 0 and pair["verdict"] is None
    assert len(make(launch=Inside(0), seeds=None, match=None, factors=None).failed) == 2


def test_count_models_read_what_the_first_run_read(make: Maker, copy: Path) -> None:
    found = make(*A_AND_B, baselines=None)
    assert {"bigram", "unigram cache", "kneser-ney 3"} <= {entry["name"] for entry in found.baselines}
    assert all(1 < entry["val_bpb"] < 8 for entry in found.baselines)


@pytest.mark.parametrize(
    ("words", "options", "named"),
    [
        (("TINY",), {}, "at least two recipes"),
        (("TINY", "TINY"), {"seeds": 1}, "--seeds: 1 shows no spread"),
        (("TINY", "b=TINY;batch_tokens=512"), {}, "batch_tokens: 256 on side 1 and 512 on side 2"),
        (("TINY", "b=TINY;data_seed=5"), {}, "data_seed"),
        (("TINY", "b=TINY;model.vocab_size=300"), {}, "model.vocab_size: 257 on side 1 and 300 on side 2"),
        (("TINY", "b=TINY;eval_every=5"), {}, "eval_every"),
        (("TINY", "b=TINY;model.d_model=512"), {"match": ("parameters",)}, "comes within 1 %"),
        (("TINY", "TINY"), {"match": ("weights",)}, "match: weights"),
        (("TINY", "TINY"), {"factors": (0.5, -1.0)}, "--tune: -1.0"),
        (("TINY", "TINY", "corpus="), {}, "corpus=PATH"),
        (("TINY", "TINY"), {"at_once": -1}, "--at-once: -1"),
        (("TINY", "TINY"), {"device": "tpu"}, "device: tpu"),
        (("TINY", "b=TINY;device=auto"), {}, "device: sides name auto and cpu"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_trained(
    words: tuple[str, ...], options: dict[str, Any], named: str, make: Maker
) -> None:
    with pytest.raises(InputError, match=named) as refused:
        make(*words, launch=Inside(0), **options)
    assert "\n" not in str(refused.value)
    assert not (make.folder / "comparison" / RECORD).exists()


def test_a_second_process_is_kept_out(make: Maker, copy: Path) -> None:
    def again(folder: Path) -> None:
        with pytest.raises(InputError, match="another process is working on it"):
            make(*A_AND_B, launch=Inside(0), seeds=3)

    launch = Inside(before=again)
    make(*A_AND_B, launch=launch, seeds=3)
    assert len(launch.folders) == 2


def test_the_record_holds_what_makes_the_runs_again(copy: Path) -> None:
    record = json.loads((copy / RECORD).read_text())
    assert record["format"] == 1 and record["metric"] == "val/bpb" and record["seeds"] == [0, 1]
    for side in record["sides"]:
        assert {"name", "recipe", "assignments", "changes", "config", "budget", "ratios", "lr", "certificate"} <= set(
            side
        )
        assert side["certificate"]["causal"] is True and side["lr"] == 0.02
    assert record["provenance"]["versions"]["torch"] == torch.__version__
    assert {run["run"] for run in record["runs"]} == {f"runs/{side}-s{seed}" for side in "ab" for seed in (0, 1)}
    assert all((copy / run["run"] / "report.html").exists() and run["sample"] for run in record["runs"])
