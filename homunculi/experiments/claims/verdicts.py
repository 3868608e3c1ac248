"""Rules by which verdicts follow from runs. Each function makes a rule: a pure function of the evidence.

Of all rules about losses:

- the intervals are Student's, over seeds that both sides have; p values of all pairs that a rule needs are adjusted
  together (Holm), and "better" means that the adjusted p is below 0.05;
- supported: everything that the claim needs is better, the control as well as the baseline;
- refuted: something that it needs is worse, or the interval excludes the size that is claimed;
- inconclusive: anything else. Fewer than five seeds are never more than that (`evidence.first_look`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from homunculi.evals.statistics import Interval, holm
from homunculi.experiments.claims.evidence import (
    ALPHA,
    INCONCLUSIVE,
    REFUTED,
    SUPPORTED,
    Evidence,
    Finding,
    Json,
    Part,
    Rule,
)

Pair = tuple[str, str]  # the side that the claim wants lower, and the one that it wants higher


@dataclass(frozen=True, slots=True)
class Judged:
    """A pair with its interval of better − worse and its p among all pairs of the rule."""

    better: str
    worse: str
    interval: Interval
    adjusted_p: float

    @property
    def holds(self) -> bool:
        return self.adjusted_p < ALPHA and self.interval.difference < 0

    @property
    def reversed(self) -> bool:
        return self.adjusted_p < ALPHA and self.interval.difference > 0

    def __str__(self) -> str:
        if self.holds or self.reversed:
            return f"{self.better} ends {'below' if self.holds else 'above'} {self.worse}"
        return f"no difference shown between {self.better} and {self.worse}"


def beats(
    *sides: str,
    over: str,
    controls: Sequence[str] = (),
    most_parameters: float | None = None,
    claimed: Mapping[str, float] | None = None,
) -> Rule:
    """One of the sides ends lower than the baseline, and than every control.

    Args:
        sides: forms of the idea; one that does it is enough, and all of them have to be worse to refute it.
        over: the baseline. controls: what the idea has to beat as well, such as its mechanism kept neutral.
        most_parameters: share of the baseline's that the idea may have to be supported, beside token tables.
        claimed: size → change that is claimed of the baseline's loss as a share of it, such as -0.1; at that size an
            interval that lies above it refutes the claim.
    """

    def rule(evidence: Evidence) -> Finding:
        part, size = evidence.main, (claimed or {}).get(evidence.size)
        if all(part.diverged(side) and not part.ends(side) for side in sides):
            return _of_the_diverged(part, sides)
        judged, absent = _judge(part, [(side, other) for side in sides for other in (over, *controls)])
        by_side = {side: [one for one in judged if one.better == side] for side in sides}
        compared = {side: found for side, found in by_side.items() if found and found[0].worse == over}
        if not compared:
            return Finding(INCONCLUSIVE, absent)
        shown = _foremost(compared)
        verdict, reason = _settled(part, by_side, shown)
        lacking = [name for name in controls if name not in {one.worse for one in shown}]
        short = size is not None and shown[0].interval.low / (part.mean(over) or 1.0) > size
        if short and verdict != REFUTED:
            verdict, reason = REFUTED, f"{reason}; the interval excludes the {100 * (size or 0):+.1f} % that is claimed"
        elif verdict == SUPPORTED and lacking:
            verdict, reason = INCONCLUSIVE, f"{reason}; {missing(part, lacking) or 'a control has too few seeds'}"
        elif verdict == SUPPORTED and _share(part, shown[0].better, over) > (most_parameters or 1e9):
            verdict, reason = INCONCLUSIVE, f"{reason}; with more than {most_parameters} of the parameters of {over}"
        return _finding(verdict, reason, shown, _figures(part, judged) | _share_figures(part, shown[0], over, size))

    return rule


def all_better(*pairs: Pair) -> Rule:
    """Every pair's first side ends lower than its second: all pairs are needed, one that is reversed refutes."""

    def rule(evidence: Evidence) -> Finding:
        part = evidence.main
        gone = [better for better, _ in pairs if part.diverged(better) and not part.ends(better)]
        if gone:
            return _of_the_diverged(part, gone)
        judged, absent = _judge(part, pairs)
        if not judged:
            return Finding(INCONCLUSIVE, absent)
        verdict, reason = _settled(part, {"": judged}, judged)
        if verdict == SUPPORTED and absent:
            verdict, reason = INCONCLUSIVE, f"{reason}; {absent}"
        return _finding(verdict, reason, judged, _figures(part, judged))

    return rule


def each_needed(whole: str, without: Mapping[str, str]) -> Rule:
    """The whole ends lower than itself without each of its parts. `without`: name of a part → side that lacks it."""
    return all_better(*((whole, side) for side in without.values()))


def ordered(*sides: str) -> Rule:
    """Each side ends lower than the one named after it."""
    return all_better(*pairwise(sides))


def missing(part: Part, names: Sequence[str]) -> str:
    """What cannot be judged for want of runs; empty where all can."""
    return "; ".join(dict.fromkeys(why for name in names if (why := part.missing(name))))


def _of_the_diverged(part: Part, sides: Sequence[str]) -> Finding:
    """Refuted: no run of these sides ended, and some diverged."""
    return Finding(REFUTED, f"every run of {', '.join(sides)} diverged", n=min(part.diverged(side) for side in sides))


def _judge(part: Part, pairs: Sequence[Pair]) -> tuple[list[Judged], str]:
    """The pairs that have two seeds or more, their p adjusted together; and why the others have not."""
    found = [(better, worse, part.interval(better, worse)) for better, worse in pairs]
    whole = [(better, worse, interval) for better, worse, interval in found if interval is not None]
    adjusted = holm([interval.p for _, _, interval in whole]) if whole else []
    absent = [
        missing(part, [better, worse])
        or f"{better} and {worse} have {len(part.shared(better, worse))} seeds in common, 2 are the least"
        for better, worse, interval in found
        if interval is None
    ]
    judged = [Judged(*one, p) for one, p in zip(whole, adjusted, strict=True)]
    return judged, "; ".join(dict.fromkeys(absent))


def _settled(part: Part, groups: Mapping[str, Sequence[Judged]], shown: Sequence[Judged]) -> tuple[str, str]:
    """Verdict and reason where one of the groups has to hold; `shown` is the one that the reason speaks of."""
    if all(any(one.reversed for one in group) for group in groups.values()):
        return REFUTED, ", ".join(str(one) for one in shown if one.reversed)
    reason = ", ".join(map(str, shown))
    if not all(one.holds for one in shown):
        return INCONCLUSIVE, reason
    unstable = [one.better for one in shown if part.diverged(one.better) > part.diverged(one.worse)]
    if unstable:
        return INCONCLUSIVE, f"{reason}; but runs of {unstable[0]} diverged that are not in the figures"
    return SUPPORTED, reason


def _foremost(by_side: Mapping[str, list[Judged]]) -> list[Judged]:
    """The form that holds everywhere, of several the one that gains most; else the one that gains most."""
    return min(by_side.values(), key=lambda group: (not all(one.holds for one in group), group[0].interval.difference))


def _finding(verdict: str, reason: str, shown: Sequence[Judged], figures: Json) -> Finding:
    """The first pair's interval speaks for all; n is that of the pair with the fewest seeds."""
    return said(verdict, reason, shown[0].interval, min(one.interval.n for one in shown), figures)


def said(
    verdict: str, reason: str, interval: Interval | None, n: int, figures: Json, unit: str = "bits/byte"
) -> Finding:
    """A finding with the interval that decided it, where one did."""
    if interval is None:
        return Finding(verdict, reason, n=n, figures=figures)
    return Finding(verdict, reason, interval.difference, interval.low, interval.high, n, figures, unit)


def _figures(part: Part, judged: Sequence[Judged]) -> Json:
    """Mean ends of all sides, and every pair with its interval."""
    names = dict.fromkeys(name for one in judged for name in (one.better, one.worse))
    found: Json = {f"bits/byte of {name}": part.mean(name) for name in names}
    for one in judged[1:]:
        found[f"{one.better} - {one.worse}"] = [one.interval.difference, one.interval.low, one.interval.high]
    found["p"] = max(one.adjusted_p for one in judged)
    rates = {f"learning rate of {name}": part.sides[name]["lr"] for name in names}
    found |= rates if len(set(rates.values())) > 1 else {}  # a difference may be that of the rates
    diverged = {f"diverged runs of {name}": part.diverged(name) for name in names}
    return found | {name: count for name, count in diverged.items() if count}


def _share(part: Part, side: str, over: str) -> float:
    return part.parameters(side) / part.parameters(over)


def _share_figures(part: Part, first: Judged, over: str, claimed: float | None) -> Json:
    """The change as a share of the baseline's loss, and the share of its parameters where it is not all."""
    found: Json = {"change of the loss, %": 100 * first.interval.difference / (part.mean(over) or 1.0)}
    if claimed is not None:
        found["claimed, %"] = 100 * claimed
    share = _share(part, first.better, over)
    return found | ({"share of the parameters": share} if abs(share - 1) > 0.02 else {})
