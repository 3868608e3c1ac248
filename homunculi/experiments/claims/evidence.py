"""What a claim is judged by: runs of a stored result that may stand beside each other, and what a rule says of them.

A side counts if its certificate says causal and its budget is the first side's within 1 %; a run counts if it ended
and read the batches that the first side of its shape read. No torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import fmean
from typing import Any

from homunculi.evals.statistics import Interval, paired_interval
from homunculi.experiments.comparison import ALPHA, CLAIM_SEEDS, COLUMN, LEVEL

SUPPORTED, REFUTED, INCONCLUSIVE, NOT_RUN = "supported", "refuted", "inconclusive", "not run"
TOLERANCE = 0.01  # of equal budgets, as in `homunculi.experiments.matching`

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Finding:
    """A verdict and what decided it.

    Attributes:
        verdict: supported, refuted, inconclusive, not run.
        reason: one sentence.
        difference, low, high: of the comparison that decided, with its interval, in `unit`; n: seeds. None where none
            did.
        figures: further numbers by name.
    """

    verdict: str
    reason: str
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    figures: Mapping[str, Any] = field(default_factory=dict)
    unit: str = ""


@dataclass(frozen=True)
class Part:
    """One comparison of a stored result."""

    stored: Json

    @cached_property
    def sides(self) -> dict[str, Json]:
        """Those that may be ranked."""
        return {name: side for name, side in self._all.items() if name not in self.unranked}

    @cached_property
    def unranked(self) -> dict[str, str]:
        """The others, each with the reason."""
        first = self.stored["sides"][0]
        reasons = {name: _objection(side, first, self.stored["match"]) for name, side in self._all.items()}
        return {name: reason for name, reason in reasons.items() if reason}

    @cached_property
    def _all(self) -> dict[str, Json]:
        return {side["name"]: side for side in self.stored["sides"]}

    @cached_property
    def runs(self) -> dict[str, dict[int, Json]]:
        """Side → seed → run, of those that count."""
        found: dict[str, dict[int, Json]] = {name: {} for name in self.sides}
        first: dict[tuple[int, tuple[int, ...]], str] = {}
        for name, side in self.sides.items():
            for run in self.stored["runs"]:
                if run["side"] != name or not run["stream"] or run["data_hash"] != self.stored["data"]["data_hash"]:
                    continue
                batches = first.setdefault((run["seed"], _shape(side)), run["stream"])
                if run["stream"] == batches and run["tokens"][-1] == _tokens(side):
                    found[name][run["seed"]] = run
        return found

    @property
    def touched(self) -> bool:
        """Whether something has come out: a run, or that a side may not be ranked."""
        return bool(self.stored["runs"] or self.stored["failed"] or self.unranked)

    @property
    def n_left_out(self) -> int:
        """Runs that do not count though their side does."""
        of_sides = sum(run["side"] in self.sides for run in self.stored["runs"])
        return of_sides - sum(map(len, self.runs.values()))

    def ends(self, name: str) -> dict[int, float]:
        """Seed → bits per byte at the end of the run."""
        return {seed: run[COLUMN][-1] for seed, run in self.runs.get(name, {}).items()}

    def mean(self, name: str) -> float | None:
        """Bits per byte at the end, over all seeds."""
        return fmean(self.ends(name).values()) if self.ends(name) else None

    def statistic(self, name: str, key: str) -> dict[int, float]:
        """Seed → what a model said of itself in the last tenth of its training, where it did."""
        found = {seed: run["statistics"].get(key) for seed, run in self.runs.get(name, {}).items()}
        return {seed: value for seed, value in found.items() if value is not None}

    def diverged(self, name: str) -> int:
        return sum(run["side"] == name and run["state"] == "diverged" for run in self.stored["failed"])

    def missing(self, name: str) -> str:
        """Why a side has nothing to be judged by; empty where it has."""
        if name in self.unranked:
            return f"{name} is not ranked: {self.unranked[name]}"
        return "" if self.ends(name) else f"there are no runs of {name}"

    def shared(self, *names: str) -> list[int]:
        """Seeds that all these sides have, in order."""
        return sorted(set.intersection(*(set(self.ends(name)) for name in names)))

    def interval(self, b: str, a: str) -> Interval | None:
        """Of b − a at the end of the runs; None where fewer than two seeds are shared."""
        seeds = self.shared(a, b)
        if len(seeds) < 2:
            return None
        of_a, of_b = self.ends(a), self.ends(b)
        return paired_interval([of_a[seed] for seed in seeds], [of_b[seed] for seed in seeds], LEVEL)

    def parameters(self, name: str) -> int:
        """Beside token tables."""
        return int(self.sides[name]["budget"]["non_embedding_parameters"])


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that a rule may look at.

    Attributes:
        parts: by name; a claim of one comparison has one, ``main``.
        measured: other measurements by name.
        size: that it was run at.
    """

    parts: Mapping[str, Part]
    measured: Json = field(default_factory=dict)
    size: str = ""

    @property
    def main(self) -> Part:
        return self.parts["main"]


Rule = Callable[[Evidence], Finding]


def first_look(finding: Finding) -> Finding:
    """The finding itself, or of fewer than five seeds an inconclusive one that says so."""
    if finding.n is None or finding.n >= CLAIM_SEEDS or finding.verdict not in (SUPPORTED, REFUTED):
        return finding
    reason = f"{finding.n} seeds are a first look, a claim needs {CLAIM_SEEDS}; as it stands: {finding.reason}"
    return replace(finding, verdict=INCONCLUSIVE, reason=reason)


def _objection(side: Json, first: Json, match: Sequence[str]) -> str:
    """Why a side may not be ranked; empty where it may."""
    certificate = side["certificate"]
    if certificate is None:
        return "it has no certificate"
    if certificate["causal"] is not True:
        return f"not causal ({', '.join(certificate['failed']) or 'no check passed'})"
    ratios = dict(side["ratios"])
    theirs = first["budget"]["non_embedding_parameters"]
    ratios["parameters"] = side["budget"]["non_embedding_parameters"] / theirs
    ratios["tokens"] = _tokens(side) / _tokens(first)
    for quantity in match:
        if abs(ratios[quantity] - 1) > TOLERANCE:
            return f"it has {ratios[quantity]:.2f} times the {quantity} of {first['name']}"
    return ""


def _shape(side: Json) -> tuple[int, ...]:
    """Runs of equal shape and seed read the same batches."""
    config = side["config"]
    return config["steps"], config["batch_tokens"], config["model"]["max_seq_len"]


def _tokens(side: Json) -> int:
    return int(side["config"]["steps"] * side["config"]["batch_tokens"])


__all__ = ["ALPHA", "CLAIM_SEEDS", "INCONCLUSIVE", "NOT_RUN", "REFUTED", "SUPPORTED", "Evidence", "Finding", "Part"]
