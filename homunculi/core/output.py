"""What a language model returns. Legend: B batch, T positions, D width, V vocabulary."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Output:
    """The result of a forward pass.

    Attributes:
        logits: (B, T, V), before the softmax.
        loss_terms: name → scalar tensor, each to be added to the cross-entropy in training.
        state: whatever an architecture hands on beside its cache; None for most.
        statistics: name → tensor without gradient, each a mean over the tokens of this call, so that those of several
            calls may be averaged: loads, mean depth, mean signals. Scalars are written with a run's metrics; all are
            given to `LanguageModel.after_update`.
    """

    logits: Tensor
    loss_terms: dict[str, Tensor] = field(default_factory=dict)
    state: Any = None
    statistics: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Hidden:
    """The state that the read-out reads, so that a loss can be computed without holding all logits.

    Attributes:
        x_BTD: the last residual state, before the read-out's norm.
        loss_terms: as in `Output`.
        state: as in `Output`.
        statistics: as in `Output`.
    """

    x_BTD: Tensor
    loss_terms: dict[str, Tensor] = field(default_factory=dict)
    state: Any = None
    statistics: dict[str, Tensor] = field(default_factory=dict)
