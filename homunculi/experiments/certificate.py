"""What certification finds: checks, each with its value and its limit, what they say about causality, and leaks."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, NamedTuple

from homunculi.core.budget import Budget


@dataclass(frozen=True, slots=True)
class Check:
    """One check that ran.

    Attributes:
        name: as exemptions and readers name it.
        passed: the value is within the limit.
        value: what was measured; infinite where the model raised an error or gave no number.
        limit: the largest value that passes.
        note: what a failure shows, or what a reader should know.
    """

    name: str
    passed: bool
    value: float
    limit: float
    note: str = ""

    @classmethod
    def of(cls, name: str, value: float, limit: float, note: str = "") -> Check:
        """The check of that value: it passes at or below the limit, and never when it is not a number."""
        value = float("inf") if value != value else float(value)
        return cls(name, value <= limit, value, limit, note)

    def to_json(self) -> dict[str, Any]:
        """JSON values; an infinite value is written as the largest finite one."""
        shown = {"name": self.name, "passed": self.passed, "value": _finite(self.value), "limit": self.limit}
        return shown | ({"note": self.note} if self.note else {})


class LeakPair(NamedTuple):
    """One position that sees one later token, both counted from 0.

    Attributes:
        reader: the position whose logits move.
        source: the later token that, changed alone, moves them.
        difference: by how much, relative to the logits.
    """

    reader: int
    source: int
    difference: float

    def __str__(self) -> str:
        return f"position {self.reader} sees {self.source}"

    def to_json(self) -> dict[str, Any]:
        """JSON values, the sentence included."""
        shown = {"reader": self.reader, "source": self.source, "difference": _finite(self.difference)}
        return shown | {"text": str(self)}


@dataclass(frozen=True, slots=True)
class LeakMap:
    """Which positions see which later tokens: of one mode, in rows of one length, found by changing single tokens.

    Attributes:
        mode: ``evaluation`` or ``training``.
        context: tokens of the rows that were asked.
        summary: the pattern in words.
        pairs: those that leak most, the largest difference first.
        n_pairs: how many pairs leak, of those asked.
        n_sources: how many of the `context` − 1 later tokens were changed, each alone.
        cell: positions that one row or column of `cells` stands for; the last one may stand for fewer.
        cells: by group of readers, then by group of sources, the largest difference of any pair that leaks; 0 where
            none does, None where no pair was asked (the past among them, which may be seen).
    """

    mode: str
    context: int
    summary: str
    pairs: tuple[LeakPair, ...]
    n_pairs: int
    n_sources: int
    cell: int
    cells: tuple[tuple[float | None, ...], ...]

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "mode": self.mode,
            "context": self.context,
            "summary": self.summary,
            "pairs": [pair.to_json() for pair in self.pairs],
            "n_pairs": self.n_pairs,
            "n_sources": self.n_sources,
            "cell": self.cell,
            "cells": [[None if value is None else _finite(value) for value in row] for row in self.cells],
        }


def _finite(value: float) -> float:
    """The value, an infinite one as the largest finite one: JSON has no other."""
    return min(value, sys.float_info.max)


@dataclass(frozen=True, slots=True)
class Certificate:
    """All that was checked.

    Attributes:
        causal: the function that evaluates and generates sees no later token. It alone decides ranking.
        causal_in_training: so does the function that is trained.
        checks: those that apply to the model, in the order they ran.
        budget: what the model costs at the checked context, where it can tell.
        notes: how the checks were run where that differs from the rule, and which were left out.
        leaks: who sees what, of each mode that looks ahead; empty where no cut of a row shows a look.
    """

    causal: bool
    causal_in_training: bool
    checks: tuple[Check, ...]
    budget: Budget | None = None
    notes: tuple[str, ...] = ()
    leaks: tuple[LeakMap, ...] = ()

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if not check.passed)

    def to_json(self) -> dict[str, Any]:
        """JSON values: the verdicts, the checks, the leaks, and budget and notes where there are any."""
        shown: dict[str, Any] = {
            "causal": self.causal,
            "causal_in_training": self.causal_in_training,
            "checks": [check.to_json() for check in self.checks],
            "leaks": [leaks.to_json() for leaks in self.leaks],
        }
        if self.budget is not None:
            shown["budget"] = self.budget.to_json()
        return shown | ({"notes": list(self.notes)} if self.notes else {})
