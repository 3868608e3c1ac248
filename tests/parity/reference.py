"""Reference outputs of original code: files that hold weights, inputs and what came out."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from homunculi.core.model import LanguageModel
from homunculi.core.taps import Recording
from homunculi.interop import published

PREFIX = "weights/"
RTOL = 1e-4


@dataclass(frozen=True, eq=False)
class Reference:
    """One case: its configuration, all other metadata, and its tensors by name."""

    config: dict[str, Any]
    metadata: dict[str, str]
    tensors: dict[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def under(self, prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}

    @property
    def weights(self) -> dict[str, Tensor]:
        return self.under(PREFIX)

    def build(self, system: str) -> LanguageModel:
        return published.build(system, self.config, self.weights)


def read(path: Path) -> Reference:
    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return Reference(json.loads(metadata["config"]), metadata, tensors)


def recorded(model: LanguageModel, ids_BT: Tensor) -> tuple[Tensor, Recording]:
    """Logits, and all that passes a tap."""
    seen = Recording("*")
    with torch.no_grad():
        return model(ids_BT, seen).logits, seen


def furthest(pairs: dict[str, tuple[Tensor, Tensor]], atol: float) -> tuple[float, str]:
    """The largest difference and where it is, after checking that every pair is close."""
    for name, (ours, theirs) in pairs.items():
        torch.testing.assert_close(ours, theirs, atol=atol, rtol=RTOL, msg=lambda text, name=name: f"{name}: {text}")
    return max(((ours - theirs).abs().max().item(), name) for name, (ours, theirs) in pairs.items())
