"""Runs that nobody trained, with plausible curves, samples and measurements: for tests and pictures of the page.

`python -m tests.page.runs_made FOLDER` makes a project of them.
"""

from __future__ import annotations

import json
import math
import random
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from homunculi.runs.directory import RunDirectory
from homunculi.runs.measures import Measurement, Stored, write_measurement

STEPS, EVERY = 400, 5
PROMPTS = ("", "One morning")
SAID = (
    "the the a the . and . the the a a",
    " the cat was a box. The box was and the cat .",
    ", Mina found a red box in the garden. She was the box and",
    ", Mina found a red box in the garden. She opened it and laughed, because a small frog sat inside.",
)


def made_run(
    path: Path,
    *,
    architecture: str = "plain",
    seed: int = 0,
    steps: int = STEPS,
    state: str = "done",
    step: int | None = None,
    level: float = 1.1,
    more: Mapping[str, Any] | None = None,
) -> RunDirectory:
    """A run that has come to `step`. `level`: where its validation loss ends; `more`: settings of its model."""
    run = RunDirectory(path)
    path.mkdir(parents=True)
    run.write_info(
        {
            "recipe": architecture,
            "command": f"homunculi train {architecture} seed={seed}",
            "architecture": architecture,
            "config": {
                "model": {"architecture": architecture, "d_model": 128, "n_blocks": 4, **(more or {})},
                "steps": steps,
                "seed": seed,
                "data_seed": seed,
                "lr": 0.004,
                "batch_tokens": 2048,
            },
            "data": {"spec": "stories", "data_hash": "d" * 64, "n_tokens": {"train": 3_000_000, "val": 80_000}},
            "budget": {"parameters": 1_210_550, "non_embedding_parameters": 1_079_478, "flops_per_token": 2_800_988},
            "provenance": {"device": "cpu: x86_64", "python": "3.11"},
        }
    )
    reached = steps if step is None else step
    run.write_status(state="preparing", steps=steps, step=0, started=time.time())
    run.log_event("started", step=0)
    for at in range(EVERY, reached + 1, EVERY):
        run.log_metrics(metrics_at(at, steps, seed, level))
    for index in range(4):
        at = steps * (index + 1) // 4
        for prompt in PROMPTS if at <= reached else ():
            run.log_sample(
                {"step": at, "prompt": prompt, "text": SAID[index], "temperature": 0.8, "seed": 0},
            )
    run.write_status(state=state, steps=steps, step=reached, tokens=reached * 2048)
    run.close()
    return run


def metrics_at(step: int, steps: int, seed: int, level: float) -> dict[str, Any]:
    """One logged step of a run that learns."""
    noise = random.Random(1000 * seed + step)
    share = step / steps
    loss = level + 5.0 * math.exp(-9 * share)
    line = {
        "step": step,
        "tokens": step * 2048,
        "train/loss": loss + noise.gauss(0, 0.06) + 0.01 * seed,
        "train/grad_norm": 0.3 + math.exp(-5 * share) + abs(noise.gauss(0, 0.08)),
        "lr": 0.004 * min(1.0, 20 * share) * (1 if share < 0.7 else (1 - share) / 0.3),
        "model/mean_depth": 1.2 + 0.8 * share + noise.gauss(0, 0.02),
        "model/signal_std": 0.1 * share,
        "perf/tokens_per_s": 5200 + noise.gauss(0, 120),
        "seconds": step * 0.4,
    }
    if step % (steps // 8) < EVERY:
        line["val/loss"] = loss + 0.04 + 0.01 * seed + noise.gauss(0, 0.004)
        line["val/bpb"] = line["val/loss"] / 3.05
    return line


def add_measures(run: RunDirectory, steps: int = STEPS, every: int = 50) -> None:
    """Measurements in all four views."""
    for step in range(0, steps + 1, every):
        share = step / steps
        for name, view, title, question, measurement in (
            ("depths", "line", "Depth", "How deep does each kind of token go?", _line(share)),
            ("blocks", "heatmap", "What blocks write", "How large is the state after each step?", _heatmap(share)),
            ("balance", "table", "Balance", "Who takes how many tokens?", _table(share)),
            ("surprise", "text", "Surprise by token", "Which tokens were expected?", _text(share)),
        ):
            write_measurement(run.path, Stored(name, view, title, question, step, step * 2048, measurement))


def _line(share: float) -> Measurement:
    places = np.arange(16)
    rows = np.stack([1 + share * (2 - kind * 0.5) * (1 - np.exp(-places / 4)) for kind in range(3)])
    return Measurement(
        {"depth": rows.astype(np.float32), "mean depth": np.array(rows.mean(), dtype=np.float32)},
        {"depth": ("kind", "place")},
        {"kind": ("noun", "verb", "other")},
        {"depth": "passes"},
    )


def _heatmap(share: float) -> Measurement:
    grid = np.add.outer(np.arange(4), np.arange(6)) * share / 4
    grid[0, 0] = np.nan
    return Measurement(
        {"size": np.stack([grid, 1 - grid / 3]).astype(np.float32)},
        {"size": ("part", "measure", "step")},
        {"part": ("attention", "mlp"), "measure": ("rms", "rank", "near zero", "dead")},
        notes=("near zero: under 1% of the largest unit",),
    )


def _table(share: float) -> Measurement:
    return Measurement(
        {"share": np.array([[0.25, 0.25 + share / 4], [0.5, 0.25 - share / 8]], dtype=np.float32)},
        {"share": ("expert", "half")},
        {"expert": ("first", "second"), "half": ("early", "late")},
    )


def _text(share: float) -> Measurement:
    words = ("One", " morning", " Mina", " found", " a", " red", " box", ".")
    values = np.array([6.0, 3.0, 7.0, 2.5, 1.0, 4.0, 3.5, 0.4]) * (1 - 0.8 * share)
    return Measurement(
        {"surprisal": values.astype(np.float32)}, {"surprisal": ("token",)}, {"token": words}, {"surprisal": "nats"}
    )


def crash(run: RunDirectory) -> None:
    """Make it look as a killed process leaves it: it says `running`, its heartbeat is old, its last line torn."""
    path = run.path / "status.json"
    status = json.loads(path.read_text()) | {"state": "running", "time": time.time() - 3600, "pid": 2**22 + 1}
    path.write_text(json.dumps(status))
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('{"step": 9999, "train/lo')


def half_write(path: Path) -> None:
    """A run whose run.json breaks off."""
    path.mkdir(parents=True)
    (path / "run.json").write_text('{"format": 1, "name": "half", "conf')


def made_project(root: Path) -> Path:
    """A dozen runs: two groups of three seeds, one that runs, one that failed, diverged, crashed, is half written."""
    for seed in range(3):
        made_run(root / f"plain-{seed}", seed=seed, level=1.10)
        run = made_run(
            root / f"modulated-{seed}", seed=seed, level=1.02, architecture="modulated", more={"n_passes": 3}
        )
        add_measures(run)
    made_run(root / "going", architecture="modulated", seed=7, state="running", step=200, more={"n_passes": 4})
    failed = made_run(root / "no-space", seed=4, state="failed", step=120)
    failed.write_status(state="failed", reason="the disk is full; free some space, then resume the run", exit_code=1)
    made_run(root / "too-fast", seed=5, state="diverged", step=60, more={"d_model": 256})
    crash(made_run(root / "lost", seed=6, step=260))
    half_write(root / "half")
    return root


if __name__ == "__main__":
    print(made_project(Path(sys.argv[1])))
