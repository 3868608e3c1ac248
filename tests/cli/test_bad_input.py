"""Bad input gets one line that names the field or file and the fix, its own exit code, and loses nothing."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from homunculi.runs.directory import open_run

Cli = Callable[..., Any]


def one_line(done: Any) -> str:
    lines = done.err.strip().splitlines()
    assert "Traceback" not in done.err
    return str(lines[-1])


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("stepz=3", ["stepz", "did you mean steps"]),
        ("n_heads=4", ["n_heads", "did you mean model.n_heads"]),
        ("model.n_heads=four", ["model.n_heads", "whole number", "four"]),
        ("steps=0", ["steps", "0"]),
        ("lr=-1", ["lr", "-1"]),
        ("lr=nan", ["lr", "nan"]),
        ("precision=fp8", ["precision", "float32", "bf16"]),
        ("model.n_heads=5", ["model.n_heads", "does not divide"]),
        ("model.vocab_size=100", ["model.vocab_size", "257"]),
        ("batch_tokens=100", ["batch_tokens", "use batch_tokens=96"]),
        ("text.vocab_size=100", ["text.vocab_size"]),
        ("device=tpu", ["device", "cpu"]),
        ("train.warmup_frac=2", ["train.warmup_frac"]),
        ("steps", ["steps", "key=value"]),
        ("corpus=no/such/place", ["no/such/place"]),
        ("model=3", ["model", "group"]),
    ],
)
def test_a_wrong_setting_is_named_with_its_fix(
    assignment: str, words: list[str], cli: Cli, recipe: str, tmp_path: Path
) -> None:
    extra = ["text.tokenizer=bpe"] if "text.vocab_size" in assignment else []
    done = cli("train", recipe, assignment, *extra, "--run", tmp_path / "run")
    assert done.code == 2, done.err
    line = one_line(done)
    assert all(word in line for word in words), line


def corpora(folder: Path) -> dict[str, tuple[Path, list[str]]]:
    """Broken corpora: what is wrong → where, and what the message must name."""
    made = {
        "empty": ("empty.txt", b"", ["empty.txt"]),
        "short": ("short.txt", b"too short", ["32"]),
        "utf8": (
            "broken.txt",
            b"good text " * 50 + b"\xff\xfe" + b"more " * 50,
            ["broken.txt", "500", "text.encoding"],
        ),
        "jsonl": ("records.jsonl", b'{"text": "fine"}\nnot json\n', ["records.jsonl", "2"]),
        "field": ("fields.jsonl", b'{"body": "fine"}\n', ["fields.jsonl", "text.field"]),
        "kind": ("book.docx", b"PK", ["book.docx"]),
        "gzip": ("cut.txt.gz", gzip.compress(b"some words " * 500)[:-20], ["cut.txt.gz"]),
    }
    for name, content, _ in made.values():
        (folder / name).write_bytes(content)
    return {key: (folder / name, words) for key, (name, _, words) in made.items()}


@pytest.mark.parametrize("kind", ["empty", "short", "utf8", "jsonl", "field", "kind", "gzip"])
def test_a_broken_corpus_is_named_with_its_fix(kind: str, cli: Cli, recipe: str, tmp_path: Path) -> None:
    path, words = corpora(tmp_path)[kind]
    done = cli("train", recipe, f"corpus={path}", "--run", tmp_path / "run")
    assert done.code == 2, done.err
    assert all(word in one_line(done) for word in words), one_line(done)


def test_a_folder_that_holds_a_run_is_left_alone(cli: Cli, recipe: str, finished: Path) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    done = cli("train", recipe, "--run", finished)
    assert done.code == 2 and "resume" in one_line(done)
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("verb", ["resume", "sample", "report", "certify"])
def test_a_path_that_is_no_run_is_named(verb: str, cli: Cli, tmp_path: Path) -> None:
    done = cli(verb, tmp_path / "nowhere")
    assert done.code == 2 and "nowhere" in one_line(done)


@pytest.mark.parametrize(
    "words",
    [["train", "quickstat"], ["certify", "gtp"], ["taps", "gtp"], ["list", "everything"], ["train", "no/file.py:x"]],
)
def test_an_unknown_name_is_answered_with_what_there_is(words: list[str], cli: Cli) -> None:
    done = cli(*words)
    assert done.code == 2 and words[1].split(":")[0] in one_line(done)


def test_a_recipe_that_is_none(cli: Cli, recipe: str) -> None:
    path = recipe.rpartition(":")[0]
    assert "returns a int" in one_line(cli("train", f"{path}:not_a_config"))
    assert "no function missing" in one_line(cli("train", f"{path}:missing"))


def test_an_unknown_verb_or_option_is_bad_input(cli: Cli) -> None:
    assert cli("trian").code == 2
    assert cli("doctor", "--fast").code == 2


@pytest.mark.parametrize("damage", ["truncate", "foreign", "missing"])
def test_a_run_without_a_whole_checkpoint_says_so(damage: str, cli: Cli, finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    for folder in (copy / "checkpoints").iterdir():
        weights = folder / "model.safetensors"
        if damage == "truncate":
            weights.write_bytes(weights.read_bytes()[:-100])
        elif damage == "foreign":
            weights.write_bytes(b"PK\x03\x04 a zip file, or so")
        else:
            weights.unlink()
    done = cli("sample", copy, "--prompt", "red")
    assert done.code == 2 and "model.safetensors" in one_line(done)


def test_a_text_recipe_without_a_text_says_what_to_add(cli: Cli, tmp_path: Path) -> None:
    done = cli("train", "text", "--run", tmp_path / "run")
    assert done.code == 2 and "corpus=PATH" in one_line(done)
    assert not (tmp_path / "run").exists()


def test_a_full_disk_while_writing_metrics_is_one_line_and_resumable(recipe: str, tmp_path: Path) -> None:
    """The largest file a process may write is limited, so that appending fails as on a full disk."""
    code = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))\n"
        "from homunculi.cli.main import main\n"
        "main()\n"
    )
    words = ["train", recipe, "steps=400", "eval_every=400", "sample_every=400", "checkpoint_every=400"]
    run = tmp_path / "run"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *words, "model.d_model=8", "model.n_blocks=1", "--run", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1
    assert "the disk is full" in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert len(lines) > 50 and all(json.loads(line) for line in lines)
    subprocess.run([sys.executable, "-m", "homunculi", "resume", str(run)], env=environment, check=True)
    assert [line["step"] for line in open_run(run).metrics()] == list(range(1, 401))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_checkpoints_and_has_its_own_exit_code(
    number: signal.Signals, code: int, recipe: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = [
        sys.executable,
        "-m",
        "homunculi",
        "train",
        recipe,
        "steps=100000",
        "checkpoint_every=0",
        "--run",
        str(run),
    ]
    words += ["eval_every=0", "sample_every=0"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (run / "metrics.jsonl").exists():
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "resume" in err.strip().splitlines()[-1]
    assert len(list((run / "checkpoints").iterdir())) == 1
    assert open_run(run).status()["state"] == "preempted"


def test_too_little_memory_on_the_device_says_what_to_lower(
    cli: Cli, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Any, *more: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has 79 GiB. Try less.")

    monkeypatch.setattr("homunculi.train.step.Updater.update", full)
    done = cli("train", recipe, "--run", tmp_path / "run")
    line = done.err.strip().splitlines()[-1]
    assert done.code == 1 and line.startswith(
        "homunculi: the device's memory is too small (CUDA out of memory. Tried to allocate 2.00 GiB)"
    )
    for word in ("train.micro_tokens", "batch_tokens", "train.cuda_graphs=off"):
        assert word in line
    assert "Traceback" not in done.err
