"""An architecture of another package, written in every way of importing that an export has to follow.

It applies one block twice, keeps buffers of both kinds and a parameter that does not learn, and has a loss term.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from homunculi.models import Architecture, registry

NAME = "twice-over/1"
FILES = {
    "__init__.py": "",
    "pieces/__init__.py": "from .scale import Scale as Scale\n",
    "pieces/scale.py": '''
from __future__ import annotations

from typing import TYPE_CHECKING

import torch; from torch import nn

if TYPE_CHECKING:
    from homunculi.experiments.certificate import Certificate


class Scale(nn.Module):
    """Multiplies by computed, stored, learnt and fixed numbers."""

    def __init__(self, width: int, about: Certificate | None = None) -> None:
        super().__init__()
        rates = torch.linspace(0.5, 1.5, width)
        self.highest = rates.max().item()
        self.register_buffer("computed", rates, persistent=False)
        self.register_buffer("stored", torch.ones(width))
        self.register_buffer("absent", None)
        self.fixed = nn.Parameter(torch.full((width,), 0.75), requires_grad=False)
        self.learnt = nn.Parameter(torch.ones(width))

    def forward(self, x):
        from homunculi.core import budget as costs

        assert costs.count_parameters(self) == 2 * len(self.fixed)
        return x * self.computed / self.highest * self.stored * self.fixed * self.learnt
''',
    "net.py": '''"""Größe und Maß: text beyond ASCII before imports."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import homunculi.core.schedule as schedules
from homunculi.core.output import *
from homunculi.core.taps import (
    NO_TAPS,
    TapPoint,
)
from homunculi.models import architecture
from homunculi.models.gpt import GPT
from homunculi.models.gpt import Config as PlainConfig

from . import pieces as parts_of_mine
from .pieces import Scale, scale


@dataclass(frozen=True, kw_only=True, slots=True)
class Depth:
    repeats: int = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(PlainConfig):
    depth: Depth = Depth()


@architecture("twice-over/1", Config)
class Net(GPT):
    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.schedule = schedules.in_order((*range(config.n_blocks),) * config.depth.repeats)
        assert Scale is scale.Scale is parts_of_mine.Scale
        self.scale = Scale(config.d_model)

    def trunk(self, ids_BT, taps: TapPoint = NO_TAPS, cache=None, documents_BT=None) -> Hidden:
        hidden = super().trunk(ids_BT, taps, cache, documents_BT)
        x_BTD = self.scale(hidden.x_BTD)
        return replace(hidden, x_BTD=x_BTD, loss_terms={"size": x_BTD.square().mean() / math.e})
''',
}


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Architecture:
    """The architecture, registered for one test."""
    for name, text in FILES.items():
        path = tmp_path / "path" / "lab_of_mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    monkeypatch.setattr(registry, "_REGISTERED", dict(registry._REGISTERED))
    monkeypatch.syspath_prepend(str(tmp_path / "path"))
    for name in [name for name in sys.modules if name.partition(".")[0] == "lab_of_mine"]:
        monkeypatch.delitem(sys.modules, name)
    importlib.import_module("lab_of_mine.net")
    return registry.get(NAME)
