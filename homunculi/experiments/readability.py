"""Whether every state of a model reads as words: the loss of each, read out as if the model had stopped there.

    losses = step_losses(model, ids)     # nats: of the start, and after each step
    shares_of_gain(losses)               # of what all steps gain together, what each one does

Of a model whose state is a distribution over words the states are read as what they are; of any other this is a logit
lens, the control.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from homunculi.core.model import LanguageModel
from homunculi.errors import InputError
from homunculi.instruments.observation import surprisal_of
from homunculi.instruments.observing import observe
from homunculi.instruments.stream import BEGIN, NEEDS, START, TAPS, before_steps, read_rows, states_of


def step_losses(model: LanguageModel, ids: Tensor | Sequence[int]) -> list[float]:
    """Cross-entropy of each token after the first, nats, mean: of the state at the start, then after each step.

    The model reads in evaluation mode, is left in the mode that it had, and may be of any architecture that shows its
    states; steps that it takes at once are one. The last number is the loss of the model.

    Args:
        ids: (B, T) or (T), T at least 2; moved to the model's device.

    Raises:
        InputError: there is nothing to predict, the model does not show its states at all tokens, or its steps are no
            chain, as where columns start anew.
    """
    ids_BT = torch.as_tensor(ids, device=next(model.parameters()).device)
    ids_BT = ids_BT[None] if ids_BT.ndim == 1 else ids_BT
    if ids_BT.ndim != 2 or ids_BT.shape[1] < 2 or not len(ids_BT):
        raise InputError(f"ids: shape {tuple(ids_BT.shape)} holds nothing to predict; give rows of at least two ids")
    seen = observe(model, ids_BT, [*TAPS, *NEEDS, BEGIN])
    states = states_of(seen)
    if START not in states:
        raise InputError("model: shows no states at the start and after every step for all tokens; choose another one")
    if not _is_chain(states, before_steps(seen, states)):
        raise InputError("model: a step does not begin where the one before ended; choose one whose steps are a chain")
    n_vocab = seen.logits_BTV.shape[-1]
    losses = []
    for state_BTD in states.values():
        read = (surprisal_of(logits, ids_BT[rows]) for rows, logits in read_rows(model, state_BTD, n_vocab))
        losses.append(float(torch.cat(list(read)).double().mean()))
    return losses


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
