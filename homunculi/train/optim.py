"""Optimisers: which parameters they hold, and their state as named tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from homunculi.core.model import LanguageModel
from homunculi.errors import InputError
from homunculi.train.config import RunConfig
from homunculi.train.plasticity import region_of, regions_of


def build_optimizers(model: LanguageModel, config: RunConfig) -> list[torch.optim.Optimizer]:
    """One or two optimisers over all parameters; a group of parameters knows its region of plasticity, if any.

    AdamW (Loshchilov and Hutter 2019) decays matrices and leaves vectors alone. With Muon (Jordan 2024), matrices that
    are no token tables and no single rows go to it, its updates scaled to the size of AdamW's, so that one learning
    rate serves both.
    """
    tables, regions, decay = token_tables(model), regions_of(model), config.train.weight_decay
    groups: dict[tuple[bool, bool, str], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        is_map = parameter.dim() == 2 and min(parameter.shape) > 1 and name not in tables
        to_muon = config.train.optimizer == "muon" and is_map
        groups.setdefault((to_muon, parameter.dim() >= 2, region_of(name, regions)), []).append(parameter)
    # Matrices first: the order of groups is part of what makes two runs alike.
    ordered = sorted(groups.items(), key=lambda item: (not item[0][1], item[0][2]))
    described: list[tuple[bool, dict[str, Any]]] = [
        (to_muon, {"params": held, "weight_decay": decay if is_matrix else 0.0, "region": region})
        for (to_muon, is_matrix, region), held in ordered
    ]
    betas = (config.train.beta1, config.train.beta2)
    fused = all(p.device.type in ("cpu", "cuda") for p in model.parameters())
    adamw = torch.optim.AdamW([g for to_muon, g in described if not to_muon], lr=config.lr, betas=betas, fused=fused)
    muon_groups = [group for to_muon, group in described if to_muon]
    if not muon_groups:
        return [adamw]
    return [adamw, torch.optim.Muon(muon_groups, lr=config.lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw")]


def token_tables(model: LanguageModel) -> set[str]:
    """Names of the parameters with one row a word: embeddings and read-outs."""
    vocabulary = getattr(model.config, "vocab_size", 0)
    tables = {
        f"{prefix}.weight" if prefix else "weight"
        for prefix, module in model.named_modules()
        if isinstance(module, nn.Embedding)
    }
    return tables | {name for name, p in model.named_parameters() if p.dim() == 2 and p.shape[0] == vocabulary}


def set_lr(optimizers: list[torch.optim.Optimizer], lr: float, factors: dict[str, Tensor]) -> None:
    """Set the rate of all groups; `factors` scale those of their regions."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr * factors[group["region"]] if group["region"] in factors else lr


def optimizer_tensors(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """All optimiser state as ``{state name}/{parameter name}`` → tensor."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{key}/{names[parameter]}": value.detach()
        for optimizer in optimizers
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def load_optimizer_tensors(
    model: nn.Module, optimizers: list[torch.optim.Optimizer], tensors: dict[str, Tensor], source: str
) -> None:
    """Put back what `optimizer_tensors` gave.

    Raises:
        InputError: a tensor belongs to a parameter that this model does not have, or has another shape.
    """
    owners = {p: o for o in optimizers for group in o.param_groups for p in group["params"]}
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        kind, _, name = key.partition("/")
        parameter = parameters.get(name)
        if parameter is None or value.dim() not in (0, parameter.dim()):
            raise InputError(
                f"{source}: holds {key}, which does not fit this model; it belongs to another configuration"
            )
        counts_on_host = value.dim() == 0 and not owners[parameter].param_groups[0].get("fused")
        owners[parameter].state[parameter][kind] = (
            value.clone() if counts_on_host else value.to(parameter.device, copy=True)
        )
