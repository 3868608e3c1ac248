"""Device, number format and determinism: the one file that touches these switches."""

from __future__ import annotations

import os
from typing import Any

import torch

from homunculi.core.model import LanguageModel
from homunculi.errors import InputError
from homunculi.train.config import RunConfig


def resolve_device(name: str, local_rank: int = 0) -> torch.device:
    """The device that `name` means here; auto takes a GPU if there is one.

    Raises:
        InputError: no such device on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device: {name} is not a device; use auto, cpu, cuda, cuda:1 or mps") from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise InputError("device: cuda asked for, but this machine or this build of torch has none; use device=cpu")
        device = torch.device("cuda", device.index if device.index is not None else local_rank)
        if device.index >= torch.cuda.device_count():
            raise InputError(f"device: {device} asked for, but there are {torch.cuda.device_count()}")
        torch.cuda.set_device(device)
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise InputError("device: mps asked for, but this machine has none; use device=cpu")
    elif device.type not in ("cpu", "mps"):
        raise InputError(f"device: {name} is not supported; use auto, cpu, cuda or mps")
    return device


def set_switches(config: RunConfig) -> dict[str, Any]:
    """Set torch's global switches for this run and return them for the record."""
    torch.set_float32_matmul_precision("highest" if config.precision == "float32" else "high")
    if config.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    return {
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic": config.train.deterministic,
        "threads": torch.get_num_threads(),
    }


def set_compute_dtype(model: LanguageModel, precision: str) -> None:
    """Let activations flow in `precision`; weights and optimiser state stay in float32."""
    model.compute_dtype = torch.bfloat16 if precision == "bf16" else None
