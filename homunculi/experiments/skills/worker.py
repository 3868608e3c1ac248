"""A process that trains cells: one JSON line a cell on its input, one line with the outcome on its output."""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path
from typing import TextIO

import torch

from homunculi.errors import HomunculiError
from homunculi.experiments.skills.cells import Cell, Store, load_files
from homunculi.experiments.skills.learning import learn


def work(folder: Path, device: torch.device, asked: TextIO, told: TextIO) -> None:
    """Until the input ends. A cell that fails is told with its reason, and the next one is taken."""
    store = Store(folder)
    for line in asked:
        answer: dict[str, object] = {"done": True}
        try:
            cell = Cell.from_json(json.loads(line))
            load_files(cell.files)
            store.keep(cell, learn(cell, device))
        except HomunculiError as error:
            answer = {"failed": str(error)}
        except Exception as error:
            answer = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        if device.type == "cuda":  # captured graphs hold memory in cycles
            gc.collect()
            torch.cuda.empty_cache()
        told.write(json.dumps(answer) + "\n")
        told.flush()


def main() -> None:
    """``worker FOLDER DEVICE``. The real output is kept for answers: whatever prints meanwhile goes to the log."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    torch.set_float32_matmul_precision("highest")
    work(Path(sys.argv[1]), torch.device(sys.argv[2]), sys.stdin, answers)


if __name__ == "__main__":
    main()
