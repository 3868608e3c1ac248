"""What the modulatory signals do: how far they leave neutral, for which tokens, at which steps.

Signals are factors, neutral at 1: those of a controller (`control.*`, one a step), of a packet that comes with a pass
(`packet.*`) and gates of single heads or experts (`open_*`). What a controller merely computes on the way is none.

Legend: B rows, T positions, N tokens, U units that have a signal each (1 where a step has one), S steps, C columns.
"""

from __future__ import annotations

import math
import re

import numpy as np
import torch
from torch import Tensor

from homunculi.instruments.activation import effective_rank
from homunculi.instruments.observation import Observation
from homunculi.instruments.registry import instrument
from homunculi.runs.measures import Measurement

MEASURES = (
    "mean",
    "minimum",
    "5 %",
    "95 %",
    "maximum",
    "variance over tokens",
    "variance over steps",
    "share at the low bound",
    "share at the high bound",
)
BOUNDS = {"precision": (0.25, 4.0), "beta": (0.25, 4.0)}  # of inverse temperatures; all others:
USUAL = (0.0, 2.0)
MARGIN = 0.01  # of the range: nearer to a bound counts as at it
INNER = {"hidden", "injection", "input", "instruction", "pool", "pooled", "raw", "state", "statistics"}
OF_UNITS = "open_"
_TAP = re.compile(r"(?:steps\.(?P<step>\d+)\.)?(?:\w+\.)?(?P<name>\w+)")


@instrument(
    "signals",
    view="table",
    title="Modulatory signals",
    question="How far do the signals leave neutral, and do they differ between tokens and between steps?",
    taps=("control.*", "steps.*.control.*", "steps.*.packet.*", "steps.*.open_*", "steps.*.router.taking"),
)
def measure(seen: Observation) -> Measurement | None:
    signals = {name: by_step for name, by_step in collected(seen).items() if by_step}
    if not signals:
        return None
    steps = sorted({step for by_step in signals.values() for step in by_step})
    by_step_SC = np.full((len(signals), len(steps)), np.nan, dtype=np.float32)
    rows = []
    for row, (name, by_step) in enumerate(signals.items()):
        stacked_NUS = torch.stack(list(by_step.values()), -1)
        rows.append(_summary(name, stacked_NUS))
        by_step_SC[row, [steps.index(step) for step in by_step]] = stacked_NUS.nanmean((0, 1)).cpu().numpy()
    values = {"summary": np.array(rows, dtype=np.float32), "by_step": by_step_SC}
    packet = [t_NU for name, by_step in signals.items() if not name.startswith(OF_UNITS) for t_NU in by_step.values()]
    if packet:
        packet_NC = torch.cat(packet, 1)
        values["effective_rank"] = np.array(_rank(packet_NC), dtype=np.float32)
        values["distance_from_neutral"] = (packet_NC - 1).square().nanmean().sqrt().cpu().numpy()
    return Measurement(
        values,
        {"summary": ("signal", "measure"), "by_step": ("signal", "step")},
        {"signal": tuple(signals), "measure": MEASURES, "step": tuple(_label(step) for step in steps)},
        notes=(
            "variance over tokens: a mean over steps and units; over steps: a mean over tokens and units",
            f"at a bound: within {MARGIN:.0%} of the range, which is 0 to 2, or 1/4 to 4 for {' and '.join(BOUNDS)}",
            "effective_rank: of all signals of all steps together, over tokens; 0 where none of them varies",
            "distance_from_neutral: root mean square of all signals less 1",
            "gates of single heads or experts (open_*) count where a token takes the pass, and not in these two",
        ),
    )


def collected(seen: Observation) -> dict[str, dict[int, Tensor]]:
    """Name of a signal → step → its values, float32 (N, U), NaN at tokens that skip it. Step −1: of all steps alike."""
    found: dict[str, dict[int, Tensor]] = {}
    taking = {site.step: taking_BT for site, taking_BT in seen.sites("router.taking").items()}
    for tap, tensor in seen.taps.items():
        match = _TAP.fullmatch(tap)
        if match is None or match["name"] in INNER or tap.endswith(".taking") or not _is_of_tokens(seen, tensor):
            continue
        values = tensor.flatten(0, 1).float()
        by_step = found.setdefault(match["name"], {})
        if match["step"] is None:
            by_step.update(_of_all_steps(values, len(seen.model.schedule)))
            continue
        step = int(match["step"])
        values_NU = values.flatten(1)
        if match["name"].startswith(OF_UNITS) and step in taking:
            values_NU = torch.where(taking[step].bool().flatten()[:, None], values_NU, torch.nan)
        by_step[step] = values_NU
    return found


def _is_of_tokens(seen: Observation, tensor: Tensor) -> bool:
    return tensor.dim() in (3, 4) and tensor.shape[:2] == seen.ids_BT.shape


def _of_all_steps(values: Tensor, n_steps: int) -> dict[int, Tensor]:
    """(N, S) or (N, U, S) by step; one value for all steps at −1; nothing where the last axis is not that of steps."""
    values_NUS = values[:, None] if values.dim() == 2 else values
    if values_NUS.shape[-1] == n_steps:
        return dict(enumerate(values_NUS.unbind(-1)))
    return {-1: values_NUS[..., 0]} if values_NUS.shape[-1] == 1 else {}


def _label(step: int) -> str:
    return "all" if step < 0 else str(step)


def _summary(name: str, values_NUS: Tensor) -> list[float]:
    flat = values_NUS[values_NUS.isfinite()]
    if not len(flat):
        return [math.nan] * len(MEASURES)
    ordered = flat.sort().values
    low, high = BOUNDS.get(name, USUAL)
    margin = MARGIN * (high - low)
    numbers = [
        flat.mean(),
        *(_quantile(ordered, q) for q in (0.0, 0.05, 0.95, 1.0)),
        _variance(values_NUS, 0).nanmean(),
        _variance(values_NUS, 2).nanmean() if values_NUS.shape[2] > 1 else torch.full_like(flat[0], torch.nan),
        (flat <= low + margin).float().mean(),
        (flat >= high - margin).float().mean(),
    ]
    return torch.stack(numbers).tolist()


def _quantile(ordered: Tensor, share: float) -> Tensor:
    """Between the two nearest of values in order."""
    place = share * (len(ordered) - 1)
    before = math.floor(place)
    after = min(before + 1, len(ordered) - 1)
    return torch.lerp(ordered[before], ordered[after], place - before)


def _variance(values: Tensor, axis: int) -> Tensor:
    """Along an axis, of what is there; NaN where nothing is."""
    return (values - values.nanmean(axis, keepdim=True)).square().nanmean(axis)


def _rank(values_NC: Tensor) -> float:
    """Effective rank of the signals over tokens; one that is absent at a token counts as its mean."""
    mean_C = values_NC.nanmean(0).nan_to_num()
    filled_NC = torch.where(values_NC.isnan(), mean_C, values_NC)
    varies = bool((filled_NC != filled_NC[:1]).any())
    return effective_rank(filled_NC) if varies else 0.0
