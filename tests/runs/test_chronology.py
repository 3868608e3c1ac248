"""Half-times that were planted are found, and noise has none."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from homunculi.errors import InputError
from homunculi.runs.chronology import Curve, chronology, half_time, in_order, noise, over_runs
from homunculi.runs.directory import RunDirectory
from homunculi.runs.measures import Measurement, Stored, write_measurement

STEPS = np.unique(np.concatenate([[0], np.logspace(0, 3, 40).round()]))


def curve(half: float, sharp: float = 3.0, spread: float = 0.0, seed: int = 0, **more: object) -> Curve:
    """A rise from 0 to 1 along the logarithm of the step, halfway at `half`."""
    with np.errstate(divide="ignore"):
        values = 1 / (1 + (STEPS / half) ** -sharp)
    values = values + np.random.default_rng(seed).normal(0, spread, len(STEPS)) * (STEPS > 0)
    return Curve(f"rise at {half:g}", STEPS, values, 100 * STEPS, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("half", [4.0, 37.0, 150.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_planted_half_time_is_found(half: float, sign: int) -> None:
    rise = curve(half)
    found = half_time(Curve("a", rise.steps, 5 + sign * rise.values, rise.tokens))
    assert found.step == pytest.approx(half, rel=0.05)
    assert found.low <= found.step <= found.high
    assert found.tokens == pytest.approx(100 * found.step, rel=0.02)
    assert (found.crossings, found.reason) == (1, "")


def test_noise_has_no_half_time() -> None:
    values = np.random.default_rng(1).normal(0, 1, len(STEPS))
    found = half_time(Curve("noise", STEPS, values, STEPS))
    assert "not more than 5 deviations" in found.reason and math.isnan(found.step)
    assert noise(values) == pytest.approx(1, abs=0.5)


def test_the_null_of_an_instrument_decides_where_it_has_one() -> None:
    assert half_time(curve(37, null_sd=0.1)).step == pytest.approx(37, rel=0.05)
    assert "deviations of 0.3" in half_time(curve(37, null_sd=0.3)).reason


def test_a_curve_that_turns_back_has_a_first_and_a_last_crossing() -> None:
    there_and_back = np.where((STEPS > 10) & (STEPS < 50), 1.0, np.where(STEPS > 300, 1.0, 0.0))
    turning = Curve("turning", STEPS, there_and_back, STEPS)
    first, last = half_time(turning, "first"), half_time(turning, "last")
    assert 9 < first.step < 13 and 280 < last.step < 360
    assert first.crossings == last.crossings == 3


def test_a_flat_or_short_curve_says_why() -> None:
    assert "moved by 0" in half_time(Curve("flat", STEPS, np.ones(len(STEPS)), STEPS)).reason
    assert "2 points" in half_time(Curve("short", STEPS[:2], STEPS[:2], STEPS[:2])).reason


def test_several_runs_give_an_interval_that_holds_the_planted_half_time() -> None:
    halves = 40 * np.exp(np.random.default_rng(2).normal(0, 0.2, 8))
    found = over_runs([curve(half, spread=0.01, seed=i) for i, half in enumerate(halves)])
    assert found.low < 40 < found.high and found.high < 2 * found.low
    assert found.n_runs == 8
    flat = [Curve("a", STEPS, np.zeros(len(STEPS)), STEPS)] * 2
    assert "2 runs" in over_runs(flat).reason


def test_the_order_of_acquisition_is_that_of_the_half_times() -> None:
    found = [half_time(curve(half)) for half in (150, 4, 37)]
    never = half_time(Curve("never", STEPS, np.zeros(len(STEPS)), STEPS))
    assert [one.name for one in in_order([never, *found])] == ["rise at 4", "rise at 37", "rise at 150", "never"]


def a_run(folder: Path, half: float) -> Path:
    folder.mkdir()
    with RunDirectory(folder) as run:
        run.write_info({})
        for step, value in zip(STEPS, curve(half).values, strict=True):
            run.log_metrics({"step": int(step), "tokens": 64 * int(step), "train/loss": 7 - 3 * value, "lr": value})
            found = Measurement({"rho": np.array(value**4), "rho null sd": np.array(0.01), "odd": np.array(np.nan)})
            write_measurement(folder, Stored("depth", "line", "Depth", "How deep?", int(step), 64 * int(step), found))
    return folder


def test_a_run_becomes_a_table_of_what_came_when(tmp_path: Path) -> None:
    table = chronology(a_run(tmp_path / "a", 20))
    assert [one.name for one in table] == ["train/loss", "depth/rho"]
    assert table[0].step == pytest.approx(20, rel=0.1) and table[0].tokens == pytest.approx(64 * 20, rel=0.1)
    assert table[1].step > table[0].step
    both = chronology([tmp_path / "a", a_run(tmp_path / "b", 30)], ["train/*"])
    assert len(both) == 1 and both[0].n_runs == 2 and 20 < both[0].step < 30


def test_clocks_are_acquired_by_nobody_unless_named(tmp_path: Path) -> None:
    run = a_run(tmp_path / "a", 20)
    assert [one.name for one in chronology(run, ["lr"])] == ["lr"]
    with pytest.raises(InputError, match="nothing goes by"):
        chronology(run, ["no/such*"])
    with pytest.raises(InputError, match="no run"):
        chronology(tmp_path)
