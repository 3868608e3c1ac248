"""A battery: selection by validation, the same result however it is carried out, resuming, scores with intervals."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from homunculi.errors import HomunculiError, InputError, Stopped
from homunculi.experiments.skills import battery as module
from homunculi.experiments.skills import pool, scores
from homunculi.experiments.skills.battery import Battery
from homunculi.experiments.skills.cells import Cell, Store
from homunculi.experiments.skills.learning import _deeper, learn
from homunculi.experiments.skills.plan import Point, Settings, ask, points
from homunculi.experiments.skills.pool import Progress, train_all
from homunculi.experiments.skills.scoring import score_of
from homunculi.experiments.skills.sizing import Frame, Side, small
from homunculi.models import get
from homunculi.tasks import registry

FRAME = Frame(width=16, blocks=1, match="none")
SETTINGS = Settings(seeds=2, steps=3, rows=4, eval_rows=16, lrs=(1e-3, 1e-2), wds=(0.1,), frame=FRAME)
DIALS = {"length": "8,16"}


class Board:
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.done: list[Progress] = []

    def plan(self, lines: list[str]) -> None:
        self.lines += lines

    def message(self, text: str) -> None:
        self.lines.append(text)

    def progress(self, progress: Progress) -> None:
        self.done.append(progress)


@pytest.fixture(autouse=True)
def causal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Certificates have tests of their own; here nothing waits for them."""
    monkeypatch.setattr(module, "certificate_of", lambda *given: {"causal": True, "key": "k"})


def side(name: str) -> Side:
    return Side(name, small(get(name).config_type(), FRAME))


def begin(folder: Path, settings: Settings = SETTINGS, at_once: int = 0) -> Battery:
    return Battery([side("gpt"), side("recursive")], ask(["parity"], DIALS), settings, folder, Board(), at_once=at_once)


def curve(settings: Settings = SETTINGS) -> list[Point]:
    return points([side("gpt")], ask(["parity"], DIALS), settings)


def accuracies(record: dict[str, Any]) -> list[Any]:
    return [(one["architecture"], one["value"], one["accuracies"], one["lr"]) for one in record["points"]]


def test_a_battery_scores_every_architecture_at_every_task(tmp_path: Path) -> None:
    record = begin(tmp_path).carry_out()
    assert [(one["architecture"], one["task"]) for one in record["scores"]] == [
        ("gpt", "parity"),
        ("recursive", "parity"),
    ]
    for one in record["scores"]:
        assert one["n"] == 2
        assert 0 <= one["low"] <= one["score"] <= one["high"] <= 1
        assert (one["chance"], one["ceiling"]) == (0.5, 1.0)
    beyond = {(one["architecture"], one["value"]) for one in record["beyond"]}
    assert beyond == {(name, value) for name in ("gpt", "recursive") for value in (64, 128)}
    assert record["tasks"][0]["ngram"] == [0.625, 0.5625]  # two positions of 8 or 16 are seen whole
    assert json.loads((tmp_path / "skills.json").read_text()) == record
    assert (tmp_path / "report.html").exists()


def test_a_plan_says_when_processes_would_take_turns_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path / "pipes"))

    def plan(device: str, at_once: int) -> str:
        board = Board()
        asked = ask(["parity"], {"length": "8"})
        planned = Battery([side("gpt")], asked, SETTINGS, tmp_path, board, devices=(device,), at_once=at_once)
        planned.points = points(planned.sides, planned.tasks, planned.settings)
        return "\n".join(planned._described())

    assert "nvidia-cuda-mps-control -d" in plan("cuda:0", 4)
    assert "mps" not in plan("cuda:0", 1) and "mps" not in plan("cpu", 4)
    (tmp_path / "pipes").mkdir()
    (tmp_path / "pipes" / "control").touch()
    assert "mps" not in plan("cuda:0", 4)


def test_a_second_call_trains_nothing_and_further_seeds_train_only_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = begin(tmp_path).carry_out()
    trained: list[Cell] = []

    def counting(cell: Cell, device: torch.device) -> Any:
        trained.append(cell)
        return learn(cell, device)

    monkeypatch.setattr(pool, "learn", counting)
    assert accuracies(begin(tmp_path).carry_out()) == accuracies(first)
    assert not trained
    begin(tmp_path, replace(SETTINGS, seeds=3)).carry_out()
    assert len(trained) == 4
    assert {cell.seed for cell in trained} == {2}


def test_processes_come_to_the_same_as_this_one_and_go_on_after_a_cell_that_fails(tmp_path: Path) -> None:
    grid, store = list(curve()[0].grid), Store(tmp_path)
    broken = replace(grid[0], model=grid[0].model | {"n_heads": 5})
    failed = train_all([broken, *grid], store, ["cpu"], 2)
    assert [one["key"] for one in failed] == [broken.key]
    assert "n_heads" in failed[0]["reason"]
    for cell in grid:
        there, here = store.find(cell), learn(cell, torch.device("cpu"))
        assert there is not None
        assert (there["test"], there["beyond"]) == (here["test"], here["beyond"])


def test_a_battery_with_failed_cells_says_so_and_keeps_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(cells: Sequence[Cell], *others: Any) -> list[Any]:
        return [{"cell": "gpt parity", "key": "k", "reason": "no memory"}]

    monkeypatch.setattr(module, "train_all", failing)
    with pytest.raises(HomunculiError, match=r"no memory.*--results"):
        begin(tmp_path).carry_out()
    assert json.loads((tmp_path / "skills.json").read_text())["failed"][0]["reason"] == "no memory"


def test_what_sees_ahead_is_not_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "certificate_of", lambda about, name, say: {"causal": name == "gpt", "key": "k"})
    record = begin(tmp_path).carry_out()
    assert {one["architecture"] for one in record["scores"]} == {"gpt"}
    assert list(record["refused"]) == ["recursive"]


def test_what_could_not_be_certified_is_not_called_seeing_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = {"causal": False, "checks": [], "reason": "it could not be certified (out of memory)"}
    monkeypatch.setattr(module, "certificate_of", lambda *given: refused)
    assert begin(tmp_path).carry_out()["refused"]["gpt"] == refused["reason"]


def test_a_battery_that_is_stopped_has_first_seeds_of_all_and_a_second_call_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, n_trained = replace(SETTINGS, lrs=(1e-3,)), 0

    def until_stopped(cell: Cell, device: torch.device) -> Any:
        nonlocal n_trained
        n_trained += 1
        if n_trained == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return learn(cell, device)

    monkeypatch.setattr(pool, "learn", until_stopped)
    with pytest.raises(Stopped, match="5 of 8 cells done; the same command goes on"):
        begin(tmp_path, settings).carry_out()
    stopped = json.loads((tmp_path / "skills.json").read_text())
    assert [(one["architecture"], one["n"]) for one in stopped["scores"]] == [("gpt", 1), ("recursive", 1)]
    assert [one["n"] for one in begin(tmp_path, settings).carry_out()["scores"]] == [2, 2]
    assert n_trained == 8


def test_no_architecture_waits_until_another_is_done() -> None:
    few, many = curve()[0].grid[0], points([side("recursive")], ask(["parity"], DIALS), SETTINGS)[0].grid[0]
    cells = [many] * pool._AHEAD + [few]
    queue = pool._Queue(cells, len(cells))
    taken = queue.take(0, "gpt")
    assert taken is not None and taken.model["architecture"] == "recursive"
    seeds = [many, replace(few, seed=1)]
    taken = pool._Queue(seeds, len(seeds)).take(0, "gpt")
    assert taken == many


def result(cell: Cell, valid: float, test: float, diverged: bool = False) -> dict[str, Any]:
    judged = {"loss": 1.0, "best_loss": None}
    found = {"valid": judged | {"accuracy": valid}, "test": judged | {"accuracy": test}, "diverged": diverged}
    rest = {"cell": cell.to_json(), "beyond": [], "depth": None, "parameters": 1, "steps_taken": 1, "seconds": 1.0}
    return found | rest


def test_the_setting_is_chosen_by_validation_and_judged_by_test() -> None:
    point = curve()[0]
    low, high = point.grid
    results = {low.key: result(low, 0.6, 0.9), high.key: result(high, 0.7, 0.2)}
    assert scores.chosen_of(point, results) == high
    results[high.key] = result(high, 0.7, 0.2, diverged=True)
    assert scores.chosen_of(point, results) == low


def test_a_score_is_the_mean_over_the_dial_with_students_interval_over_seeds() -> None:
    rows = [
        {"architecture": "a", "task": "t", "chance": 0.1, "ceiling": 1.0, "accuracies": {"0": 0.2, "1": 0.4, "2": 0.6}},
        {"architecture": "a", "task": "t", "chance": 0.3, "ceiling": 0.8, "accuracies": {"0": 0.4, "1": 0.6, "2": 0.8}},
    ]
    found = scores.score_json(rows)
    assert found["score"] == pytest.approx(0.5)
    assert found["high"] - found["score"] == pytest.approx(4.302653 * 0.2 / 3**0.5, rel=1e-5)
    assert (found["n"], found["chance"], found["ceiling"]) == (3, pytest.approx(0.2), pytest.approx(0.9))
    assert scores.interval_of([0.7]) == {"score": 0.7, "low": None, "high": None, "n": 1}


def test_one_score_can_be_asked_for_by_itself(tmp_path: Path) -> None:
    settings = replace(SETTINGS, lrs=(1e-3,))
    found = score_of(side("gpt").config, "parity", 1, settings=settings, dials={"length": (8, 16)}, folder=tmp_path)
    battery = begin(tmp_path, settings).carry_out()
    own = next(one for one in battery["scores"] if one["architecture"] == "gpt")
    assert own["seeds"]["1"] == found


def test_nothing_is_trained_for_results_that_are_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(module, "train_all", lambda *given: pytest.fail("training began"))
    with pytest.raises(InputError, match="choose other --results"):
        begin(tmp_path / "file").carry_out()


def test_beyond_training_only_answers_that_need_more_steps_count() -> None:
    task = registry.get("pointer_chasing")
    rng = np.random.default_rng(0)
    trained, harder = (task.generate(rng, 32, split="test", steps=steps) for steps in (3, 6))
    counted_BT = _deeper(harder, trained).counted_BT
    assert harder.needed_BT is not None
    assert set(np.unique(harder.needed_BT[counted_BT])) == {4, 5, 6}
    assert (_deeper(trained, harder).counted_BT == trained.counted_BT).all()


def test_a_place_stays_with_its_architecture_and_others_take_what_nobody_has() -> None:
    loop = points([side("recursive")], ask(["parity"], DIALS), SETTINGS)
    cells = [*curve()[0].grid, *loop[0].grid]
    queue = pool._Queue(list(cells), len(cells))
    order = [(place, queue.take(place, last)) for place, last in ((0, ""), (1, ""), (0, "gpt"), (1, "recursive"))]
    taken = [(place, cell.model["architecture"]) for place, cell in order if cell is not None]
    assert taken == [(0, "gpt"), (1, "recursive"), (0, "gpt"), (1, "recursive")]
    assert queue.take(0, "gpt") is None
