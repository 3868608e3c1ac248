"""Results of runs that were made before: a run of the same key need not be made again."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import homunculi
from homunculi.experiments.certifying import hash_of, hash_of_files
from homunculi.experiments.comparison import Comparison
from homunculi.models import get, name_of
from homunculi.runs.directory import INFO
from homunculi.text.streams import hash_json
from homunculi.train.config import RunConfig, config_to_json

KEY = "key"  # file in a run's folder
_ROOMS = ("core", "parts", "models", "train", "text", "evals")
CHANGING_NOTHING = ("device", "sample_every", "checkpoint_every", "output", "instruments")  # of a result

Json = dict[str, Any]


class Archive(Protocol):
    """Where a comparison looks for results, and is told of those that it has."""

    def find(self, key: str) -> Json | None:
        """A finished run, or a trial of a learning rate; None where there is none."""

    def keep(self, comparison: Comparison) -> None:
        """Something has ended."""


class _Empty:
    def find(self, key: str) -> Json | None:
        return None

    def keep(self, comparison: Comparison) -> None:
        """Nothing is kept."""


EMPTY: Archive = _Empty()


def write_key(folder: Path, key: str) -> None:
    """Note in a run's folder, before it is begun or gone on with, what it will come to; nothing where it was begun as
    something else, or by somebody who noted nothing."""
    noted = read_key(folder) if (folder / INFO).exists() else key
    with suppress(OSError):  # then nothing is known of it, and it is not offered to others
        folder.mkdir(parents=True, exist_ok=True)
        (folder / KEY).write_text(key if noted == key else "", encoding="utf-8")


def read_key(folder: Path) -> str:
    """The key that a run's folder notes; empty: none."""
    try:
        return (folder / KEY).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def key_of_run(config: RunConfig, data_hash: str, kind: str) -> str:
    """A hash of all that decides what a run comes to: configuration, text, kind of device, and the code.

    Args:
        config: with the vocabulary of the tokenizer.
        kind: cpu, cuda or mps.
    """
    described = {name: value for name, value in config_to_json(config).items() if name not in CHANGING_NOTHING}
    model = get(name_of(config.model)).model_type
    more = {"text": data_hash, "kind": kind, "code": _code_hash(), "source": hash_of(model)}
    return hash_json({"config": described} | more)[:16]


@cache
def _code_hash() -> str:
    root = Path(homunculi.__file__).parent
    return hash_of_files(root, sorted(path for room in _ROOMS for path in (root / room).rglob("*.py")))
