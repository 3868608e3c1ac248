"""Forward and backward of a small model on a GPU as one captured graph: small kernels otherwise wait for the host.

Capturing takes a second and compiles nothing, so that many cells follow each other in one process. A model whose host
side follows a schedule, or which reads from the device, is left as it is.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from homunculi.core.model import LanguageModel

_PLAIN = (bool, int, float, str, tuple, type(None))
_ASKED = 8  # updates of a schedule that are asked for, and evaluations


def captured(loss: nn.Module, model: LanguageModel, device: torch.device, steps: int) -> nn.Module:
    """`loss` itself, or on a GPU a module that does the same by a captured graph where that can be."""
    if device.type != "cuda":
        return loss
    return Captured(loss, "what it computes follows a schedule" if varies(model, steps) else "")


class Captured(nn.Module):
    """Captures at the first call, whose shape all later calls have; falls back to single launches.

    Attributes:
        reason: why single launches are used; empty where a graph is, or before the first call.
    """

    def __init__(self, loss: nn.Module, reason: str = "") -> None:
        super().__init__()
        self.loss, self.reason, self.tried = loss, reason, bool(reason)

    def forward(self, packed_2BT: Tensor) -> Any:
        if not self.tried:
            self.tried = True
            try:
                self._refuse_reading(packed_2BT)
                torch.cuda.make_graphed_callables(self.loss, (packed_2BT.clone(),), allow_unused_input=True)
            except Exception as error:  # capturing fails in many ways; single launches say what is really wrong
                self.reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                self.loss.__dict__.pop("forward", None)
        return self.loss(packed_2BT)

    def _refuse_reading(self, packed_2BT: Tensor) -> None:
        """A forward and backward in which reading from the device is an error: found out here, it breaks no capture."""
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            losses = self.loss(packed_2BT)
            objective = torch.stack([losses.cross_entropy, *losses.terms.values()]).sum()
            torch.autograd.grad(objective, [p for p in self.loss.parameters() if p.requires_grad], allow_unused=True)
        finally:
            torch.cuda.set_sync_debug_mode(before)


def varies(model: LanguageModel, steps: int) -> bool:
    """Whether updates differ in what the host decides: anything but tensors that is set before updates or after
    evaluations. Asked of a copy."""
    asked = copy.deepcopy(model)
    seen = []
    for i in range(_ASKED):
        asked.before_update(1 + i * (steps - 1) // max(1, _ASKED - 1), steps)
        seen.append(_host_state(asked))
        asked.after_evaluation(1.0)
    return any(state != seen[0] for state in seen)


def _host_state(model: nn.Module) -> dict[tuple[str, str], Any]:
    return {
        (name, key): value
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, _PLAIN)
    }
