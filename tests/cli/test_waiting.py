"""Threads spin for a moment only where nothing else runs, and never against the environment's word."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from homunculi.cli import waiting


def stat(idle: int, busy: int) -> str:
    return f"cpu  {busy} 0 0 {idle} 0 0 0 0 0 0\ncpu0 1 2 3\n"


@pytest.mark.parametrize(("busy", "spins"), [(0.1, True), (0.9, False), (None, False)])
def test_an_idle_machine_spins_and_any_other_sleeps(
    busy: float | None, spins: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "busy_cores", lambda: busy)
    environment: dict[str, str] = {}
    waiting.decide(environment)
    assert environment["OMP_WAIT_POLICY"] == "PASSIVE"
    assert ("GOMP_SPINCOUNT" in environment) == spins


def test_busy_cores_are_counted_from_two_readings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "stat"
    path.write_text(stat(1000, 1000))
    monkeypatch.setattr(waiting.time, "sleep", lambda seconds: path.write_text(stat(1075, 1025)))
    cores = os.cpu_count() or 1
    assert waiting.busy_cores(path, 0.0) == pytest.approx(0.25 * cores)


@pytest.mark.parametrize("content", ["", "cpu  x y", stat(1, 1)])
def test_a_system_that_does_not_tell_counts_as_busy(content: str, tmp_path: Path) -> None:
    path = tmp_path / "stat"
    path.write_text(content)
    assert waiting.busy_cores(path, 0.0) is None
    assert waiting.busy_cores(tmp_path / "absent", 0.0) is None


@pytest.mark.parametrize("given", [{"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "7"}])
def test_what_the_environment_says_stands(given: dict[str, str]) -> None:
    environment = dict(given)
    waiting.decide(environment)
    assert environment == given
