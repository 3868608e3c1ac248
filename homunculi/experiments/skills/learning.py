"""Train the small model of one cell and judge it.

AdamW with warm-up and cosine decay, the loss at counted positions alone. Training ends early, for every architecture by
the same rule, where the answer is certain and the validation rows are answered: the score can hardly rise any more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from homunculi.core.model import LanguageModel
from homunculi.experiments.skills.cells import Cell, Json, configuration
from homunculi.experiments.skills.depth import depth_of
from homunculi.experiments.skills.feed import judged, training_batches, vocabulary_of
from homunculi.experiments.skills.graphs import captured
from homunculi.experiments.skills.reading import DECODER, Decoder, SkillLoss, judge
from homunculi.experiments.skills.sizing import parameters_of
from homunculi.experiments.skills.widening import width_field
from homunculi.models import get
from homunculi.tasks import registry
from homunculi.tasks.registry import Examples, Task
from homunculi.train.config import RunConfig, TrainConfig
from homunculi.train.distributed import World
from homunculi.train.step import Updater

EVALUATIONS = 10
BEYOND_ROWS = 128  # they are long
SOLVED = 0.999  # of the validation rows of a task whose answer is certain
WARMUP_FRAC, FINAL_LR_FRAC = 0.1, 0.05

Told = Callable[[int, int], None]


@dataclass(slots=True)
class Learned:
    """A trained model and how its training went."""

    model: LanguageModel
    device: torch.device
    curve: list[tuple[int, float]]
    steps: int
    diverged: bool


def learn(cell: Cell, device: torch.device, told: Told = lambda step, steps: None) -> Json:
    """Train and judge: what `Store.keep` writes of the cell.

    Args:
        told: step and steps, now and then.
    """
    with _one_thread():
        return _learn(cell, device, told)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Small models are fastest on one thread, and come to the same bits wherever they are trained."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _learn(cell: Cell, device: torch.device, told: Told) -> Json:
    began = time.perf_counter()
    task = registry.get(cell.task)
    learned = train(cell, task, device, told)
    model = learned.model
    test = judged(cell, task, "test")
    return {
        "valid": judge(model, judged(cell, task, "valid"), device).to_json(),
        "test": judge(model, test, device).to_json(),
        "beyond": _beyond(cell, task, model, test, device),
        "depth": depth_of(model, test, device),
        "curve": [list(point) for point in learned.curve],
        "steps_taken": learned.steps,
        "diverged": learned.diverged,
        "parameters": parameters_of(model.config),
        "seconds": time.perf_counter() - began,
        "device": device.type,
    }


def train(cell: Cell, task: Task, device: torch.device, told: Told = lambda step, steps: None) -> Learned:
    """The trained model of a cell. On a CPU the same bits each time."""
    model = build(cell, task).to(device)
    updater = _updater(model, cell, device)
    valid = judged(cell, task, "valid")
    certain = task.ceiling(**cell.dials) >= 1.0 and valid.best_BTV is None
    learned = Learned(model, device, [], 0, False)
    every = max(1, cell.steps // EVALUATIONS)
    last: Any = None
    for step, packed in zip(range(1, cell.steps + 1), training_batches(cell, task, device), strict=False):
        last = updater.update(step, [packed], False)
        learned.steps = step
        if step % every and step < cell.steps:
            continue
        learned.diverged = not last.read().finite
        found = judge(model, valid, device)
        learned.curve.append((step, found.accuracy))
        told(step, cell.steps)
        if learned.diverged or (certain and found.accuracy >= SOLVED):
            break
        model.after_evaluation(found.loss)
    model.eval()
    return learned


def build(cell: Cell, task: Task) -> LanguageModel:
    """The untrained model of a cell; the weights follow from its seed."""
    config = configuration(cell.model)
    torch.manual_seed(cell.seed)
    model = get(cell.model["architecture"]).model_type(config)
    if task.readout == "aggregate":
        n_words = min(config.vocab_size, vocabulary_of(task, cell.dials))  # unused words only make a model wider
        model.add_module(DECODER, Decoder(_width(model), task.length(**cell.dials), n_words))
    return model


def _width(model: LanguageModel) -> int:
    """Of its state."""
    return int(getattr(model.config, width_field(model.config)))


def _updater(model: LanguageModel, cell: Cell, device: torch.device) -> Updater:
    config = RunConfig(
        model=model.config,
        steps=cell.steps,
        batch_tokens=cell.rows,
        seed=cell.seed,
        lr=cell.lr,
        compile="off",
        train=TrainConfig(
            weight_decay=cell.weight_decay,
            schedule="cosine",
            warmup_frac=WARMUP_FRAC,
            decay_frac=0.0,
            final_lr_frac=FINAL_LR_FRAC,
        ),
    )
    updater = Updater(model, config, None, World(), device, lambda said: None)
    updater.loss = captured(SkillLoss(model), model, device, cell.steps)
    return updater


def _beyond(cell: Cell, task: Task, model: LanguageModel, trained: Examples, device: torch.device) -> list[Json]:
    """Accuracy at dials that are never trained.

    Args:
        trained: rows at the dials of training.
    """
    found = []
    for name, value, dials in registry.harder(task, cell.dials):
        rows = judged(replace(cell, eval_rows=min(cell.eval_rows, BEYOND_ROWS)), task, "test", dials)
        accuracy = judge(model, _deeper(rows, trained), device).accuracy
        known: Json = {"chance": task.chance(**dials), "ceiling": task.ceiling(**dials)}
        found.append(known | {"dial": name, "value": value, "accuracy": accuracy})
    return found


def _deeper(rows: Examples, trained: Examples) -> Examples:
    """Counted only where more steps are needed than anywhere in training, if that is so anywhere: among harder rows
    are answers as easy as those of training, which would pass for what lies beyond it."""
    if rows.needed_BT is None or trained.needed_BT is None:
        return rows
    deeper_BT = rows.counted_BT & (rows.needed_BT > trained.needed_BT[trained.counted_BT].max(initial=0))
    return replace(rows, counted_BT=deeper_BT) if deeper_BT.any() else rows
