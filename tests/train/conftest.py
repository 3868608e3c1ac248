"""A run of a second, in this process."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from homunculi.models.gpt import Config
from homunculi.runs.directory import RunDirectory, claim, reopen
from homunculi.text.config import TextConfig
from homunculi.train.config import (
    InstrumentsConfig,
    OutputConfig,
    RunConfig,
    TrainConfig,
    config_from_json,
    config_to_json,
)
from homunculi.train.loop import train


class Listener:
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.plans: list[str] = []
        self.messages: list[str] = []
        self.lines: list[dict[str, Any]] = []
        self.samples: list[str] = []

    def plan(self, lines: list[str]) -> None:
        self.plans += lines

    def message(self, text: str) -> None:
        self.messages.append(text)

    def metrics(self, line: dict[str, Any], steps: int) -> None:
        self.lines.append(line)

    def sample(self, step: int, prompt: str, text: str) -> None:
        self.samples.append(text)

    def progress(self, step: int, steps: int, loss: float) -> None:
        pass


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    words = random.Random(0).choices(["red", "green", "blue", "one", "two", "over", "under", "."], k=900)
    path.write_text(" ".join(words), encoding="utf-8")
    return path


@pytest.fixture
def tiny(corpus: Path) -> RunConfig:
    """With two instruments, one of each kind: all of them take four times as long as the training itself."""
    return RunConfig(
        model=Config(d_model=16, n_blocks=2, n_heads=2, max_seq_len=32),
        corpus=str(corpus),
        steps=12,
        batch_tokens=256,
        eval_every=4,
        sample_every=6,
        checkpoint_every=4,
        device="cpu",
        text=TextConfig(tokenizer="bytes", val_frac=0.1),
        train=TrainConfig(eval_tokens=512),
        output=OutputConfig(log_every=1, prompts=("a",), sample_tokens=8),
        instruments=InstrumentsConfig(names=("activation", "updates")),
    )


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., tuple[RunDirectory, Listener]]:
    """Train a new run to its end, or to the error it raises."""

    def run_it(config: RunConfig, name: str = "run", **changes: Any) -> tuple[RunDirectory, Listener]:
        config = dataclasses.replace(config, **changes)
        run, listener = claim(tmp_path / name), Listener()
        run.write_info({"recipe": "tiny", "config": config_to_json(config)})
        train(config, run, listener)
        return run, listener

    return run_it


@pytest.fixture
def go_on() -> Callable[[Path], tuple[RunDirectory, Listener]]:
    """Resume a run."""

    def run_it(path: Path) -> tuple[RunDirectory, Listener]:
        run, listener = reopen(path), Listener()
        train(config_from_json(run.info()["config"]), run, listener)
        return run, listener

    return run_it
