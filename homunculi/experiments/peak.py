"""What a device is and what it reaches: clock, rate of matrix products and of copies, name and versions."""

from __future__ import annotations

import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from homunculi import __version__


@dataclass(frozen=True, slots=True)
class Peak:
    """What a device reached here: FLOP/s of a large matrix product, bytes/s of a large copy (read plus written)."""

    flops_per_s: float
    bytes_per_s: float


class Clock:
    """Marks in time: device events on a GPU, so that measuring makes nobody wait; the host's clock elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._marks: list[Any] = []

    def mark(self) -> None:
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def intervals_ms(self) -> list[float]:
        """Milliseconds between neighbouring marks."""
        synchronize(self.device)
        pairs = zip(self._marks, self._marks[1:], strict=False)
        if self.device.type == "cuda":
            return [a.elapsed_time(b) for a, b in pairs]
        return [1e3 * (b - a) for a, b in pairs]


def measure_peak(device: torch.device, dtype: torch.dtype) -> Peak:
    """What `device` reaches in a square matrix product of random numbers and in a copy, measured once a process."""
    return _measured_peak(str(device), dtype)


@lru_cache(maxsize=8)
def _measured_peak(device_name: str, dtype: torch.dtype) -> Peak:
    device = torch.device(device_name)
    side, n_bytes, times = (8192, 2**30, 20) if device.type == "cuda" else (1024, 2**26, 5)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product_ms = _median_ms(lambda: torch.mm(a, b), device, times)
    source = torch.randint(-100, 100, (n_bytes,), dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    copy_ms = _median_ms(lambda: target.copy_(source), device, times)
    return Peak(2e3 * side**3 / product_ms, 2e3 * n_bytes / copy_ms)


def _median_ms(call: Callable[[], Any], device: torch.device, times: int) -> float:
    for _ in range(3):
        call()
    synchronize(device)
    clock = Clock(device)
    clock.mark()
    for _ in range(times):
        call()
        clock.mark()
    return statistics.median(clock.intervals_ms())


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def describe_device(device: torch.device) -> dict[str, Any]:
    """Device, its name, and the versions of what computes on it."""
    versions = {"homunculi": __version__, "python": sys.version.split()[0], "torch": torch.__version__}
    if device.type == "cuda":
        versions["cuda"] = torch.version.cuda or ""
        try:
            versions["triton"] = version("triton")
        except PackageNotFoundError:
            versions["triton"] = ""
        return {"device": "cuda", "device_name": torch.cuda.get_device_name(device), "versions": versions}
    return {"device": device.type, "device_name": _processor_name(), "versions": versions}


def _processor_name() -> str:
    """The processor and the number of threads that torch uses."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass
    return f"{name}, {torch.get_num_threads()} threads"
