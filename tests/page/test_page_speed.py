"""What `benchmarks.page_speed` measures is there: runs as training leaves them, one that grows, a page that draws."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks import page_speed
from benchmarks.kill_test import small_run, write_corpus
from homunculi.runs.directory import METRICS, RunDirectory, state_of
from homunculi.runs.measures import measured_instruments, measured_steps
from homunculi.web.columns import Columns
from homunculi.web.project import Project
from tests.conftest import SKIPS
from tests.page.conftest import chromium


@pytest.fixture(autouse=True)
def few_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_speed, "MEASURED", 2)


def test_planted_runs_are_as_a_run_writes_them(tmp_path: Path) -> None:
    planted = page_speed.plant(tmp_path / "runs", 12, 30)
    written = RunDirectory(tmp_path)
    for line in itertools.islice(page_speed.metric_lines(seed=1), 30):
        written.log_metrics(line)
    written.close()
    assert (planted[1] / METRICS).read_bytes() == (planted[11] / METRICS).read_bytes()
    assert (planted[1] / METRICS).read_bytes() == (tmp_path / METRICS).read_bytes()
    listed = Project(tmp_path / "runs").runs()
    assert {(run["state"], run["step"]) for run in listed} == {("done", 300)}
    assert all(run["val_bpb"] and run["train_loss"] for run in listed)
    assert sorted(Counter(run["group"] for run in listed).values()) == [2, 10]
    assert len(measured_instruments(planted[0])) > 10 and not measured_instruments(planted[1])
    assert all(measured_steps(planted[0], name) == [0, 300] for name in measured_instruments(planted[0]))


def test_too_little_room_is_said_before_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_speed.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10_000}))
    with pytest.raises(page_speed.InputError, match="TMPDIR"):
        page_speed.plant(tmp_path / "runs", 12, 30)
    assert not (tmp_path / "runs").exists()


def test_a_run_grows_while_it_is_looked_at_and_ends_whole(tmp_path: Path) -> None:
    (path,) = page_speed.plant(tmp_path / "runs", 1, 20)
    writing, latest = page_speed.Writing(path, 20), time.monotonic() + 20
    for _ in range(2):
        before = writing.n_lines
        with writing:
            while writing.n_lines < before + 2 and time.monotonic() < latest:
                assert state_of(RunDirectory(path)) == "running"
        assert writing.n_lines >= before + 2 and state_of(RunDirectory(path)) == "done"
    columns = Columns(path / METRICS)
    columns.follow()
    assert (columns.n_lines, columns.n_damaged, columns.torn) == (writing.n_lines, 0, False)
    assert list(columns.columns["train/loss"].steps) == [10 * i for i in range(1, writing.n_lines + 1)]


def test_a_scan_has_as_many_tokens_as_it_says(tmp_path: Path) -> None:
    config = small_run(write_corpus(tmp_path / "text.txt"))
    found = page_speed.scan_seconds(replace(config, model=replace(config.model, dropout=0.0)), rounds=2, n_tokens=16)
    assert found["tokens"] == 16 and len(found["seconds"]["rounds"]) == 2
    assert found["with_files_s"]["low"] > found["seconds"]["low"] > 0


def test_the_page_is_measured_until_all_is_drawn(packages: None) -> None:
    path = chromium()
    if path is None or find_spec("playwright") is None:
        pytest.skip(SKIPS["browser"])
    found = page_speed.page_seconds(path, runs=2, lines=20, rounds=1)
    assert len(found["looks"]) == 8
    for parts in found["looks"].values():
        assert 0 < parts["core_share"]["median"] < 1.1
        assert 0 < parts["asked_s"]["median"] <= parts["answered_s"]["median"] < parts["seconds"]["median"]
