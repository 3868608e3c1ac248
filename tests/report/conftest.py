"""A run on disk with everything a report shows, small."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from homunculi.runs.directory import RunDirectory, claim

INFO: dict[str, Any] = {
    "recipe": "homunculi_recipes.quickstart:quickstart",
    "command": "homunculi train quickstart steps=40",
    "architecture": "gpt",
    "config": {"steps": 40, "lr": 0.003, "compile": False, "model": {"d_model": 64, "n_heads": 4}},
    "overrides": {"steps": 40, "model": {"n_heads": 4}},
    "provenance": {"git_commit": "3f2a9c1d", "git_dirty": True, "versions": {"torch": "2.13.0"}, "device": "cpu: x86"},
    "data": {"n_tokens": {"train": 4712331}, "data_hash": "9d0b8f2c66a1"},
    "budget": {
        "parameters": 5242112,
        "non_embedding_parameters": 4717824,
        "embedding_parameters": 524288,
        "executed_parameters": 9437184,
        "flops_per_token": 18874368,
        "cache_bytes_per_token": 12288,
    },
    "plan": {"seq_len": 256},
    "seeds": {"seed": 17, "data_seed": 23},
    "certificate": {
        "causal": True,
        "checks": [{"name": "token edits", "passed": True, "value": 0.0, "limit": 1e-5}],
    },
}


def line_of(step: int) -> dict[str, Any]:
    loss = 1.5 + 5 * math.exp(-step / 10)
    line = {
        "step": step,
        "tokens": step * 1024,
        "flops": step * 2_000_000_000,
        "train/loss": loss,
        "train/grad_norm": 0.5,
        "lr": 0.003,
        "perf/tokens_per_s": 90_000.0,
        "perf/data_wait_frac": 0.01,
        "seconds": step * 0.5,
        "control/gain_mean": 1.01,
    }
    return line | ({"val/loss": loss + 0.1, "val/bpb": loss / 3} if step % 10 == 0 else {})


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., RunDirectory]:
    """make_run(folder name, **fields of run.json): a finished run of 40 steps."""

    def make(folder: str = "tiny-0a1b2c", **info: Any) -> RunDirectory:
        run = claim(tmp_path / folder)
        run.write_info(INFO | info)
        run.log_event("started", step=0)
        for step in range(41):
            run.log_metrics(line_of(step))
        run.log_sample({"step": 20, "prompt": "Once", "text": "Once upon", "temperature": 0.8, "seed": 1})
        run.log_sample({"step": 40, "prompt": "Once", "text": " there was", "temperature": 0.8, "seed": 1})
        run.log_event("warning", step=7, message="the disk is nearly full")
        run.log_event("done", step=40, stream_hash="feedbeef01")
        run.write_status(state="done", step=40, steps=40, tokens=40 * 1024)
        run.close()
        return run

    return make
