"""Where a run comes from: code, versions, machine."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from homunculi import __version__


def provenance(device: torch.device) -> dict[str, Any]:
    """Facts for run.json; no path and no name of a person or machine."""
    versions = {"homunculi": __version__}
    for package in ("torch", "numpy", "safetensors", "tokenizers"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "versions": versions,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "device": f"{device.type}: {name}",
    }


def _git(*words: str) -> str:
    """What git says of this code's own checkout; empty where there is none."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
