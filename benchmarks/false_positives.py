"""How often the verdict of a comparison tells identical systems apart, and which effects it finds.

    python -m benchmarks.false_positives --write

Simulated differences of seeds with the spread that real runs show: 2,000 comparisons for each number of seeds. Exit
code 1 if the paired t verdict errs in more than 5 % by more than sampling error. The percentile bootstrap over seeds
stands beside it for contrast. Effects are in standard deviations of a paired difference of one seed (sd).
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
from collections.abc import Callable
from datetime import date
from itertools import combinations
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from homunculi import __version__
from homunculi.evals.statistics import holm, paired_interval, t_quantile, verdict
from homunculi.files import write_json

RESULTS = Path(__file__).parent / "results"
SEEDS = range(3, 9)
ALPHA = 0.05
EFFECTS = (0.5, 1.0, 2.0, 3.0)
SIDES = 5
RESAMPLINGS = 4000
POWER_DRAWS = 20_000
CHECKED = 100
# Final bits per byte of the second seeds, as the table of docs/LOG.md gives them; the file keeps the first seeds' runs.
SECOND_SEED = {"gpt": 0.810, "ncn": 0.800, "recursive": 0.811, "mor": 0.836, "mor-token": 0.827, "mor-expert": 0.827}

Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
# Differences of mean 0 and standard deviation 1. Identical systems' are symmetric whatever the noise of one side, so
# the last one cannot come from them: it shows what the interval would do with effects that a few seeds carry.
IDENTICAL: dict[str, Draw] = {
    "normal": lambda random, shape: random.standard_normal(shape),
    "heavy tails (t of 3 degrees)": lambda random, shape: random.standard_t(3, shape) / math.sqrt(3),
    "skewed sides (exponential)": lambda random, shape: (
        (random.standard_exponential(shape) - random.standard_exponential(shape)) / math.sqrt(2)
    ),
}
SKEWED: Draw = lambda random, shape: random.standard_exponential(shape) - 1.0  # noqa: E731


def spread_seen(path: Path = RESULTS / "first_evidence.json") -> dict[str, Any]:
    """Pooled standard deviation of paired differences between sides that were run with the same seeds, in bits/byte."""
    ends: dict[str, dict[int, float]] = {name: {1: value} for name, value in SECOND_SEED.items()}
    for run in json.loads(path.read_text(encoding="utf-8"))["runs"]:
        ends.setdefault(run["name"], {})[run["seed"]] = run["val_bpb"]
    variances = []
    for a, b in combinations([side for side in ends.values() if len(side) > 1], 2):
        shared = sorted(a.keys() & b.keys())
        variances.append(np.var([b[seed] - a[seed] for seed in shared], ddof=1))
    sides = sorted(name for name, side in ends.items() if len(side) > 1)
    source = "first seeds of results/first_evidence.json; second seeds of the table in docs/LOG.md, three decimals"
    sd = float(np.sqrt(np.mean(variances)))
    return {"sd_bpb": sd, "source": source, "sides": sides, "pairs": len(variances)}


def share(hits: np.ndarray) -> dict[str, float]:
    """A share with its 95 % interval (Wilson 1927)."""
    n, p, z = len(hits), float(hits.mean()), NormalDist().inv_cdf(0.975)
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    reach = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return {"share": p, "low": centre - reach, "high": centre + reach}


def t_of(differences: np.ndarray) -> np.ndarray:
    """Student's t of each comparison; seeds are the last axis."""
    n = differences.shape[-1]
    return differences.mean(-1) / (differences.std(-1, ddof=1) / math.sqrt(n))


def told_apart(differences: np.ndarray) -> np.ndarray:
    """(draws,) whether the verdict is another than `no difference shown`; (draws, n) differences of n seeds.

    The same arithmetic for all at once, compared with `verdict` itself on the first ones.
    """
    n = differences.shape[1]
    hits = np.abs(t_of(differences)) > t_quantile(1 - ALPHA / 2, n - 1)
    for row, hit in zip(differences[:CHECKED], hits, strict=False):
        if (verdict(paired_interval(np.zeros(n), row)) != "no difference shown") != hit:
            raise AssertionError(f"the simulation and the verdict disagree about {row.tolist()}")
    return hits


def bootstrap_tells_apart(differences: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """(draws,) whether the 95 % percentile interval of resampled seeds leaves zero out."""
    n = differences.shape[1]
    weights = random.multinomial(n, np.full(n, 1 / n), size=RESAMPLINGS) / n
    low, high = np.quantile(differences @ weights.T, [ALPHA / 2, 1 - ALPHA / 2], axis=1)
    return (low > 0) | (high < 0)


def false_positives(draws: int, sd: float, random: np.random.Generator) -> list[dict[str, Any]]:
    """For each kind of noise and number of seeds: shares of identical systems that are told apart."""
    cells = []
    for noise, draw in {**IDENTICAL, "skewed differences (not identical systems)": SKEWED}.items():
        for n in SEEDS:
            differences = sd * draw(random, (draws, n))
            hits = told_apart(differences)
            beside = share(bootstrap_tells_apart(differences, random))
            cells.append({"noise": noise, "seeds": n, "hits": int(hits.sum()), **share(hits), "bootstrap": beside})
    return cells


def excess(hits: int, draws: int) -> float:
    """The probability of at least so many hits where each has the probability α."""
    k = np.arange(hits, draws + 1)
    logs = [math.lgamma(draws + 1) - math.lgamma(i + 1) - math.lgamma(draws - i + 1) for i in k.tolist()]
    return min(1.0, float(np.exp(np.array(logs) + k * math.log(ALPHA) + (draws - k) * math.log(1 - ALPHA)).sum()))


def power(draws: int, random: np.random.Generator) -> list[dict[str, Any]]:
    """Share of true effects, in sd, that are found."""
    cells = []
    for n in SEEDS:
        differences = random.standard_normal((draws, n))
        found = {str(effect): share(told_apart(differences + effect)) for effect in EFFECTS}
        cells.append({"seeds": n, "found": found})
    return cells


def smallest_effects(sd: float, random: np.random.Generator, wanted: float = 0.8) -> list[dict[str, float]]:
    """For each number of seeds the effect that is found with the wanted power."""
    found = []
    for n in SEEDS:
        differences = random.standard_normal((POWER_DRAWS, n))
        low, high = 0.0, 20.0
        while high - low > 1e-3:
            effect = (low + high) / 2
            low, high = (low, effect) if told_apart(differences + effect).mean() >= wanted else (effect, high)
        found.append({"seeds": n, "sd": high, "bpb": high * sd})
    return found


def families(draws: int, random: np.random.Generator) -> list[dict[str, Any]]:
    """Five identical sides: share of comparisons in which any pair is told apart, with Holm's correction and without.

    Holm rejects something exactly when the smallest of m p-values is below α / m.
    """
    cells = []
    pairings = {
        "all against the first": [(0, side) for side in range(1, SIDES)],
        "every pair": list(combinations(range(SIDES), 2)),
    }
    for n in SEEDS:
        sides = random.standard_normal((draws, SIDES, n))
        for name, pairs in pairings.items():
            differences = np.stack([sides[:, b] - sides[:, a] for a, b in pairs], axis=1)
            largest = np.abs(t_of(differences)).max(1)
            corrected = largest > t_quantile(1 - ALPHA / 2 / len(pairs), n - 1)
            _check_holm(differences, corrected)
            plain = largest > t_quantile(1 - ALPHA / 2, n - 1)
            cells.append({"seeds": n, "pairs": name, "holm": share(corrected), "uncorrected": share(plain)})
    return cells


def _check_holm(differences: np.ndarray, corrected: np.ndarray) -> None:
    zeros = np.zeros(differences.shape[2])
    for rows, hit in zip(differences[:CHECKED], corrected, strict=False):
        intervals = [paired_interval(zeros, row) for row in rows]
        adjusted = holm([interval.p for interval in intervals])
        said = [verdict(interval, adjusted_p=p) for interval, p in zip(intervals, adjusted, strict=True)]
        if any(word != "no difference shown" for word in said) != hit:
            raise AssertionError(f"the simulation and the adjusted verdicts disagree about {rows.tolist()}")


def simulate(draws: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Everything, as JSON values; `passes` is whether false positives stay within 5 % and sampling error."""
    random = np.random.default_rng(seed)
    spread = spread_seen()
    cells = false_positives(draws, spread["sd_bpb"], random)
    judged = [cell for cell in cells if cell["noise"] in IDENTICAL]
    family = families(draws, random)
    hits = [cell["hits"] for cell in judged] + [round(cell["holm"]["share"] * draws) for cell in family]
    return {
        "draws": draws,
        "seed": seed,
        "spread": spread,
        "passes": min(holm([excess(count, draws) for count in hits])) > ALPHA,
        "false_positives": cells,
        "power": power(draws, random),
        "smallest_effect_found_in_80_percent": smallest_effects(spread["sd_bpb"], random),
        "five_identical_sides": family,
    }


def table(found: dict[str, Any]) -> str:
    def said(cell: dict[str, Any]) -> str:
        return f"{cell['share']:6.1%} ({cell['low']:.1%} to {cell['high']:.1%})"

    lines = [f"sd of a paired difference {found['spread']['sd_bpb']:.4f} bits per byte"]
    lines += [
        f"{cell['noise']:44} {cell['seeds']} seeds  {said(cell)}  bootstrap {cell['bootstrap']['share']:6.1%}"
        for cell in found["false_positives"]
    ]
    lines += [
        f"five sides, {cell['pairs']:32} {cell['seeds']} seeds  {said(cell['holm'])}  "
        f"without Holm {cell['uncorrected']['share']:6.1%}"
        for cell in found["five_identical_sides"]
    ]
    for cell, small in zip(found["power"], found["smallest_effect_found_in_80_percent"], strict=True):
        powers = ", ".join(f"{effect} sd {value['share']:.0%}" for effect, value in cell["found"].items())
        lines.append(
            f"{cell['seeds']} seeds find {powers}; 80 % from {small['sd']:.2f} sd = {small['bpb']:.4f} bits/byte"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="keep the result in benchmarks/results")
    options = parser.parse_args()
    found = simulate(options.draws, options.seed)
    print(table(found))
    if options.write:
        versions = {"homunculi": __version__, "numpy": np.__version__, "python": platform.python_version()}
        command = f"python -m benchmarks.false_positives --draws {options.draws} --seed {options.seed} --write"
        head = {"command": command, "date": date.today().isoformat(), "versions": versions}
        write_json(RESULTS / "false_positives.json", head | found)
    return 0 if found["passes"] else 1


if __name__ == "__main__":
    sys.exit(main())
