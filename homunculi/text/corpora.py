"""Corpora: what a run can be trained on, by name or by path.

`open_corpus` understands:

- ``stories`` or ``stories?n_documents=5000&seed=3``: a generated world, with its event log;
- a file or a folder (read recursively, in the order of the names) of .txt, .jsonl or .parquet, each also .gz or .xz;
- ``hf:NAME[:CONFIG]`` or ``hf:FOLDER``: a data set of the Hugging Face hub, with the package `datasets`;
- a folder of tokenised shards, which is used as it is;
- any of these paths relative to the folder that ``HOMUNCULI_DATA`` names.

`parse_mixture` splits ``A@0.7,B@0.3`` into such corpora and their shares.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import Literal, Protocol

from homunculi.errors import InputError
from homunculi.text.config import TextConfig
from homunculi.text.generated import WORLDS, open_world
from homunculi.text.reading import SUPPORTED, format_of, one_line_errors, read_documents
from homunculi.text.splits import Survey, cut_tail, is_held_out, label_files, survey
from homunculi.text.streams import hash_file, is_shard_folder, open_shards

Split = Literal["train", "val", "all"]
DATA_VARIABLE = "HOMUNCULI_DATA"


class Corpus(Protocol):
    """A named source of documents.

    Attributes:
        name: as the person wrote it.
        folder: of its token shards, where the corpus is one; else None.
    """

    name: str

    @property
    def folder(self) -> Path | None: ...

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 of the content: the same text has the same fingerprint on every machine."""
        ...

    @property
    def has_val(self) -> bool:
        """Whether the corpus comes with a validation split of its own."""
        ...

    @property
    def has_events(self) -> bool:
        """Whether `entries` gives an event log with every document."""
        ...

    def documents(self, split: Split) -> Iterator[str]:
        """Documents of a split, in a fixed order; ``all`` is every document, whatever its split."""
        ...

    def entries(self, split: Split) -> Iterator[tuple[str, str | None]]:
        """Documents with their event log, one line of JSON, or None."""
        ...


class Source(Protocol):
    """Files or rows that know nothing of held-out documents: text, with a split where one is stated."""

    @property
    def labels(self) -> frozenset[str | None] | None:
        """Splits known without reading a document; None where only reading tells."""
        ...

    def fingerprint(self) -> str: ...

    def records(self, wanted: frozenset[str | None] | None) -> Iterator[tuple[str | None, str]]:
        """Pairs (split or None, text), of the splits in `wanted` or of all."""
        ...


class TextCorpus:
    """Documents of a `Source`, split as it states or else held out (`homunculi.text.splits`)."""

    folder: Path | None = None
    has_events = False

    def __init__(self, name: str, source: Source, val_frac: float) -> None:
        self.name = name
        self.source = source
        self.val_frac = val_frac

    @cached_property
    def fingerprint(self) -> str:
        return self.source.fingerprint()

    @property
    def has_val(self) -> bool:
        return self._survey.has_val

    def documents(self, split: Split) -> Iterator[str]:
        """Documents of a split.

        Raises:
            InputError: a file cannot be read, or the corpus holds no text at all.
        """
        if split == "all":
            return (text for _, text in self.source.records(None))
        if not self._survey.has_val:
            return self._hold_out(split)
        wanted = self._survey.train_labels if split == "train" else self._survey.val_labels
        return (text for _, text in self.source.records(wanted))

    def entries(self, split: Split) -> Iterator[tuple[str, str | None]]:
        return ((text, None) for text in self.documents(split))

    @cached_property
    def _survey(self) -> Survey:
        """Known at once where the files' names tell; otherwise one pass over the text."""
        if self.source.labels is not None:
            return Survey(self.source.labels, 0, 0, self.val_frac)
        found = survey(self.source.records(None), self.val_frac)
        if not found.n_documents:
            raise InputError(f"{self.name} holds no text: every document is empty; name another corpus")
        return found

    def _hold_out(self, split: Split) -> Iterator[str]:
        if self._survey.holds_out_tails:
            side = 0 if split == "train" else 1
            parts = (cut_tail(text, self.val_frac)[side] for _, text in self.source.records(None))
            return (part for part in parts if part and not part.isspace())
        wanted = split == "val"
        return (text for _, text in self.source.records(None) if is_held_out(text, self.val_frac) == wanted)


@dataclass(frozen=True)
class FileSource:
    """Files of a folder, or one file.

    Attributes:
        root: the folder, or the folder of the one file.
        files: relative to `root`, each with the split that its name states.
        config: how they are read.
    """

    root: Path
    files: dict[PurePath, str | None]
    config: TextConfig

    @property
    def labels(self) -> frozenset[str | None] | None:
        found = frozenset(self.files.values())
        return found if found & {"val", "test"} else None

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for name in self.files:
            # One file alone may be renamed; in a folder the names decide order and splits.
            label = name.as_posix() if len(self.files) > 1 else "".join(PurePath(name).suffixes[-2:])
            digest.update(f"{label}\n{hash_file(self.root / name)}\n".encode())
        return digest.hexdigest()

    def records(self, wanted: frozenset[str | None] | None) -> Iterator[tuple[str | None, str]]:
        for name, file_label in self.files.items():
            if file_label is not None and wanted is not None and file_label not in wanted:
                continue
            for stated, text in read_documents(self.root / name, self.config):
                label = file_label or stated
                if wanted is None or label in wanted:
                    yield label, text


class ShardCorpus:
    """A folder of token shards as a corpus; its documents are decoded from the tokens."""

    has_events = False

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder: Path | None = folder
        self._shards = open_shards(folder)

    @property
    def fingerprint(self) -> str:
        return self._shards.data_hash

    @property
    def has_val(self) -> bool:
        return "val" in self._shards.splits

    def documents(self, split: Split) -> Iterator[str]:
        names = self._shards.splits if split == "all" else [split]
        tokenizer = self._shards.tokenizer
        for name in names:
            stream = self._shards.stream(name)
            for number in range(stream.n_documents):
                yield tokenizer.decode(stream.document(number).tolist())

    def entries(self, split: Split) -> Iterator[tuple[str, str | None]]:
        return ((text, None) for text in self.documents(split))


def open_corpus(spec: str, config: TextConfig) -> Corpus:
    """Open one corpus (not a mixture).

    Args:
        spec: a world, a path or ``hf:NAME``, as the module's docstring lists them.
        config: how files are read and what is held out.

    Raises:
        InputError: there is no such corpus, or it has no file that can be read.
    """
    if not spec:
        raise InputError(f"corpus is empty: name a world ({', '.join(WORLDS)}), a file, a folder or hf:NAME")
    if spec.partition("?")[0] in WORLDS:
        return open_world(spec)
    if spec.startswith("hf:"):
        from homunculi.interop.datasets import HubSource

        return TextCorpus(spec, HubSource(spec.removeprefix("hf:"), config), config.val_frac)
    path = find_path(spec)
    if path is None:
        raise InputError(_no_such_corpus(spec))
    with one_line_errors(path):
        if path.is_file():
            if format_of(path) is None:
                raise InputError(f"corpus {path} has an unknown ending: use {SUPPORTED}")
            return TextCorpus(spec, FileSource(path.parent, {PurePath(path.name): None}, config), config.val_frac)
        if is_shard_folder(path):
            return ShardCorpus(spec, path)
        return TextCorpus(spec, FileSource(path, label_files(_list_folder(path)), config), config.val_frac)


def find_path(spec: str) -> Path | None:
    """The path that a spec names, as it stands or inside the folder of ``HOMUNCULI_DATA``; None if neither exists."""
    data = os.environ.get(DATA_VARIABLE)
    candidates = [Path(spec).expanduser(), *([Path(data).expanduser() / spec] if data else [])]
    for path in candidates:
        with one_line_errors(path):
            if path.exists():
                return path
    return None


def _no_such_corpus(spec: str) -> str:
    data = os.environ.get(DATA_VARIABLE)
    inside = f"nor in {DATA_VARIABLE}={data}" if data else f"and {DATA_VARIABLE} names no folder of corpora"
    worlds = ", ".join(WORLDS)
    return f"corpus {spec!r} does not exist here, {inside}: give a file, a folder, hf:NAME or a world ({worlds})"


def _list_folder(folder: Path) -> list[PurePath]:
    """Files that hold text, relative to `folder`, in the order of their names; hidden ones are left out."""
    found: list[PurePath] = []
    others: set[str] = set()
    for parent, folders, files in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            path = Path(parent, name)
            if name.startswith("."):
                continue
            if format_of(path) is None:
                others.add(path.suffix or name)
            else:
                found.append(path.relative_to(folder))
    if not found:
        have = f" (it has {', '.join(sorted(others)[:6])})" if others else ""
        raise InputError(f"corpus {folder} has no file that can be read{have}: use {SUPPORTED}")
    return sorted(found, key=lambda path: path.as_posix())


def _raise(error: OSError) -> None:
    raise error


@dataclass(frozen=True, slots=True)
class Share:
    """One corpus of a mixture and its share of the sequences; shares sum to 1."""

    spec: str
    weight: float


def parse_mixture(spec: str) -> tuple[Share, ...]:
    """The corpora of a spec: ``A@0.7,B@0.3``, or one corpus alone.

    A spec, or a part between commas, that exists as a path is taken as it stands, whatever it contains. A part without
    a weight has weight 1.

    Raises:
        InputError: a weight is not a positive number, a part is empty, or a corpus occurs twice.
    """
    if find_path(spec) is not None:
        return (Share(spec, 1.0),)
    pairs = [_parse_share(part.strip(), spec) for part in spec.split(",")]
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"corpus {name!r} occurs twice in the mixture {spec!r}: name it once, with the sum")
    total = math.fsum(weight for _, weight in pairs)
    return tuple(Share(name, weight / total) for name, weight in pairs)


def _parse_share(part: str, spec: str) -> tuple[str, float]:
    if not part:
        raise InputError(f"corpus {spec!r} has an empty part: write a mixture as A@0.7,B@0.3")
    name, at, weight = part.rpartition("@")
    if not at or find_path(part) is not None:
        return part, 1.0
    try:
        value = float(weight)
    except ValueError:
        value = math.nan
    if not (name and math.isfinite(value) and value > 0.0):
        raise InputError(
            f"corpus {part!r} has the weight {weight!r}, which is no positive number: write a mixture as A@0.7,B@0.3"
        )
    return name, value
