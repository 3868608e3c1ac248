"""What differs between two runs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

ABSENT = "(absent)"
SECTIONS = ("config", "data", "provenance")


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(dotted key, value in `a`, value in `b`) for everything that differs in two `run.json` objects.

    Looks at `config`, `data` and `provenance`, in this order; mappings that have none of these are compared whole.
    A key that one side lacks has the value `(absent)` there. Lists are compared as wholes; True is not 1.
    """
    return [(key, left, right) for key, (left, right) in varying([a, b])]


def varying(infos: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Any]]]:
    """(dotted key, its value in each) for everything that is not the same in all of `infos`; see `differences`."""
    sections = [name for name in SECTIONS if any(name in info for info in infos)]
    parts = [{name: info[name] for name in sections if name in info} if sections else info for info in infos]
    sides = [dict(flatten(part)) for part in parts]
    keys = list(dict.fromkeys(key for side in sides for key in side))
    if sections:
        keys.sort(key=lambda key: sections.index(key.split(".")[0]))
    rows = [(key, [side.get(key, ABSENT) for side in sides]) for key in keys]
    return [(key, values) for key, values in rows if not all(same(values[0], value) for value in values[1:])]


def flatten(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, leaf) of nested mappings, in order. An empty mapping is a leaf."""
    for key, inner in value.items():
        name = f"{prefix}{key}"
        if isinstance(inner, Mapping) and inner:
            yield from flatten(inner, f"{name}.")
        else:
            yield name, inner


def same(a: Any, b: Any) -> bool:
    """Equal values of a kind: 1 is 1.0, but not True; NaN is itself."""
    if isinstance(a, bool) != isinstance(b, bool):
        return False
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a):
        return math.isnan(b)
    return bool(a == b)
