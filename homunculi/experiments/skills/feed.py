"""Examples of a cell: training batches without end, and the rows that it is judged on. The same for all architectures.

Legend: B rows, T positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from homunculi.experiments.skills.cells import Cell
from homunculi.tasks import registry
from homunculi.tasks.registry import Examples, Task
from homunculi.train.loss import IGNORED

Split = Literal["train", "valid", "test"]
_SPLITS = {"train": 0, "valid": 1, "test": 2}
_BATCHES = 8  # drawn at once


def training_batches(cell: Cell, task: Task, device: torch.device | str = "cpu") -> Iterator[Tensor]:
    """Packed batches (2, B, T) on a device: what is read, and what is to be said there. Several travel at once."""
    rng = np.random.default_rng([cell.examples_key, cell.seed, _SPLITS["train"]])
    while True:
        drawn = pack(task.generate(rng, _BATCHES * cell.rows, split="train", **cell.dials))
        if torch.device(device).type == "cuda":  # from pinned memory, so that the host waits for no update
            drawn = drawn.pin_memory().to(device, non_blocking=True)
        yield from drawn.split(cell.rows, 1)


def vocabulary_of(task: Task, dials: Mapping[str, Any]) -> int:
    """Words of the rows that a model is trained with and asked at, those beyond training included."""
    return max(task.vocabulary(**one) for one in (dials, *(then for _, _, then in registry.harder(task, dials))))


def judged(cell: Cell, task: Task, split: Split, dials: Mapping[str, Any] | None = None) -> Examples:
    """Rows to judge a model by: of a split, perhaps with other dials than those of training."""
    rng = np.random.default_rng([cell.examples_key, cell.seed, _SPLITS[split]])
    return task.generate(rng, cell.eval_rows, split=split, **(dials or cell.dials))


def pack(examples: Examples) -> Tensor:
    """Ids and targets as one tensor (2, B, T) of int64; targets that do not count are `IGNORED`."""
    targets_BT = np.where(examples.counted_BT, examples.targets_BT, IGNORED)
    return torch.from_numpy(np.stack([examples.ids_BT, targets_BT]).astype(np.int64))
