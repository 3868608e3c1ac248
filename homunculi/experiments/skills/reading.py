"""What a model says about examples: its answers at counted positions, and the loss that it is trained with.

Where a task is read out from one position (`aggregate`), a small decoder sees the state there and the number of the
place that is asked for; elsewhere the model's own read-out answers.

Legend: B rows, T positions, N counted positions of all rows, D width, V vocabulary, H width of the decoder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from homunculi.core.model import LanguageModel
from homunculi.experiments.skills.feed import pack
from homunculi.tasks.registry import Examples
from homunculi.train.loss import IGNORED, Losses

_ROWS_AT_ONCE = 128
_DECODER_WIDTH = 128
DECODER = "skill_decoder"


class Decoder(nn.Module):
    """Recovers a sequence from the state at one position: two layers over that state and a vector a place.

    Every place is decoded by itself, so nothing of the sequence is seen but the state (after the compression task of
    Poli et al. 2024).
    """

    def __init__(self, d_model: int, n_places: int, vocabulary: int) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.randn(n_places, _DECODER_WIDTH) / math.sqrt(_DECODER_WIDTH))
        self.state = nn.Linear(d_model, _DECODER_WIDTH)
        self.hidden = nn.Linear(_DECODER_WIDTH, _DECODER_WIDTH)
        self.answer = nn.Linear(_DECODER_WIDTH, vocabulary)

    def forward(self, x_BTD: Tensor, at: int) -> Tensor:
        """Logits (B, T, V) of every place from the state at position `at`."""
        x_BD = F.rms_norm(x_BTD[:, at].float(), (x_BTD.shape[-1],))
        h_BTH = F.gelu(self.state(x_BD)[:, None] + self.place[: x_BTD.shape[1]])
        logits_BTV: Tensor = self.answer(F.gelu(self.hidden(h_BTH)))
        return logits_BTV


class SkillLoss(nn.Module):
    """Packed examples (2, B, T) → mean cross-entropy of the answers, and what the architecture adds."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, packed_2BT: Tensor) -> Losses:
        ids_BT, targets_BT = packed_2BT[0], packed_2BT[1]
        hidden = self.model.trunk(ids_BT, self.model.always)
        logits_BTV = answers(self.model, hidden.x_BTD).float()
        loss = F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), ignore_index=IGNORED, reduction="mean")
        return Losses(loss, hidden.loss_terms, {name: value.detach() for name, value in hidden.statistics.items()})


def answers(model: LanguageModel, x_BTD: Tensor) -> Tensor:
    """Logits (B, T, V) by the read-out that the task has."""
    decoder: Any = getattr(model, DECODER, None)
    return model.readout(x_BTD) if decoder is None else decoder(x_BTD, -1)


def _answered(model: LanguageModel, ids_BT: Tensor) -> Tensor:
    """Logits (B, T, V), of a whole forward where the model's own read-out answers: what is changed about a model
    (`homunculi.experiments.changing`) is changed about its forwards, and a trunk called by itself knows nothing of it.
    """
    if getattr(model, DECODER, None) is None:
        logits_BTV: Tensor = model(ids_BT).logits
        return logits_BTV
    return answers(model, model.trunk(ids_BT, model.always).x_BTD)


@dataclass(frozen=True, slots=True)
class Judgement:
    """How a model did on examples.

    Attributes:
        right_BT: where its first answer was the target; False where nothing counts.
        accuracy, loss: means over counted positions, the loss in nats.
        best_loss: of the reader who knows the true distribution; None where the answer is certain.
    """

    right_BT: np.ndarray
    accuracy: float
    loss: float
    best_loss: float | None

    def to_json(self) -> dict[str, float | None]:
        finite = self.loss if math.isfinite(self.loss) else None
        return {"accuracy": self.accuracy, "loss": finite, "best_loss": self.best_loss}


@torch.no_grad()
def judge(model: LanguageModel, examples: Examples, device: torch.device) -> Judgement:
    """Answers of a model in evaluation mode; its mode is left as it was."""
    was_training = model.training
    model.eval()
    packed_2BT = pack(examples)
    right, losses = [], []
    for part_2BT in packed_2BT.split(_ROWS_AT_ONCE, 1):
        ids_BT, targets_BT = part_2BT.to(device)
        logits_BTV = _answered(model, ids_BT).float()
        counted_BT = targets_BT != IGNORED
        right.append(((logits_BTV.argmax(-1) == targets_BT) & counted_BT).cpu().numpy())
        losses.append(F.cross_entropy(logits_BTV[counted_BT], targets_BT[counted_BT], reduction="sum").double())
    model.train(was_training)
    right_BT = np.concatenate(right)
    n = max(1, int(examples.counted_BT.sum()))
    return Judgement(right_BT, float(right_BT.sum()) / n, float(torch.stack(losses).sum()) / n, _best_loss(examples))


def _best_loss(examples: Examples) -> float | None:
    if examples.best_BTV is None:
        return None
    best_N = np.take_along_axis(examples.best_BTV, examples.targets_BT[..., None], -1)[..., 0][examples.counted_BT]
    return float(-np.log(np.maximum(best_N, 1e-12)).mean())
