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


def leaps_more(side: str, than: str, pairs: Sequence[tuple[str, str]]) -> Rule:
    """Over all settings together, a side's training loss leaps more often than another's. A run that diverged counts
    as one leap.

    Args:
        pairs: sides at the same setting, the accused one first.
    """

    def rule(evidence: Evidence) -> Finding:
        part = evidence.main
        if why := missing(part, [name for pair in pairs for name in pair if not part.diverged(name)]):
            return Finding(INCONCLUSIVE, why)
        figures: Json = {}
        found: list[tuple[float, float]] = []
        for mine, other in pairs:
            a, b = part.statistic(mine, LEAPS), part.statistic(other, LEAPS)
            figures |= {f"leaps of {name}": sum(each.values()) for name, each in ((mine, a), (other, b))}
            figures |= {f"diverged runs of {name}": n for name in (mine, other) if (n := part.diverged(name))}
            figures |= {f"bits/byte of {name}": part.mean(name) for name in (mine, other) if part.ends(name)}
            found += [(a.get(seed, 1.0), b.get(seed, 1.0)) for seed in sorted(a.keys() | b.keys())]
        if len(found) < 2:
            return Finding(INCONCLUSIVE, "fewer than 2 runs say how their training loss goes", figures=figures)
        interval = paired_interval([b for _, b in found], [a for a, _ in found], 0.95)
        more = "more" if interval.difference > 0 else "less"
        reason = f"the training loss of {side} leaps {abs(interval.difference):.2f} times a run {more} than {than}'s"
        if interval.low > 0:
            return said(SUPPORTED, reason, interval, min(len(part.ends(side)), interval.n), figures, "leaps a run")
        verdict = REFUTED if interval.high < 0.5 else INCONCLUSIVE
        return said(verdict, reason, interval, interval.n, figures, "leaps a run")

    return rule


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
