"""Each verb does what it promises and prints what a program can read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from homunculi.cli.recipes import load_recipe
from homunculi.models import names
from homunculi.runs.directory import open_run

Cli = Callable[..., Any]


def test_train_ends_with_the_path_of_the_run(cli: Cli, recipe: str, tmp_path: Path) -> None:
    done = cli("train", recipe, "steps=4", "--run", tmp_path / "run")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[-1] == str(tmp_path / "run")
    assert (tmp_path / "run" / "report.html").read_text().startswith("<!doctype html>")
    assert lines[-2].endswith("report.html")
    plan = done.err.index("parameters")
    assert plan < done.err.index("step 4/4"), "the plan is printed before the first step"


def test_train_as_json(cli: Cli, recipe: str, tmp_path: Path) -> None:
    done = cli("train", recipe, "steps=4", "model.n_heads=4", "--run", tmp_path / "run", "--json")
    found = json.loads(done.out)
    promised = {
        "run",
        "architecture",
        "parameters",
        "steps",
        "tokens",
        "train_loss",
        "val_loss",
        "val_bpb",
        "tokens_per_s",
    }
    assert promised <= found.keys()
    assert (found["steps"], found["tokens"], found["architecture"]) == (4, 1024, "gpt")
    info = open_run(tmp_path / "run").info()
    assert info["config"]["model"]["n_heads"] == 4
    assert info["overrides"] == {"steps": 4, "model.n_heads": 4}
    assert str(tmp_path) not in info["command"].replace(recipe, "")


def test_runs_go_where_the_environment_says(
    cli: Cli, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOMUNCULI_RUNS", str(tmp_path / "mine"))
    done = cli("train", recipe, "steps=2")
    assert Path(done.out.splitlines()[-1]).parent == tmp_path / "mine"
    listed = json.loads(cli("list", "runs", "--json").out)["runs"]
    assert [(run["state"], run["step"]) for run in listed] == [("done", 2)]


def test_resume_of_a_finished_run_does_nothing(cli: Cli, finished: Path) -> None:
    before = (finished / "metrics.jsonl").read_bytes()
    done = cli("resume", finished, "--json")
    assert done.code == 0 and json.loads(done.out)["steps"] == 8
    assert (finished / "metrics.jsonl").read_bytes() == before


def test_resume_starts_a_run_that_died_before_its_first_checkpoint(cli: Cli, finished: Path, tmp_path: Path) -> None:
    dead = tmp_path / "dead"
    dead.mkdir()
    (dead / "run.json").write_bytes((finished / "run.json").read_bytes())
    done = cli("resume", dead, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["val_loss"] == json.loads(cli("resume", finished, "--json").out)["val_loss"]


def test_sample_continues_a_prompt_and_repeats_with_its_seed(cli: Cli, finished: Path) -> None:
    words = ("sample", finished, "--prompt", "red ", "--tokens", "12", "--json")
    first, again, other = cli(*words), cli(*words), cli(*words, "--seed", "1")
    text = json.loads(first.out)["text"]
    assert text.startswith("red ") and first.out == again.out
    assert json.loads(other.out)["text"] != text
    greedy = [cli(*words, "--temperature", "0", "--seed", seed).out for seed in "12"]
    assert json.loads(greedy[0])["text"] == json.loads(greedy[1])["text"]


def test_certify_an_architecture_and_a_run(cli: Cli, finished: Path) -> None:
    for subject in ("gpt", finished):
        extra = ["n_blocks=2", "d_model=32", "n_heads=2", "max_seq_len=32"] if subject == "gpt" else []
        done = cli("certify", subject, *extra, "--json")
        assert done.code == 0, done.err
        found = json.loads(done.out)
        assert found["causal"] and found["causal_in_training"]
        assert all({"name", "passed", "value", "limit"} <= check.keys() for check in found["checks"])
    assert open_run(finished).info()["certificate"]["causal"] is True


def test_taps_lists_the_points_of_an_architecture(cli: Cli) -> None:
    found = json.loads(cli("taps", "gpt", "n_blocks=2", "--json").out)
    tap = {entry["name"]: entry for entry in found["taps"]}["steps.1.attn.z"]
    assert (tap["block"], tap["repeat"]) == (1, 0) and tap["shape"][:2] == ["B", "T"]
    assert "readout.logits" in cli("taps", "gpt", "n_blocks=2").out


def test_diff_shows_only_what_differs(cli: Cli, finished: Path, recipe: str, tmp_path: Path) -> None:
    cli("train", recipe, "lr=0.01", "--run", tmp_path / "other")
    keys = {
        entry["key"] for entry in json.loads(cli("diff", finished, tmp_path / "other", "--json").out)["differences"]
    }
    assert any(key.endswith("lr") for key in keys) and not any(key.endswith("d_model") for key in keys)
    assert "0.01" in cli("diff", finished, tmp_path / "other").out


@pytest.mark.parametrize("what", ["architectures", "instruments", "tasks", "recipes", "corpora", "settings"])
def test_list_shows_what_there_is(what: str, cli: Cli) -> None:
    rows = json.loads(cli("list", what, "--json").out)[what]
    assert rows
    assert str(next(iter(rows[0].values()))) in cli("list", what).out
    if what == "architectures":
        assert [row["name"] for row in rows] == names()


def test_doctor_passes_on_this_machine(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOMUNCULI_RUNS", str(tmp_path))
    done = cli("doctor", "--device", "cpu", "--json")
    assert done.code == 0, done.err
    assert {"products", "attention", "gradients", "repeats", "disk"} <= {
        c["name"] for c in json.loads(done.out)["checks"]
    }


def test_doctor_fails_with_its_own_code(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from homunculi.experiments import doctor

    monkeypatch.setenv("HOMUNCULI_RUNS", str(tmp_path))
    monkeypatch.setattr(doctor, "_TESTS", {"products": lambda device: (False, "off by 1", "use device=cpu")})
    done = cli("doctor", "--device", "cpu")
    assert done.code == 3 and "use device=cpu" in done.out


def test_report_of_one_run_and_of_two(cli: Cli, finished: Path, recipe: str, tmp_path: Path) -> None:
    assert json.loads(cli("report", finished, "--json").out)["report"] == str(finished / "report.html")
    cli("train", recipe, "seed=1", "steps=4", "--run", tmp_path / "second")
    done = cli("report", finished, tmp_path / "second", "--out", tmp_path / "both.html")
    assert done.code == 0 and "second" in (tmp_path / "both.html").read_text()


def test_shipped_recipes_are_complete_and_take_a_step(cli: Cli, recipe: str, tmp_path: Path) -> None:
    corpus = Path(recipe.rpartition(":")[0]).with_name("corpus.txt")
    small = ["steps=1", "batch_tokens=512", "train.eval_tokens=64", "output.sample_tokens=2", "device=cpu"]
    small += [f"corpus={corpus}", "text.val_corpus=", "text.tokenizer=bytes", "text.val_frac=0.2", "precision=float32"]
    small += ["model.max_seq_len=64", "instruments.watch=off"]
    for entry in json.loads(cli("list", "recipes", "--json").out)["recipes"]:
        has = {field.name for field in fields(load_recipe(entry["name"]).model)}
        own = ["model.d_model=48", "model.n_heads=2"] if "d_model" in has else ["model.n_steps=2"]
        done = cli("train", entry["name"], *small, *own, "--run", tmp_path / entry["name"].replace(":", "-"))
        assert done.code == 0, (entry, done.err)


def test_results_go_to_stdout_and_everything_else_to_stderr(recipe: str, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "homunculi", "train", recipe, "steps=2", "--run", str(tmp_path / "run"), "--json"]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True)
    assert json.loads(done.stdout)["steps"] == 2
    assert "parameters" in done.stderr and "\x1b[" not in done.stderr


def test_instruments_are_listed_with_their_view_and_question(cli: Cli) -> None:
    rows = {row["name"]: row for row in json.loads(cli("list", "instruments", "--json").out)["instruments"]}
    assert (rows["updates"]["view"], rows["updates"]["reads"]) == ("table", "update")
    assert rows["activation"]["view"] == "heatmap" and all(row["question"].endswith("?") for row in rows.values())


def test_a_run_tells_what_instruments_took_and_its_report_shows_them(cli: Cli, recipe: str, tmp_path: Path) -> None:
    done = cli("train", recipe, "instruments.names=activation,updates", "--run", tmp_path / "run", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["instruments_s"] > 0 and found["instruments_worker_s"] > 0
    assert "instruments  activation, updates" in done.err.replace("\n", " ").replace("   ", "  ")
    assert "What happens inside" in (tmp_path / "run" / "report.html").read_text()
    off = cli("train", recipe, "instruments.watch=off", "--run", tmp_path / "off", "--json")
    assert json.loads(off.out)["val_loss"] == found["val_loss"] and not (tmp_path / "off" / "measures").exists()
    bad = cli("train", recipe, "instruments.names=activatoin", "--run", tmp_path / "bad")
    assert bad.code == 2 and "did you mean activation?" in bad.err
