"""`homunculi ablate` and `homunculi scale` as a person types them: what they print, how they end, what they refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from homunculi.experiments import certifying
from homunculi.experiments import compare as plans
from homunculi.experiments import scale as ladders
from tests.experiments.inside import Inside

Cli = Callable[..., Any]
QUICK = ["--no-tune", "--at-once", "1", "--seeds", "2"]


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> Inside:
    """Runs in this process; what may be ranked is tested elsewhere."""
    launch, whole = Inside(), plans.compare
    monkeypatch.setattr("homunculi.experiments.side_by_side._LOOK_SECONDS", 0.01)
    monkeypatch.setattr(certifying, "make_certificate", lambda certified: {"causal": True, "checks": []})
    monkeypatch.setattr(plans, "compare", lambda request, reporter: whole(request, reporter, launch))
    monkeypatch.setattr(ladders, "compare", lambda request, reporter, _: whole(request, reporter, launch))
    return launch


def test_an_ablation_is_one_object_and_the_same_command_goes_on(
    cli: Cli, recipe: str, inside: Inside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOMUNCULI_RUNS", str(tmp_path))
    words = ["ablate", recipe, "qk_norm", "model.qk_norm=true", "steps=4", "--how", "removed", *QUICK]
    done = cli(*words, "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    (found,) = result["parts"]
    assert (found["part"], found["how"], found["n"]) == ("qk_norm", "removed", 2) and found["low"] <= found["high"]
    assert found["verdict"] in ("helps", "harms", "no difference shown")
    assert result["left_out"] == {} and len(result["runs"]) == 4 and result["pairs"][0]["a"] == "whole"
    assert result["verdicts"][0].startswith("qk_norm: removing it ")
    assert Path(result["folder"]).parent == tmp_path and "comparison.json" in {
        path.name for path in Path(result["folder"]).iterdir()
    }
    again = cli(*words)
    assert again.code == 0 and len(inside.folders) == 4
    lines = again.out.strip().splitlines()
    assert lines[0] == result["verdicts"][0] and lines[-1] == result["folder"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["gate"], "gate: no such part of gpt as configured; did you mean gating? it has gating"),
        (["gating", "--how", "frozen"], "--how: frozen is no way to do without a part"),
        (["gating", "--how", "neutral"], "gating: cannot be neutral; there are gating (removed)"),
        (["model.activation=gelu"], "gpt: has no part that can be taken out as it is configured"),
        (["gating", "--tune", "a"], "--tune: a is no list of numbers"),
        (["gating", "--seeds", "1"], "--seeds: 1 shows no spread"),
        (["train.interventions=steps.0.mlp.uot=shuffled"], "tap steps.0.mlp.uot: no such tap; near: steps.0.mlp.out"),
    ],
)
def test_what_cannot_be_ablated_is_said_in_one_line(
    cli: Cli, recipe: str, words: list[str], said: str, tmp_path: Path
) -> None:
    done = cli("ablate", recipe, *words, "--folder", tmp_path / "c")
    assert done.code == 2 and said in done.err.splitlines()[-1], done.err
    assert not (tmp_path / "c" / "comparison.json").exists()


def test_a_run_with_a_tap_that_does_not_exist_ends_before_training(cli: Cli, recipe: str, tmp_path: Path) -> None:
    done = cli("train", recipe, "train.interventions=steps.0.mlp.uot=shuffled", "--run", tmp_path / "r")
    assert done.code == 2 and "tap steps.0.mlp.uot: no such tap; near: steps.0.mlp.out" in done.err
    assert not (tmp_path / "r" / "metrics.jsonl").exists()


def test_a_run_with_changed_signals_says_so_and_is_neither_sampled_nor_exported(
    cli: Cli, recipe: str, tmp_path: Path
) -> None:
    run = tmp_path / "r"
    done = cli("train", recipe, "steps=2", "train.interventions=steps.*.mlp.out=shuffled", "--run", run)
    assert done.code == 0 and "changed      signals, in training and in every evaluation: steps.*.mlp.out" in done.err
    sampled = cli("sample", run)
    assert sampled.code == 2 and "no cache and so no samples: a shuffled signal" in sampled.err
    exported = cli("export", run, tmp_path / "hf", "--to", "hf")
    assert exported.code == 2 and "trained with train.interventions" in exported.err
    assert not (tmp_path / "hf").exists()


def test_a_ladder_is_one_object_with_laws_and_a_trend(cli: Cli, recipe: str, inside: Inside, tmp_path: Path) -> None:
    sizes = ["--sizes", "0.25,1,2.25,4", "--folder", tmp_path / "l"]
    words = ["scale", recipe, f"against={recipe}", "model.n_blocks=1", "steps=2", "eval_every=2", *sizes, *QUICK]
    done = cli(*words, "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert (result["baseline"], result["recipe"]) == ("tiny", "tiny-again")
    assert [size["factor"] for size in result["sizes"]] == [0.25, 1, 2.25, 4]
    assert [one["law"]["n"] for one in result["laws"]] == [8, 8]
    assert result["trend"]["verdict"] in ("no trend shown", "narrows", "widens", "changes sign")
    assert "a doubling" in result["verdicts"][0] and len(inside.folders) == 16
    assert "size        ×0.25" in done.err and (tmp_path / "l" / "report.html").exists()
    again = cli(*words)
    assert again.code == 0 and len(inside.folders) == 16
    assert again.out.strip().splitlines()[-2:] == [f"report {tmp_path / 'l' / 'report.html'}", str(tmp_path / "l")]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sizes", "0.5,1,2"], "--sizes: 3 different sizes show no law; give at least 4"),
        (["--sizes", "a,b"], "--sizes: a,b is no list of numbers"),
        (["blocks"], "blocks: expected key=value, or against=RECIPE"),
        (["--against", "none"], "none: no such recipe"),
    ],
)
def test_what_makes_no_ladder_is_said_in_one_line(cli: Cli, words: list[str], said: str) -> None:
    done = cli("scale", "gpt:small", *words)
    assert done.code == 2 and said in done.err.splitlines()[-1], done.err


def test_without_a_plain_recipe_of_its_name_a_baseline_is_asked_for(cli: Cli, recipe: str) -> None:
    done = cli("scale", recipe)
    assert done.code == 2 and "the default baseline of" in done.err and "--against RECIPE" in done.err


def test_ablations_and_ladders_can_be_certified_alone(cli: Cli, recipe: str, inside: Inside, tmp_path: Path) -> None:
    words = ["ablate", recipe, "qk_norm", "model.qk_norm=true", "--how", "removed", "--folder", tmp_path / "a"]
    done = cli(*words, *QUICK, "--certify-only", "--json")
    assert done.code == 0, done.err
    assert [row["side"] for row in json.loads(done.out)["certificates"]] == ["whole", "qk_norm-removed"]
    words = ["scale", recipe, f"against={recipe}", "model.d_model=32", "--sizes", "0.5,1,2,4"]
    words += ["--folder", tmp_path / "s"]
    done = cli(*words, *QUICK, "--certify-only")
    assert done.code == 0, done.err
    assert [line.split(" (")[0] for line in done.out.splitlines()][:2] == [
        "size-0.5 tiny: causal",
        "size-0.5 tiny-again: causal",
    ]
    assert len(done.out.splitlines()) == 8 and not inside.folders
    assert not (tmp_path / "a").exists() and not (tmp_path / "s").exists()
