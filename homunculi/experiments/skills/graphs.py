"""Forward and backward of a small model on a GPU as one captured graph: small kernels otherwise wait for the host.

Capturing takes a second and compiles nothing, so that many cells follow each other in one process. A model whose host
side follows a schedule, or reads from the device, is left as it is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from homunculi.core.model import LanguageModel

_PLAIN = (bool, int, float, str, tuple, type(None))
_ASKED = 8  # updates of a schedule that are asked for


def captured(loss: nn.Module, model: LanguageModel, device: torch.device, steps: int) -> nn.Module:
    """`loss` itself, or on a GPU a module that does the same by a captured graph where that can be."""
    return Captured(loss, model, steps) if device.type == "cuda" else loss


class Captured(nn.Module):
    """Captures at the first call, whose shape all later calls have; falls back to single launches.

    Attributes:
        reason: why single launches are used; empty where a graph is, or before the first call.
    """

    def __init__(self, loss: nn.Module, model: LanguageModel, steps: int) -> None:
        super().__init__()
        self.loss, self.reason, self.tried = loss, "", False
        if varies(model, steps):
            self.tried, self.reason = True, "what it computes follows a schedule"

    def forward(self, packed_2BT: Tensor) -> Any:
        if not self.tried:
            self.tried = True
            try:
                torch.cuda.make_graphed_callables(self.loss, (packed_2BT.clone(),), allow_unused_input=True)
            except Exception as error:  # capturing fails in many ways; single launches say what is really wrong
                self.reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
                self.loss.__dict__.pop("forward", None)
                torch.cuda.synchronize()
        return self.loss(packed_2BT)


def varies(model: LanguageModel, steps: int) -> bool:
    """Whether updates differ in what the host decides: anything but tensors that `before_update` sets."""
    if type(model).before_update is LanguageModel.before_update:
        return False
    seen = []
    for i in range(_ASKED):
        model.before_update(1 + i * (steps - 1) // max(1, _ASKED - 1), steps)
        seen.append(_host_state(model))
    return any(state != seen[0] for state in seen)


def _host_state(model: nn.Module) -> dict[tuple[str, str], Any]:
    return {
        (name, key): value
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, _PLAIN) and not key.startswith("__")
    }
