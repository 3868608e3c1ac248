"""Where runs can go, and how many of them at once on each device."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from homunculi.core.budget import Budget
from homunculi.errors import InputError
from homunculi.train.config import RunConfig
from homunculi.train.precision import resolve_device

MOST_ON_A_GPU = 6
_CONTEXT_BYTES = 2 * 2**30  # of a process on a GPU before it has a model, compiled code and its workspace included
_MICRO_TOKENS = 65_536
_USABLE = 0.9


def devices_for(name: str) -> list[str]:
    """The devices that `name` means: every GPU for auto and cuda where there are any.

    Raises:
        InputError: there is no such device.
    """
    if name in ("auto", "cuda") and torch.cuda.is_available():
        return [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if name == "auto":
        return ["cpu"]
    device = resolve_device(name)
    return [str(device)]


def slots(asked: int, devices: Sequence[str], configs: Sequence[RunConfig], budgets: Sequence[Budget]) -> int:
    """Processes at once on each device: as many as asked for, or by cores and by a rough guess of memory for 0.

    Raises:
        InputError: fewer than 0 were asked for.
    """
    if asked < 0:
        raise InputError(f"--at-once: {asked} must be at least 1, or 0 to let it be chosen")
    if asked:
        return asked
    if devices[0].startswith("cuda"):
        memory = min(torch.cuda.get_device_properties(torch.device(name)).total_memory for name in devices)
        needed = max(guessed_bytes(config, budget) for config, budget in zip(configs, budgets, strict=True))
        return max(1, min(MOST_ON_A_GPU, int(_USABLE * memory / needed)))
    return n_cores() if devices[0] == "cpu" else 1


def guessed_bytes(config: RunConfig, budget: Budget) -> int:
    """A rough guess, rather too much, of what a training process takes on a GPU.

    Weights, gradients and two moments in float32; of each token of a micro-batch some 40 numbers a width at every
    executed block of 12 · width² parameters, and the logits four times.
    """
    width = max(1, int(getattr(config.model, "d_model", 512)))
    vocabulary = max(1, int(getattr(config.model, "vocab_size", 0)))
    bytes_each = 2 if config.precision == "bf16" else 4
    tokens = min(config.batch_tokens, config.train.micro_tokens or _MICRO_TOKENS)
    executed = max(0, budget.executed_parameters - vocabulary * width)
    activations = 40 * executed / (12 * width) * bytes_each
    logits = 4 * vocabulary * 4 / config.train.loss_chunks
    return int(_CONTEXT_BYTES + 16 * budget.parameters + tokens * (activations + logits))


def shares_gpus() -> bool:
    """Whether NVIDIA's multi-process service runs: without it the kernels of several processes take turns on a GPU."""
    pipes = os.environ.get("CUDA_MPS_PIPE_DIRECTORY") or "/tmp/nvidia-mps"  # where it has them by default
    return (Path(pipes) / "control").exists()


def n_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_env(devices: Sequence[str], at_once: int) -> dict[str, str]:
    """How many threads each process may take, where the environment says nothing about it."""
    share = str(1 if devices[0] == "cpu" else max(1, n_cores() // (at_once * len(devices))))
    names = ("OMP_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS")
    return {name: share for name in names if name not in os.environ}
