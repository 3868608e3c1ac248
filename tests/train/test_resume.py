"""A run that was stopped, killed or damaged ends with the same bits as one that was not."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.kill_test import outcome, run_rounds
from homunculi.errors import PREEMPTED, InputError, Stopped
from homunculi.runs.directory import state_of
from homunculi.train import after, checkpoint
from homunculi.train.checkpoint import checkpoints, latest_whole
from homunculi.train.config import RunConfig


class Crash(BaseException):
    """Stands for the end of the process: nothing in the loop handles it."""


@pytest.fixture
def undisturbed(tiny: RunConfig, start: Callable[..., Any]) -> dict[str, Any]:
    return outcome(start(tiny, "undisturbed")[0].path)


def test_killed_at_random_instants_it_ends_the_same(tmp_path: Path) -> None:
    counts = run_rounds(2, seed=7, folder=tmp_path, per_run=4.0)
    assert counts.differences == []
    assert counts.kills >= 2 and counts.resumes >= 2


@pytest.mark.parametrize("moment", ["save_checkpoint", "_evaluate", "_sample", "retain"])
@pytest.mark.parametrize("occurrence", [1, 2])
def test_a_crash_between_any_two_acts_leaves_no_trace(
    moment: str,
    occurrence: int,
    tiny: RunConfig,
    start: Callable[..., Any],
    go_on: Callable[..., Any],
    undisturbed: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    real, calls = getattr(after, moment), 0

    def crashing(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == occurrence:
            raise Crash
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(after, moment, crashing)
        with pytest.raises(Crash):
            start(tiny, "crashed")
    go_on(tmp_path / "crashed")
    assert outcome(tmp_path / "crashed") == undisturbed


@pytest.mark.parametrize("moment", ["save_checkpoint", "_evaluate", "_sample", "retain"])
def test_a_crash_after_an_act_leaves_no_trace(
    moment: str,
    tiny: RunConfig,
    start: Callable[..., Any],
    go_on: Callable[..., Any],
    undisturbed: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    real = getattr(after, moment)

    def crashing(*args: Any, **kwargs: Any) -> Any:
        real(*args, **kwargs)
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(after, moment, crashing)
        with pytest.raises(Crash):
            start(tiny, "crashed")
    go_on(tmp_path / "crashed")
    assert outcome(tmp_path / "crashed") == undisturbed


def test_sigterm_checkpoints_and_exits_with_its_own_code(
    tiny: RunConfig,
    start: Callable[..., Any],
    go_on: Callable[..., Any],
    undisturbed: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    real = after._sample

    def terminated(*args: Any) -> None:
        real(*args)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(after, "_sample", terminated)
        with pytest.raises(Stopped) as stopped:
            start(tiny, "stopped")
    assert stopped.value.exit_code == PREEMPTED
    run = tmp_path / "stopped"
    assert max(checkpoints(run / "checkpoints")) == 7
    resumed, _ = go_on(run)
    assert state_of(resumed) == "done"
    got = outcome(run)
    assert got["metrics"] == undisturbed["metrics"] and got["samples"] == undisturbed["samples"]
    assert got["files"]["step-00000012/model.safetensors"] == undisturbed["files"]["step-00000012/model.safetensors"]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(
    name: str,
    tiny: RunConfig,
    start: Callable[..., Any],
    go_on: Callable[..., Any],
    undisturbed: dict[str, Any],
    tmp_path: Path,
) -> None:
    run, _ = start(tiny, "damaged")
    last = checkpoints(run.path / "checkpoints")[12] / name
    last.write_bytes(last.read_bytes()[:-20])
    resumed, listener = go_on(run.path)
    told = [text for text in listener.messages if name in text]
    assert told and "set aside as damaged-step-00000012" in told[0]
    assert outcome(run.path) == undisturbed
    assert not [event for event in resumed.events() if event["kind"] == "repeated_differently"]


def test_a_run_whose_checkpoints_are_all_damaged_starts_over(
    tiny: RunConfig, start: Callable[..., Any], go_on: Callable[..., Any], undisturbed: dict[str, Any]
) -> None:
    run, _ = start(tiny, "damaged")
    for folder in checkpoints(run.path / "checkpoints").values():
        (folder / "state.json").unlink()
    assert latest_whole(run.path / "checkpoints", lambda text: None) is None
    go_on(run.path)
    assert outcome(run.path) == undisturbed


def test_a_step_that_repeats_differently_is_an_event(
    tiny: RunConfig, start: Callable[..., Any], go_on: Callable[..., Any]
) -> None:
    run, _ = start(tiny, "strayed")
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    forged = [line.replace('"train/loss":', '"train/loss":1') if '"step":12,' in line else line for line in lines]
    assert forged != lines
    (run.path / "metrics.jsonl").write_text("\n".join(forged) + "\n")
    resumed, _ = go_on(run.path)
    assert [event["step"] for event in resumed.events() if event["kind"] == "repeated_differently"] == [12]


def test_text_that_changed_since_is_refused(
    tiny: RunConfig, start: Callable[..., Any], go_on: Callable[..., Any], corpus: Path
) -> None:
    run, _ = start(tiny, "changed")
    corpus.write_text(corpus.read_text() + " red")
    with pytest.raises(InputError, match="not what this run began with"):
        go_on(run.path)


def test_retention_keeps_the_last_the_best_and_every_nth(tmp_path: Path) -> None:
    for step in range(1, 11):
        (tmp_path / f"step-{step:08d}").mkdir()
    losses = {step: 5.0 - 0.1 * step for step in range(1, 11)} | {3: 0.5}
    gone = checkpoint.retain(tmp_path, keep_last=2, keep_every=4, val_losses=losses)
    assert sorted(checkpoints(tmp_path)) == [3, 4, 8, 9, 10]
    assert gone == [1, 2, 5, 6, 7]
