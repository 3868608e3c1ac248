"""What a ladder of sizes says: a law for each side, the gap between them at every size, and its trend.

Everything is computed from the runs of the rungs' comparisons. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

import numpy as np

from homunculi.evals.statistics import PowerLaw, fit_power_law, holm, paired_interval, t_quantile, verdict
from homunculi.experiments.comparison import ALPHA, COLUMN, LEVEL, METRIC, NOTHING, Comparison, pairs
from homunculi.runs import clock

FORMAT = 1
NO_TREND = "no trend shown"
_PLACES = 33  # at which a law's band is worked out

Json = dict[str, Any]


def analyse(comparisons: Sequence[Comparison], rungs: Sequence[tuple[float, str]]) -> Json:
    """The object of scale.json.

    Args:
        comparisons: of each size, smallest first, each of baseline and recipe.
        rungs: factor and folder of each.
    """
    names = [side.name for side in comparisons[0].sides]
    sizes = [_size(found, *rung) for found, rung in zip(comparisons, rungs, strict=True)]
    _judge([size["gap"] for size in sizes])
    return {
        "format": FORMAT,
        "created": clock.now(),
        "metric": METRIC,
        "level": LEVEL,
        "baseline": names[0],
        "recipe": names[1],
        "sizes": sizes,
        "laws": [_law(name, sizes) for name in names],
        "trend": _trend(names, sizes),
        "refused": [one for found in comparisons for one in found.refused],
        "failed": [one for found in comparisons for one in found.failed],
    }


def _size(found: Comparison, factor: float, folder: str) -> Json:
    """One size: both sides' ends by seed, and the gap."""
    sides = []
    for side in found.sides:
        runs = found.runs_of(side.name)
        sides.append(
            {
                "name": side.name,
                "parameters": side.budget["non_embedding_parameters"],
                "lr": side.lr,
                "tokens": next((run["tokens"][-1] for run in runs.values()), None),
                "ends": {str(seed): run[COLUMN][-1] for seed, run in sorted(runs.items())},
            }
        )
    gap = next(iter(pairs(found)), None)
    kept = ("difference", "low", "high", "n", "p", "seeds", "differences")
    return {
        "factor": factor,
        "folder": folder,
        "parameters": sides[1]["parameters"],
        "sides": sides,
        "gap": None if gap is None else {name: gap[name] for name in kept},
    }


def _judge(gaps: Sequence[Json | None]) -> None:
    """Put adjusted p and verdicts into the gaps of all sizes, which are judged together."""
    judged = [gap for gap in gaps if gap is not None and gap["p"] is not None]
    for gap, adjusted in zip(judged, holm([gap["p"] for gap in judged]) if judged else [], strict=True):
        interval = paired_interval([0.0] * gap["n"], gap["differences"], LEVEL)
        gap |= {"adjusted_p": adjusted, "verdict": verdict(interval, alpha=ALPHA, adjusted_p=adjusted)}
    for one in gaps:
        if one is not None:
            one.setdefault("adjusted_p", None)
            one.setdefault("verdict", None)


def _law(name: str, sizes: Sequence[Json]) -> Json:
    """A side's law over all its runs, with its band; None before three sizes have ended."""
    sides = [side for size in sizes for side in size["sides"] if side["name"] == name]
    points = [(side["parameters"], end) for side in sides for end in side["ends"].values()]
    parameters = sorted({size for size, _ in points})
    law: Json | None = None
    band: list[Json] = []
    if len(parameters) > 2:
        fitted = fit_power_law([size for size, _ in points], [end for _, end in points], LEVEL)
        law, band = asdict(fitted), _band(fitted, [size for size, _ in points])
    return {"name": name, "law": law, "band": band, "n_sizes": len(parameters)}


def _band(law: PowerLaw, sizes: Sequence[float]) -> list[Json]:
    """The fitted loss and its interval along the range that was measured."""
    logs = np.log(np.asarray(sizes, dtype=np.float64))
    middle, spread = float(logs.mean()), float(((logs - logs.mean()) ** 2).sum())
    reach = t_quantile(0.5 + LEVEL / 2, law.n - 2) * law.residual
    found = []
    for x in np.linspace(logs.min(), logs.max(), _PLACES):
        width = reach * math.sqrt(1 / law.n + (float(x) - middle) ** 2 / spread)
        size, loss = math.exp(float(x)), law.at(math.exp(float(x)))
        found.append({"parameters": size, "loss": loss, "low": loss * math.exp(-width), "high": loss * math.exp(width)})
    return found


def _trend(names: Sequence[str], sizes: Sequence[Json]) -> Json | None:
    """How the gap changes with each doubling of size; None before three sizes have two seeds in common."""
    gaps = [size["gap"] for size in sizes if size["gap"] is not None and size["gap"]["n"]]
    places = [math.log2(size["parameters"]) for size in sizes if size["gap"] is not None and size["gap"]["n"]]
    seeds = sorted(set.intersection(*(set(gap["seeds"]) for gap in gaps))) if gaps else []
    if len(places) < 3 or len(seeds) < 2:
        return None
    x = np.asarray(places) - fmean(places)
    values_SR = np.asarray([[gap["differences"][gap["seeds"].index(seed)] for gap in gaps] for seed in seeds])
    slopes = [float(x @ row / (x @ x)) for row in values_SR]
    interval = paired_interval([0.0] * len(slopes), slopes, LEVEL)
    middle = float(values_SR.mean())
    ends = [middle + interval.difference * float(x[i]) for i in (0, -1)]
    said = verdict(interval, alpha=ALPHA)
    return {
        "per_doubling": interval.difference,
        "low": interval.low,
        "high": interval.high,
        "n": interval.n,
        "p": interval.p,
        "slopes": slopes,
        "line": [{"parameters": 2.0 ** places[i], "gap": end} for i, end in zip((0, -1), ends, strict=True)],
        "verdict": NO_TREND if said == NOTHING else _direction(*ends),
    }


def _direction(first: float, last: float) -> str:
    if first * last < 0:
        return "changes sign"
    return "narrows" if abs(last) < abs(first) else "widens"


def written(result: Json) -> list[str]:
    """The conclusions in sentences."""
    a, b = result["baseline"], result["recipe"]
    lines = [_trend_sentence(result["trend"], a, b)]
    lines += [_law_sentence(one) for one in result["laws"]]
    lines += [_size_sentence(size, a, b) for size in result["sizes"]]
    lines += [f"{run['run']} did not end ({run['state']}): {run['reason']}" for run in result["failed"]]
    return lines + [f"{one['run']} is not ranked: {one['reason']}" for one in result["refused"]]


def _trend_sentence(trend: Json | None, a: str, b: str) -> str:
    if trend is None:
        return f"{b} against {a}: no trend can be fitted; it takes three sizes with two seeds on both sides"
    size = f"{trend['per_doubling']:+.4f} bits/byte a doubling ({trend['low']:.4f} … {trend['high']:.4f})"
    how = f"{size}, n = {trend['n']}, p = {trend['p']:.2g}"
    if trend["verdict"] == NO_TREND:
        return f"gap of {b} to {a}: {NO_TREND}: {how}"
    return f"the gap of {b} to {a} {trend['verdict']} with size: {how}"


def _law_sentence(one: Json) -> str:
    law = one["law"]
    if law is None:
        return f"{one['name']}: no law; {one['n_sizes']} sizes have ended, and 3 are needed"
    span = f"{-law['exponent']:.4f} ({-law['high']:.4f} … {-law['low']:.4f})"
    return f"{one['name']}: loss goes with size to the power {span}, over {one['n_sizes']} sizes, {law['n']} runs"


def _size_sentence(size: Json, a: str, b: str) -> str:
    gap, where = size["gap"], f"at {size['parameters']:,} parameters"
    if gap is None or gap["verdict"] is None:
        return f"{where}: no verdict"
    facts = f"{gap['difference']:+.4f} bits/byte ({gap['low']:.4f} … {gap['high']:.4f}), n = {gap['n']}"
    if gap["verdict"] == NOTHING:
        return f"{where}: {b} and {a}: {NOTHING}: {facts}"
    return f"{where}: {b} is {gap['verdict']} than {a}: {facts}"
