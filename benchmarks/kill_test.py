"""Kill a run at random instants until it is done, and compare it with one that nobody killed.

    python -m benchmarks.kill_test --rounds 10 --seed 0

Each round trains the same small run (two epochs and more of a little text, dropout on, a mean of the weights kept),
kills it with SIGKILL at a random instant, resumes it, kills it again, until it ends by itself. Afterwards weights,
optimiser state, every metric and every sample must equal the undisturbed run's, and each metric line that was shown
must stand in the file after each kill. Prints counts as JSON; exit code 1 if anything differed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from homunculi.models.gpt import Config
from homunculi.runs.directory import RunDirectory, claim, reopen
from homunculi.text.config import TextConfig
from homunculi.train.checkpoint import file_hash
from homunculi.train.config import (
    InstrumentsConfig,
    OutputConfig,
    RunConfig,
    TrainConfig,
    config_from_json,
    config_to_json,
)
from homunculi.train.loop import train

STEPS = 24


@dataclass
class Counts:
    """What happened over all rounds."""

    rounds: int = 0
    kills: int = 0
    kills_before_first_checkpoint: int = 0
    resumes: int = 0
    differences: list[str] = field(default_factory=list)


class Witness:
    """A reporter that writes down each metric line it is shown, beside the run."""

    def __init__(self, path: Path) -> None:
        self.file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def plan(self, lines: list[str]) -> None:
        """The plan is not compared."""

    def message(self, text: str) -> None:
        """Messages are not compared."""

    def progress(self, step: int, steps: int, loss: float) -> None:
        """Progress is not compared."""

    def sample(self, step: int, prompt: str, text: str) -> None:
        """Samples are compared through their file."""

    def metrics(self, line: dict[str, Any], steps: int) -> None:
        os.write(self.file, (json.dumps(line) + "\n").encode())


def small_run(corpus: Path) -> RunConfig:
    """A run of about a second that crosses epoch boundaries and uses all that a checkpoint must hold. Two instruments,
    one of each kind, are under way meanwhile; all of them would take longer than the run."""
    return RunConfig(
        model=Config(d_model=16, n_blocks=2, n_heads=2, max_seq_len=32, dropout=0.1),
        corpus=str(corpus),
        steps=STEPS,
        batch_tokens=256,
        eval_every=4,
        sample_every=6,
        checkpoint_every=4,
        device="cpu",
        text=TextConfig(tokenizer="bytes", val_frac=0.1),
        train=TrainConfig(ema=0.9, eval_tokens=512, optimizer="muon"),
        output=OutputConfig(log_every=1, prompts=("a", ""), sample_tokens=8, keep_every=8),
        instruments=InstrumentsConfig(names=("activation", "updates")),
    )


def write_corpus(path: Path) -> Path:
    words = random.Random(0).choices(["red", "green", "blue", "one", "two", "over", "under", "."], k=700)
    path.write_text(" ".join(words), encoding="utf-8")
    return path


def in_child(work: Callable[[], None]) -> int:
    """Run `work` in a forked process and return its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        torch.set_num_threads(1)
        work()
        code = 0
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(code)


def begin(config: RunConfig, folder: Path, shown: Path) -> None:
    run = claim(folder)
    run.write_info({"recipe": "kill_test", "config": config_to_json(config)})
    train(config, run, Witness(shown))


def go_on(folder: Path, shown: Path) -> None:
    run = reopen(folder)
    train(config_from_json(run.info()["config"]), run, Witness(shown))


def outcome(folder: Path) -> dict[str, Any]:
    """Everything of a finished run that must not depend on interruptions."""
    run = RunDirectory(folder)
    results = [
        {key: value for key, value in line.items() if not key.startswith("perf/") and key != "seconds"}
        for line in run.metrics()
    ]
    found = sorted((folder / "checkpoints").glob("step-*/*.safetensors"))
    files = {f"{path.parent.name}/{path.name}": file_hash(path) for path in found}
    hashes = [event.get("stream_hash") for event in run.events() if event.get("kind") == "done"]
    raw = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {"metrics": results, "files": files, "samples": run.samples(), "stream": hashes[-1:], "lines": raw}


def interrupted(config: RunConfig, folder: Path, longest: float, chance: random.Random, counts: Counts) -> None:
    """Start, kill, resume, kill … until the run ends by itself."""
    shown = folder.with_suffix(".shown")
    work: Callable[[], None] = lambda: begin(config, folder, shown)  # noqa: E731
    for attempt in range(200):
        child = in_child(work)
        patience = 10 * longest if attempt >= 40 else chance.uniform(0, longest)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                if status:
                    counts.differences.append(f"{folder.name}: attempt {attempt} ended with status {status}")
                return
            time.sleep(0.002)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        counts.kills += 1
        check_shown(folder, shown, counts)
        if (folder / "run.json").exists():
            counts.resumes += 1
            counts.kills_before_first_checkpoint += not any((folder / "checkpoints").glob("step-*"))
            work = lambda: go_on(folder, shown)  # noqa: E731
    counts.differences.append(f"{folder.name}: never finished")


def check_shown(folder: Path, shown: Path, counts: Counts) -> None:
    """Every line a person has seen must be in the file."""
    if not shown.exists():
        return
    written = RunDirectory(folder).logged_steps()
    for text in shown.read_text().splitlines():
        line = json.loads(text)
        if line["step"] not in written or line["train/loss"] != written[line["step"]]["train/loss"]:
            counts.differences.append(f"{folder.name}: the line of step {line['step']} was shown and is lost")


def run_rounds(n_rounds: int, seed: int, folder: Path, per_run: float = 5.0) -> Counts:
    """Run rounds in `folder`; a run is killed about `per_run` times before it ends."""
    config = small_run(write_corpus(folder / "corpus.txt"))
    calm = folder / "calm"
    begin(config, folder / "warm", folder / "warm.shown")  # loads in this process what each child would load again
    start = time.monotonic()
    begin(config, calm, folder / "calm.shown")
    longest = 2 * (time.monotonic() - start) / per_run
    counts = Counts()
    expected = outcome(calm)
    chance = random.Random(seed)
    for i in range(n_rounds):
        counts.rounds += 1
        interrupted(config, folder / f"round-{i}", longest, chance, counts)
        got = outcome(folder / f"round-{i}")
        counts.differences += [f"round-{i}: {part} differ" for part in expected if got[part] != expected[part]]
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        counts = run_rounds(options.rounds, options.seed, Path(folder))
    print(json.dumps(vars(counts)))
    return 1 if counts.differences else 0


if __name__ == "__main__":
    sys.exit(main())
