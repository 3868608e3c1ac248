"""Write a shard folder: tokenise in batches, roll files over, hash what is written, rename the whole at the end."""

from __future__ import annotations

import gzip
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from homunculi.errors import InputError
from homunculi.files import sync_folder
from homunculi.text.streams import hash_file
from homunculi.text.tokenizers import Tokenizer, byte_lengths, cut_pieces, to_utf8

SHARD_BYTES = 256 << 20
BATCH_CHARACTERS = 4 << 20
FLUSH_TOKENS = 1 << 20
SAY_EVERY_S = 5.0
TEMPORARY = ".unfinished-"
LEFTOVER_S = 86_400.0


def token_dtype(vocab_size: int) -> str:
    """The narrowest type that holds every id."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


class ShardFiles:
    """Tokens written one after another into files of at most `shard_bytes` each.

    Args:
        folder: where; holds no shards of this split yet.
        split: the first part of the names.
        dtype: in which the tokens are stored.
        shard_bytes: size at which the next file is begun.
    """

    def __init__(self, folder: Path, split: str, dtype: np.dtype, shard_bytes: int) -> None:
        self._folder = folder
        self._split = split
        self._dtype = dtype
        self._shard_bytes = shard_bytes
        self._paths: list[Path] = []
        self._room = 0  # bytes left in the last file
        self._waiting: list[np.ndarray] = []
        self._n_waiting = 0

    def write(self, tokens: np.ndarray) -> None:
        self._waiting.append(tokens.astype(self._dtype))
        self._n_waiting += len(tokens)
        if self._n_waiting >= FLUSH_TOKENS:
            self._flush()

    def close(self) -> list[dict[str, Any]]:
        """Write what waits; name, size and hash of each file."""
        self._flush()
        return [describe_file(path) for path in self._paths]

    def _flush(self) -> None:
        data = memoryview(b"".join(array.tobytes() for array in self._waiting))
        self._waiting, self._n_waiting = [], 0
        while data:
            if not self._room:
                self._paths.append(self._folder / f"{self._split}-{len(self._paths):05d}.bin")
                self._room = self._shard_bytes
            part, data = data[: self._room], data[self._room :]
            with open(self._paths[-1], "ab") as file:
                file.write(part)
            self._room -= len(part)


def describe_file(path: Path) -> dict[str, Any]:
    """Flush a finished file to disk; its entry in the index."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": hash_file(path)}


class Spelling:
    """What tokens stand for, many at once: the bytes of all tokens in one row, and where each begins."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._lengths = byte_lengths(tokenizer)
        self._begins = np.cumsum(self._lengths) - self._lengths
        everything = b"".join(tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size))
        self._bytes = np.frombuffer(everything, dtype=np.uint8)

    def spell(self, tokens: np.ndarray) -> bytes:
        lengths = self._lengths[tokens]
        before = np.cumsum(lengths) - lengths
        places = np.arange(int(lengths.sum())) + np.repeat(self._begins[tokens] - before, lengths)
        return self._bytes[places].tobytes()


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a document that is tokenised at once."""

    text: str
    is_first: bool
    is_last: bool


@dataclass(frozen=True)
class SplitWriter:
    """Tokenises the documents of a split into a folder.

    Attributes:
        folder: an existing folder.
        split: ``train`` or ``val``.
        tokenizer: gives the tokens; what they stand for is compared with the text, byte by byte.
        progress: told every few seconds how far it is.
        shard_bytes: size at which a new file is begun.
    """

    folder: Path
    split: str
    tokenizer: Tokenizer
    progress: Callable[[str], None]
    shard_bytes: int = SHARD_BYTES

    def write(self, entries: Iterable[tuple[str, str | None]], *, has_events: bool) -> dict[str, Any]:
        """Write every document, followed by the end of text, and its event log where there is one.

        Returns: the split's entry in the index.

        Raises:
            InputError: the tokenizer does not give back a document byte for byte.
        """
        dtype = np.dtype(token_dtype(self.tokenizer.vocab_size)).newbyteorder("<")
        files = ShardFiles(self.folder, self.split, dtype, self.shard_bytes)
        spelling = Spelling(self.tokenizer)
        end = np.array([self.tokenizer.eot_id], dtype=dtype)
        starts: list[int] = []
        n_tokens = n_bytes = 0
        say = self._pacer()
        with self._event_log(has_events) as log:
            for piece, tokens in self._tokenise(_pieces(entries, log)):
                data = to_utf8(piece.text)
                if spelling.spell(tokens) != data:
                    raise self._not_exact(len(starts) + (1 if piece.is_first else 0))
                if piece.is_first:
                    starts.append(n_tokens)
                files.write(np.append(tokens, end) if piece.is_last else tokens)
                n_tokens += len(tokens) + int(piece.is_last)
                n_bytes += len(data)
                say(n_bytes, n_tokens)
        counts = {"n_documents": len(starts), "n_tokens": n_tokens, "n_bytes": n_bytes}
        return counts | self._describe(files, starts, has_events)

    def _tokenise(self, pieces: Iterator[Piece]) -> Iterator[tuple[Piece, np.ndarray]]:
        """Each piece with its tokens; a few MB of text are handed to the tokenizer's threads at a time."""
        waiting: list[Piece] = []
        size = 0
        for piece in pieces:
            waiting.append(piece)
            size += len(piece.text)
            if size >= BATCH_CHARACTERS:
                yield from zip(waiting, self.tokenizer.encode_arrays([p.text for p in waiting]), strict=True)
                waiting, size = [], 0
        yield from zip(waiting, self.tokenizer.encode_arrays([p.text for p in waiting]), strict=True)

    @contextmanager
    def _event_log(self, has_events: bool) -> Iterator[IO[bytes] | None]:
        """A compressed file without a time in it, so that equal logs are equal files."""
        if not has_events:
            yield None
            return
        with open(self._events_path, "wb") as raw, gzip.GzipFile("", "wb", 4, raw, mtime=0) as log:
            yield cast(IO[bytes], log)

    @property
    def _events_path(self) -> Path:
        return self.folder / f"{self.split}-events.jsonl.gz"

    def _describe(self, files: ShardFiles, starts: list[int], has_events: bool) -> dict[str, Any]:
        path = self.folder / f"{self.split}-documents.npy"
        np.save(path, np.array(starts, dtype=np.int64))
        events = describe_file(self._events_path) if has_events else None
        return {"tokens": files.close(), "documents": describe_file(path), "events": events}

    def _not_exact(self, number: int) -> InputError:
        return InputError(
            f"text.tokenizer: document {number} of {self.split} does not come back byte for byte, so bits per byte "
            "would be wrong: use text.tokenizer=bpe, or a byte-level tokenizer without normalizer and prefix space"
        )

    def _pacer(self) -> Callable[[int, int], None]:
        said = time.monotonic()

        def say(n_bytes: int, n_tokens: int) -> None:
            nonlocal said
            if time.monotonic() - said > SAY_EVERY_S:
                said = time.monotonic()
                self.progress(f"{self.split}: {n_bytes / 1e6:.1f} MB, {n_tokens:,} tokens so far")

        return say


def _pieces(entries: Iterable[tuple[str, str | None]], log: IO[bytes] | None) -> Iterator[Piece]:
    """The documents in pieces; the event log of each is written as it passes."""
    for text, events in entries:
        if log is not None:
            log.write(f"{events}\n".encode())
        pieces = cut_pieces(text)
        piece, is_first = next(pieces), True
        for following in pieces:
            yield Piece(piece, is_first, False)
            piece, is_first = following, False
        yield Piece(piece, is_first, True)


@contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """A temporary folder beside `final` that becomes `final` when the block ends well, and is gone otherwise.

    If somebody else made `final` meanwhile, theirs stays. What killed processes left behind is removed after a day.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(final.parent)
    folder = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=final.parent))
    try:
        yield folder
        os.chmod(folder, 0o755)
        sync_folder(folder)
        try:
            folder.rename(final)
        except OSError:
            if not final.is_dir():
                raise
        sync_folder(final.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_leftovers(parent: Path) -> None:
    for path in parent.glob(f"{TEMPORARY}*"):
        try:
            if time.time() - path.stat().st_mtime > LEFTOVER_S:
                shutil.rmtree(path, ignore_errors=True)
        except OSError:
            continue
