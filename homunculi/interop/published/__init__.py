"""Weights that authors published, in this package's own forms of their models.

A system is a module of this folder: `build(config, weights)` gives the model, `causality(model)` says what is known of
it. Models are written from the published equations; no code of the authors is needed or run.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from homunculi.core.model import LanguageModel
from homunculi.errors import InputError
from homunculi.interop.published.reading import Given, Weights
from homunculi.interop.published.vocabulary_space import VARIANTS

# System → its module in this folder.
SYSTEMS = {"mor": "mor", "ncn": "ncn"} | {f"vocabulary-space/{name}": f"vocabulary_space.{name}" for name in VARIANTS}


def build(system: str, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> LanguageModel:
    """The authors' model with their weights, in evaluation mode, float32, on the CPU.

    Args:
        system: one of `SYSTEMS`.
        config: the authors' configuration.
        weights: tensors by the authors' names; a tied tensor under one of its names or under several.

    Raises:
        InputError: an unknown system; a setting that is missing, of the wrong type or not reproduced here; a tensor
            that is missing, left over, of another shape, or unequal to one it is tied to.
    """
    given = Weights(weights)
    with torch.random.fork_rng(devices=[]):
        model: LanguageModel = module_of(system).build(Given(config), given)
    given.refuse_rest()
    return model.eval()


def causality(system: str, model: LanguageModel) -> tuple[bool, str]:
    """Whether a model of `build` is causal, and why; `homunculi.certify` proves it."""
    answer: tuple[bool, str] = module_of(system).causality(model)
    return answer


def module_of(system: str) -> ModuleType:
    """The module of a system.

    Raises:
        InputError: there is no such system.
    """
    if system not in SYSTEMS:
        raise InputError(f"{system}: no such published system; there are {', '.join(sorted(SYSTEMS))}")
    return importlib.import_module(f"{__name__}.{SYSTEMS[system]}")
