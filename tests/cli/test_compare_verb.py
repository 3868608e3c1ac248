"""`homunculi compare` as a person types it: what it prints, how it ends, and how it goes on after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from homunculi.cli.compare import split_words, wanted_sides
from homunculi.errors import InputError
from homunculi.experiments import certifying
from homunculi.experiments import compare as plans
from homunculi.experiments.comparison import read
from homunculi.runs.directory import open_run
from homunculi.runs.state import process_lives
from tests.experiments.inside import Inside

Cli = Callable[..., Any]
QUICK = ["--no-tune", "--no-baselines", "--at-once", "1", "--match", "tokens"]


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> Inside:
    """Runs in this process, certificates without a trial."""
    launch = Inside()
    monkeypatch.setattr("homunculi.experiments.side_by_side._LOOK_SECONDS", 0.01)
    monkeypatch.setattr(certifying, "TRIAL_SECONDS", 0)
    whole = plans.compare
    monkeypatch.setattr(plans, "compare", lambda request, reporter: whole(request, reporter, launch))
    return launch


def test_the_result_is_one_object_with_everything_in_it(cli: Cli, recipe: str, inside: Inside, tmp_path: Path) -> None:
    words = ["compare", f"a={recipe}", f"worse={recipe};lr=1e-7", "steps=20", "--seeds", "3", *QUICK]
    done = cli(*words, "--folder", tmp_path / "c", "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert list(result)[:4] == ["matched", "runs", "pairs", "refused"]
    (pair,) = result["pairs"]
    assert {"a", "b", "metric", "difference", "low", "high", "n", "verdict"} <= set(pair)
    assert (pair["a"], pair["b"], pair["n"], pair["verdict"]) == ("a", "worse", 3, "worse")
    assert pair["metric"] == "val/bpb" and 0 < pair["low"] < pair["difference"] < pair["high"]
    assert result["matched"]["match"] == ["tokens"] and len(result["matched"]["sides"]) == 2
    assert len(result["runs"]) == 6 and all(Path(run["run"], "run.json").exists() for run in result["runs"])
    assert result["refused"] == [] and result["verdicts"][0].startswith("worse is worse than a: +")
    assert "runs" in done.err and "worse-s2 done" in done.err


def test_the_words_for_a_person_end_with_the_folder(cli: Cli, recipe: str, inside: Inside, tmp_path: Path) -> None:
    done = cli("compare", recipe, recipe, "steps=4", "--seeds", "2", *QUICK, "--folder", tmp_path / "c")
    assert done.code == 0, done.err
    lines = done.out.strip().splitlines()
    assert lines[0].startswith("tiny-2 and tiny: no difference shown at the end: +0.0000 bits/byte")
    assert lines[-2:] == [f"report {tmp_path / 'c' / 'report.html'}", str(tmp_path / "c")]
    plan = [line.split()[0] for line in done.err.splitlines()]
    assert (
        plan.index("compare") < plan.index("tiny") < plan.index("tiny-2") < plan.index("runs") < plan.index("tiny-s0")
    )


def test_the_same_command_finds_its_folder_again(
    cli: Cli, recipe: str, inside: Inside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOMUNCULI_RUNS", str(tmp_path))
    words = ["compare", recipe, f"{recipe};lr=1e-7", "steps=4", "--seeds", "2", *QUICK]
    first = cli(*words)
    assert first.code == 0 and len(inside.folders) == 4, first.err
    second = cli(*words)
    assert second.out == first.out and len(inside.folders) == 4
    assert Path(first.out.strip().splitlines()[-1]).parent == tmp_path


def test_a_side_that_is_not_causal_gives_its_own_exit_code(
    cli: Cli, recipe: str, inside: Inside, tmp_path: Path
) -> None:
    """The published router compares all tokens of a sequence."""
    file = tmp_path / "peeking.py"
    file.write_text(
        "from dataclasses import replace\nfrom homunculi.cli.recipes import load_recipe\n"
        "from homunculi.models import get\n"
        "def peeking():\n"
        f"    config = load_recipe({recipe!r})\n"
        "    model = get('mor_published').config_type(d_model=16, n_heads=2, n_slots=4, n_passes=2, max_seq_len=32)\n"
        "    return replace(config, model=model)\n"
    )
    words = ["compare", recipe, f"b={recipe};lr=1e-7", f"{file}:peeking", "steps=4", "--seeds", "2", *QUICK]
    done = cli(*words, "--folder", tmp_path / "c", "--json")
    assert done.code == 3 and "peeking: not causal" in done.err.strip().splitlines()[-1]
    result = json.loads(done.out)
    assert [one["run"] for one in result["refused"]] == ["peeking"]
    assert [(pair["a"], pair["b"]) for pair in result["pairs"]] == [("tiny", "b")]
    assert not any("peeking" in folder for folder in inside.folders)


def test_a_failed_run_is_reported_and_tried_again(cli: Cli, recipe: str, inside: Inside, tmp_path: Path) -> None:
    folder = tmp_path / "c"

    spoiled: list[Path] = []

    def fill(run: Path) -> None:
        if run.name == "tiny-2-s0" and run not in spoiled:
            spoiled.append(run)
            run.mkdir(parents=True, exist_ok=True)
            (run / "metrics.jsonl").write_text("{}\n")

    inside.before = fill
    words = ["compare", recipe, recipe, "steps=4", "--seeds", "3", *QUICK, "--folder", folder]
    done = cli(*words)
    assert done.code == 1
    assert "runs/tiny-2-s0 did not end (failed)" in done.out and "holds metrics.jsonl" in done.out
    assert "tries them again" in done.err.strip().splitlines()[-1] and "n = 2" in done.out
    (folder / "runs/tiny-2-s0/metrics.jsonl").unlink()
    again = cli("compare", "--folder", folder)
    assert again.code == 0 and "n = 3" in again.out, again.err


def test_too_many_diverged_runs_are_no_verdict_and_their_own_exit_code(
    cli: Cli, recipe: str, inside: Inside, tmp_path: Path
) -> None:
    words = ["compare", recipe, f"wild={recipe};lr=1e30", "steps=8", "--seeds", "2", *QUICK, "--folder", tmp_path / "c"]
    done = cli(*words)
    assert done.code == 4
    assert "wild: 2 of 2 runs diverged, which counts against it" in done.out


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["{}"], "at least two recipes"),
        (["{}", "{}", "--seeds", "1"], "--seeds: 1"),
        (["{}", "{}", "--on", "ray"], "--on ray: not available yet"),
        (["{}", "{}", "--on", "moon"], "--on moon"),
        (["{}", "{}", "--tune", "a,b"], "--tune: a,b"),
        (["{}", "{}", "--tune", "1,2", "--no-tune"], "exclude each other"),
        (["{}", "{}", "--match", "size"], "match: size"),
        (["{}", "{};batch_tokens=512"], "batch_tokens"),
        (["{}", "{}", "stepz=3"], "did you mean steps"),
        (["{}", "{};stepz=3"], "did you mean steps"),
        (["{}", "no/such/file.py:tiny"], "no/such/file.py"),
        (["a={}", "a={}"], "a: two sides have this name"),
        (["{}", "quickstat"], "did you mean quickstart"),
        (["--folder", "nowhere"], "at least two recipes"),
    ],
)
def test_bad_input_is_one_line_that_names_the_fix(
    words: list[str], named: str, cli: Cli, recipe: str, tmp_path: Path
) -> None:
    done = cli(
        "compare", *(word.format(recipe) for word in words), *(["--folder", tmp_path / "c"] * ("nowhere" not in words))
    )
    assert done.code == 2, done.err
    assert named in done.err.strip().splitlines()[-1] and "Traceback" not in done.err
    assert not (tmp_path / "c" / "comparison.json").exists()


def test_sides_names_and_settings_are_told_apart() -> None:
    words = [
        "gpt:small",
        "deep=homunculi:medium;model.n_shared=2; lr=1e-3",
        "steps=1720",
        "model.d_model=64",
        "mine=my.py:f",
    ]
    sides, common = split_words(words)
    assert sides == [
        ("", "gpt:small", []),
        ("deep", "homunculi:medium", ["model.n_shared=2", "lr=1e-3"]),
        ("mine", "my.py:f", []),
    ]
    assert common == ["steps=1720", "model.d_model=64"]
    assert split_words(["corpus=a;b", "stepz=3", "gpt=library"]) == (
        [("gpt", "library", [])],
        ["corpus=a;b", "stepz=3"],
    )


def test_names_are_short_and_never_the_same(recipe: str) -> None:
    names = [
        side.name
        for side in wanted_sides(["gpt:small", "gpt:medium", "gpt:small", "gpt:small", recipe, "ncn:small"], None)
    ]
    assert names == ["gpt", "gpt-medium", "gpt-small", "gpt-2", "tiny", "ncn"]
    with pytest.raises(InputError, match=r"did you mean model\.d_model"):
        wanted_sides(["gpt:small", "ncn:small", "d_model=64"], None)


def wait_for(happened: Callable[[], bool], seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.05)


def test_a_killed_comparison_leaves_nobody_behind_and_goes_on(
    cli: Cli, recipe: str, inside: Inside, tmp_path: Path
) -> None:
    """Kill -9 while a run trains: it stops by itself, and the folder alone continues to the end."""
    folder = tmp_path / "c"
    words = ["compare", recipe, f"{recipe};lr=1e-7", "steps=120", "eval_every=60", "--seeds", "2", *QUICK]
    words += ["--folder", str(folder)]
    short = "from homunculi.experiments import certifying; certifying.TRIAL_SECONDS = 0; "
    command = [sys.executable, "-c", short + "from homunculi.cli.main import main; main()", *words]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: len(list(folder.glob("runs/*/metrics.jsonl"))) == 1)
        (run,) = [open_run(path.parent) for path in folder.glob("runs/*/run.json")]
        child = run.status()["pid"]
        process.send_signal(signal.SIGKILL)
        process.wait()
        wait_for(lambda: not process_lives(child))
    finally:
        process.kill()
    assert run.status()["state"] == "preempted"
    done = cli("compare", "--folder", folder, "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert result["pairs"][0]["verdict"] == "worse" and result["pairs"][0]["n"] == 2
    assert [line["step"] for line in run.metrics()] == list(range(1, 121))
    assert "resumed" in [event["kind"] for event in run.events()]
    assert len({run["stream"] for run in result["runs"]}) == 2 and len(read(folder).runs) == 4


def test_sides_can_be_certified_alone(cli: Cli, recipe: str, inside: Inside, tmp_path: Path) -> None:
    words = ["compare", f"a={recipe}", f"b={recipe};model.d_mlp=32", *QUICK, "--folder", tmp_path / "c"]
    done = cli(*words, "--certify-only")
    assert done.code == 0, done.err
    kept = [line.partition(" (")[2].rstrip(")") for line in done.out.splitlines()]
    assert [line.partition(" (")[0] for line in done.out.splitlines()] == ["a: causal", "b: causal"]
    assert all(Path(path).exists() for path in kept) and not inside.folders and not (tmp_path / "c").exists()
    again = cli(*words, "--certify-only", "--json")
    rows = json.loads(again.out)["certificates"]
    assert [row["certificate"] for row in rows] == kept and all(row["causal"] and not row["reason"] for row in rows)
    assert "certifying" not in again.err
