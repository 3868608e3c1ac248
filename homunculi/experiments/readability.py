"""Whether every state of a model reads as words: the loss of each, read out as if the model had stopped there.

    losses = step_losses(model, ids)     # nats: of the start, and after each step; read_steps says more
    shares_of_gain(losses)               # of what all steps gain together, what each one does

A model that was trained not to look out of its document reads so here as well, once it is told where documents begin.
Of a model whose state is a distribution over words the states are read as what they are; of any other this is a logit
lens, the control.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from homunculi.core.model import LanguageModel
from homunculi.errors import InputError
from homunculi.instruments.observation import Observation, surprisal_of
from homunculi.instruments.observing import observe
from homunculi.instruments.stream import BEGIN, NEEDS, START, TAPS, before_steps, read_rows, states_of


@dataclass(frozen=True, slots=True)
class StepRead:
    """What the state at the start says when it is read out directly, or that after a step.

    Attributes:
        loss: cross-entropy of each token after the first, nats, mean.
        kept: share of these tokens whose top word is the model's final one.
    """

    loss: float
    kept: float


def step_losses(model: LanguageModel, ids: Tensor | Sequence[int], *, separator: int | None = None) -> list[float]:
    """The losses of `read_steps`, which says more."""
    return [one.loss for one in read_steps(model, ids, separator=separator)]


def read_steps(model: LanguageModel, ids: Tensor | Sequence[int], *, separator: int | None = None) -> list[StepRead]:
    """The state at the start, then that after each step, read out as if the model had stopped there.

    The model reads in evaluation mode, is left in the mode that it had, and may be of any architecture that shows its
    states; steps that it takes at once are one. The last one is the model's answer.

    Args:
        ids: (B, T) or (T), T at least 2; moved to the model's device.
        separator: opens a new document that does not see the one before, as in `held_out_loss`; None: no such
            boundary. What is predicted is every token after the first, separators included, either way.

    Raises:
        InputError: there is nothing to predict, the model does not show its states at all tokens, or its steps are no
            chain, as where columns start anew.
    """
    ids_BT = torch.as_tensor(ids, device=next(model.parameters()).device)
    ids_BT = ids_BT[None] if ids_BT.ndim == 1 else ids_BT
    if ids_BT.ndim != 2 or ids_BT.shape[1] < 2 or not len(ids_BT):
        raise InputError(f"ids: shape {tuple(ids_BT.shape)} holds nothing to predict; give rows of at least two ids")
    documents_BT = None if separator is None else (ids_BT == separator).cumsum(1)
    seen = observe(model, ids_BT, [*TAPS, *NEEDS, BEGIN], documents_BT)
    states = states_of(seen)
    if START not in states:
        raise InputError("model: shows no states at the start and after every step for all tokens; choose another one")
    if not _is_chain(states, before_steps(seen, states)):
        raise InputError("model: a step does not begin where the one before ended; choose one whose steps are a chain")
    return [_read(seen, state_BTD) for state_BTD in states.values()]


def _read(seen: Observation, state_BTD: Tensor) -> StepRead:
    losses, kept = [], []
    for rows, logits_BTV in read_rows(seen.model, state_BTD, seen.logits_BTV.shape[-1]):
        losses.append(surprisal_of(logits_BTV, seen.ids_BT[rows]))
        final_BTV = seen.logits_BTV[rows, :-1]
        kept.append(logits_BTV[:, :-1].argmax(-1) == final_BTV.argmax(-1))
    return StepRead(float(torch.cat(losses).double().mean()), float(torch.cat(kept).double().mean()))


def _is_chain(states: Mapping[str, Tensor], begun: Mapping[str, Tensor]) -> bool:
    """Whether every step begins with what the one before left."""
    return all(x_BTD is left_BTD for x_BTD, left_BTD in zip(begun.values(), list(states.values())[:-1], strict=True))


def shares_of_gain(losses: Sequence[float]) -> list[float]:
    """Of the loss that all steps take off together, what each takes off: they sum to 1, and a step that loses is
    below 0. NaN where the steps together gain nothing.

    Args:
        losses: of the start, then after each step.
    """
    whole = losses[0] - losses[-1]
    return [(before - after) / whole if whole > 0 else math.nan for before, after in pairwise(losses)]
