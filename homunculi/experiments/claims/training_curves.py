"""Rules about how runs train: whether a model learns by heart what it is shown, and whether its loss leaps.

Pure functions of the evidence, as those of `verdicts`.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from homunculi.evals.statistics import Interval, paired_interval
from homunculi.experiments.claims.evidence import (
    INCONCLUSIVE,
    REFUTED,
    SUPPORTED,
    Evidence,
    Finding,
    Json,
    Part,
    Rule,
)
from homunculi.experiments.claims.verdicts import missing, said

LOSS, LEAPS = "training/loss", "training/leaps"  # statistics of a run


def memorises(side: str, than: str, ladder: Sequence[str]) -> Rule:
    """A side fits what it is shown at the price of text that it was not shown: its gap between validation and training
    loss is wider than the other's, and its validation loss is higher.

    A lower validation loss refutes it, whatever the gap: what helps on new text was not merely learnt by heart. What
    is shown is the difference of the validation losses.

    Args:
        ladder: all sides, for the figures.
    """

    def rule(evidence: Evidence) -> Finding:
        part = evidence.main
        if why := missing(part, [side, than]):
            return Finding(INCONCLUSIVE, why)
        figures: Json = {f"bits/byte of {name}": part.mean(name) for name in ladder if part.ends(name)}
        for name in ladder:
            if gaps := _gaps(part, name):
                figures[f"gap of {name}, nats a token"] = fmean(gaps.values())
        figures |= dict(evidence.measured)
        ends, gap = part.interval(side, than), _difference(_gaps(part, side), _gaps(part, than))
        if ends is None or gap is None:
            return Finding(INCONCLUSIVE, f"{side} and {than} share fewer than 2 runs that say how they train")
        figures["difference of the gaps, nats a token"] = [gap.difference, gap.low, gap.high]
        verdict, reason = _of_gaps(side, than, ends, gap)
        return said(verdict, reason, ends, ends.n, figures)

    return rule


def leaps_more(side: str, than: str, settings: Sequence[str], parts: Sequence[str]) -> Rule:
    """Over all settings together, a side's training loss leaps more often than another's. A run that diverged counts
    as one leap.

    Args:
        settings: ends of the names of sides at equal settings, such as rates.
        parts: of the result.
    """

    def rule(evidence: Evidence) -> Finding:
        found: list[tuple[float, float]] = []
        figures: Json = {}
        for name in parts:
            for setting in settings if name in evidence.parts else ():
                pairs = _leaps(evidence.parts[name], side + setting, than + setting)
                for i, who in enumerate((side, than)):
                    figures[f"leaps of {who}{setting}, {name}"] = sum(pair[i] for pair in pairs)
                found += pairs
        if len(found) < 2:
            return Finding(INCONCLUSIVE, "fewer than 2 runs of both say how their training loss goes", figures=figures)
        interval = paired_interval([b for _, b in found], [a for a, _ in found], 0.95)
        more = "more" if interval.difference > 0 else "less"
        reason = f"the training loss of {side} leaps {abs(interval.difference):.2f} times a run {more} than {than}'s"
        verdict = SUPPORTED if interval.low > 0 else REFUTED if interval.high < 0.5 else INCONCLUSIVE
        return said(verdict, reason, interval, interval.n, figures, "leaps a run")

    return rule


def _leaps(part: Part, mine: str, other: str) -> list[tuple[float, float]]:
    """Leaps of both sides, seed by seed; a side that diverged where the other has a run leapt once."""
    if (part.missing(mine) and not part.diverged(mine)) or (part.missing(other) and not part.diverged(other)):
        return []
    a, b = part.statistic(mine, LEAPS), part.statistic(other, LEAPS)
    return [(a.get(seed, 1.0), b.get(seed, 1.0)) for seed in sorted(a.keys() | b.keys())]


def _of_gaps(side: str, than: str, ends: Interval, gap: Interval) -> tuple[str, str]:
    if ends.high < 0:
        return REFUTED, f"{side} is better than {than} on text that neither was shown"
    if gap.low > 0 and ends.low > 0:
        return SUPPORTED, f"{side} is worse than {than} on new text, and fits what it was shown more closely"
    if gap.high < 0:
        return REFUTED, f"{side} does not fit what it was shown more closely than {than}"
    return INCONCLUSIVE, f"no difference shown between {side} and {than}"


def _gaps(part: Part, name: str) -> dict[int, float]:
    """Seed → validation loss less training loss at the end of a run, nats a token."""
    losses = part.statistic(name, LOSS)
    return {seed: part.runs[name][seed]["val_loss"][-1] - loss for seed, loss in losses.items()}


def _difference(a: dict[int, float], b: dict[int, float]) -> Interval | None:
    seeds = sorted(a.keys() & b.keys())
    return paired_interval([b[seed] for seed in seeds], [a[seed] for seed in seeds], 0.95) if len(seeds) > 1 else None
