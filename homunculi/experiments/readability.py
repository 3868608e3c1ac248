"""Whether every state of a model reads as words: the loss of each, read out as if the model had stopped there.

    losses = step_losses(model, ids)     # nats: of the start, and after each step
    shares_of_gain(losses)               # of what all steps gain together, what each one does

Of a model whose state is a distribution over words the states are read as what they are; of any other this is a logit
lens, the control.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from homunculi.core.model import LanguageModel
from homunculi.errors import InputError
from homunculi.instruments.observation import surprisal_of
from homunculi.instruments.observing import observe
from homunculi.instruments.stream import NEEDS, START, TAPS, read_rows, states_of


def step_losses(model: LanguageModel, ids: Tensor | Sequence[int]) -> list[float]:
    """Cross-entropy of each token after the first, nats, mean: of the state at the start, then after each step.

    The model reads in evaluation mode, is left in the mode that it had, and may be of any architecture that shows its
    states. The last number is the loss of the model.

    Args:
        ids: (B, T) or (T), T at least 2; moved to the model's device.

    Raises:
        InputError: there is nothing to predict, or the model does not show its states at all tokens.
    """
    ids_BT = torch.as_tensor(ids, device=next(model.parameters()).device)
    ids_BT = ids_BT[None] if ids_BT.ndim == 1 else ids_BT
    if ids_BT.ndim != 2 or ids_BT.shape[1] < 2 or not len(ids_BT):
        raise InputError(f"ids: shape {tuple(ids_BT.shape)} holds nothing to predict; give rows of at least two ids")
    seen = observe(model, ids_BT, [*TAPS, *NEEDS])
    states = states_of(seen)
    if START not in states:
        raise InputError("model: shows no states at the start and after every step for all tokens; choose another one")
    n_vocab = seen.logits_BTV.shape[-1]
    losses = []
    for state_BTD in states.values():
        read = (surprisal_of(logits, ids_BT[rows]) for rows, logits in read_rows(model, state_BTD, n_vocab))
        losses.append(float(torch.cat(list(read)).double().mean()))
    return losses


def shares_of_gain(losses: Sequence[float]) -> list[float]:
    """Of the loss that all steps take off together, what each takes off: they sum to 1, and a step that loses is
    below 0. NaN where the steps together gain nothing.

    Args:
        losses: of the start, then after each step.
    """
    whole = losses[0] - losses[-1]
    return [(before - after) / whole if whole > 0 else math.nan for before, after in pairwise(losses)]
