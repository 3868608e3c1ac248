"""Rules about other things than which loss is lower: whether runs converge, how a gain changes with size, the range of
a signal, what can be counted. As those of `verdicts`, pure functions of the evidence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from homunculi.errors import InputError
from homunculi.evals.statistics import Interval, fit_power_law, paired_interval
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
from homunculi.experiments.claims.verdicts import missing, said

_RISE = 1.01  # of a curve above its own lowest point, beyond which its run has not converged
_LEVEL_OF_TWO = 0.975  # of each of two intervals that together hold 95 %


def converges(side: str, control: str) -> Rule:
    """Every run of a side converges: it ends, below its first evaluation, no more than 1 % above its own lowest point,
    and below every count model of the same text.

    A run that does not refutes the claim, unless as many runs of the control fail: then it is the setting. What is
    shown is the difference of both sides' ends, of which the claim says nothing.
    """

    def rule(evidence: Evidence) -> Finding:
        part = evidence.main
        if why := missing(part, [control]) or part.unranked.get(side, ""):
            return Finding(INCONCLUSIVE, why)
        failed = {
            name: part.diverged(name) + sum(_fails(part, run) for run in part.runs[name].values())
            for name in (side, control)
        }
        n = part.diverged(side) + len(part.runs[side])
        figures = {f"bits/byte of {name}": part.mean(name) for name in (side, control)}
        figures |= {f"runs of {name} that do not converge": count for name, count in failed.items()}
        interval = part.interval(side, control)
        if not n:
            return Finding(INCONCLUSIVE, f"there are no runs of {side}")
        if failed[side]:
            verdict = REFUTED if failed[side] > failed[control] else INCONCLUSIVE
            reason = f"{failed[side]} of {n} runs of {side} do not converge, {failed[control]} of {control}"
        else:
            verdict, reason = SUPPORTED, f"all {n} runs of {side} converge"
        return said(verdict, reason, interval, n, figures)

    return rule


def _fails(part: Part, run: Json) -> bool:
    curve = run["val_bpb"]
    others = [model["val_bpb"] for model in part.stored["baselines"]]
    return curve[-1] > _RISE * min(curve) or curve[-1] >= min([*others, *curve[:-1][:1]], default=math.inf)


def widens(side: str, over: str, parts: Sequence[str]) -> Rule:
    """The share of the baseline's loss that a side gains grows with size, one part of the result a size.

    For each seed a straight line through the gains over log2 of the baseline's parameters; the interval is over the
    slopes of the seeds. A side that is worse at the largest size has no gain that could grow.
    """

    def rule(evidence: Evidence) -> Finding:
        found = [evidence.parts[name] for name in parts if name in evidence.parts]
        if why := "; ".join(dict.fromkeys(why for part in found if (why := missing(part, [side, over])))):
            return Finding(INCONCLUSIVE, why)
        seeds = sorted(set.intersection(*(set(part.shared(side, over)) for part in found))) if found else []
        if len(found) < len(parts) or len(seeds) < 2:
            return Finding(INCONCLUSIVE, f"{len(found)} of {len(parts)} sizes with {len(seeds)} seeds in common")
        sizes = [math.log2(part.parameters(over)) for part in found]
        gains = [[math.log(part.ends(over)[seed] / part.ends(side)[seed]) for part in found] for seed in seeds]
        none = [0.0] * len(seeds)
        slope = paired_interval(none, [_slope(sizes, row) for row in gains])
        at_largest = paired_interval(none, [row[-1] for row in gains])
        verdict, reason = _of_slope(slope, at_largest)
        figures = _ladder(found, side, over, gains)
        return said(verdict, f"{side} against {over}: {reason}", slope, slope.n, figures, "of the loss a doubling")

    return rule


def _of_slope(slope: Interval, at_largest: Interval) -> tuple[str, str]:
    """Verdict and reason from how the gain changes with size, and what it is at the largest."""
    if at_largest.p < ALPHA and at_largest.difference < 0:
        return REFUTED, "worse at the largest size, so there is no gain that could grow"
    if slope.p >= ALPHA:
        return INCONCLUSIVE, "the gain changes with size by no more than chance"
    if slope.difference < 0:
        return REFUTED, "the gain shrinks with size"
    if at_largest.p >= ALPHA:
        return INCONCLUSIVE, "no gain is shown at the largest size"
    return SUPPORTED, "the gain grows with size"


def _slope(x: Sequence[float], y: Sequence[float]) -> float:
    middle, height = fmean(x), fmean(y)
    over = sum((a - middle) ** 2 for a in x)
    return sum((a - middle) * (b - height) for a, b in zip(x, y, strict=True)) / over


def _ladder(parts: Sequence[Part], side: str, over: str, gains: Sequence[Sequence[float]]) -> Json:
    found: Json = {}
    for part, of_seeds in zip(parts, zip(*gains, strict=True), strict=True):
        found[f"gain at {part.parameters(over) / 1e6:.2f} M, %"] = 100 * fmean(of_seeds)
    for name in (over, side):
        points = [(part.parameters(over), end) for part in parts for end in part.ends(name).values()]
        try:
            law = fit_power_law([size for size, _ in points], [end for _, end in points])
        except InputError:
            continue
        found[f"exponent of {name}"] = [law.exponent, law.low, law.high]
    return found


def stays_within(signal: str, low: float, high: float, *, side: str, free: str, sweep: Sequence[str]) -> Rule:
    """A signal stays within a range on one side, and leaves it where nothing holds it.

    The range of a run is its signal's mean ± 2 standard deviations over tokens, of the average block: a narrower one
    than that of all blocks, so that leaving the claimed range counts. What is shown is how far the range reaches
    beyond the claimed one at its worse end; both ends are judged together.

    Args:
        side: with the regulariser as claimed. free: without it. sweep: all sides, for the figures.
    """

    def rule(evidence: Evidence) -> Finding:
        part = evidence.main
        if why := missing(part, [side, free]):
            return Finding(INCONCLUSIVE, why)
        figures: Json = {f"bits/byte of {name}": part.mean(name) for name in sweep if part.ends(name)}
        for name in sweep:
            if ends := _range_of(part, name, signal):
                figures[f"{signal} of {name}"] = [fmean(end) for end in zip(*ends.values(), strict=True)]
        held, loose = (_beyond(part, name, signal, low, high) for name in (side, free))
        if not held or not loose:
            return Finding(INCONCLUSIVE, f"fewer than 2 runs say what their {signal} does", figures=figures)
        worse = max(held, key=lambda interval: interval.difference)
        verdict, reason = _of_range(held, loose)
        return said(verdict, f"{signal} {reason} {low} … {high}", worse, worse.n, figures, f"of {signal}")

    return rule


def _of_range(held: Sequence[Interval], loose: Sequence[Interval]) -> tuple[str, str]:
    """Verdict and words before the range, from how far both ends reach beyond it with a regulariser and without."""
    if any(end.low > 0 for end in held):
        return REFUTED, "leaves, under the regulariser,"
    if any(end.high > 0 for end in held):
        return INCONCLUSIVE, "may or may not stay, under the regulariser, in"
    if not any(end.low > 0 for end in loose):
        return INCONCLUSIVE, "is not shown to leave, even without the regulariser,"
    return SUPPORTED, "stays, under the regulariser alone, in"


def _range_of(part: Part, name: str, signal: str) -> dict[int, tuple[float, float]]:
    """Seed → lowest and highest value of a signal, about."""
    means = part.statistic(name, f"signal/{signal}/mean")
    variances = part.statistic(name, f"signal/{signal}/variance")
    reach = {seed: 2 * math.sqrt(max(0.0, variances[seed])) for seed in means.keys() & variances.keys()}
    return {seed: (means[seed] - reach[seed], means[seed] + reach[seed]) for seed in sorted(reach)}


def _beyond(part: Part, name: str, signal: str, low: float, high: float) -> list[Interval]:
    """How far a signal reaches beyond each end of a range, over seeds; empty with fewer than two."""
    ends = _range_of(part, name, signal).values()
    if len(ends) < 2:
        return []
    reaches = [[low - lowest for lowest, _ in ends], [highest - high for _, highest in ends]]
    return [paired_interval([0.0] * len(reach), reach, _LEVEL_OF_TWO) for reach in reaches]


def counts_to(figure: str, claimed: float, tolerance: float, unit: str = "") -> Rule:
    """A number that is counted, not sampled, is the claimed one within a tolerance.

    Args:
        figure: its name among what is measured. claimed, tolerance: in its unit.
    """

    def rule(evidence: Evidence) -> Finding:
        found = evidence.measured[figure]
        holds = abs(found - claimed) <= tolerance
        words = f"{figure} is {found:.4g}, claimed is {claimed:.4g}"
        verdict = SUPPORTED if holds else REFUTED
        return Finding(verdict, words, found, found, found, None, dict(evidence.measured), unit)

    return rule
