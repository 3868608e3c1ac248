"""Rules about how runs train: whether a model learns by heart what it is shown, and whether its loss leaps.

Pure functions of the evidence, as those of `verdicts`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
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
from homunculi.experiments.comparison import LEVEL

LOSS, LEAPS = "training/loss", "training/leaps"  # statistics of a run
FEW = 0.5  # leaps a run that are not yet more
GUESSING = 0.95  # share of ln(vocabulary), the loss of a guess, that a run has to end below to have learnt something


def memorises(side: str, than: str, ladder: Sequence[str]) -> Rule:
    """A side fits what it is shown at the price of text that it was not shown: its gap between validation and training
    loss is wider than the other's, and its validation loss is higher.

    A lower validation loss refutes it, whatever the gap: what helps on new text was not merely learnt by heart. So does
    a narrower gap. What is shown is the difference of the validation losses.

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
        return said(verdict, reason, ends, min(ends.n, gap.n), figures)

    return rule


def leaps_more(side: str, than: str, settings: Sequence[str], parts: Sequence[str]) -> Rule:
    """Over all settings together, a side's training loss leaps more often than another's. A run that diverged counts
    as one leap. Refuted where the interval excludes half a leap more a run.

    What settings of one seed have in common is no further evidence, so a seed counts once, by its mean over them.
    What does not fall cannot leap: where more than half of the side's runs learn nothing, nothing is decided. Such a
    run ends with a validation loss of at least `GUESSING` times ln(vocab_size); one that diverged is not among them.

    Args:
        settings: ends of the names of sides at equal settings, such as rates.
        parts: of the result.
    """

    def rule(evidence: Evidence) -> Finding:
        found: dict[int, list[tuple[float, float]]] = {}
        figures: Json = {}
        known = {name: evidence.parts[name] for name in parts if name in evidence.parts}
        for name, part in known.items():
            for setting in settings:
                both = (side + setting, than + setting)
                pairs = _leaps(part, *both)
                for i, who in enumerate(both):
                    figures[f"leaps of {who}, {name}"] = sum(pair[i] for pair in pairs.values())
                figures |= _unequal_rates(part, both, name)
                for seed, pair in pairs.items():
                    found.setdefault(seed, []).append(pair)
        idle = {who: _idle(known.values(), [who + setting for setting in settings]) for who in (side, than)}
        figures |= {f"runs of {who} that learn nothing": some for who, (some, n_runs) in idle.items() if n_runs}
        if len(found) < 2:
            return Finding(INCONCLUSIVE, "fewer than 2 seeds of both say how their training loss goes", figures=figures)
        mine, others = ([fmean(pair[i] for pair in found[seed]) for seed in sorted(found)] for i in (0, 1))
        interval = paired_interval(others, mine, LEVEL)
        more = "more" if interval.difference > 0 else "less"
        reason = f"the training loss of {side} leaps {abs(interval.difference):.2f} times a run {more} than {than}'s"
        verdict = SUPPORTED if interval.low > 0 else REFUTED if interval.high < FEW else INCONCLUSIVE
        n_idle, n = idle[side]
        if 2 * n_idle > n:
            verdict, why = INCONCLUSIVE, f"{side} learns nothing in {n_idle} of {n} runs (it ends at guessing)"
            rose = interval.difference > 0
            reason = f"{reason}; but {why}" if rose else f"{why}, and what does not fall cannot leap"
        return said(verdict, reason, interval, interval.n, figures, "leaps a run")

    return rule


def _leaps(part: Part, mine: str, other: str) -> dict[int, tuple[float, float]]:
    """Seed → leaps of both sides, where both have a run that ended or diverged."""
    a, b = _of_seeds(part, mine), _of_seeds(part, other)
    return {seed: (a[seed], b[seed]) for seed in sorted(a.keys() & b.keys())}


def _of_seeds(part: Part, name: str) -> dict[int, float]:
    """Seed → leaps of a side that may be ranked."""
    if name not in part.sides:
        return {}
    diverged = (run for run in part.stored["failed"] if run["side"] == name and run["state"] == "diverged")
    return {run["seed"]: 1.0 for run in diverged} | part.statistic(name, LEAPS)


def _idle(parts: Iterable[Part], names: Sequence[str]) -> tuple[int, int]:
    """How many runs of a side's settings end at guessing, of how many that ended or diverged; those of a model that
    does not say how large its vocabulary is are left out."""
    n_idle = n = 0
    for part, name in ((part, name) for part in parts for name in names if name in part.sides):
        size = part.sides[name]["config"]["model"].get("vocab_size")
        if size is None:
            continue
        seeds = _of_seeds(part, name)
        ends = [run["val_loss"][-1] for seed, run in part.runs[name].items() if seed in seeds]
        n_idle += sum(end >= GUESSING * math.log(size) for end in ends)
        n += len(seeds)
    return n_idle, n


def _unequal_rates(part: Part, names: Sequence[str], where: str) -> Json:
    """Learning rates of two sides where they differ: what differs in leaps may come from them."""
    rates = {name: part.sides[name]["lr"] for name in names if name in part.sides}
    if len(set(rates.values())) < 2:
        return {}
    return {f"learning rate of {name}, {where}": rate for name, rate in rates.items()}


def _of_gaps(side: str, than: str, ends: Interval, gap: Interval) -> tuple[str, str]:
    if ends.high < 0:
        return REFUTED, f"{side} is better than {than} on text that neither was shown"
    if gap.low > 0 and ends.low > 0:
        return SUPPORTED, f"{side} is worse than {than} on new text, and fits what it was shown more closely"
    if gap.high < 0:
        return REFUTED, f"{side} does not fit what it was shown more closely than {than}"
    if gap.low > 0:
        return INCONCLUSIVE, f"{side} fits what it was shown more closely than {than}, at no price shown on new text"
    return INCONCLUSIVE, f"no difference shown between {side} and {than}"


def _gaps(part: Part, name: str) -> dict[int, float]:
    """Seed → validation loss less training loss at the end of a run, nats a token."""
    losses = part.statistic(name, LOSS)
    return {seed: part.runs[name][seed]["val_loss"][-1] - loss for seed, loss in losses.items()}


def _difference(a: dict[int, float], b: dict[int, float]) -> Interval | None:
    seeds = sorted(a.keys() & b.keys())
    return paired_interval([b[seed] for seed in seeds], [a[seed] for seed in seeds], LEVEL) if len(seeds) > 1 else None
