"""Token shards on disk: what a folder of them holds, and how it is read.

A shard folder holds ``index.json``, ``tokenizer.json``, and for each split ``{split}-00000.bin`` … (tokens as
little-endian uint16, or uint32 where the vocabulary is larger than 65,536), ``{split}-documents.npy`` (the token at
which each document starts) and, for a generated world, ``{split}-events.jsonl.gz`` (line k is the log of document k).
Every document is followed by the end-of-text token. The folder is complete in itself and can be copied anywhere.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from homunculi.errors import InputError
from homunculi.text.reading import BLOCK, one_line_errors
from homunculi.text.tokenizers import Tokenizer, load_tokenizer

FORMAT = "homunculi-tokens"
VERSION = 1
INDEX = "index.json"


class JoinedTokens:
    """Several arrays of tokens that read as one; slices copy only what they take."""

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        self.parts = tuple(parts)
        self.dtype = self.parts[0].dtype
        self._ends = np.cumsum([len(part) for part in self.parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, span: slice) -> np.ndarray:
        start, stop, step = span.indices(len(self))
        pieces = []
        part = int(np.searchsorted(self._ends, start, side="right"))
        at = start
        while at < stop:
            offset = int(self._ends[part]) - len(self.parts[part])
            piece = self.parts[part][at - offset : stop - offset]
            pieces.append(piece)
            at += len(piece)
            part += 1
        joined = np.concatenate(pieces) if pieces else np.empty(0, self.dtype)
        return joined[::step]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.concatenate(self.parts).astype(dtype or self.dtype)


@dataclass(frozen=True, eq=False)
class TokenStream:
    """One split as one long row of tokens, mapped from disk.

    Attributes:
        tokens: (n_tokens,) uint16 or uint32; a memory map, or several that read as one in slices.
        n_bytes: UTF-8 bytes of the documents; the tokens' byte lengths sum to exactly this.
        document_starts: (n_documents,) int64, the token at which each document starts.
    """

    tokens: np.ndarray | JoinedTokens
    n_bytes: int
    document_starts: np.ndarray

    @property
    def n_tokens(self) -> int:
        return len(self.tokens)

    @property
    def n_documents(self) -> int:
        return len(self.document_starts)

    @property
    def plain_tokens(self) -> np.ndarray | JoinedTokens:
        """The same tokens without the memory map's class around every slice."""
        return self.tokens if isinstance(self.tokens, JoinedTokens) else np.asarray(self.tokens)

    def document(self, number: int) -> np.ndarray:
        """Tokens of one document, without the end-of-text token behind it.

        Raises:
            IndexError: there is no such document.
        """
        if not 0 <= number < self.n_documents:
            raise IndexError(f"document {number} of {self.n_documents}")
        last = number + 1 == self.n_documents
        stop = self.n_tokens if last else int(self.document_starts[number + 1])
        return self.tokens[int(self.document_starts[number]) : stop - 1]


def join_streams(streams: Sequence[TokenStream]) -> TokenStream:
    """One stream after another, as one; all of one tokenizer."""
    if len(streams) == 1:
        return streams[0]
    parts: list[np.ndarray] = []
    for stream in streams:
        parts += stream.tokens.parts if isinstance(stream.tokens, JoinedTokens) else (stream.tokens,)
    offsets = np.cumsum([0, *(stream.n_tokens for stream in streams[:-1])])
    starts = [stream.document_starts + offset for stream, offset in zip(streams, offsets, strict=True)]
    return TokenStream(JoinedTokens(parts), sum(stream.n_bytes for stream in streams), np.concatenate(starts))


@dataclass(frozen=True, eq=False)
class Shards:
    """An opened shard folder.

    Attributes:
        folder: where it lies.
        index: the content of ``index.json``.
    """

    folder: Path
    index: Mapping[str, Any]

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.index["splits"])

    @property
    def fingerprint(self) -> str:
        """Of the corpus that the tokens come from."""
        return self.index["fingerprint"]

    @property
    def tokenizer_hash(self) -> str:
        return self.index["tokenizer"]["sha256"]

    @cached_property
    def data_hash(self) -> str:
        """Hex SHA-256 over the tokenizer and every shard: equal hashes mean equal tokens."""
        shards = {name: [file["sha256"] for file in entry["tokens"]] for name, entry in self.index["splits"].items()}
        return hash_json({"tokenizer": self.tokenizer_hash, "shards": shards})

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.folder)

    def stream(self, split: str) -> TokenStream:
        """The tokens of a split.

        Raises:
            InputError: a file is missing or has not the size that the index states.
        """
        entry = self.index["splits"][split]
        for file in _files_of(entry):
            self._check_size(file)
        dtype = np.dtype(self.index["dtype"]).newbyteorder("<")
        with one_line_errors(self.folder):
            maps = [np.memmap(self.folder / file["name"], dtype=dtype, mode="r") for file in entry["tokens"]]
            starts = np.load(self.folder / entry["documents"]["name"], allow_pickle=False)
        tokens = maps[0] if len(maps) == 1 else JoinedTokens([np.asarray(part) for part in maps])
        return TokenStream(tokens, entry["n_bytes"], starts)

    def events(self, split: str) -> Iterator[dict[str, Any]]:
        """The event log of each document of a split, in order; nothing where the corpus is no generated world."""
        file = self.index["splits"][split]["events"]
        if file is None:
            return
        path = self.folder / file["name"]
        with one_line_errors(path), gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)

    def verify(self) -> None:
        """Compare every file with the hash that the index states.

        Raises:
            InputError: a file is not what was written; the message names it.
        """
        for entry in self.index["splits"].values():
            for file in _files_of(entry):
                self._check_size(file)
                if hash_file(self.folder / file["name"]) != file["sha256"]:
                    raise self._damaged(file["name"], "its content changed")

    def _check_size(self, file: Mapping[str, Any]) -> None:
        path = self.folder / file["name"]
        if not path.is_file():
            raise self._damaged(file["name"], "it is missing")
        size = path.stat().st_size
        if size != file["bytes"]:
            raise self._damaged(file["name"], f"it has {size} bytes, {INDEX} says {file['bytes']}")

    def _damaged(self, name: str, reason: str) -> InputError:
        return InputError(
            f"{self.folder / name} is damaged ({reason}): delete {self.folder} and prepare the text again"
        )


def is_shard_folder(path: Path) -> bool:
    """Whether a folder holds token shards of ours (whole or damaged)."""
    index = path / INDEX
    return index.is_file() and FORMAT.encode() in index.read_bytes()[:BLOCK]


def open_shards(folder: Path) -> Shards:
    """Open a shard folder.

    Raises:
        InputError: its index is damaged or of another version.
    """
    path = folder / INDEX
    if not path.is_file():
        raise InputError(f"{path} is missing: delete {folder} and prepare the text again")
    try:
        with one_line_errors(path):
            index = json.loads(path.read_bytes())
        if index["version"] != VERSION:
            raise InputError(
                f"{path} has version {index['version']}, this program reads {VERSION}: prepare the text again"
            )
        shards = Shards(folder, index)
        _check_index(shards)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged: delete {folder} and prepare the text again") from error
    return shards


def _check_index(shards: Shards) -> None:
    """Touch what is read later, so that a damaged index is found here; no file may lie outside the folder."""
    index = shards.index
    if index["format"] != FORMAT or index["dtype"] not in ("uint16", "uint32"):
        raise ValueError(index["format"])
    _ = shards.data_hash, shards.fingerprint
    for entry in index["splits"].values():
        _ = entry["n_documents"] + entry["n_tokens"] + entry["n_bytes"]
        for file in _files_of(entry):
            if Path(file["name"]).name != file["name"] or int(file["bytes"]) < 0:
                raise ValueError(file["name"])


def _files_of(entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [*entry["tokens"], entry["documents"], *([entry["events"]] if entry["events"] else [])]


def hash_json(value: Any) -> str:
    """Hex SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with one_line_errors(path), open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
