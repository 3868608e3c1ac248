"""What the flagship learns beside its next token: forecasts, losses, what is counted, and what follows an update.

Legend: B batch, T positions, C places of a gathered block, D width, G regions with a gain, N sampled positions, V
vocabulary, E experts.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...parts.routers import Choice
from .config import GAINED, SIGNALS
from .state import Passed

# How much less or more than others a token can teach.
SLOWEST, FASTEST = 0.5, 2.0

if TYPE_CHECKING:
    from .model import Homunculi


def foresee(model: Homunculi, ids_BT: Tensor, first: Passed, x_BTD: Tensor) -> tuple[Tensor, Tensor] | None:
    """At sampled positions of a training forward: forecasts, and what they should have been, in ln V nats."""
    T, asks = ids_BT.shape[1], model.training and model.config.forecast != "none"
    if not asks or T < 2 or model.amygdala is None or first.forecast_BC1 is None:
        return None
    index_N = (16 * torch.arange(max(1, T // 16), device=ids_BT.device) + model.amygdala.turn) % (T - 1)
    targets_BN = ids_BT[:, index_N + 1]

    def loss_of(state_BTD: Tensor) -> Tensor:
        logits_BNV = model.readout(state_BTD[:, index_N]).float()
        return F.cross_entropy(logits_BNV.flatten(0, 1), targets_BN.flatten(), reduction="none").view_as(targets_BN)

    with torch.no_grad():
        target_BN = loss_of(x_BTD)
        if model.config.forecast == "reducible":
            target_BN = loss_of(first.x_BTD) - target_BN
    return first.forecast_BC1[:, index_N, 0].float(), target_BN / math.log(model.config.vocab_size)


def loss_terms(
    model: Homunculi, choices: list[Choice], passed: list[Passed], foreseen: tuple[Tensor, Tensor] | None
) -> dict[str, Tensor]:
    """What is added to the cross-entropy: the router's, the forecast's, and the packet's distance from 1."""
    terms = dict(model.router.loss_terms(choices))
    if foreseen is not None:
        terms["forecast"] = model.config.forecast_weight * F.huber_loss(*foreseen)
    if model.packet is not None and model.config.homeostasis:
        away = [(p.levels[name].float() - 1).square().mean() for p in passed for name in SIGNALS if name in p.levels]
        terms["homeostasis"] = model.config.homeostasis * torch.stack(away).sum()
    return terms


def paced(y_BCD: Tensor, start_BCD: Tensor, dopamine_BC1: Tensor, taken_BC: Tensor | None) -> Tensor:
    """`y_BCD` itself, whose change from `start_BCD` has its gradient scaled, token by token.

    The block learns more from tokens with more dopamine; what passes it by the residual stream is left alone. Factors
    are dopamine's, brought to mean 1 over the tokens of the call that take the pass, and pulled towards 1 together as
    far as their bounds, 1/2 and 2, ask.
    """
    with torch.no_grad():
        raw_BC1 = dopamine_BC1.float().clamp(SLOWEST, FASTEST)
        present_BC1 = torch.ones_like(raw_BC1) if taken_BC is None else taken_BC[..., None].float()
        mean = (raw_BC1 * present_BC1).sum() / present_BC1.sum().clamp(min=1)
        apart_BC1 = (raw_BC1 / mean.clamp(min=SLOWEST) - 1) * present_BC1  # a block that nobody takes has mean 0
        reach = torch.maximum(apart_BC1.amax() / (FASTEST - 1), -apart_BC1.amin() / (1 - SLOWEST))
        more_BC1 = (apart_BC1 / reach.clamp(min=1.0)).to(y_BCD.dtype)
    change_BCD = y_BCD - start_BCD
    return y_BCD + more_BC1 * (change_BCD - change_BCD.detach())


@torch.no_grad()
def count(
    model: Homunculi, choices: list[Choice], passed: list[Passed], foreseen: tuple[Tensor, Tensor] | None
) -> dict[str, Tensor]:
    """Statistics of a forward, those that `follow` reads among them."""
    found = dict(model.router.statistics(choices))
    if foreseen is not None:
        found["forecast_mean"], found["forecast_target"] = foreseen[0].mean(), foreseen[1].mean()
    for name in model.config.signals:
        levels = [p.levels[name].float() for p in passed if name in p.levels]
        if not levels:
            continue
        found[f"{name}_mean"] = torch.stack([level.mean() for level in levels]).mean()
        found[f"{name}_std"] = torch.stack([level.std(correction=0) for level in levels]).mean()
    for name in GAINED if "dopamine" in model.config.signals else ():
        gains = [p.levels[f"gain_{name}"].float().mean() for p in passed if f"gain_{name}" in p.levels]
        if gains:
            found[f"gain_{name}"] = torch.stack(gains).mean()
    paths: Any = model.paths
    for name in model.config.paths:
        found |= paths[name].statistics([p.paths[name] for p in passed])
    answering: Any = model.neocortex
    for k in range(model.config.n_shared):
        loads = [answering[k].load(p.wanted[k]) for p in passed if len(p.wanted) > k]
        if loads:
            found[f"load_{k}"] = torch.stack(loads).mean(0)
            found[f"busiest_expert_{k}"] = found[f"load_{k}"].max()
    return found


@torch.no_grad()
def follow(model: Homunculi, statistics: dict[str, Tensor]) -> None:
    """Thresholds, biases of experts, the typical forecast and the running mean of dopamine follow statistics."""
    model.router.after_update(statistics)
    if model.amygdala is not None and "forecast_mean" in statistics:
        model.amygdala.typical.lerp_(statistics["forecast_mean"].to(model.amygdala.typical), 0.05)
        model.amygdala.turn.add_(1).remainder_(16)
    for g, name in enumerate(GAINED):
        if f"gain_{name}" in statistics:
            model.dopamine_G[g].lerp_(statistics[f"gain_{name}"].to(model.dopamine_G), 0.01)
    paths: Any = model.paths
    for name in model.config.paths:
        paths[name].follow(statistics)
    answering: Any = model.neocortex
    for k, neocortex in enumerate(answering):
        if neocortex.experts is not None and f"load_{k}" in statistics:
            neocortex.experts.update_bias(statistics[f"load_{k}"], model.config.balance_rate)
