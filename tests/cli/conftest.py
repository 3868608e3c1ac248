"""The command line in this process, and a run of two seconds made with it."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from homunculi.cli import main

TINY = """
from homunculi.models.gpt import Config
from homunculi.text.config import TextConfig
from homunculi.train.config import InstrumentsConfig, OutputConfig, RunConfig, TrainConfig

def tiny():
    return RunConfig(
        model=Config(d_model=16, n_blocks=2, n_heads=2, max_seq_len=32),
        corpus={corpus!r}, steps=8, batch_tokens=256, eval_every=4, sample_every=4, checkpoint_every=4, device="cpu",
        text=TextConfig(tokenizer="bytes", val_frac=0.1), train=TrainConfig(eval_tokens=512),
        output=OutputConfig(log_every=1, prompts=("a",), sample_tokens=8),
        instruments=InstrumentsConfig(names=("activation", "updates")),
    )

def not_a_config():
    return 3
"""


@dataclass(frozen=True)
class Outcome:
    """Exit code, stdout and stderr of one command."""

    code: int
    out: str
    err: str


def run_cli(capsys: pytest.CaptureFixture[str], *words: str | Path) -> Outcome:
    before = sys.argv
    sys.argv = ["homunculi", *map(str, words)]
    try:
        with pytest.raises(SystemExit) as ended:
            main.main()
    finally:
        sys.argv = before
    out, err = capsys.readouterr()
    return Outcome(int(ended.value.code or 0), out, err)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    return lambda *words: run_cli(capsys, *words)


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """``file.py:tiny`` over a little text."""
    folder = tmp_path_factory.mktemp("recipe")
    words = random.Random(0).choices(["red", "green", "blue", "one", "two", "over", "under", "."], k=900)
    (folder / "corpus.txt").write_text(" ".join(words), encoding="utf-8")
    (folder / "tiny.py").write_text(TINY.format(corpus=str(folder / "corpus.txt")), encoding="utf-8")
    return f"{folder / 'tiny.py'}:tiny"


@pytest.fixture(scope="session")
def finished(recipe: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    from homunculi.cli.recipes import configured
    from homunculi.cli.train import go_on
    from homunculi.runs.directory import claim
    from homunculi.train.config import config_to_json

    config, _ = configured(recipe, [])
    run = claim(tmp_path_factory.mktemp("runs") / "finished")
    run.write_info({"recipe": "tiny", "config": config_to_json(config)})
    go_on(config, run)
    return run.path
