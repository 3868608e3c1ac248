"""The training loss as one module, so that compilation sees the read-out and the cross-entropy together.

Legend: B batch, T positions, D width, N = B · T, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from homunculi.core.model import LanguageModel

IGNORED = -100


class Losses(NamedTuple):
    """What a training forward gives.

    Attributes:
        cross_entropy: scalar, float32, mean over the targets in nats.
        terms: name → scalar of the architecture's own, to be added to it.
        statistics: as in `homunculi.core.output.Output`.
    """

    cross_entropy: Tensor
    terms: dict[str, Tensor]
    statistics: dict[str, Tensor]


class TrainingLoss(nn.Module):
    """Ids (B, T + 1) → mean cross-entropy of the next token, and what the architecture adds.

    Args:
        model: the language model.
        n_chunks: pieces of the read-out; see `chunked_cross_entropy`.
        separator: id of the token between documents that do not see each other; None: they do.
    """

    def __init__(self, model: LanguageModel, n_chunks: int = 1, separator: int | None = None) -> None:
        super().__init__()
        self.model, self.n_chunks, self.separator = model, n_chunks, separator

    def forward(self, ids: Tensor) -> Losses:
        inputs_BT, targets_BT = ids[:, :-1], ids[:, 1:]
        hidden = self.model.trunk(inputs_BT, self.model.always, documents_BT=self._documents(inputs_BT))
        loss = chunked_cross_entropy(self.model.readout, hidden.x_BTD, targets_BT, self.n_chunks)
        mean = loss / (targets_BT != IGNORED).sum()
        return Losses(mean, hidden.loss_terms, {name: value.detach() for name, value in hidden.statistics.items()})

    def _documents(self, inputs_BT: Tensor) -> Tensor | None:
        return None if self.separator is None else document_numbers(inputs_BT, self.separator)


def document_numbers(ids_BT: Tensor, separator: int) -> Tensor:
    """Which document of its row each token belongs to; a separator is the first token of the document it opens."""
    return (ids_BT == separator).cumsum(1)


def chunked_cross_entropy(
    readout: Callable[[Tensor], Tensor], x_BTD: Tensor, targets_BT: Tensor, n_chunks: int
) -> Tensor:
    """Summed cross-entropy of `targets_BT`, logits in float32; targets of −100 do not count.

    With more than one chunk only a chunk's logits exist at a time: they are computed again in the backward pass.
    """
    if n_chunks == 1:
        return _summed(readout, x_BTD, targets_BT)
    pieces = zip(x_BTD.chunk(n_chunks, 1), targets_BT.chunk(n_chunks, 1), strict=True)
    sums = [checkpoint(_summed, readout, x, targets, use_reentrant=False) for x, targets in pieces]
    return torch.stack(sums).sum()


def _summed(readout: Callable[[Tensor], Tensor], x_BTD: Tensor, targets_BT: Tensor) -> Tensor:
    logits_NV = readout(x_BTD).flatten(0, 1).float()
    return F.cross_entropy(logits_NV, targets_BT.flatten(), ignore_index=IGNORED, reduction="sum")
