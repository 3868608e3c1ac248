"""What each step is worth: the loss of an answer that is read out after it, and what the step took off it.

Legend: B rows, T positions, D width, V vocabulary, L steps.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from homunculi.instruments.observation import Observation, surprisal_of
from homunculi.instruments.registry import instrument
from homunculi.instruments.stream import NEEDS, TAPS, after_steps, read_rows
from homunculi.runs.measures import Array, Measurement


@instrument(
    "pass_loss",
    view="line",
    title="Loss after each step",
    question="What would the loss be if the model stopped after each step, and what did each step gain?",
    taps=TAPS,
    needs=NEEDS,
)
def measure(seen: Observation) -> Measurement | None:
    if seen.ids_BT.shape[1] < 2:
        return None
    after = after_steps(seen)
    if not after:
        return None
    dtype = seen.sites("resid_post")[next(iter(after))].dtype
    loss_LBT = torch.stack([_losses(seen, found.state_BTD.to(dtype)) for found in after.values()])
    taking_LBT = torch.stack([found.present_BT[:, :-1] for found in after.values()])
    values = _values(loss_LBT, taking_LBT)
    axes: dict[str, tuple[str, ...]] = dict.fromkeys(values, ("step",))
    units = dict.fromkeys(values, "nats")
    notes = ["gain: nats a token that the step took off the loss; nothing is read before the first one"]
    if "gain_taking" in values:
        notes.append("tokens that a step skips are read with the state they kept; gain_taking: of the others alone")
    n_bytes = _bytes_of(seen)
    if n_bytes:
        values["bits_per_byte"] = values["loss"] * loss_LBT[0].numel() / (math.log(2) * n_bytes)
        axes["bits_per_byte"], units["bits_per_byte"] = ("step",), "bits"
    return Measurement(values, axes, {"step": tuple(site.label for site in after)}, units, tuple(notes))


def _losses(seen: Observation, x_BTD: Tensor) -> Tensor:
    """Nats of each token after the first, (B, T − 1), by the read-out of a state."""
    rows = read_rows(seen.model, x_BTD, seen.logits_BTV.shape[-1])
    return torch.cat([surprisal_of(logits, seen.ids_BT[where]) for where, logits in rows])


def _values(loss_LBT: Tensor, taking_LBT: Tensor) -> dict[str, Array]:
    """Loss and gain of each step, means over tokens; where some skip steps, the gain of those that take them too."""
    gain_LBT = torch.cat([torch.full_like(loss_LBT[:1], torch.nan), loss_LBT[:-1] - loss_LBT[1:]])
    values = {"loss": loss_LBT.mean((1, 2)), "gain": gain_LBT.mean((1, 2))}
    if not taking_LBT.all():
        n_L = taking_LBT.sum((1, 2))
        values["gain_taking"] = torch.where(taking_LBT, gain_LBT, 0).sum((1, 2)) / torch.where(n_L > 0, n_L, torch.nan)
    return {name: value.cpu().numpy().astype(np.float32) for name, value in values.items()}


def _bytes_of(seen: Observation) -> int:
    """Bytes of the tokens that are predicted; 0 where nobody knows."""
    if not seen.byte_lengths:
        return 0
    lengths = torch.tensor(seen.byte_lengths, device=seen.ids_BT.device)
    return int(lengths[seen.ids_BT[:, 1:].clamp(max=len(lengths) - 1)].sum())
