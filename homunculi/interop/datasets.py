"""Corpora of the Hugging Face hub, or of a local folder in the hub's layout, read with the package `datasets`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from homunculi.errors import InputError, optional
from homunculi.text.config import TextConfig
from homunculi.text.reading import SPLIT_NAMES

FIRST_WITHOUT_SCRIPTS = 4  # earlier major versions can run a data set's own Python
ROWS = 1000


class HubSource:
    """Splits of a data set as labelled documents.

    Args:
        name: ``NAME``, ``NAME:CONFIG`` or the path of a folder; NAME may hold a slash.
        config: says which field of a row is the text.

    Raises:
        InputError: `datasets` is not installed or too old, the data set cannot be had, or it has no such field.
    """

    def __init__(self, name: str, config: TextConfig) -> None:
        self.name = name
        self.field = config.field
        self._splits = _load(name)
        for split, rows in self._splits.items():
            if config.field not in rows.column_names:
                have = ", ".join(rows.column_names[:8])
                raise InputError(f"hf:{name} ({split}) has no field {config.field!r} (it has {have}): set text.field")

    @property
    def labels(self) -> frozenset[str | None] | None:
        """The splits that the data set states; None where it states no validation split."""
        found = frozenset(_label(split) for split in self._splits)
        return found if found & {"val", "test"} else None

    @property
    def left_out(self) -> tuple[str, ...]:
        """Names of splits that are neither trained nor validated on."""
        if self.labels is None or "train" not in self.labels:
            return ()
        return tuple(split for split in self._splits if _label(split) is None)

    def fingerprint(self) -> str:
        """SHA-256 over the text of every row, split by split."""
        digest = hashlib.sha256()
        for split in sorted(self._splits):
            digest.update(f"{split}\n".encode())
            for text in self._texts(split):
                data = text.encode("utf-8")
                digest.update(len(data).to_bytes(8, "big"))
                digest.update(data)
        return digest.hexdigest()

    def records(self, wanted: frozenset[str | None] | None) -> Iterator[tuple[str | None, str]]:
        """Pairs (split or None, text) of the splits in `wanted`, or of all."""
        labels = self.labels
        for split in self._splits:
            label = _label(split) if labels is not None else None
            if split in self.left_out or (wanted is not None and label not in wanted):
                continue
            for text in self._texts(split):
                if text and not text.isspace():
                    yield label, text

    def _texts(self, split: str) -> Iterator[str]:
        for rows in self._splits[split].iter(batch_size=ROWS):
            for text in rows[self.field]:
                if not isinstance(text, str):
                    kind = type(text).__name__
                    raise InputError(f"hf:{self.name}: field {self.field!r} holds {kind}, not text: set text.field")
                yield text


def _label(split: str) -> str | None:
    return SPLIT_NAMES.get(split.lower())


def _load(name: str) -> dict[str, Any]:
    datasets = optional("datasets", extra="data")
    if int(datasets.__version__.split(".")[0]) < FIRST_WITHOUT_SCRIPTS:
        raise InputError(
            f"datasets {datasets.__version__} can run code that comes with data: "
            f"pip install 'datasets>={FIRST_WITHOUT_SCRIPTS}'"
        )
    if Path(name).expanduser().is_dir():
        path, config = str(Path(name).expanduser()), None
    else:
        path, _, rest = name.partition(":")
        config = rest or None
    try:
        return dict(datasets.load_dataset(path, config))
    except Exception as error:  # the package and the three below it raise kinds of their own
        lines = str(error).splitlines()
        reason = lines[0] if lines else type(error).__name__
        raise InputError(f"hf:{name} cannot be loaded ({reason}): check the name, the network and the files") from error
