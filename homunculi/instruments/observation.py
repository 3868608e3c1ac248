"""What instruments read: a forward pass over the probe batch, or an update of the weights.

Legend: B rows, T positions, V vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from homunculi.core.model import LanguageModel
from homunculi.core.schedule import repeat_of

_STEP = re.compile(r"steps\.(\d+)\.(.+)")


@dataclass(frozen=True, slots=True)
class Site:
    """A tap within a step. `repeat`: how often its block was applied before."""

    step: int
    block: int
    repeat: int
    name: str

    @property
    def label(self) -> str:
        """For a person: the step, and which application of its block where there are several."""
        return f"{self.step}" if not self.repeat else f"{self.step} (pass {self.repeat + 1})"


@dataclass(frozen=True)
class Observation:
    """One forward pass in evaluation mode, without gradients, as instruments read it.

    Attributes:
        model: with the weights that were observed. Instruments may call its `readout` or run it again; they change
            nothing.
        ids_BT: what it read.
        taps: name → what passed there, in order, on the model's device.
        logits_BTV: what it said.
        statistics: as in `homunculi.core.output.Output`.
        step: updates made before; 0 for a model that was not trained.
        pieces: id → its text, for labels; empty where nobody knows.
        byte_lengths: id → bytes of its text, for bits per byte.
        first: names of parameters → their values before the first update, perhaps in the host's memory; empty where
            nobody knows.
        options: what the user set for instruments (`instruments.` of a run), by name.
        encode: a text → its ids, by the tokenizer that the model was trained with; None where nobody knows it.
    """

    model: LanguageModel
    ids_BT: Tensor
    taps: Mapping[str, Tensor]
    logits_BTV: Tensor
    statistics: Mapping[str, Tensor] = field(default_factory=dict)
    step: int = 0
    pieces: tuple[str, ...] = ()
    byte_lengths: tuple[int, ...] = ()
    first: Mapping[str, Tensor] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    encode: Callable[[str], list[int]] | None = None

    @cached_property
    def surprisals(self) -> Tensor:
        """Nats of each token after the first, given those before it, (B, T − 1); float32."""
        return surprisal_of(self.logits_BTV, self.ids_BT)

    def sites(self, name: str) -> dict[Site, Tensor]:
        """What passed a site of steps, such as ``resid_post`` or ``packet.*``, in order of the steps."""
        found = {}
        for tap, tensor in self.taps.items():
            match = _STEP.fullmatch(tap)
            if match and fnmatchcase(match[2], name):
                step = int(match[1])
                schedule = self.model.schedule
                found[Site(step, schedule[step].block, repeat_of(schedule, step), match[2])] = tensor
        return found

    def matching(self, *patterns: str) -> dict[str, Tensor]:
        """What passed taps of these patterns, by name."""
        return {n: t for n, t in self.taps.items() if any(fnmatchcase(n, pattern) for pattern in patterns)}


def surprisal_of(logits_BTV: Tensor, ids_BT: Tensor) -> Tensor:
    """−ln p of each token after the first, (B, T − 1), in float32."""
    said = logits_BTV[:, :-1].float()
    return F.cross_entropy(said.flatten(0, 1), ids_BT[:, 1:].flatten(), reduction="none").view(ids_BT.shape[0], -1)


@dataclass(frozen=True)
class UpdateSeen:
    """One update of the weights, as instruments read it. Tensors are in float32.

    Attributes:
        step: of the update, counted from 1.
        lr: base rate of the update.
        gradients: name of a parameter → its gradient before clipping; absent where it had none.
        before, after: name of a parameter → its value before and after the update.
        multipliers: prefix of parameters' names → factor on their rate; empty: all learn at the base rate.
    """

    step: int
    lr: float
    gradients: Mapping[str, Tensor]
    before: Mapping[str, Tensor]
    after: Mapping[str, Tensor]
    multipliers: Mapping[str, float] = field(default_factory=dict)


def norm_of(tensors: list[Tensor]) -> float:
    """Euclidean norm of several tensors together."""
    return float(torch.stack([t.float().square().sum() for t in tensors]).sum().sqrt()) if tensors else 0.0
