"""One process against several: the same losses, an exact resume after SIGKILL, and how much faster.

    python -m benchmarks.processes --processes 2 --device cuda                 # two GPUs, NCCL
    python -m benchmarks.processes --processes 2 --device cpu                  # two processes, gloo

Trains the `gpt:small` recipe in float32 with one process and with several, kills a third run of several processes
once a checkpoint stands, and resumes it. Then the recipe and overrides of `--speed` are trained by one process and by
several at the same global batch. Prints JSON; exit code 1 if a loss differs by more than the tolerance or the resumed
run by a single byte.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from homunculi.runs.directory import open_run
from homunculi.train.checkpoint import checkpoints, file_hash

LOSS_TOLERANCE = 2e-4  # float32 sums in another order, amplified over 60 steps
SHORT = [
    "train.optimizer=adamw",
    "lr=1e-3",
    "steps=60",
    "compile=off",
    "checkpoint_every=20",
    "eval_every=60",
    "sample_every=0",
    "output.log_every=1",
]


def command(n_processes: int, *words: str) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n_processes), "-m", "--"]
    return [sys.executable, *(launcher if n_processes > 1 else ["-m"]), "homunculi", *words]


def outcome(n_processes: int, *words: str) -> dict[str, Any]:
    done = subprocess.run(command(n_processes, *words, "--json"), stdout=subprocess.PIPE, text=True, check=True)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return json.loads(line)


def killed_and_resumed(n_processes: int, words: list[str], run: Path) -> None:
    """Start, kill the launcher and its workers (Linux) once a checkpoint stands, resume."""
    child = subprocess.Popen(command(n_processes, *words, "--run", str(run)))
    while child.poll() is None and not any((run / "checkpoints").glob("step-*")):
        time.sleep(0.02)
    workers = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
    for process in [child.pid, *map(int, workers)]:
        os.kill(process, signal.SIGKILL)
    child.wait()
    subprocess.run(command(n_processes, "resume", str(run)), stdout=subprocess.DEVNULL, check=True)


def agreement(n_processes: int, device: str, folder: Path) -> dict[str, Any]:
    words = ["train", "gpt:small", *SHORT, f"device={device}", "train.deterministic=true"]
    one, several, killed = folder / "one", folder / "several", folder / "killed"
    outcomes = [outcome(n, *words, "--run", str(run)) for n, run in ((1, one), (n_processes, several))]
    killed_and_resumed(n_processes, words, killed)
    losses = [[line["train/loss"] for line in open_run(run).metrics()] for run in (one, several)]
    last = [checkpoints(run / "checkpoints")[60] for run in (several, killed)]
    names = ("model.safetensors", "optimizer.safetensors")
    return {
        "largest_loss_difference": max(abs(a - b) for a, b in zip(*losses, strict=True)),
        "validation_losses": [found["val_loss"] for found in outcomes],
        "same_batches": outcomes[0]["stream_hash"] == outcomes[1]["stream_hash"],
        "resumed_bytes_equal": all(file_hash(last[0] / name) == file_hash(last[1] / name) for name in names),
        "resumed_after_kill": any(event.get("kind") == "resumed" for event in open_run(killed).events()),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--speed", nargs="*", default=[], help="recipe and overrides whose throughput is measured too")
    parser.add_argument("--write", type=Path, help="write the result there too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found: dict[str, Any] = {"processes": options.processes, "device": options.device}
        found |= agreement(options.processes, options.device, Path(folder))
        print(json.dumps(found), flush=True)
        for n in (1, options.processes) if options.speed else ():
            words = ["train", *options.speed, f"device={options.device}", "--run", str(Path(folder) / f"speed{n}")]
            found[f"tokens_per_s_{n}"] = outcome(n, *words)["tokens_per_s"]
    print(json.dumps(found))
    if options.write is not None:
        options.write.write_text(json.dumps(found, indent=2) + "\n")
    good = found["largest_loss_difference"] <= LOSS_TOLERANCE and found["same_batches"] and found["resumed_bytes_equal"]
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
