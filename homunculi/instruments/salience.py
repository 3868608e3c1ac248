"""Whether what a model calls salient, and what it forecasts of its own loss, agrees with its loss.

Salience and forecast at position t stand beside the surprisal of the token at t + 1, which is what both speak of. In a
pass that few tokens take, only these count.

Legend: B rows, T positions, N tokens.
"""

from __future__ import annotations

import math

import numpy as np

from homunculi.instruments.observation import Observation
from homunculi.instruments.registry import instrument
from homunculi.instruments.tokenwise import Numbers, correlate, equal_mass_bins, mean_by, numbers, takes_part
from homunculi.runs.measures import Measurement

BEFORE = -1  # the "step" of a tap outside steps


@instrument(
    "salience",
    view="line",
    title="Salience",
    question="Do salience and the forecast of loss rise with the loss that follows?",
    taps=("*forecast", "steps.*.router.taking"),
    needs=("*salience",),
)
def measure(seen: Observation) -> Measurement | None:
    surprisal_BT = numbers(seen.surprisals)
    found = {name: _levels(seen, name) for name in ("salience", "forecast")}
    values: dict[str, Numbers] = {}
    axes: dict[str, tuple[str, ...]] = {}
    labels: dict[str, tuple[str, ...]] = {}
    for name, levels in found.items():
        if not levels:
            continue
        curves, spread = _curves(levels, surprisal_BT)
        values |= {f"surprisal by {name}": curves, f"{name} by step": spread}
        axes |= {f"surprisal by {name}": (f"{name} at", f"decile of {name}"), f"{name} by step": (f"{name} at",)}
        labels[f"{name} at"] = tuple("input" if step == BEFORE else f"step {step}" for step in levels)
        values |= correlate(_telling(levels)[:, :-1], surprisal_BT).scalars(f"{name} rho")
    if not values:
        return None
    scale = _scale(seen)
    if "forecast rho" in values and scale is not None:
        values |= _errors(scale * _telling(found["forecast"])[:, :-1], surprisal_BT)
    units = {name: "nats" for name in values if name.startswith(("surprisal", "forecast error", "forecast bias"))}
    return Measurement(values, axes, labels, units, _NOTES)


_NOTES = (
    "deciles of salience or forecast, lowest first, against the mean surprisal of the token that follows",
    "numbers alone are of the first step within the passes that has the signal; error of a constant: of the best one "
    "number for all tokens, which a useful forecast has to beat",
)


def _levels(seen: Observation, name: str) -> dict[int, Numbers]:
    """Step → what a signal says of each token, (B, T); NaN where a token does not take part. Steps that nobody takes
    are absent."""
    found = {}
    for site, tensor in seen.sites(f"*{name}").items():
        one_BT1 = tensor if tensor.dim() > 2 else tensor[..., None]
        level_BT = np.where(takes_part(seen, site, one_BT1), numbers(one_BT1[..., 0]), np.nan)
        found[site.step] = level_BT
    outside = [t for tap, t in seen.matching(f"*{name}").items() if not tap.startswith("steps.")]
    if outside:
        first = outside[0]
        found[BEFORE] = numbers(first[..., 0] if first.dim() > 2 else first)
    return {step: level for step, level in sorted(found.items()) if np.isfinite(level[:, :-1]).any()}


def _telling(levels: dict[int, Numbers]) -> Numbers:
    """The signal within the first pass; what stands before all steps where there is none."""
    return next((level for step, level in levels.items() if step != BEFORE), levels.get(BEFORE, np.empty((0, 0))))


def _curves(levels: dict[int, Numbers], surprisal_BT: Numbers) -> tuple[Numbers, Numbers]:
    """Of each step the mean surprisal by decile (steps, deciles), and the mean level (steps)."""
    rows, means = [], []
    for level_BT in levels.values():
        there_BT = np.isfinite(level_BT[:, :-1])
        bins, n_bins = equal_mass_bins(level_BT[:, :-1][there_BT])
        row = np.full(10, np.nan)
        row[:n_bins] = mean_by(bins, surprisal_BT[there_BT], n_bins)
        rows.append(row)
        means.append(float(np.nanmean(level_BT)))
    return np.array(rows), np.array(means)


def _scale(seen: Observation) -> float | None:
    """Nats in one unit of the forecast; None: it foresees something else than the loss."""
    foresees = getattr(getattr(seen.model, "config", None), "forecast", None)
    return math.log(seen.logits_BTV.shape[-1]) if foresees == "surprise" else None


def _errors(forecast_BT: Numbers, surprisal_BT: Numbers) -> dict[str, Numbers]:
    """Mean absolute error of a forecast in nats, that of the best constant, and how much it says too much."""
    there_BT = np.isfinite(forecast_BT)
    off_N = forecast_BT[there_BT] - surprisal_BT[there_BT]
    level_N = surprisal_BT[there_BT]
    return {
        "forecast error": np.array(np.abs(off_N).mean()),
        "forecast error of a constant": np.array(np.abs(level_N - np.median(level_N)).mean()),
        "forecast bias": np.array(off_N.mean()),
    }
