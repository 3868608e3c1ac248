"""What a router that looks ahead in training is worth beyond the causal stand-in that it is evaluated through.

Legend: B batch, T positions.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from homunculi.core.model import LanguageModel


@torch.no_grad()
def stand_in_gap(model: LanguageModel, ids: Tensor) -> float:
    """What looking ahead is worth: loss with the highest scores of the sequence less loss with the causal stand-in.

    In nats a token, without dropout, on ids (B, T + 1). Below 0 where seeing later tokens, or taking just the trained
    share, helped. For expert choice; other routers decide alike in training and evaluation, and give 0.
    """
    router: Any = model.router
    modes = [module.training for module in (model, router)]
    losses = []
    for looks_ahead in (True, False):
        model.eval()
        router.train(looks_ahead)
        losses.append(F.cross_entropy(model(ids[:, :-1]).logits.flatten(0, 1).float(), ids[:, 1:].flatten()))
    model.train(modes[0])
    router.train(modes[1])
    return (losses[0] - losses[1]).item()
