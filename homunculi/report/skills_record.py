"""What reports of skills read: skills.json, with patience."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from homunculi.report.comparison_record import objects
from homunculi.report.differences import GREY
from homunculi.report.numbers import number


@dataclass(frozen=True)
class Record:
    """skills.json, read with patience: whatever is missing or of another kind counts as not there."""

    raw: Mapping[str, Any]

    @cached_property
    def scores(self) -> list[Mapping[str, Any]]:
        return objects(self.raw.get("scores"))

    @cached_property
    def points(self) -> list[Mapping[str, Any]]:
        return objects(self.raw.get("points"))

    @cached_property
    def sides(self) -> dict[str, int]:
        """Name of an architecture → its look: never that of lines of reference."""
        listed = [str(one.get("name", "?")) for one in objects(self.raw.get("architectures"))]
        named = dict.fromkeys([*listed, *(str(one.get("architecture", "?")) for one in self.points)])
        return {name: place + place // GREY for place, name in enumerate(named)}

    @cached_property
    def tasks(self) -> list[Mapping[str, Any]]:
        return objects(self.raw.get("tasks"))

    def of(self, key: str, task: str, side: str | None = None) -> list[Mapping[str, Any]]:
        """Entries of a list that are about a task, and of one architecture if it is named."""
        return [
            one
            for one in objects(self.raw.get(key))
            if one.get("task") == task and side in (None, one.get("architecture"))
        ]


def value_of(entry: Mapping[str, Any] | None) -> float | None:
    return None if entry is None else number(entry.get("score"))


def decimals(value: Any) -> str:
    found = number(value)
    return "–" if found is None else f"{found:.3f}"
