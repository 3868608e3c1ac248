"""Two processes train as one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from homunculi.runs.directory import open_run
from homunculi.runs.measures import measured_steps, read_measurement
from homunculi.train.checkpoint import checkpoints, file_hash

RECIPE = """
from homunculi.models.gpt import Config
from homunculi.text.config import TextConfig
from homunculi.train.config import InstrumentsConfig, OutputConfig, RunConfig, TrainConfig

def tiny():
    return RunConfig(
        model=Config(d_model=16, n_blocks=2, n_heads=2, max_seq_len=32), corpus={corpus!r}, steps=8, batch_tokens=256,
        eval_every=4, sample_every=8, checkpoint_every=4, device="cpu",
        text=TextConfig(tokenizer="bytes", val_frac=0.1), train=TrainConfig(eval_tokens=512, micro_tokens=64),
        output=OutputConfig(log_every=1, prompts=("a",), sample_tokens=4),
        instruments=InstrumentsConfig(names=("activation", "updates")),
    )
"""
LOSS_TOLERANCE = 2e-5  # float32 sums in another order


def torchrun(n_processes: int, *words: str) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n_processes), "-m", "--"]
    command = [sys.executable, *(launcher if n_processes > 1 else ["-m"]), "homunculi", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=True, timeout=120)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("distributed")
    (folder / "corpus.txt").write_text("".join(f"{i} times {i} is {i * i}. " for i in range(400)))
    (folder / "tiny.py").write_text(RECIPE.format(corpus=str(folder / "corpus.txt")))
    return f"{folder / 'tiny.py'}:tiny"


def test_the_same_global_batch_gives_the_same_loss_on_one_and_two_processes(recipe: str, tmp_path: Path) -> None:
    outcomes = {}
    for n in (1, 2):
        done = torchrun(n, "train", recipe, "--run", str(tmp_path / f"{n}"), "--json")
        (printed,) = [line for line in done.stdout.splitlines() if line.startswith("{")]
        outcomes[n] = json.loads(printed)
    one, two = (open_run(tmp_path / name) for name in "12")
    assert outcomes[1]["stream_hash"] == outcomes[2]["stream_hash"]
    assert two.info()["provenance"]["processes"] == 2
    assert [line["step"] for line in two.metrics()] == list(range(1, 9))
    for name in ("activation", "updates"):
        assert measured_steps(two.path, name) == measured_steps(one.path, name) != []
    norm = read_measurement(two.path, "updates", 8).measurement.values["gradient_norm"]
    assert float(norm) == pytest.approx(two.metrics()[-1]["train/grad_norm"], rel=1e-5), "of the whole batch"
    for a, b in zip(one.metrics(), two.metrics(), strict=True):
        assert a["train/loss"] == pytest.approx(b["train/loss"], abs=LOSS_TOLERANCE)
        assert a["train/grad_norm"] == pytest.approx(b["train/grad_norm"], rel=1e-3)


def test_a_run_of_two_processes_resumes(recipe: str, tmp_path: Path) -> None:
    torchrun(2, "train", recipe, "--run", str(tmp_path / "run"))
    run = open_run(tmp_path / "run")
    before = run.metrics()
    last = checkpoints(run.path / "checkpoints")[8]
    weights = file_hash(last / "model.safetensors")
    (last / "model.safetensors").write_bytes(b"cut")
    run.write_status(state="failed")
    torchrun(2, "resume", str(run.path))
    assert file_hash(last / "model.safetensors") == weights
    assert len(run.metrics()) == len(before)
