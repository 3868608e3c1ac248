"""What an associative memory holds, for how long, and from how far back its answers come.

A memory M_t = exp(−f_t) M_{t−1} + w_t k_t v_tᵀ is read by q_t. What position s wrote is worth
exp(−Σ f over s < u ≤ t) · w_s at t, and enters the answer there with a weight of that times |q_t · k_s| · ‖v_s‖. A
token that does not take the pass neither writes nor lets time pass, so distances count positions of the text, and a
half-life, ln 2 over the mean of f, the tokens of the text too. Of a memory that takes out an old value before it writes
a new one, weights are those of what was asked to be written.

Legend: B rows, T positions read at, S positions written at, H memories side by side, K their width.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from homunculi.instruments.observation import Observation, Site
from homunculi.instruments.registry import instrument
from homunculi.instruments.tokenwise import Numbers, numbers, takes_part
from homunculi.runs.measures import Measurement

MOST_FORGOTTEN = 20.0  # nats that one token can make a memory lose
MOST_PAIRS = 1 << 21  # of positions and memories a step; beyond them fewer rows are read


@instrument(
    "memory",
    view="heatmap",
    title="Memory",
    question="How long does the memory keep what it is told, and from how far back does it answer?",
    taps=(
        *(f"steps.*.memory.{name}" for name in ("write", "q", "k", "v")),
        *("steps.*.router.taking", "steps.*.paths.*.taking"),
    ),
    needs=("steps.*.memory.forget",),
)
def measure(seen: Observation) -> Measurement | None:
    found = {site: _read(seen, site, forget) for site, forget in seen.sites("memory.forget").items()}
    found = {site: one for site, one in found.items() if one}
    if not found:
        return None
    values: dict[str, Any] = {}
    axes: dict[str, tuple[str, ...]] = {}
    for name in ("half-life", "half-life at most tokens", "resets", "write", "occupancy", "norm", "distance"):
        rows = [one.get(name) for one in found.values()]
        there = [row for row in rows if row is not None]
        if not there or len({row.shape for row in there}) > 1:
            continue
        values[name] = np.stack([np.full_like(there[0], np.nan) if row is None else row for row in rows])
        axes[name] = ("step", "head")
        values[f"median {name}"] = np.array(_median(values[name]))
    reaches = [one["reach"] for one in found.values() if "reach" in one]
    labels: dict[str, tuple[str, ...]] = {"step": tuple(site.label for site in found)}
    if len(reaches) == len(found):
        values["share by distance"] = np.stack(reaches)
        axes["share by distance"] = ("step", "distance back")
        labels["distance back"] = distance_labels(seen.ids_BT.shape[1])
    units = {name: "tokens" for name in values if "half-life" in name or name in ("distance", "median distance")}
    return Measurement(values, axes, labels, units, _NOTES)


_NOTES = (
    "half-life in tokens of the text; infinite where nothing is forgotten. A few tokens that wipe the memory make it "
    "short: resets is the share of tokens that halve it alone, and half-life at most tokens what the median token that "
    "takes part would give",
    "occupancy: sum of the write strengths that "
    "are left at the last token; norm: Frobenius norm of what was written and is left there, of keys of length 1",
    "distance: mean over reads in the second half of the text, weighted by decay · write · |q·k| · ‖v‖; 0 is the token "
    "itself",
)


def _read(seen: Observation, site: Site, forget_BTH: Tensor) -> dict[str, Numbers]:
    """What is found of one step, a number a head each; nothing where nobody takes part."""
    there_BT = takes_part(seen, site, forget_BTH, "memory")
    if not there_BT.any():
        return {}
    tensors = {name: _of_step(seen, site, name) for name in ("write", "q", "k", "v")}
    rate_BTH = _host(forget_BTH).clamp(0, MOST_FORGOTTEN)
    mean_H = numbers(rate_BTH.mean((0, 1)))
    with np.errstate(divide="ignore"):
        found: dict[str, Numbers] = {"half-life": math.log(2) / mean_H}
        rate_NH = numbers(rate_BTH)[there_BT]
        found["half-life at most tokens"] = math.log(2) / np.median(rate_NH, 0)
    found["resets"] = (rate_NH > math.log(2)).mean(0)
    write_BTH, q_BTHK, k_BTHK, v_BTHK = (tensors[name] for name in ("write", "q", "k", "v"))
    if write_BTH is None:
        return found
    found["write"] = numbers(write_BTH)[there_BT].mean(0)
    since_BTH = rate_BTH.double().cumsum(1).neg()
    left_BTH = (since_BTH[:, -1:] - since_BTH).exp().float() * write_BTH
    found["occupancy"] = numbers(left_BTH.sum(1).mean(0))
    if k_BTHK is not None and v_BTHK is not None:
        state_BHKK = torch.einsum("bth,bthk,bthl->bhkl", left_BTH, k_BTHK, v_BTHK)
        found["norm"] = numbers(state_BHKK.flatten(2).norm(dim=-1).mean(0))
    if q_BTHK is not None and k_BTHK is not None and q_BTHK.shape == k_BTHK.shape:
        found |= distances(since_BTH, write_BTH, q_BTHK, k_BTHK, v_BTHK)
    return found


def distances(
    since_BTH: Tensor, write_BTH: Tensor, q_BTHK: Tensor, k_BTHK: Tensor, v_BTHK: Tensor | None
) -> dict[str, Numbers]:
    """From how far back answers come: `distance`, the mean of each head, and `reach`, shares of the weight by bands of
    distance (0, 1, 2 to 3, 4 to 7, …), a mean over heads.

    Args:
        since_BTH: minus the sum of what was forgotten up to and with each token.
    """
    B, T, H = write_BTH.shape
    rows = slice(0, max(1, min(B, MOST_PAIRS // max(1, T * T * H))))
    late = slice(T // 2, T)
    k_BTHK = k_BTHK if v_BTHK is None else k_BTHK * v_BTHK.norm(dim=-1, keepdim=True)
    agree_BHTS = torch.einsum("bthk,bshk->bhts", q_BTHK[rows, late], k_BTHK[rows]).abs()
    since_BHT = since_BTH[rows].mT
    decay_BHTS = (since_BHT[..., late, None] - since_BHT[..., None, :]).clamp(max=0).float().exp()
    age_TS = torch.arange(T)[late, None] - torch.arange(T)[None]
    weight_BHTS = (agree_BHTS * decay_BHTS * write_BTH[rows].mT[:, :, None]) * (age_TS >= 0)
    weight_HTS = weight_BHTS.double().sum(0)
    total_H = weight_HTS.sum((1, 2))
    mean_H = (weight_HTS * age_TS.clamp(min=0)).sum((1, 2)) / total_H
    band_TS = torch.where(age_TS > 0, age_TS.clamp(min=1).log2().floor().long() + 1, 0)
    n_bands = len(distance_labels(T))
    by_band_HN = torch.stack([(weight_HTS * (band_TS == n)).sum((1, 2)) for n in range(n_bands)], 1)
    share_N = (by_band_HN / total_H[:, None])[total_H > 0].mean(0)
    return {"distance": numbers(mean_H), "reach": numbers(share_N)}


def distance_labels(n_tokens: int) -> tuple[str, ...]:
    """Names of the bands of distance that a row of so many tokens has."""
    names, low = ["0"], 1
    while low < n_tokens:
        high = min(2 * low - 1, n_tokens - 1)
        names.append(str(low) if high == low else f"{low} to {high}")
        low *= 2
    return tuple(names)


def _of_step(seen: Observation, site: Site, name: str) -> Tensor | None:
    tensor = seen.taps.get(f"steps.{site.step}.memory.{name}")
    return None if tensor is None else _host(tensor)


def _host(tensor: Tensor) -> Tensor:
    return tensor.detach().float().cpu()


def _median(x: Numbers) -> float:
    there = x[~np.isnan(x)]
    return float(np.median(there)) if len(there) else float("nan")
