"""A trained model out of a run directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from homunculi.core.model import LanguageModel
from homunculi.errors import InputError
from homunculi.models.files import load_model, load_weights
from homunculi.runs.directory import open_run
from homunculi.train.checkpoint import checkpoints, verify, weights_for_use
from homunculi.train.interventions import intervene


def load(run: Path | str, step: int | None = None) -> LanguageModel:
    """The model of a run in evaluation mode, float32, on the CPU, with the weights and the interventions that its
    evaluation used.

    Args:
        run: a run's folder.
        step: of which checkpoint; default: the latest that is whole.

    Raises:
        InputError: no such run or checkpoint, or none that is whole. Nothing in the run is executed or changed.
    """
    folder = open_run(run).path / "checkpoints"
    present = checkpoints(folder)
    if step is not None and step not in present:
        have = ", ".join(map(str, present)) or "none"
        raise InputError(f"{folder}: no checkpoint of step {step}; there are {have}")
    damage = "no checkpoint yet; wait for the first, or train longer"
    for path in reversed(list(present.values())) if step is None else [present[step]]:
        try:
            verify(path)
        except InputError as error:
            damage = str(error)
            continue
        model = load_model(path)
        load_weights(model, weights_for_use(path), str(path))
        intervene(model, _interventions(open_run(run).info()))
        return model
    raise InputError(f"{folder}: {damage}")


def _interventions(info: dict[str, Any]) -> tuple[str, ...]:
    """Those of the run, by its run.json."""
    train = (info.get("config") or {}).get("train") or {}
    return tuple(train.get("interventions") or ())
