"""Metrics as columns: they follow a growing file, forget a replaced one, and lose no peak when thinned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from homunculi.web.columns import Columns, Shelf, logged_names, thinned
from homunculi.web.comparing import band


def write(path: Path, lines: list[Any], mode: str = "a") -> None:
    with open(path, mode) as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


@pytest.mark.parametrize("wanted", [None, ["loss", "step"]])
def test_columns_follow_a_file_that_grows(tmp_path: Path, wanted: list[str] | None) -> None:
    path = tmp_path / "m.jsonl"
    columns = Columns(path, wanted)
    columns.follow()
    assert columns.names() == []
    write(path, [{"step": 1, "loss": 3.5}, {"step": 2, "loss": None, "lr": 1e-3}])
    with open(path, "a") as file:
        file.write('{"step": 3, "lo')
    columns.follow()
    x, y = columns.line("loss")
    assert x.tolist() == [1, 2] and y[0] == 3.5 and np.isnan(y[1]) and columns.torn
    before = columns.version
    with open(path, "a") as file:
        file.write('ss": 2}\n')
    columns.follow()
    assert columns.line("loss")[0].tolist() == [1, 2, 3] and not columns.torn and columns.version != before


@pytest.mark.parametrize("wanted", [None, ["loss"]])
def test_a_step_that_stands_twice_counts_once_with_its_last_value(tmp_path: Path, wanted: list[str] | None) -> None:
    path = tmp_path / "m.jsonl"
    write(path, [{"step": step, "loss": step / 10} for step in (1, 2, 3)] + [{"step": 2, "loss": 9.0}])
    columns = Columns(path, wanted)
    columns.follow()
    x, y = columns.line("loss")
    assert x.tolist() == [1, 2, 3] and y.tolist() == [0.1, 9.0, 0.3]


def test_a_file_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    write(path, [{"step": step, "loss": 1.0, "old": 1} for step in range(9)])
    columns = Columns(path)
    columns.follow()
    write(path, [{"step": 5, "loss": 2.0}], "w")
    columns.follow()
    assert columns.names() == ["loss"] and columns.line("loss")[1].tolist() == [2.0]
    path.unlink()
    columns.follow()
    assert columns.names() == [] and columns.last_step() is None


def test_damage_is_counted_and_nothing_odd_is_drawn(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    odd = [{"step": True, "loss": 1}, {"loss": 1}, [1], {"step": 10**30, "loss": 1}]
    write(path, [{"step": 1, "loss": "high", "on": True, "size": 10**400}, *odd])
    with open(path, "a") as file:
        file.write("{]\n\n" + "[" * 5000 + "\n")
    columns = Columns(path)
    columns.follow()
    assert columns.names() == [] and columns.n_damaged == 6 and columns.n_lines == 7


def test_picked_metrics_equal_read_ones(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    tricky = {"note": 'a "loss": 7, "step": 8}', "train/loss": 5, "nonfinite": ["loss"]}
    write(path, [{"step": step, **tricky, "loss": -1.5e-07 * step, "tokens": step * 3} for step in range(1, 50)])
    shelf = Shelf()
    _, read = shelf.read(path, ["loss"], "tokens")
    picked = shelf.pick(path, "loss", "tokens")
    assert read["loss"][0].tolist() == picked[0].tolist() == [3.0 * step for step in range(1, 50)]
    assert read["loss"][1].tolist() == picked[1].tolist()
    assert {"train/loss", "loss", "tokens"} <= set(logged_names(path))


def test_the_shelf_keeps_no_more_numbers_than_it_may(tmp_path: Path) -> None:
    shelf = Shelf(kept=250)
    for index in range(5):
        path = tmp_path / f"{index}.jsonl"
        write(path, [{"step": step, "loss": index} for step in range(100)])
        assert shelf.read(path, ["loss"], "step")[1]["loss"][1].tolist() == [float(index)] * 100
    assert len(shelf._of) == 2


def test_thinning_keeps_every_peak_the_ends_and_the_breaks() -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(size=10_000)
    y[[37, 5000, 9998]] = 50.0, -50.0, 60.0
    y[7777] = np.nan
    x = np.arange(10_000.0)
    few_x, few_y = thinned(x, y)
    assert len(few_x) <= 500 and (np.diff(few_x) > 0).all()
    assert {0.0, 37.0, 5000.0, 7777.0, 9998.0, 9999.0} <= set(few_x.tolist())
    assert np.isnan(few_y).sum() == 1 and all(
        y[int(at)] == value for at, value in zip(few_x, few_y, strict=True) if value == value
    )


def test_a_band_covers_the_stretch_that_all_runs_have() -> None:
    one = (np.array([10.0, 20, 30, 40]), np.array([4.0, 3, 2, 1]))
    two = (np.array([10.0, 20, 30]), np.array([6.0, 5, 2]))
    found = band([one, two, (np.empty(0), np.empty(0))])
    assert found == {"n": 2, "x": [10, 20, 30], "mean": [5, 4, 2], "low": [4, 3, 2], "high": [6, 5, 2]}
    between = band([one, (np.array([15.0, 25, 35]), np.array([1.0, 1, 1]))])
    assert between["x"] == [15, 25, 35] and between["high"] == [3.5, 2.5, 1.5] and between["low"] == [1, 1, 1]
    assert band([])["n"] == 0 and band([one, (np.array([50.0]), np.array([1.0]))])["x"] == []
