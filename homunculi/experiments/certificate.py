"""What certification finds: checks, each with its value and its limit, and what they say about causality."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

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
        """JSON values; an infinite value is written as the largest finite one, JSON having no other."""
        shown = {"name": self.name, "passed": self.passed, "value": self.value, "limit": self.limit}
        shown["value"] = min(self.value, sys.float_info.max)
        return shown | ({"note": self.note} if self.note else {})


@dataclass(frozen=True, slots=True)
class Certificate:
    """All that was checked.

    Attributes:
        causal: the function that evaluates and generates sees no later token. It alone decides ranking.
        causal_in_training: so does the function that is trained.
        checks: those that apply to the model, in the order they ran.
        budget: what the model costs at the checked context, where it can tell.
        notes: how the checks were run where that differs from the rule, and which were left out.
    """

    causal: bool
    causal_in_training: bool
    checks: tuple[Check, ...]
    budget: Budget | None = None
    notes: tuple[str, ...] = ()

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if not check.passed)

    def to_json(self) -> dict[str, Any]:
        """JSON values: the verdicts, the checks, and budget and notes where there are any."""
        shown: dict[str, Any] = {
            "causal": self.causal,
            "causal_in_training": self.causal_in_training,
            "checks": [check.to_json() for check in self.checks],
        }
        if self.budget is not None:
            shown["budget"] = self.budget.to_json()
        return shown | ({"notes": list(self.notes)} if self.notes else {})
