"""Runs in processes of their own: places, failures, what is left to do, and what happens when somebody is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from homunculi.errors import InputError, Stopped
from homunculi.experiments.fleet import LOG, Batch, Job, JobState, environment_of
from homunculi.experiments.side_by_side import Work, run_all, side_by_side
from homunculi.runs.directory import RunDirectory, claim, open_run
from homunculi.runs.state import process_lives

ROOT = Path(__file__).resolve().parents[2]
RECIPE = """
from homunculi.models.gpt import Config
from homunculi.text.config import TextConfig
from homunculi.train.config import OutputConfig, RunConfig, TrainConfig

def endless():
    return RunConfig(
        model=Config(d_model=16, n_blocks=1, n_heads=2, max_seq_len=32), corpus="stories?n_documents=20", device="cpu",
        steps=1_000_000, batch_tokens=64, eval_every=0, sample_every=0, checkpoint_every=0,
        text=TextConfig(tokenizer="bytes"), train=TrainConfig(eval_tokens=64),
        output=OutputConfig(log_every=1, sample_tokens=2),
    )
"""
FLEET = """
import sys
from pathlib import Path
from homunculi.errors import HomunculiError
from homunculi.experiments.fleet import Batch, Job
from homunculi.experiments.side_by_side import run_all
try:
    run_all(Batch(jobs=[Job("a", sys.argv[1], (), Path(sys.argv[2]))], at_once=1, devices=["cpu"]))
except HomunculiError as error:
    print(error)
    sys.exit(error.exit_code)
"""


class Pretended:
    """A process that ends after some looks, as its run's folder then says."""

    def __init__(self, folder: Path, code: int, looks: int, on_end: Callable[[], None]) -> None:
        self.folder, self.code, self.looks, self.on_end = folder, code, looks, on_end

    def poll(self) -> int | None:
        self.looks -= 1
        if self.looks:
            return None
        run = RunDirectory(self.folder)
        run.write_info({})
        run.write_status(state={0: "done", 4: "diverged"}.get(self.code, "failed"), reason="loss nan")
        self.on_end()
        return self.code

    def terminate(self) -> None:
        self.code = 75

    def wait(self, timeout: float | None = None) -> int:
        return self.code


class Launcher:
    """Starts pretended processes and remembers how many there were on each device at once."""

    def __init__(self, codes: Mapping[str, int]) -> None:
        self.codes = codes
        self.words: list[list[str]] = []
        self.now: list[str] = []
        self.most: dict[str, int] = {}
        self.folders: list[str] = []

    def __call__(self, words: Sequence[str], environment: Mapping[str, str], log: Path) -> Pretended:
        self.words.append(list(words))
        self.folders.append(log.parent.parent.name + "/" + log.parent.name)
        if words[0] == "train":
            claim(log.parent)
        log.write_text("step 3/9  loss 2.0\nhomunculi: the disk is full\n")
        device = environment["CUDA_VISIBLE_DEVICES"] or "cpu"
        self.now.append(device)
        self.most[device] = max(self.most.get(device, 0), self.now.count(device))
        return Pretended(log.parent, self.codes.get(log.parent.name, 0), 3, lambda: self.now.remove(device))


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("homunculi.experiments.side_by_side._LOOK_SECONDS", 0.01)


def jobs(folder: Path, n: int) -> list[Job]:
    return [Job(f"j{i}", "recipe", (f"seed={i}",), folder / f"j{i}") for i in range(n)]


def test_every_device_has_its_places_and_no_more(tmp_path: Path) -> None:
    launcher = Launcher({})
    states = run_all(Batch(jobs=jobs(tmp_path, 9), at_once=2, devices=["cuda:0", "cuda:1"]), launcher)
    assert [state.state for state in states] == ["done"] * 9
    assert launcher.most == {"0": 2, "1": 2}
    assert launcher.words[0] == ["train", "recipe", "seed=0", "--run", str(tmp_path / "j0"), "--json"]


def test_a_failed_run_says_why_and_stops_no_other(tmp_path: Path) -> None:
    states = run_all(Batch(jobs=jobs(tmp_path, 4), at_once=1, devices=["cpu"]), Launcher({"j0": 1, "j1": 4, "j2": -9}))
    assert [state.state for state in states] == ["failed", "diverged", "failed", "done"]
    assert states[0].message == "the disk is full" and states[1].message == "loss nan"
    assert "SIGKILL" in states[2].message and [state.exit_code for state in states] == [1, 4, -9, 0]


def test_what_is_done_is_left_alone_and_what_is_not_goes_on(tmp_path: Path) -> None:
    launcher = Launcher({"j1": 4, "j2": 1})
    run_all(Batch(jobs=jobs(tmp_path, 3), at_once=1, devices=["cpu"]), launcher)
    assert len(launcher.words) == 3
    again = Launcher({})
    states = run_all(Batch(jobs=jobs(tmp_path, 4), at_once=1, devices=["cpu"]), again)
    assert [state.state for state in states] == ["done", "diverged", "done", "done"]
    assert again.words[0] == ["resume", str(tmp_path / "j2"), "--json"] and again.words[1][0] == "train"
    assert len(again.words) == 2 and states[1].message == "loss nan"


def test_changes_are_told_and_an_error_in_the_telling_leaves_no_process(tmp_path: Path) -> None:
    told: list[list[str]] = []
    batch = Batch(
        jobs=jobs(tmp_path, 2),
        at_once=1,
        devices=["cpu"],
        report=lambda states: told.append([state.state for state in states]),
    )
    run_all(batch, Launcher({}))
    assert told[0] == ["waiting", "waiting"] and ["done", "running"] in told and told[-1] == ["done", "done"]
    launcher = Launcher({})

    def break_down(states: list[JobState]) -> None:
        if launcher.words:
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        run_all(Batch(jobs=jobs(tmp_path / "b", 2), at_once=1, devices=["cpu"], report=break_down), launcher)
    assert len(launcher.words) == 1


def test_no_place_and_a_shared_folder_are_refused(tmp_path: Path) -> None:
    for places in ({"at_once": 0, "devices": ["cpu"]}, {"at_once": 1, "devices": []}):
        with pytest.raises(InputError):
            Batch(jobs=jobs(tmp_path, 1), **places)
    with pytest.raises(InputError, match="share a folder"):
        Batch(jobs=jobs(tmp_path, 1) * 2, at_once=1, devices=["cpu"])


def work(folder: Path, *batches: list[Job], report: Any = lambda states: None, **more: Any) -> Work[list[str]]:
    """Asks for one batch after the other, and returns how the jobs of the last one ended."""
    ended: list[str] = []

    def note(states: list[JobState]) -> None:
        ended[:] = [state.state for state in states]
        report(states)

    for batch in batches:
        yield Batch(**({"jobs": batch, "at_once": 1, "devices": ["cuda:0", "cuda:1"], "report": note} | more))
    return ended


def test_works_side_by_side_share_all_places_and_none_waits_for_the_end_of_another(tmp_path: Path) -> None:
    launcher = Launcher({})
    works = [
        work(tmp_path, jobs(tmp_path / f"{name}-first", 1), jobs(tmp_path / f"{name}-second", 2)) for name in "abc"
    ]
    assert side_by_side(works, launcher) == [["done", "done"]] * 3
    assert launcher.most == {"0": 1, "1": 1} and len(launcher.folders) == 9
    assert launcher.folders[:2] == ["a-first/j0", "b-first/j0"]


def test_a_job_of_the_same_key_waits_and_takes_what_the_first_one_made(tmp_path: Path) -> None:
    made: set[str] = set()

    def keyed(name: str) -> list[Job]:
        return [replace(job, key=job.name) for job in jobs(tmp_path / name, 3)]

    def remember(states: list[JobState]) -> None:
        made.update(state.job.key for state in states if state.state == "done" and state.job.name != "j1")

    launcher = Launcher({})
    works = [
        work(tmp_path, keyed(name), report=remember, taken=lambda job: job.key in made, at_once=4) for name in "ab"
    ]
    assert side_by_side(works, launcher) == [["done"] * 3] * 2
    assert sorted(launcher.folders) == ["a/j0", "a/j1", "a/j2", "b/j1"]  # what b cannot take of j1 it makes itself
    assert launcher.folders[-1] == "b/j1"


def test_a_work_that_fails_stops_no_other_and_is_told_in_the_end(tmp_path: Path) -> None:
    def bad() -> Work[list[str]]:
        yield Batch(jobs=jobs(tmp_path / "bad", 1), at_once=1, devices=["cpu"])
        raise InputError("corpus: is gone")

    launcher = Launcher({})
    with pytest.raises(InputError, match="is gone"):
        side_by_side([bad(), work(tmp_path, jobs(tmp_path / "good", 3))], launcher)
    assert len(launcher.folders) == 4


def test_what_stops_all_is_told_to_every_work(tmp_path: Path) -> None:
    told: list[str] = []

    def careful(name: str) -> Work[None]:
        try:
            yield Batch(jobs=jobs(tmp_path / name, 2), at_once=1, devices=["cpu"])
        except Stopped:
            told.append(name)
            raise

    class Stopping(Launcher):
        def __call__(self, *given: Any) -> Pretended:
            if len(self.folders) == 2:
                raise Stopped("stopped", 75)
            return super().__call__(*given)

    with pytest.raises(Stopped):
        side_by_side([careful("a"), careful("b"), careful("c")], Stopping({}))
    assert told == ["a", "b"] or told == ["a", "b", "c"]


def test_a_process_sees_its_own_device_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert environment_of("cuda:1")["CUDA_VISIBLE_DEVICES"] == "1"
    cpu = environment_of("cpu")
    assert cpu["CUDA_VISIBLE_DEVICES"] == "" and cpu["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert environment_of("cuda:1")["CUDA_VISIBLE_DEVICES"] == "7"
    assert environment_of("cpu")["OMP_NUM_THREADS"] == "3"


def wait_for(happened: Callable[[], bool], seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.05)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_run_outlives_its_fleet_only_until_its_next_checkpoint(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    (tmp_path / "endless.py").write_text(RECIPE)
    folder = tmp_path / "run"
    command = [sys.executable, "-c", FLEET, str(tmp_path / "endless.py"), str(folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    fleet = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: (folder / "metrics.jsonl").exists())
        child = open_run(folder).status()["pid"]
        assert child != fleet.pid and process_lives(child)
        fleet.send_signal(number)
        out, _ = fleet.communicate(timeout=180)
        assert fleet.returncode == code
        wait_for(lambda: not process_lives(child))
    finally:
        fleet.kill()
    assert open_run(folder).status()["state"] == "preempted"
    assert len(list((folder / "checkpoints").iterdir())) == 1
    assert number == signal.SIGKILL or "stopped" in out
    assert "goes on" in (folder / LOG).read_text()
