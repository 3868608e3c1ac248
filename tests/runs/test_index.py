"""The list of runs: five folders deep, from the ends of files, whatever state they are in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from homunculi.errors import InputError
from homunculi.runs import lines
from homunculi.runs.directory import claim
from homunculi.runs.index import find_runs, summarise


def make(path: Path, created: float = 0.0, **info: object) -> Path:
    with claim(path) as run:
        run.write_info({"config": {}, "created": created, "architecture": "gpt", **info})
        run.log_metrics({"step": 10, "val/loss": 2.0, "val/bpb": 1.0})
        run.log_metrics({"step": 20, "val/loss": 1.5, "val/bpb": 0.75})
        run.log_metrics({"step": 30, "train/loss": 1.4})
        run.write_status(state="done", step=30, steps=30)
    return path


def test_runs_are_found_five_deep_newest_first(tmp_path: Path) -> None:
    make(tmp_path / "a-000001", 1)
    make(tmp_path / "sweep" / "b-000002", 2)
    make(tmp_path / "x" / "y" / "c-000003", 3)
    make(tmp_path / "scale-gpt" / "size-0.25" / "runs" / "d-000004", 4)
    make(tmp_path / "claim" / "d128" / "from-3" / "runs" / "g-000007", 5)
    make(tmp_path / "1" / "2" / "3" / "4" / "5" / "h-000008", 6)
    make(tmp_path / ".hidden" / "e-000005", 5)
    make(tmp_path / "a-000001" / "checkpoints" / "f-000006", 6)
    assert [run.id for run in find_runs(tmp_path)] == ["000007", "000004", "000003", "000002", "000001"]


def test_a_run_given_itself_is_listed(tmp_path: Path) -> None:
    make(tmp_path / "a-000001")
    assert [run.id for run in find_runs(tmp_path / "a-000001")] == ["000001"]


def test_a_summary_holds_the_last_evaluation(tmp_path: Path) -> None:
    run = summarise(make(tmp_path / "a-000001", 7.0, name="named"))
    assert (run.path, run.id, run.name, run.architecture) == (tmp_path / "a-000001", "000001", "named", "gpt")
    assert (run.state, run.step, run.steps, run.val_loss, run.val_bpb, run.created) == ("done", 30, 30, 1.5, 0.75, 7.0)


def test_without_a_status_the_step_comes_from_the_metrics(tmp_path: Path) -> None:
    (make(tmp_path / "a-000001") / "status.json").unlink()
    run = summarise(tmp_path / "a-000001")
    assert (run.state, run.step, run.steps) == ("unknown", 30, None)


def test_a_loss_that_was_not_finite_is_empty(tmp_path: Path) -> None:
    path = make(tmp_path / "a-000001")
    with claim(tmp_path / "b") as run:
        run.log_metrics({"step": 1, "val/loss": float("nan")})
        run.write_info({"config": {}})
    assert summarise(tmp_path / "b").val_loss is None
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "val/loss": ' + "9" * 400 + "}\n")
    assert summarise(path).val_loss is None


@pytest.mark.parametrize("content", ["", "{", "[1]", "\x00\xff", "null"])
def test_a_broken_run_json_does_not_stop_the_list(tmp_path: Path, content: str) -> None:
    make(tmp_path / "a-000001", 5)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text(content)
    found = find_runs(tmp_path)
    assert [(run.name, run.state) for run in found] == [("a", "done"), ("broken", "unreadable")]


def test_fields_of_the_wrong_kind_are_left_empty(tmp_path: Path) -> None:
    path = make(tmp_path / "a-000001")
    wrong = {"name": 5, "id": ["x"], "architecture": None, "created": {"no": 1}}
    (path / "run.json").write_text(json.dumps(wrong))
    (path / "status.json").write_text('{"state": 4, "step": "many", "steps": 1.5}')
    (path / "metrics.jsonl").write_text('{"step": 1, "val/loss": "low", "val/bpb": true}\n')
    run = summarise(path)
    assert (run.name, run.id, run.architecture, run.created) == ("5", "['x']", "", None)
    assert (run.state, run.step, run.steps, run.val_loss, run.val_bpb) == ("unknown", 1, None, None, None)


def test_the_default_root_may_be_absent_but_a_given_one_may_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOMUNCULI_RUNS", str(tmp_path / "none"))
    assert find_runs() == []
    with pytest.raises(InputError, match="is no folder"):
        find_runs(tmp_path / "none")
    make(tmp_path / "none" / "a-000001")
    assert len(find_runs()) == 1


def test_links_that_lead_in_circles_end(tmp_path: Path) -> None:
    make(tmp_path / "a-000001")
    (tmp_path / "again").symlink_to(tmp_path, target_is_directory=True)
    assert {run.id for run in find_runs(tmp_path)} == {"000001"}


def test_a_long_file_of_metrics_is_read_only_at_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path / "a-000001")
    line = json.dumps({"step": 0, "pad": "x" * 250})
    evaluated = json.dumps({"step": 1, "val/loss": 1.25})
    (path / "metrics.jsonl").write_text("\n".join([line] * 10_000 + [evaluated] + [line] * 100) + "\n")
    read = []
    real = lines.os.pread

    def counting(handle: int, size: int, at: int) -> bytes:
        read.append(size)
        return real(handle, size, at)

    monkeypatch.setattr(lines.os, "pread", counting)
    assert summarise(path).val_loss == 1.25
    assert sum(read) <= 1 << 16
