"""Processes that make one run after another: the same numbers as processes of their own, and what ends them."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from homunculi.experiments.fleet import LOG, Batch, Job, environment_of
from homunculi.experiments.side_by_side import run_all
from homunculi.experiments.standing import Errand, Standing, kind_of
from homunculi.runs.directory import open_run

RECIPE = """
from homunculi.models.gpt import Config
from homunculi.text.config import TextConfig
from homunculi.train.config import OutputConfig, RunConfig, TrainConfig

def short():
    return RunConfig(
        model=Config(d_model=16, n_blocks=1, n_heads=2, max_seq_len=32), corpus="stories?n_documents=20", device="cpu",
        steps=6, batch_tokens=64, eval_every=3, sample_every=0, checkpoint_every=0,
        text=TextConfig(tokenizer="bytes"), train=TrainConfig(eval_tokens=64),
        output=OutputConfig(log_every=1, sample_tokens=2),
    )
"""
TIMED = ("seconds", "_s", "tokens_per_s", "perf/", "time", "memory", "mfu")


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "short.py"
    path.write_text(RECIPE)
    return str(path)


@pytest.fixture
def standing() -> Iterator[Standing]:
    standing = Standing()
    yield standing
    standing.close()


def job(recipe: str, folder: Path, *assignments: str) -> Job:
    return Job(folder.name, recipe, assignments, folder)


def numbers(folder: Path) -> list[dict[str, object]]:
    lines = open_run(folder).metrics()
    return [{k: v for k, v in line.items() if not any(part in k for part in TIMED)} for line in lines]


def pid_of(folder: Path) -> int:
    return int(open_run(folder).status()["pid"])


def test_later_runs_of_a_process_come_to_the_same_bits_as_first_ones(recipe: str, tmp_path: Path) -> None:
    def both(folder: Path, *seeds: int) -> None:
        jobs = [job(recipe, folder / str(seed), f"seed={seed}") for seed in seeds]
        states = run_all(Batch(jobs=jobs, at_once=1, devices=["cpu"]))
        assert [state.state for state in states] == ["done"] * len(seeds)

    both(tmp_path / "together", 1, 2)
    both(tmp_path / "alone", 2)
    assert pid_of(tmp_path / "together" / "1") == pid_of(tmp_path / "together" / "2")
    found = numbers(tmp_path / "together" / "2")
    assert len(found) == 6 and "loss" in json.dumps(found)
    assert found == numbers(tmp_path / "alone" / "2") != numbers(tmp_path / "together" / "1")


def test_a_run_that_is_refused_says_why_in_its_own_log_and_the_process_goes_on(recipe: str, tmp_path: Path) -> None:
    jobs = [job(recipe, tmp_path / "bad", "model.d_model=17"), job(recipe, tmp_path / "good")]
    states = run_all(Batch(jobs=jobs, at_once=1, devices=["cpu"]))
    assert [(state.state, state.exit_code) for state in states] == [("failed", 2), ("done", 0)]
    assert "model.d_model" in states[0].message and "model.d_model" not in (tmp_path / "good" / LOG).read_text()


def test_a_process_that_is_killed_costs_its_run_alone(recipe: str, standing: Standing, tmp_path: Path) -> None:
    environment = environment_of("cpu")

    def made(name: str, *words: str) -> Errand:
        folder = tmp_path / name
        return standing(["train", recipe, *words, "--run", str(folder), "--json"], environment, folder / LOG)

    assert made("first").wait(120) == 0
    first = pid_of(tmp_path / "first")
    long = made("killed", "steps=1000000")
    os.kill(first, signal.SIGKILL)
    assert long.wait(60) == -signal.SIGKILL
    assert made("next").wait(120) == 0
    assert pid_of(tmp_path / "next") != first


def test_runs_like_those_that_an_idle_process_has_made_come_first(
    recipe: str, standing: Standing, tmp_path: Path
) -> None:
    like = ["train", recipe, "seed=3", "model.d_model=8"]
    assert kind_of(like) == kind_of([*like, "lr=1"]) != kind_of(like[:3])
    done = standing([*like, "--run", str(tmp_path / "a")], environment_of("cpu"), tmp_path / "a" / LOG)
    like_it, other = job(recipe, tmp_path / "b", "model.d_model=8", "lr=0.1"), job(recipe, tmp_path / "c")
    assert standing.turn(like_it) == 2
    assert done.wait(120) == 0
    assert (standing.turn(like_it), standing.turn(other)) == (0, 1)


def test_nothing_of_it_is_left_when_it_is_closed(recipe: str, tmp_path: Path) -> None:
    standing = Standing()
    folder = tmp_path / "run"
    assert standing(["train", recipe, "--run", str(folder)], environment_of("cpu"), folder / LOG).wait(120) == 0
    child = pid_of(folder)
    standing.close()
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
