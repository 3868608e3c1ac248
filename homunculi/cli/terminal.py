"""What a person sees while a run goes: one updating line on a terminal, plain lines elsewhere. All on stderr."""

from __future__ import annotations

import math
import os
import sys
import time
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Terminal:
    """A `homunculi.train.session.Reporter`."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        live = self.console.is_terminal and not os.environ.get("CI") and os.environ.get("TERM") != "dumb"
        self.bar = _bar(self.console) if live else None
        self.task: TaskID | None = None
        self.began = time.monotonic()
        self.first_step: int | None = None

    def plan(self, lines: list[str]) -> None:
        for line in lines:
            label, _, rest = line.partition(" ")
            self.console.print(f"[bold]{escape(label)}[/bold] {escape(rest)}")

    def message(self, text: str) -> None:
        self.console.print(escape(text), style="dim")

    def progress(self, step: int, steps: int, loss: float) -> None:
        if self.first_step is None:
            self.first_step, self.began = step, time.monotonic()
            if self.bar:
                self.task = self.bar.add_task("training", total=steps, loss="")
                self.bar.start()
        if self.bar and self.task is not None:
            self.bar.update(self.task, completed=step, loss=f"loss {loss:.3f}")

    def metrics(self, line: dict[str, Any], steps: int) -> None:
        if self.bar and "val/loss" not in line:
            return
        words = [f"step {line['step']}/{steps}", f"loss {line['train/loss']:.4f}"]
        if "val/loss" in line:
            words.append(f"val {line['val/loss']:.4f} ({line['val/bpb']:.3f} bits/byte)")
        if "perf/tokens_per_s" in line:
            words.append(f"{line['perf/tokens_per_s']:,.0f} tokens/s")
        words.append(f"{self._left(line['step'], steps)} left")
        self.console.print("  ".join(words))

    def sample(self, step: int, prompt: str, text: str) -> None:
        shown = " ".join((prompt + text).split())
        self.console.print(f"[bold]{escape(f'sample at step {step}:')}[/bold] {escape(shown)}")

    def close(self) -> None:
        if self.bar:
            self.bar.stop()

    def _left(self, step: int, steps: int) -> str:
        done = step - (self.first_step or 0)
        if done <= 0:
            return "?"
        seconds = math.ceil((time.monotonic() - self.began) / done * (steps - step))
        return f"{seconds // 60}:{seconds % 60:02d}"


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[loss]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        refresh_per_second=4,
        transient=True,
    )


class Quiet:
    """A reporter of processes that do not write."""

    def plan(self, lines: list[str]) -> None:
        """Nothing is shown."""

    def message(self, text: str) -> None:
        """Nothing is shown."""

    def metrics(self, line: dict[str, Any], steps: int) -> None:
        """Nothing is shown."""

    def sample(self, step: int, prompt: str, text: str) -> None:
        """Nothing is shown."""

    def progress(self, step: int, steps: int, loss: float) -> None:
        """Nothing is shown."""

    def close(self) -> None:
        """Nothing is shown."""


def print_result(text: str) -> None:
    """A result on stdout, flushed."""
    print(text, file=sys.stdout, flush=True)
