"""Loss and bits per byte on held-out text. Legend: B batch, T positions, V vocabulary."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
import torch.nn.functional as F

from homunculi.core.model import LanguageModel


@dataclass(frozen=True, slots=True)
class HeldOutLoss:
    """A loss over text.

    Attributes:
        nats: summed cross-entropy.
        n_tokens: predicted tokens, n_bytes: the UTF-8 bytes they stand for (separators stand for none).
    """

    nats: float
    n_tokens: int
    n_bytes: int

    @property
    def loss(self) -> float:
        """Nats a token."""
        return self.nats / max(1, self.n_tokens)

    @property
    def bits_per_byte(self) -> float:
        """Independent of the tokenizer: bits to predict all tokens, separators included, over true bytes."""
        return self.nats / math.log(2) / max(1, self.n_bytes)


@torch.no_grad()
def held_out_loss(
    model: LanguageModel,
    windows: Iterable[np.ndarray],
    byte_lengths: np.ndarray,
    *,
    batch_tokens: int = 8192,
    separator: int | None = None,
) -> HeldOutLoss:
    """Loss over windows of T + 1 ids, each predicting its last T.

    Args:
        model: evaluated in eval mode on its own device; its mode is restored.
        windows: of any lengths; neighbours of one length go through together.
        byte_lengths: (V,) bytes of each token.
        batch_tokens: most tokens at once.
        separator: opens a new document that does not see the one before; None: no such boundary.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    nats, n_tokens, n_bytes = 0.0, 0, 0
    for batch in _batches(windows, batch_tokens):
        ids = torch.from_numpy(batch).to(device)
        inputs_BT, targets_BT = ids[:, :-1], ids[:, 1:]
        documents_BT = None if separator is None else (inputs_BT == separator).cumsum(1)
        logits_BTV = model(inputs_BT, documents_BT=documents_BT).logits.float()
        losses = F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), reduction="none")
        nats += losses.double().sum().item()
        n_tokens += targets_BT.numel()
        n_bytes += int(byte_lengths[batch[:, 1:]].sum())
    model.train(was_training)
    return HeldOutLoss(nats, n_tokens, n_bytes)


def _batches(windows: Iterable[np.ndarray], batch_tokens: int) -> Iterator[np.ndarray]:
    for length, group in groupby(windows, key=len):
        most = max(1, batch_tokens // length)
        rows: list[np.ndarray] = []
        for window in group:
            rows.append(window)
            if len(rows) == most:
                yield np.stack(rows).astype(np.int64)
                rows = []
        if rows:
            yield np.stack(rows).astype(np.int64)
