"""Append-only files of JSON objects, one a line.

A line enters the file in one write to a descriptor in append mode, so that a process killed at any instant leaves whole
lines and at most one torn tail, and several readers may follow along. Lines are ASCII: no character can be cut in two.
"""

from __future__ import annotations

import json
import logging
import math
import numbers
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

Damage = Callable[[str], None]

_LOG = logging.getLogger("homunculi")
_BLOCK = 1 << 16
_WINDOWS = (1 << 16, 1 << 20, 1 << 26)


def warn(message: str) -> None:
    """The default for damage: a line in the log, which goes to stderr."""
    _LOG.warning(message)


def to_plain(value: Any, key: str, nonfinite: list[str]) -> Any:
    """`value` as JSON types. NaN and infinities become None, and their dotted keys are added to `nonfinite`.

    Numbers of other libraries (anything with `item()`) become Python's, paths become text.

    Raises:
        TypeError: a value has no JSON form; the message names its key.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        if math.isfinite(value):
            return float(value)
        nonfinite.append(key)
        return None
    if isinstance(value, Mapping):
        return {str(k): to_plain(v, f"{key}.{k}" if key else str(k), nonfinite) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(v, f"{key}.{i}", nonfinite) for i, v in enumerate(value)]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    item = getattr(value, "item", None)
    if callable(item):
        return to_plain(item(), key, nonfinite)
    raise TypeError(f"{key or 'value'}: a {type(value).__name__} has no JSON form")


def plain_object(value: Mapping[str, Any]) -> dict[str, Any]:
    """`value` as a JSON object; where something was not finite, the key `nonfinite` lists the dotted names."""
    nonfinite: list[str] = []
    plain: dict[str, Any] = to_plain(value, "", nonfinite)
    if nonfinite:
        known = plain.get("nonfinite")
        plain["nonfinite"] = sorted({*(known if isinstance(known, list) else []), *nonfinite})
    return plain


class LineWriter:
    """Appends JSON objects to one file. Opening it mends a torn tail first, so that no good line is glued to it."""

    def __init__(self, path: Path | str) -> None:
        """Raises OSError where the file cannot be opened for writing."""
        self.path = Path(path)
        repair(self.path)
        self._handle: int | None = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def append(self, value: Mapping[str, Any]) -> None:
        """Write one object as one line.

        Raises:
            OSError: the disk is full or failing; the file holds the lines it held before, whole.
            TypeError: something in `value` has no JSON form.
            ValueError: the writer is closed.
        """
        if self._handle is None:
            raise ValueError(f"{self.path.name}: this writer is closed")
        line = (json.dumps(plain_object(value), allow_nan=False, separators=(",", ":")) + "\n").encode("ascii")
        before = os.fstat(self._handle).st_size
        try:
            written = os.write(self._handle, line)
        except OSError:
            self._cut_back(before, 0)
            raise
        if written != len(line):
            self._cut_back(before, written)
            raise OSError(28, "No space left on device: the line was taken back", str(self.path))

    def _cut_back(self, before: int, written: int) -> None:
        """Take a partial line off the end, unless someone else has appended since."""
        if self._handle is not None and written and os.fstat(self._handle).st_size == before + written:
            os.ftruncate(self._handle, before)

    def sync(self) -> None:
        """Make what was appended survive a power cut (a killed process loses nothing without this)."""
        if self._handle is not None:
            os.fsync(self._handle)

    def close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def repair(path: Path | str) -> bool:
    """Mend a torn last line: a whole object gets its newline, anything else moves to the end of `NAME.torn` beside.

    Returns whether there was something to mend. A file that does not exist is in order.
    """
    path = Path(path)
    try:
        with open(path, "r+b") as file:
            start = _torn_start(file.fileno())
            torn = os.pread(file.fileno(), os.fstat(file.fileno()).st_size - start, start)
            if not torn:
                return False
            if _parse(torn) is not None:
                file.seek(0, os.SEEK_END)
                file.write(b"\n")
                return True
            with open(path.with_name(path.name + ".torn"), "ab") as kept:
                kept.write(torn + b"\n")
                kept.flush()
                os.fsync(kept.fileno())
            file.truncate(start)
    except FileNotFoundError:
        return False
    return True


def _torn_start(handle: int) -> int:
    """Where the last line without a newline begins; the size of the file where there is none."""
    end = os.fstat(handle).st_size
    while end > 0:
        begin = max(0, end - _BLOCK)
        found = os.pread(handle, end - begin, begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        end = begin
    return 0


def read_lines(path: Path | str, on_damage: Damage = warn) -> list[dict[str, Any]]:
    """Every whole object of the file, in order; empty where there is no file.

    A torn last line is left out silently (it is being written, or its process was killed); a damaged line further up is
    left out and named to `on_damage`.
    """
    path = Path(path)
    *lines, last = _content(path).split(b"\n")
    objects = []
    for number, line in enumerate(lines, 1):
        value = _parse(line)
        if value is not None:
            objects.append(value)
        elif line.strip():
            on_damage(f"{path.name}: line {number} is damaged and was left out")
    value = _parse(last)
    return objects if value is None else [*objects, value]


def tail(path: Path | str, offset: int) -> tuple[list[dict[str, Any]], int]:
    """The whole objects that follow byte `offset`, and the offset to ask for next time.

    A file that has become shorter than `offset` is read from its beginning. Damaged lines are left out.
    """
    try:
        with open(path, "rb") as file:
            start = offset if 0 <= offset <= os.fstat(file.fileno()).st_size else 0
            file.seek(start)
            data = file.read()
    except FileNotFoundError:
        return [], 0
    end = data.rfind(b"\n") + 1
    values = (_parse(line) for line in data[:end].split(b"\n"))
    return [value for value in values if value is not None], start + end


def find_last(path: Path | str, key: str) -> dict[str, Any] | None:
    """The last whole object that has `key`, read from the end in growing windows (64 KiB first, 64 MiB at most)."""
    needle = json.dumps(key).encode("ascii")
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            for window in _WINDOWS:
                start = max(0, size - window)
                data = os.pread(file.fileno(), size - start, start)
                for line in _lines_backwards(data, needle, whole=start == 0):
                    value = _parse(line)
                    if value is not None and key in value:
                        return value
                if start == 0:
                    break
    except OSError:
        return None
    return None


def _lines_backwards(data: bytes, needle: bytes, whole: bool) -> Iterator[bytes]:
    """Lines of `data` that contain `needle`, last first; the first line only if `data` begins at a line's beginning."""
    end = len(data)
    while (found := data.rfind(needle, 0, end)) >= 0:
        begin = data.rfind(b"\n", 0, found) + 1
        if begin == 0 and not whole:
            return
        stop = data.find(b"\n", found)
        yield data[begin : stop if stop >= 0 else len(data)]
        end = begin


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
