"""One cell of a battery: a model, a task at one difficulty, a setting of the optimiser, a seed; and where it is kept.

    FOLDER/cells/<key>.json    what a finished cell came to, written whole

The key follows from all that determines the result: settings, the code of the model, of the task and of training.
Names that people give to sides, places of files and devices are no part of it, so batteries of one folder share their
cells; places of files are not written down either.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import homunculi
from homunculi.errors import InputError
from homunculi.experiments.certifying import hash_of, hash_of_files
from homunculi.files import write_json
from homunculi.models import get, name_of
from homunculi.settings import from_json, to_json
from homunculi.tasks import registry

Json = dict[str, Any]
FORMAT = 1  # of what a cell is and of how it is trained; a change makes all stored cells strangers
CELLS = "cells"
_SHARED_ROOMS = ("core", "parts")
_SHARED_BY_TASKS = ("draws", "splits")
_TRAINING = (
    *(f"experiments/skills/{name}" for name in ("depth", "feed", "learning", "reading")),
    *(f"train/{name}" for name in ("loss", "lr", "optim", "step")),
)


@dataclass(frozen=True, slots=True)
class Cell:
    """What is trained and how.

    Attributes:
        side: name of the architecture's side, for people.
        model: its configuration with its architecture, as `described` writes it.
        task: name, or path of a file.
        dials: all dials of the task.
        lr, weight_decay: of AdamW.
        seed: of weights and examples; the same examples for all architectures.
        steps: updates at most, each of `rows` rows. eval_rows: of validation and of test.
        files: further files that register architectures.
    """

    side: str
    model: Json
    task: str
    dials: Mapping[str, float]
    lr: float
    weight_decay: float
    seed: int
    steps: int
    rows: int
    eval_rows: int
    files: tuple[str, ...] = ()

    def to_json(self) -> Json:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Json) -> Cell:
        return cls(**(data | {"files": tuple(data["files"])}))

    @property
    def key(self) -> str:
        """The same for cells that come to the same: their settings, and the code of model, task and training."""
        settings = {name: value for name, value in self.to_json().items() if name not in ("side", "files", "task")}
        code = _code_of_training(), _code_of_model(self.model["architecture"]), *_task_identity(self.task)
        return _digest([FORMAT, settings, *code])

    @property
    def examples_key(self) -> int:
        """Seeds the examples: the same for all models and settings of the optimiser."""
        name = registry.get(self.task).name
        return int(_digest([name, dict(self.dials)])[:12], 16)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:20]


@cache
def _code_of_training() -> str:
    """A hash of what draws, trains and judges, and of the optimisers."""
    root = Path(homunculi.__file__).parent
    return hash_of_files(root, [root / f"{name}.py" for name in _TRAINING])


@cache
def _code_of_model(architecture: str) -> str:
    """A hash of the code that a model runs: the shared rooms, and the architecture's own file or folder."""
    root = Path(homunculi.__file__).parent
    shared = hash_of_files(root, sorted(path for room in _SHARED_ROOMS for path in (root / room).rglob("*.py")))
    model_type = get(architecture).model_type
    own = Path(inspect.getfile(model_type))
    models = root / "models"
    if not own.is_relative_to(models):
        return shared + hash_of(model_type)
    paths = sorted(own.parent.rglob("*.py")) if own.parent != models else [own]
    return shared + hash_of_files(root, paths)


@cache
def _task_identity(task: str) -> tuple[str, str]:
    """Its name, and a hash of its file and of what generators share."""
    found = registry.get(task)
    path, room = Path(inspect.getfile(inspect.unwrap(found.generate))), Path(registry.__file__).parent
    shared = hash_of_files(room, [room / f"{name}.py" for name in _SHARED_BY_TASKS])
    return found.name, shared + hash_of_files(path.parent, [path])


def described(config: Any) -> Json:
    """A model's configuration as JSON, with its architecture."""
    return {"architecture": name_of(config)} | to_json(config)


def configuration(model: Mapping[str, Any]) -> Any:
    """The configuration that `described` wrote."""
    fields = {name: value for name, value in model.items() if name != "architecture"}
    return from_json(get(model["architecture"]).config_type, fields, "model")


def load_files(files: Sequence[str]) -> None:
    """Import files that register architectures; once a process.

    Raises:
        InputError: there is no such file.
    """
    for text in files:
        path = Path(text)
        name = f"recipe_{path.stem}"
        known = sys.modules.get(name)
        if known is not None and getattr(known, "__file__", None) == str(path):
            continue
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None or not path.is_file():
            raise InputError(f"{path}: no such recipe file")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])


@dataclass(frozen=True, slots=True)
class Store:
    """Finished cells of a folder."""

    folder: Path

    def path(self, key: str) -> Path:
        return self.folder / CELLS / f"{key}.json"

    def find(self, cell: Cell) -> Json | None:
        """What a cell came to; None where it has not been trained, or its file is damaged."""
        key = cell.key
        try:
            found = json.loads(self.path(key).read_bytes())
        except (OSError, ValueError, RecursionError):
            return None
        whole = isinstance(found, dict) and found.get("key") == key and isinstance(found.get("test"), dict)
        return found if whole else None

    def keep(self, cell: Cell, result: Json) -> Json:
        """Write down what a cell came to, whole.

        Raises:
            InputError: the folder cannot be written.
        """
        key = cell.key
        path = self.path(key)
        about = {name: value for name, value in cell.to_json().items() if name != "files"}  # places on this machine
        about["task"] = registry.get(cell.task).name
        entry = {"format": FORMAT, "key": key, "cell": about} | result
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, entry)
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror}); choose another --results") from None
        return entry
