"""The state of a run as its reader judges it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from homunculi.runs.clock import now, seconds_of, written_out
from homunculi.runs.directory import claim, state_of
from homunculi.runs.state import process_lives, state_from

NOW = 1_000_000.0


def status(**fields: Any) -> dict[str, Any]:
    return {"state": "running", "time": NOW - 5, "pid": os.getpid(), "host": socket.gethostname(), **fields}


@pytest.mark.parametrize("state", ["done", "failed", "preempted", "diverged"])
def test_an_end_is_what_the_run_says_however_long_ago(state: str) -> None:
    assert state_from(status(state=state, time=0, pid=-1), NOW) == state


def test_running_with_a_fresh_heartbeat_and_a_living_process() -> None:
    assert state_from(status(), NOW) == "running"
    assert state_from(status(state="preparing"), NOW) == "preparing"


@pytest.mark.parametrize(("age", "expected"), [(59, "running"), (61, "crashed")])
def test_a_stale_heartbeat_means_crashed(age: float, expected: str) -> None:
    assert state_from(status(time=NOW - age), NOW) == expected


@pytest.mark.parametrize(("age", "expected"), [(500, "preparing"), (700, "crashed")])
def test_preparing_may_be_silent_for_longer(age: float, expected: str) -> None:
    assert state_from(status(state="preparing", time=NOW - age), NOW) == expected


@pytest.mark.parametrize("pid", [2**22 - 3, 0, -1, None, "12", True, 10**30])
def test_a_process_that_does_not_exist_here_means_crashed(pid: Any) -> None:
    assert state_from(status(pid=pid), NOW) == "crashed"


def test_a_process_of_another_machine_is_judged_by_its_heartbeat() -> None:
    assert state_from(status(pid=2**22 - 3, host="elsewhere"), NOW) == "running"
    assert state_from(status(pid=os.getpid(), host="elsewhere", time=NOW - 61), NOW) == "crashed"


@pytest.mark.parametrize("fields", [{}, {"state": None}, {"state": "dancing"}, {"state": ["running"]}, {"time": 1}])
def test_a_status_that_says_nothing_is_unknown(fields: dict[str, Any]) -> None:
    assert state_from(fields, NOW) == "unknown"


@pytest.mark.parametrize("moment", [None, "soon", float("nan"), True, [], 1e300])
def test_a_heartbeat_that_is_no_moment_is_stale(moment: Any) -> None:
    assert state_from(status(time=moment), NOW) == "crashed"


def test_a_killed_process_that_nobody_waited_for_is_dead() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    assert process_lives(process.pid)
    process.kill()
    for _ in range(500):
        if not process_lives(process.pid):
            break
        time.sleep(0.01)
    lives = process_lives(process.pid)
    process.wait()
    assert not lives


def test_a_run_killed_while_training_is_crashed(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from homunculi.runs.directory import claim\n"
        "claim(sys.argv[1]).write_status(state='running')\n"
        "print('ready', flush=True)\n"
        "time.sleep(100)\n"
    )
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", code, str(tmp_path / "r")]
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    with pytest.raises(Exception, match="is being written by process"):
        claim(tmp_path / "r")
    process.kill()
    process.communicate()
    assert state_of(claim(tmp_path / "r")) == "preparing"


def test_moments_are_read_as_numbers_and_as_iso_8601() -> None:
    assert seconds_of(12.5) == 12.5
    assert seconds_of("1970-01-01T00:01:00Z") == 60
    assert seconds_of("1970-01-01T01:01:00+01:00") == 60
    assert seconds_of("1970-01-01 00:01:00") == 60
    assert written_out(60) == "1970-01-01 00:01:00 UTC"
    assert written_out(None) == written_out(1e13) == ""
    assert seconds_of(now()) == now() or now() > 1e9
