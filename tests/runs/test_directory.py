"""The run directory: claiming, opening, what is written comes back, near misses get a helpful line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from homunculi.errors import InputError
from homunculi.files import alone_in, write_atomic
from homunculi.runs import directory
from homunculi.runs.directory import RunDirectory, claim, new_run_path, open_run, reopen, state_of

ROOT = Path(__file__).resolve().parents[2]
DEAD = 2**22 - 3


def one_line(error: pytest.ExceptionInfo[InputError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert error.value.exit_code == 2
    return text


def test_a_claimed_folder_is_preparing_and_then_a_run(tmp_path: Path) -> None:
    run = claim(tmp_path / "deep" / "tiny-0a1b2c")
    assert state_of(run) == "preparing"
    run.write_info({"config": {"steps": 3}})
    info = open_run(run.path).info()
    assert info["config"] == {"steps": 3}
    assert (info["format"], info["id"], info["name"]) == (1, "0a1b2c", "tiny")
    assert abs(info["created"] - time.time()) < 100


def test_info_is_added_to_and_identity_stays(tmp_path: Path) -> None:
    run = claim(tmp_path / "plain")
    run.write_info({"config": {"lr": 0.1}, "name": "mine"})
    first = run.info()
    run.write_info({"budget": {"parameters": 7}, "config": {"lr": 0.2}})
    second = run.info()
    assert second == {**first, "budget": {"parameters": 7}, "config": {"lr": 0.2}}
    assert re.fullmatch("[0-9a-f]{6}", second["id"])


def test_info_holds_what_json_lacks_as_null(tmp_path: Path) -> None:
    run = claim(tmp_path / "r")
    run.write_info({"config": {"clip": float("inf")}})
    assert run.info()["config"] == {"clip": None}
    assert run.info()["nonfinite"] == ["config.clip"]


def test_a_run_is_not_claimed_twice(tmp_path: Path) -> None:
    claim(tmp_path / "r").write_info({"config": {}})
    with pytest.raises(InputError) as error:
        claim(tmp_path / "r")
    assert str(tmp_path / "r") in one_line(error)
    assert "--run" in one_line(error)


def test_a_folder_whose_preparation_was_killed_can_be_claimed_again(tmp_path: Path) -> None:
    run = claim(tmp_path / "r")
    run.log_event("started")
    run.write_status(pid=DEAD)
    assert state_of(claim(tmp_path / "r")) == "preparing"


def test_a_folder_that_another_process_prepares_is_refused(tmp_path: Path) -> None:
    claim(tmp_path / "r").write_status(pid=os.getppid())
    with pytest.raises(InputError) as error:
        claim(tmp_path / "r")
    assert f"process {os.getppid()}" in one_line(error)


@pytest.mark.parametrize("left", ["metrics.jsonl", "checkpoints/step-00000001"])
def test_results_without_a_run_json_are_not_written_over(tmp_path: Path, left: str) -> None:
    path = tmp_path / "r" / left
    path.parent.mkdir(parents=True)
    path.write_text("{}\n")
    with pytest.raises(InputError) as error:
        claim(tmp_path / "r")
    assert left.split("/")[0] in one_line(error)
    assert path.read_text() == "{}\n"


def test_a_path_that_cannot_be_a_folder_gets_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "r", tmp_path / ("x" * 300), tmp_path / "a\0b"):
        with pytest.raises(InputError) as error:
            claim(path)
        assert "--run" in one_line(error)


def test_of_two_processes_that_claim_at_once_one_wins(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from homunculi.errors import InputError\n"
        "from homunculi.runs.directory import claim\n"
        "try: claim(sys.argv[1])\n"
        "except InputError: print('refused', flush=True)\n"
        "else: print('claimed', flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "r")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    processes = [subprocess.Popen(command, **pipes) for _ in range(3)]
    said = sorted(process.stdout.readline().strip() for process in processes)
    for process in processes:
        process.communicate()
    assert said == ["claimed", "refused", "refused"]


def test_a_claim_waits_for_the_claim_of_another(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    with alone_in(tmp_path / "r"):
        thread = threading.Thread(target=claim, args=(tmp_path / "r",))
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        assert not (tmp_path / "r" / "status.json").exists()
    thread.join()
    assert (tmp_path / "r" / "status.json").exists()


def test_status_is_merged_with_a_heartbeat(tmp_path: Path) -> None:
    run = claim(tmp_path / "r")
    run.write_status(state="running", step=5, steps=10, tokens=50)
    run.write_status(step=6)
    status = run.status()
    assert (status["state"], status["step"], status["steps"], status["pid"]) == ("running", 6, 10, os.getpid())
    assert abs(status["time"] - time.time()) < 100
    assert status["host"]


def test_going_on_forgets_the_reason_of_the_earlier_end(tmp_path: Path) -> None:
    run = claim(tmp_path / "r")
    run.write_status(state="failed", reason="no disk", exit_code=1)
    assert run.status()["reason"] == "no disk"
    run.write_status(state="running")
    assert "reason" not in run.status() and "exit_code" not in run.status()


def test_a_damaged_status_is_empty_and_can_be_written_again(tmp_path: Path) -> None:
    run = claim(tmp_path / "r")
    (run.path / "status.json").write_text('{"state": "run')
    assert run.status() == {}
    assert state_of(run) == "unknown"
    run.write_status(state="running")
    assert state_of(run) == "running"


def test_status_and_logs_may_be_written_from_threads(tmp_path: Path) -> None:
    run = claim(tmp_path / "r")

    def beat(number: int) -> None:
        for step in range(20):
            run.write_status(**{f"beat_{number}": step})
            run.log_event("beat", step=step, number=number)

    threads = [threading.Thread(target=beat, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {run.status()[f"beat_{number}"] for number in range(4)} == {19}
    assert len(run.events(on_damage=pytest.fail)) == 80


def test_the_last_object_of_a_step_wins_and_steps_are_in_order(tmp_path: Path) -> None:
    with claim(tmp_path / "r") as run:
        for step, loss in ((1, 3.0), (2, 2.0), (4, 1.0), (3, 1.5), (2, 2.25)):
            run.log_metrics({"step": step, "train/loss": loss})
    assert [(line["step"], line["train/loss"]) for line in run.metrics()] == [(1, 3.0), (2, 2.25), (3, 1.5), (4, 1.0)]
    assert run.logged_steps()[2] == {"step": 2, "train/loss": 2.25}


@pytest.mark.parametrize("values", [{}, {"step": 1.5}, {"step": True}, {"step": "1"}])
def test_metrics_without_an_integer_step_are_refused_and_ignored(tmp_path: Path, values: dict) -> None:
    run = claim(tmp_path / "r")
    with pytest.raises(ValueError, match="step"):
        run.log_metrics(values)
    (run.path / "metrics.jsonl").write_text(json.dumps(values) + '\n{"step": 1}\n')
    assert run.logged_steps() == {1: {"step": 1}}


def test_events_and_samples_come_back(tmp_path: Path) -> None:
    run = claim(tmp_path / "r")
    run.log_event("checkpoint", step=5, path="checkpoints/step-00000005")
    run.log_sample({"step": 5, "prompt": "a", "text": "\ud800 b", "temperature": 0.8, "seed": 1})
    run.sync()
    (event,) = run.events()
    assert (event["kind"], event["step"], event["path"]) == ("checkpoint", 5, "checkpoints/step-00000005")
    assert event["time"] > 0
    assert run.samples() == [{"step": 5, "prompt": "a", "text": "\ud800 b", "temperature": 0.8, "seed": 1}]


def test_a_closed_run_opens_its_files_again(tmp_path: Path) -> None:
    run = claim(tmp_path / "r")
    run.log_metrics({"step": 1})
    run.close()
    run.log_metrics({"step": 2})
    assert list(run.logged_steps()) == [1, 2]


def test_reopening_mends_what_a_crash_tore(tmp_path: Path) -> None:
    run = claim(tmp_path / "r")
    run.write_info({"config": {}})
    run.log_metrics({"step": 1})
    run.close()
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step":2,')
    (run.path / ".status.json.abc.tmp").write_text("half")
    run.write_status(state="running", pid=DEAD)
    assert state_of(run) == "crashed"
    again = reopen(run.path)
    assert state_of(again) == "preparing"
    assert list(again.logged_steps()) == [1]
    assert (run.path / "metrics.jsonl.torn").read_bytes() == b'{"step":2,\n'
    assert not list(run.path.glob(".*.tmp"))


def test_a_run_that_another_process_writes_is_not_reopened(tmp_path: Path) -> None:
    run = claim(tmp_path / "r")
    run.write_info({"config": {}})
    run.write_status(state="running", pid=os.getppid())
    with pytest.raises(InputError) as error:
        reopen(run.path)
    assert "stop that first" in one_line(error)
    assert run.status()["state"] == "running"


def test_killed_between_write_and_rename_leaves_the_old_file(tmp_path: Path) -> None:
    run = claim(tmp_path / "r")
    run.write_info({"config": {"old": True}})
    code = (
        "import os, sys\n"
        "from homunculi.runs.directory import RunDirectory\n"
        "os.replace = lambda *a: os.kill(os.getpid(), 9)\n"
        "RunDirectory(sys.argv[1]).write_info({'config': {'old': False}})\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run.path)], cwd=ROOT, check=False)
    assert done.returncode == -9
    assert len(list(run.path.glob(".run.json.*.tmp"))) == 1
    assert open_run(run.path).info()["config"] == {"old": True}
    run.repair()
    assert not list(run.path.glob(".*.tmp"))


def test_a_reader_sees_the_old_or_the_new_file_never_a_part(tmp_path: Path) -> None:
    run = claim(tmp_path / "r")
    run.write_info({"config": {"fill": "0" * 50_000}})
    over = threading.Event()

    def write() -> None:
        for digit in "123456789" * 4:
            run.write_info({"config": {"fill": digit * 50_000}})
        over.set()

    thread = threading.Thread(target=write)
    thread.start()
    seen = set()
    while not over.is_set():
        fill = RunDirectory(run.path).info()["config"]["fill"]
        assert fill == fill[0] * 50_000
        seen.add(fill[0])
    thread.join()
    assert seen


def test_a_failed_atomic_write_leaves_no_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError):
        write_atomic(tmp_path / "a.json", "text")
    assert list(tmp_path.iterdir()) == []


def test_opening_what_is_no_run_names_the_likely_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = claim(tmp_path / "runs" / "tiny-000001")
    run.write_info({"config": {}})
    step = run.path / "checkpoints" / "step-00000001"
    step.mkdir(parents=True)
    (tmp_path / "other").mkdir()
    hints = {
        step: f"lies inside the run {run.path}",
        run.path / "run.json": f"lies inside the run {run.path}",
        tmp_path / "runs": f"holds 1 run, give one of them, for example {run.path}",
        tmp_path / "other": "homunculi train",
        tmp_path / "nowhere": "no such folder",
        Path("tiny-000001"): f"one at {Path('runs/tiny-000001')}",
    }
    for path, hint in hints.items():
        with pytest.raises(InputError) as error:
            open_run(path)
        assert hint in one_line(error)
        assert str(path) in one_line(error)


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000, ""])
def test_impossible_paths_get_one_line(path: str) -> None:
    with pytest.raises(InputError) as error:
        open_run(path)
    one_line(error)


@pytest.mark.parametrize("content", ["", "{", "[]", "\x00", "[" * 100_000])
def test_a_broken_run_json_gets_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(InputError) as error:
        open_run(tmp_path).info()
    assert "run.json" in one_line(error)


@pytest.mark.parametrize(
    "name", ["quickstart", "../../etc", "<script>", "a\"b'c", "пример", "…", "", ".hidden", "a/b\\c", "x" * 500, "a\nb"]
)
def test_new_paths_lie_directly_under_the_root_with_safe_names(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOMUNCULI_RUNS", str(tmp_path))
    path = new_run_path(name)
    assert path.parent == tmp_path
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*-[0-9a-f]{6}", path.name)
    assert len(path.name) < 80
    assert not path.exists()
    assert new_run_path(name) != path


def test_without_a_setting_runs_lie_in_the_current_folder() -> None:
    assert new_run_path("a").parent == Path("runs")


def test_names_are_taken_from_folders_that_look_like_runs(tmp_path: Path) -> None:
    assert directory._name_and_id(tmp_path / "a-b-c0ffee") == ("a-b", "c0ffee")
    name, run_id = directory._name_and_id(tmp_path / "a-b-coffee")
    assert name == "a-b-coffee"
    assert re.fullmatch("[0-9a-f]{6}", run_id)


@pytest.mark.parametrize("name", ["<script>alert(1)<", "quote\"'s", "пример — 例", "-dash", "new\nline", "[bold]"])
def test_a_run_may_live_in_a_folder_of_any_name(tmp_path: Path, name: str) -> None:
    run = claim(tmp_path / name)
    run.write_info({"config": {}})
    run.log_metrics({"step": 1})
    assert open_run(tmp_path / name).info()["name"] == name
    assert run.logged_steps() == {1: {"step": 1}}
