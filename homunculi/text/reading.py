"""Documents out of files: .txt, .jsonl and .parquet, each also .gz or .xz, one document in memory at a time.

A document of a .txt file ends at a line that equals the separator; the line breaks around it are dropped. A document of
the other formats is one record. Documents of white space alone are left out. Every fault of a file is one `InputError`
that names the file and, where there is one, the line or byte.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import lzma
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from homunculi.errors import InputError
from homunculi.text.config import TextConfig

ENDINGS = re.compile(r"\.(txt|jsonl|parquet)(\.xz|\.gz)?$", re.IGNORECASE)
SUPPORTED = ".txt, .jsonl or .parquet, each also with .gz or .xz"
BLOCK = 1 << 20

# What data sets call their splits, and what we call them.
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "valid": "val",
    "validation": "val",
    "val": "val",
    "dev": "val",
    "test": "test",
}


def format_of(path: Path) -> str | None:
    """``txt``, ``jsonl`` or ``parquet`` by the ending of the name; None for a file that is no text of ours."""
    match = ENDINGS.search(path.name)
    return match.group(1).lower() if match else None


def read_documents(path: Path, config: TextConfig) -> Iterator[tuple[str | None, str]]:
    """Pairs (split or None, text) of a file, in order; split is ``train``, ``val`` or ``test`` where a record says it.

    Raises:
        InputError: the file cannot be read, is cut off, is not in `config.encoding`, or a record is not as expected.
    """
    kind = format_of(path)
    documents: Iterator[tuple[str | None, str]]
    if kind == "txt":
        documents = ((None, text) for text in _read_text(path, config))
    elif kind == "jsonl":
        documents = _read_jsonl(path, config)
    elif kind == "parquet":
        documents = _read_parquet(path, config)
    else:
        raise InputError(f"{path} has an unknown ending: use {SUPPORTED}")
    return (pair for pair in documents if not pair[1].isspace() and pair[1])


def open_bytes(path: Path) -> IO[bytes]:
    """The file's content as bytes, decompressed by the ending of its name."""
    ending = path.suffix.lower()
    if ending == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    if ending == ".xz":
        return lzma.open(path, "rb")
    return open(path, "rb")


@contextmanager
def one_line_errors(path: Path) -> Iterator[None]:
    """Turn what reading `path` may raise into one line that names it."""
    try:
        yield
    except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path} is damaged or cut off ({error}): copy or download it again") from error
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror or error}): check the path and permissions"
        ) from error


def _lines(path: Path, encoding: str) -> Iterator[str]:
    """Lines with their line feeds; nothing else is translated. A byte-order mark at the start is dropped."""
    with one_line_errors(path), open_bytes(path) as file:
        reader = io.TextIOWrapper(file, encoding=encoding, newline="\n")
        try:
            first = next(reader, "").removeprefix("\ufeff")
            if first:
                yield first
            yield from reader
        except UnicodeDecodeError as error:
            raise InputError(_not_in_encoding(path, encoding)) from error


def _not_in_encoding(path: Path, encoding: str) -> str:
    """The line for a file that is not in its encoding, with the byte where it stops being so."""
    decoder = codecs.getincrementaldecoder(encoding)()
    offset = 0
    with open_bytes(path) as file:
        while True:
            block = file.read(BLOCK)
            pending = len(decoder.getstate()[0])
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                offset += error.start - pending
                break
            offset += len(block)
            if not block:
                break
    fix = "set text.encoding=latin-1 if it is Western European text" if encoding == "utf-8" else "set text.encoding"
    return f"{path} is not {encoding} at byte {offset}: {fix}, or convert the file"


def _read_text(path: Path, config: TextConfig) -> Iterator[str]:
    lines: list[str] = []
    for line in _lines(path, config.encoding):
        if line.rstrip("\r\n") == config.separator:
            yield "".join(lines).strip("\r\n")
            lines.clear()
        else:
            lines.append(line)
    if lines:
        yield "".join(lines).strip("\r\n")


def _read_jsonl(path: Path, config: TextConfig) -> Iterator[tuple[str | None, str]]:
    for number, line in enumerate(_lines(path, config.encoding), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", str(error))
            raise InputError(f"{where} is not JSON ({reason}): write one JSON object a line") from error
        if not isinstance(record, dict):
            raise InputError(f'{where} is JSON but no object: write lines like {{"{config.field}": "…"}}')
        yield _text_of(record, where, config.field)


def _read_parquet(path: Path, config: TextConfig) -> Iterator[tuple[str | None, str]]:
    from homunculi.interop.parquet import records

    with one_line_errors(path), _seekable(path) as file:
        for number, record in enumerate(records(file, path, config.field), start=1):
            yield _text_of(record, f"{path}: row {number}", config.field)


@contextmanager
def _seekable(path: Path) -> Iterator[IO[bytes]]:
    """A file that can be read from its end: as it is, or decompressed into a temporary one."""
    with open_bytes(path) as file:
        if path.suffix.lower() == ".parquet":
            yield file
            return
        with tempfile.TemporaryFile() as copy:
            shutil.copyfileobj(file, copy, BLOCK)
            copy.seek(0)
            yield copy


def _text_of(record: Mapping[str, Any], where: str, field: str) -> tuple[str | None, str]:
    if field not in record:
        fields = ", ".join(list(record)[:8]) or "none"
        raise InputError(f"{where} has no field {field!r} (it has {fields}): set text.field")
    text = record[field]
    if not isinstance(text, str):
        kind = type(text).__name__
        raise InputError(f"{where}: field {field!r} holds {kind}, not text: set text.field to one that holds text")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: half a surrogate pair at character {error.start}: mend the record") from error
    return split_of(record.get("split"), where), text


def split_of(name: object, where: str) -> str | None:
    """Our name of a split that a record states; None where it states none."""
    if not isinstance(name, str):
        return None
    split = SPLIT_NAMES.get(name.lower())
    if split is None:
        known = ", ".join(SPLIT_NAMES)
        raise InputError(f"{where}: split {name!r} is unknown: use one of {known}, or rename the field")
    return split
