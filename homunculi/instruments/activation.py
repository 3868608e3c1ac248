"""Scale, sparsity, effective rank and dead units of what blocks write, by step.

Legend: N tokens, D width, F units of a feed-forward part.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from homunculi.instruments.observation import Observation
from homunculi.instruments.registry import instrument
from homunculi.instruments.stream import takes_part
from homunculi.runs.measures import Measurement

MEASURES = ("rms", "effective rank", "share of near-zero units", "share of dead units")
NEAR_ZERO = 0.01  # of the largest unit of a token


@instrument(
    "activation",
    view="heatmap",
    title="Activations",
    question="How large is the state after each step, how many directions does it use, and which units do nothing?",
    taps=("steps.*.mlp.post",),
    needs=("steps.*.resid_post",),
)
def measure(seen: Observation) -> Measurement:
    states, units = seen.sites("resid_post"), seen.sites("mlp.post")
    units_of = {site.step: tensor for site, tensor in units.items()}
    rows = [_of_step(state_BTD.float(), units_of.get(site.step)) for site, state_BTD in states.items()]
    return Measurement(
        {"activation": np.array(rows, dtype=np.float32).T},
        {"activation": ("measure", "step")},
        {"measure": MEASURES, "step": tuple(site.label for site in states)},
        notes=(
            f"near zero: under {NEAR_ZERO:.0%} of the token's largest unit; dead: so at every token of the probe",
            "of the tokens that take the step",
        ),
    )


def _of_step(state_BTD: Tensor, units_BTF: Tensor | None) -> tuple[float, ...]:
    """The measures of a step; taps are zero at tokens that do not take it, and those are left out."""
    present_BT = takes_part(state_BTD)
    if not present_BT.any():
        return (np.nan,) * len(MEASURES)
    state_ND = state_BTD[present_BT]
    fitting = units_BTF is not None and units_BTF.shape[:2] == present_BT.shape
    idle = _idle(units_BTF[present_BT].float()) if units_BTF is not None and fitting else (np.nan, np.nan)
    return float(state_ND.square().mean().sqrt()), effective_rank(state_ND), *idle


def effective_rank(x_ND: Tensor) -> float:
    """exp of the entropy of the shares of variance in the principal directions (Roy and Vetterli 2007), in [1, D]."""
    centred_ND = (x_ND - x_ND.mean(0)).double()
    variance_D = torch.linalg.eigvalsh(centred_ND.mT @ centred_ND).clamp(min=0)
    total = variance_D.sum()
    return float(torch.special.entr(variance_D / total).sum().exp()) if total > 0 else 1.0


def _idle(units_NF: Tensor) -> tuple[float, float]:
    """Share of units near zero, a mean over tokens; share of units that are so at every token."""
    largest_N1 = units_NF.abs().amax(1, keepdim=True).clamp(min=1e-30)
    quiet_NF = units_NF.abs() < NEAR_ZERO * largest_N1
    return float(quiet_NF.float().mean()), float(quiet_NF.all(0).float().mean())
