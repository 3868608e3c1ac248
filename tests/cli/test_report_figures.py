"""`homunculi report` tells what came when, and writes figures into a folder; bad input is one line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from homunculi.interop import measured_figures, run_figures
from homunculi.runs.directory import RunDirectory, claim
from homunculi.runs.measures import Measurement, Stored, write_measurement

Cli = Callable[..., Any]
STEPS = (0, 1, 2, 4, 8, 16, 20, 24, 28, 32)


def followed(folder: Path, seed: int = 0) -> RunDirectory:
    run = claim(folder)
    run.write_info({"config": {"seed": seed, "lr": 0.1}})
    for step in STEPS:
        run.log_metrics({"step": step, "tokens": 10 * step, "train/loss": 6.0 if step < 5 else 1.0})
        found = Measurement({"rho": np.array(float(step > 10)), "v": np.eye(2)}, {"v": ("a", "b")})
        write_measurement(run.path, Stored("depth", "heatmap", "Depth", "How deep?", step, 10 * step, found))
    run.write_status(state="done", step=32, steps=32)
    run.close()
    return run


@pytest.fixture
def drawing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Sheets without matplotlib: what is written and how it is called is the same."""

    def sheet(panels: Sequence[Any]) -> dict[str, bytes]:
        return {"png": b"png", "svg": str(len(panels)).encode()}

    monkeypatch.setitem(sys.modules, "matplotlib", sys)
    monkeypatch.setattr(measured_figures, "draw_sheet", sheet)
    monkeypatch.setattr(run_figures, "draw_sheet", sheet)
    yield


def test_json_tells_what_came_when(cli: Cli, tmp_path: Path) -> None:
    runs = [followed(tmp_path / f"a-s{i}", i).path for i in range(2)]
    found = json.loads(cli("report", runs[0], "--json").out)
    assert found["report"] == str(runs[0] / "report.html") and "figures" not in found
    (one,) = found["chronology"]
    assert one["runs"] == ["a-s0"] and [row["name"] for row in one["order"]] == ["train/loss", "depth/rho"]
    loss = one["order"][0]
    assert 4 < loss["step"] < 8 and (loss["low"], loss["high"], loss["reason"]) == (4, 8, "")
    both = json.loads(cli("report", *runs, "--out", tmp_path / "both.html", "--json").out)
    (group,) = both["chronology"]
    assert group["runs"] == ["a-s0", "a-s1"] and group["order"][0]["n_runs"] == 2
    assert group["order"][0]["low"] is None, "two runs give no interval"


def test_figures_are_written_for_one_run(cli: Cli, drawing: None, tmp_path: Path) -> None:
    run, out = followed(tmp_path / "my run").path, tmp_path / "new" / "figures"
    done = cli("report", run, "--figures", out, "--json")
    assert done.code == 0, done.err
    names = ["chronology", "depth-32", "depth-over-steps", "loss"]
    assert sorted(path.name for path in out.iterdir()) == [f"my-run-{n}.{k}" for n in names for k in ("png", "svg")]
    assert sorted(json.loads(done.out)["figures"]) == sorted(map(str, out.iterdir()))
    assert (run / "report.html").exists()
    again = cli("report", run, "--figures", out)
    assert again.code == 0 and again.out.splitlines()[-1] == f"{out}: 8 files"


def test_a_step_chooses_the_measurements(cli: Cli, drawing: None, tmp_path: Path) -> None:
    run, out = followed(tmp_path / "run").path, tmp_path / "out"
    assert cli("report", run, "--figures", out, "--step", 4).code == 0
    assert (out / "run-depth-4.png").exists() and not (out / "run-depth-32.png").exists()
    bad = cli("report", run, "--figures", out, "--step", 5)
    assert bad.code == 2 and "steps with measurements: 0, 1, 2, 4, 8, 16, 20, 24, 28, 32" in bad.err
    assert cli("report", run, "--step", 4).code == 2


def test_several_runs_share_figures_and_keep_their_own(cli: Cli, drawing: None, tmp_path: Path) -> None:
    runs = [followed(tmp_path / name, i).path for i, name in enumerate(("x/a b", "y/a b", "y/a-b"))]
    out = tmp_path / "out"
    assert cli("report", *runs, "--figures", out, "--out", tmp_path / "all.html").code == 0
    names = [path.name for path in out.glob("*.png")]
    assert {"runs-loss.png", "runs-depth-over-steps.png"} <= set(names)
    assert len([name for name in names if name.endswith("-depth-32.png")]) == 3, "no two runs share a file"


def test_damage_is_named_and_the_rest_is_drawn(cli: Cli, drawing: None, tmp_path: Path) -> None:
    run, out = followed(tmp_path / "run").path, tmp_path / "out"
    (run / "measures/depth/step-00000032.safetensors").write_bytes(b"\x00")
    done = cli("report", run, "--figures", out)
    assert done.code == 0 and "left out" in done.err and (out / "run-loss.png").exists()
    assert not (out / "run-depth-32.png").exists()


def test_without_matplotlib_one_line_says_how_to_get_it(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    run = followed(tmp_path / "run").path
    done = cli("report", run, "--figures", tmp_path / "out")
    assert done.code == 2 and "pip install 'homunculi[report]'" in done.err and "Traceback" not in done.err
    assert not (tmp_path / "out").exists() and cli("report", run).code == 0


def test_a_folder_that_cannot_be_made_and_a_run_with_nothing(cli: Cli, drawing: None, tmp_path: Path) -> None:
    run = followed(tmp_path / "run").path
    (tmp_path / "file").write_text("")
    assert "cannot be made" in cli("report", run, "--figures", tmp_path / "file").err
    empty = claim(tmp_path / "empty")
    empty.write_info({})
    empty.close()
    done = cli("report", empty.path, "--figures", tmp_path / "out")
    assert done.code == 2 and "nothing to draw yet" in done.err
