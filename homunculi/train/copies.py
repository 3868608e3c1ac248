"""Copies of a training model, so that several of its steps can wait to be read."""

from __future__ import annotations

import copy
from collections import deque

import torch

from homunculi.core.model import LanguageModel

MOST = 8
# Of a GPU's memory: a step that waits holds a copy of the weights and, where updates are read, three more such sets.
_SHARE, _SETS = 0.1, 4


class Copies:
    """A fixed number of copies in evaluation mode, on the device of the model.

    On a CPU it is one: there a reader that falls behind takes its time from training anyway.
    """

    def __init__(self, model: LanguageModel, device: torch.device) -> None:
        self.n = how_many(model, device)
        self._idle = deque(copy.deepcopy(model).eval() for _ in range(self.n))

    def take(self) -> LanguageModel:
        """One that nobody reads; the taker gives it back. There must be one."""
        return self._idle.popleft()

    def give_back(self, model: LanguageModel) -> None:
        """Whoever took it has read it; from any thread."""
        self._idle.append(model)


def how_many(model: LanguageModel, device: torch.device) -> int:
    """As many copies as a tenth of the device's memory holds, with what else a waiting step needs; 1 to `MOST`."""
    if device.type != "cuda":
        return 1
    held = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    room = _SHARE * torch.cuda.get_device_properties(device).total_memory
    return max(1, min(MOST, int(room / (_SETS * max(1, held)))))
