"""Slow readers of the tasks, one row at a time and in plain Python: what is the answer after these tokens?

A reader gets the tokens up to a position and the dials, never what follows, and returns the right id.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Reader = Callable[[list[int], dict[str, Any]], int]
READERS: dict[str, Reader] = {}


def reader(name: str) -> Callable[[Reader], Reader]:
    def register(function: Reader) -> Reader:
        READERS[name] = function
        return function

    return register


@reader("recall")
def read_recall(ids: list[int], dials: dict[str, Any]) -> int:
    return ids[ids.index(ids[-1]) + 1]
