"""Runs of a comparison in this process, where a new one would spend its time on importing torch."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from homunculi.cli import main

TINY = """
from dataclasses import replace
from homunculi.models.gpt import Config
from homunculi.text.config import TextConfig
from homunculi.train.config import OutputConfig, RunConfig, TrainConfig

def tiny():
    return RunConfig(
        model=Config(d_model=16, n_blocks=2, n_heads=2, max_seq_len=32),
        corpus="stories?n_documents=40&n_val_documents=10", steps=24, batch_tokens=256, lr=2e-2, device="cpu",
        text=TextConfig(tokenizer="bytes"), train=TrainConfig(eval_tokens=1024),
        output=OutputConfig(log_every=8, prompts=("a",), sample_tokens=4),
    )

def shallow():
    return replace(tiny(), model=Config(d_model=16, n_blocks=1, n_heads=2, max_seq_len=32))
"""


class Ended:
    """A process that is over."""

    def __init__(self, code: int) -> None:
        self.code = code

    def poll(self) -> int:
        return self.code

    def terminate(self) -> None:
        """It is over."""

    def wait(self, timeout: float | None = None) -> int:
        return self.code


class Inside:
    """A launcher that does the work at once.

    Attributes:
        folders: of the runs that it started.
        most: after so many it breaks down.
    """

    def __init__(self, most: int = 1000, before: Callable[[Path], None] = lambda folder: None) -> None:
        self.folders: list[str] = []
        self.most, self.before = most, before

    def __call__(self, words: Sequence[str], environment: Mapping[str, str], log: Path) -> Ended:
        if len(self.folders) == self.most:
            raise KeyboardInterrupt
        self.folders.append("/".join(log.parent.parts[-2:]))
        self.before(log.parent)
        log.parent.mkdir(parents=True, exist_ok=True)
        arguments = sys.argv
        sys.argv = ["homunculi", *words]
        try:
            with log.open("a") as said, contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
                main.main()
        except SystemExit as ended:
            return Ended(int(ended.code or 0))
        finally:
            sys.argv = arguments
        return Ended(0)


class Listener:
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.plans: list[str] = []
        self.messages: list[str] = []

    def plan(self, lines: list[str]) -> None:
        self.plans += lines

    def message(self, text: str) -> None:
        self.messages.append(text)

    def progress(self, states: object) -> None:
        """Nobody looks."""
