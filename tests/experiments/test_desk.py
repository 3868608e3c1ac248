"""The desk answers each line, keeps few models, and goes on whatever it is asked."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from homunculi.cli.terminal import Quiet
from homunculi.experiments import desk as desks
from homunculi.experiments.desk import KEPT, Desk, pieces_of, read_ahead, serve
from homunculi.instruments import hooks
from homunculi.models.mor import Config
from homunculi.runs.directory import claim
from homunculi.runs.scans import scan_from_json
from homunculi.text.config import TextConfig
from homunculi.text.tokenizers import ByteTokenizer
from homunculi.train.config import InstrumentsConfig, OutputConfig, RunConfig, TrainConfig, config_to_json
from homunculi.train.loop import train

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A routed run of two seconds with checkpoints of steps 2 and 4."""
    folder = tmp_path_factory.mktemp("desk")
    words = random.Random(0).choices(["red", "green", "blue", "one", "two", "over", "."], k=500)
    (folder / "corpus.txt").write_text(" ".join(words), encoding="utf-8")
    config = RunConfig(
        model=Config(d_model=16, n_slots=4, n_passes=2, n_heads=2, max_seq_len=32),
        corpus=str(folder / "corpus.txt"),
        steps=4,
        batch_tokens=128,
        eval_every=4,
        sample_every=4,
        checkpoint_every=2,
        device="cpu",
        text=TextConfig(tokenizer="bytes", val_frac=0.1),
        train=TrainConfig(eval_tokens=128),
        output=OutputConfig(prompts=("a",), sample_tokens=2),
        instruments=InstrumentsConfig(names=("activation", "updates")),
    )
    made = claim(folder / "run")
    made.write_info({"recipe": "tiny", "config": config_to_json(config)})
    train(config, made, Quiet())
    return made.path


def ask(desk: Desk, **fields: Any) -> list[dict[str, Any]]:
    return list(desk.answer(json.dumps({"id": 7} | fields)))


def test_a_scan_comes_whole_with_its_changes(run: Path) -> None:
    desk = Desk()
    (plain,) = ask(desk, do="scan", run=str(run), step=None, text="red one", changes=[])
    (held,) = ask(desk, do="scan", run=str(run), step=None, text="red one", changes=["depth=2", "embed=scaled:0.5"])
    scans = [scan_from_json(one["result"]) for one in (plain, held)]
    assert plain["id"] == 7 and [scan.step for scan in scans] == [4, 4] and scans[1].changes[0] == "depth=2"
    depths = [scan.panel("depth") for scan in scans]
    assert depths[1] is not None and (depths[1].values == 2).all()
    (early,) = ask(desk, do="scan", run=str(run), step=2, text="red one")
    assert early["result"]["step"] == 2 and early["result"]["tokens"] != plain["result"]["tokens"]


def test_a_sample_comes_in_pieces_that_make_its_text(run: Path) -> None:
    wanted = {"do": "sample", "run": str(run), "step": None, "text": "red", "tokens": 9, "seed": 3}
    *pieces, last = ask(Desk(), **wanted, temperature=0.8, changes=[])
    assert pieces and "".join(one["piece"] for one in pieces) == last["result"]["text"]
    assert ask(Desk(), **wanted)[-1] == last
    changed = ask(Desk(), **wanted, temperature=0.8, changes=["depth=1", "steps.0.mlp.out=scaled:40"])[-1]
    assert changed["result"]["text"] != last["result"]["text"]


def test_signals_say_what_can_be_changed(run: Path) -> None:
    (answer,) = ask(Desk(), do="signals", run=str(run))
    found = answer["result"]
    gate = {"pattern": "steps.*.router.gate", "title": "gate", "neutral": 1.0, "low": 0.0, "high": 2.0}
    assert gate in found["signals"] and found["depth"] == [1, 2] and found["longest"] == 32
    assert {"name": "attention", "pattern": "steps.*.attn.out", "value": 0.0} in found["regions"]
    assert found["parts"] == [], "its gate is a signal of that name"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"do": "dance"}, "do: 'dance' is none of scan, sample, signals"),
        ({"do": "scan", "run": "nowhere", "text": "a"}, "nowhere: is no run"),
        ({"do": "scan", "text": ""}, "text: is empty"),
        ({"do": "scan", "text": "x" * 99}, "99 tokens and the start are more than the 32"),
        ({"do": "scan", "text": 3}, "text: a text is expected"),
        ({"do": "scan", "text": "a", "step": 3}, "no checkpoint of step 3; there are 2, 4"),
        ({"do": "scan", "text": "a", "step": "3"}, "run and step: a path"),
        ({"do": "scan", "text": "a", "changes": ["x"]}, "change: x: write PATTERN=neutral:NUMBER"),
        ({"do": "scan", "text": "a", "changes": "depth=1"}, "changes: a list of at most"),
        ({"do": "scan", "text": "a", "changes": ["depth=9"]}, "this model can take 1, 2 passes"),
        ({"do": "sample", "text": "a", "tokens": -1}, "tokens: a number from 1 to"),
        ({"do": "sample", "text": "a", "temperature": "hot"}, "temperature: a number"),
        ({"do": "sample", "text": "a", "changes": ["embed=shuffled"]}, "no cache and so no samples"),
        ({"do": "sample", "text": "\ud800"}, "not valid Unicode"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_the_desk_goes_on(run: Path, asked: dict[str, Any], said: str) -> None:
    desk = Desk()
    answer = ask(desk, **({"run": str(run)} | asked))[-1]
    assert answer["id"] == 7 and said in answer["error"] and "\n" not in answer["error"]
    assert "result" in ask(desk, do="scan", run=str(run), text="red")[-1]


@pytest.mark.parametrize("line", ["nonsense", "[1]", "{", "[" * 100_000, '"' + "x" * 5_000_000 + '"'])
def test_what_is_no_request_is_refused(line: str) -> None:
    (answer,) = Desk().answer(line)
    assert answer["id"] is None and ("one JSON object on one line" in answer["error"] or "at most" in answer["error"])


def test_runs_are_loaded_once_few_are_kept_and_new_checkpoints_are_noticed(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[str] = []
    monkeypatch.setattr(
        desks,
        "open_run_for_scan",
        lambda path, step, real=desks.open_run_for_scan: (loads.append(path), real(path, step))[1],
    )
    desk, copies = Desk(), [tmp_path / f"copy{i}" for i in range(KEPT + 1)]
    for copy in copies:
        shutil.copytree(run, copy)
        ask(desk, do="scan", run=str(copy), text="red")
        ask(desk, do="scan", run=str(copy), text="one")
    assert loads == [str(copy) for copy in copies]
    assert [path for path, _ in desk.loaded] == [str(copy) for copy in copies[1:]]
    shutil.rmtree(copies[-1] / "checkpoints" / "step-00000004")
    (answer,) = ask(desk, do="scan", run=str(copies[-1]), text="red")
    assert answer["result"]["step"] == 2 and loads[-1] == str(copies[-1]) and len(loads) == KEPT + 2


def test_characters_come_whole() -> None:
    ids = [*"aé🙂".encode(), 0xC3, ByteTokenizer.eot_id, 98]
    assert list(pieces_of(ByteTokenizer(), ids)) == ["a", "é", "🙂", "\ufffd"]


def test_the_process_speaks_lines_of_json_until_its_input_ends(run: Path) -> None:
    requests = [{"id": 1, "do": "signals", "run": str(run)}, {"id": 2, "do": "sample", "run": str(run), "tokens": 3}]
    lines = "\n".join([*map(json.dumps, requests), "", "what?", ""])
    done = subprocess.run(
        [sys.executable, "-m", "homunculi.experiments.desk"],
        input=lines,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        check=True,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert answers[0]["id"] == 1 and "error" in answers[-1]
    assert "".join(one.get("piece", "") for one in answers) == answers[-2]["result"]["text"]


def test_each_answer_is_written_at_once() -> None:
    class Out(StringIO):
        flushed = 0

        def flush(self) -> None:
            self.flushed += 1

    out = Out()
    serve(["x\n", " \n"], out, lambda line: iter([{"id": 1, "piece": "a"}, {"id": 1, "result": {}}]))
    assert out.getvalue().splitlines() == ['{"id":1,"piece":"a"}', '{"id":1,"result":{}}'] and out.flushed == 2


def test_numbers_that_json_does_not_have_end_no_desk(run: Path) -> None:
    out = StringIO()
    serve(["x", "y"], out, lambda line: iter([{"id": 1, "result": {"a": math.nan if line == "x" else 0.5}}]))
    first, second = map(json.loads, out.getvalue().splitlines())
    assert "not finite" in first["error"] and second["result"] == {"a": 0.5}
    (answer,) = ask(Desk(), do="scan", run=str(run), text="red", changes=["steps.*.resid_post=scaled:1e38"])
    assert answer["result"]["tokens"][2]["surprisal"] is None


def test_what_nobody_foresaw_is_told_and_ends_no_desk(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desks, "signals_of", lambda model: 1 / 0)
    (answer,) = ask(Desk(), do="signals", run=str(run))
    assert answer["error"].startswith("ZeroDivisionError")


def test_a_sample_is_stopped_between_two_tokens_and_what_waits_before_its_turn(run: Path) -> None:
    desk = Desk()
    asked = {"id": 7, "do": "sample", "run": str(run), "text": "red", "tokens": 40, "seed": 3}
    answers = desk.answer(json.dumps(asked))
    pieces = [next(answers)["piece"], next(answers)["piece"]]
    assert desk.stop('{"id": 8, "do": "stop", "of": 7}') and desk.stop('{"id": 9, "do": "stop", "of": 10}')
    *rest, last = answers
    assert len(rest) <= 1, "the bytes of a character that was begun"
    assert last["result"]["text"] == "".join([*pieces, *(one["piece"] for one in rest)])
    scan = {"id": 10, "do": "scan", "run": str(run), "text": "red"}
    assert list(desk.answer(json.dumps(scan))) == [{"id": 10, "error": "stopped"}]
    assert "result" in ask(desk, **asked)[-1] and not desk.stopped, "a number may be asked again"
    assert not desk.stop(json.dumps(asked)) and not desk.stop("nonsense")
    for number in range(1000):
        desk.stop(json.dumps({"do": "stop", "of": number}))
    assert len(desk.stopped) < 100


@pytest.mark.parametrize("do", ["scan", "signals"])
def test_what_is_under_way_is_stopped_at_the_next_module_and_the_model_is_kept(run: Path, do: str) -> None:
    desk, asked = Desk(), {"id": 7, "do": do, "run": str(run), "text": "red"}
    _, whole = ask(desk, do="signals", run=str(run)), ask(desk, **asked)  # loaded, and nothing is stopped yet
    (known,) = desk.loaded.values()
    begun: list[str] = []

    def stop_here(*_: Any) -> None:
        begun.append("readout" if desk.is_stopped(asked) else "embedding")
        desk.stop('{"id": 8, "do": "stop", "of": 7}')

    module = next(module for name, module in known.model.named_modules() if name == "embed")
    hooked = module.register_forward_pre_hook(stop_here)
    hooks._CATALOGUES.clear()
    assert ask(desk, **asked) == [{"id": 7, "error": "stopped"}] and begun == ["embedding"]
    hooked.remove()
    assert ask(desk, **asked) == whole and list(desk.loaded.values()) == [known]


def test_requests_are_read_ahead_and_stops_are_taken_out() -> None:
    taken: list[str] = []
    lines = read_ahead(["a", "stop", "b"], lambda line: line == "stop" and not taken.append(line))
    assert list(lines) == ["a", "b"] and taken == ["stop"]


def test_a_run_that_is_trained_anew_under_its_name_is_loaded_again(run: Path, tmp_path: Path) -> None:
    copy, desk = tmp_path / "copy", Desk()
    shutil.copytree(run, copy)
    for step in (None, 4):
        ask(desk, do="scan", run=str(copy), text="red", step=step)
    before = dict(desk.loaded)
    shutil.rmtree(copy)
    shutil.copytree(run, copy, copy_function=shutil.copy)
    for path in (copy / "checkpoints").iterdir():
        os.utime(path, (1, 1))
    for step in (None, 4):
        ask(desk, do="scan", run=str(copy), text="red", step=step)
    assert all(desk.loaded[key] is not before[key] for key in before)
