"""Which step moved which word: the probability of every word, read from the stream before and after each step.

Where a state is itself a distribution over words, as wide as the vocabulary, this is what the model holds. In any other
model it is a logit lens: the read-out was made for the last state, and an early one may hold more than it shows.

Legend: B rows, T positions, D width, V vocabulary, S steps, R states read, M measures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from homunculi.instruments.observation import Observation
from homunculi.instruments.registry import instrument
from homunculi.instruments.stream import BEGIN, NEEDS, START, TAPS, before_steps, row_slices, states_of
from homunculi.runs.measures import Measurement

MEASURES = ("moved", "toward", "loss", "kept", "itself")
MOST_WORDS = 24  # rows of the array of words: so many are printed with their numbers
MOST_OF_A_STEP = 4
DECIMALS = 3  # of percentage points


@instrument(
    "words",
    view="heatmap",
    title="Words by step",
    question="Which step raised or lowered which word, and how far did it go toward the word that came?",
    taps=(*TAPS, BEGIN),
    needs=NEEDS,
)
def measure(seen: Observation) -> Measurement | None:
    if seen.ids_BT.shape[1] < 2:
        return None
    states = states_of(seen)
    begun = before_steps(seen, states)
    if not begun:
        return None
    found = _read(seen, states, begun)
    words = _most_moved(found.change_SV)
    by_state_MR = found.by_state_MR.cpu().numpy().astype(np.float32)
    values: dict[str, Any] = {"by_step": by_state_MR}
    axes: dict[str, tuple[str, ...]] = {"by_step": ("measure", "state")}
    labels = {"measure": MEASURES, "state": tuple(states)}
    if words:
        points = 100 * found.change_SV[:, words].mT.double().cpu().numpy()
        values["change"] = (points.round(DECIMALS) + 0.0).astype(np.float32)  # no −0
        axes["change"] = ("word", "step")
        labels |= {"word": tuple(_name(seen.pieces, word) for word in words), "step": tuple(begun)}
    values["mean moved"] = np.array(np.nanmean(by_state_MR[0]))
    units = {"change": "percentage points", "gain of all steps": "nats"}
    if START in states:
        values["gain of all steps"] = np.array(by_state_MR[2, 0] - float(seen.surprisals.mean()))
    return Measurement(values, axes, labels, units, _notes(seen, START in states))


def _notes(seen: Observation, from_start: bool) -> tuple[str, ...]:
    width, n_vocab = seen.sites("resid_post").popitem()[1].shape[-1], seen.logits_BTV.shape[-1]
    native = "states are as wide as the vocabulary and are read as what they are"
    lens = "a logit lens: early states may hold more than the read-out, made for the last, shows of them"
    return (
        # another model may happen to be as wide as its vocabulary; only a readable one scales words as its first state
        native if width == n_vocab and hasattr(seen.model.config, "first_scale") else lens,
        "moved: half of the sum of |change| over all words, 0 to 1; toward: nats that the step takes off the loss; "
        "kept: share of tokens whose top word is the model's final one; itself: whose top word is the token",
        "change: of a word's probability by the step, mean over tokens; the words that each step raised most, and the "
        "one that it lowered most",
        *(() if from_start else ("the state at the start is not shown, so the first step is not judged",)),
    )


class _Found(NamedTuple):
    """`MEASURES` of each state read, NaN where there is none before it; mean change of each word by each step."""

    by_state_MR: Tensor
    change_SV: Tensor


def _read(seen: Observation, states: Mapping[str, Tensor], begun: Mapping[str, Tensor]) -> _Found:
    n_rows, n_tokens, n_vocab = *seen.ids_BT.shape, seen.logits_BTV.shape[-1]
    sums_RM = seen.logits_BTV.new_zeros(len(states), len(MEASURES), dtype=torch.float32)
    change_SV = sums_RM.new_zeros(len(begun), n_vocab)
    places = {label: i for i, label in enumerate(begun)}
    for rows in row_slices(n_rows, n_tokens, n_vocab):
        left_BTD: Tensor | None = None
        left_BTV: Tensor | None = None
        for i, (label, state_BTD) in enumerate(states.items()):
            log_p_BTV = _log_p(seen, state_BTD[rows, :-1])
            sums_RM[i, 2:] += _said(seen, rows, log_p_BTV)
            if label in begun:
                before_BTV = left_BTV if begun[label] is left_BTD else None
                before_BTV = _log_p(seen, begun[label][rows, :-1]) if before_BTV is None else before_BTV
                change_BTV = log_p_BTV.exp() - before_BTV.exp()
                sums_RM[i, 0] += change_BTV.abs().sum() / 2
                sums_RM[i, 1] += _right(seen, rows, log_p_BTV) - _right(seen, rows, before_BTV)
                change_SV[places[label]] += change_BTV.sum((0, 1))
            left_BTD, left_BTV = state_BTD, log_p_BTV
    for i, label in enumerate(states):
        if label not in begun:
            sums_RM[i, :2] = torch.nan
    n = n_rows * (n_tokens - 1)
    return _Found(sums_RM.mT / n, change_SV / n)


def _log_p(seen: Observation, x_BTD: Tensor) -> Tensor:
    with torch.no_grad():
        return seen.model.readout(x_BTD).float().log_softmax(-1)


def _right(seen: Observation, rows: slice, log_p_BTV: Tensor) -> Tensor:
    """ln p of what came, a sum over tokens."""
    return log_p_BTV.gather(-1, seen.ids_BT[rows, 1:, None]).sum()


def _said(seen: Observation, rows: slice, log_p_BTV: Tensor) -> Tensor:
    """Sums over tokens: loss, whether the top word is the final one, whether it is the token itself."""
    final_BT, top_BT = seen.logits_BTV[rows, :-1].argmax(-1), log_p_BTV.argmax(-1)
    itself = (top_BT == seen.ids_BT[rows, :-1]).sum().float()
    return torch.stack([-_right(seen, rows, log_p_BTV), (top_BT == final_BT).sum().float(), itself])


def _most_moved(change_SV: Tensor) -> list[int]:
    """Ids of the words that each step raised most and the one that it lowered most, in order of the steps."""
    n = min(MOST_OF_A_STEP, max(2, MOST_WORDS // len(change_SV)))
    up, down = raised_and_lowered(change_SV, n - 1, 1)
    return list(dict.fromkeys(word for both in zip(up, down, strict=True) for words in both for word, _ in words))


def raised_and_lowered(
    change_NV: Tensor, n_up: int, n_down: int, least: float = 0.0
) -> tuple[list[list[tuple[int, float]]], list[list[tuple[int, float]]]]:
    """Of each row the ids that rose most and those that fell most, with their change, the largest first.

    Args:
        least: smaller changes are left out, and those that are no number.
    """
    found = []
    for n, sign in ((n_up, 1), (n_down, -1)):
        top = (sign * change_NV).topk(min(n, change_NV.shape[-1]), dim=-1)
        rows = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        found.append([[(i, sign * x) for i, x in zip(ids, xs, strict=True) if x > least] for ids, xs in rows])
    return found[0], found[1]


def _name(pieces: Sequence[str], word: int) -> str:
    return pieces[word] if word < len(pieces) else f"id {word}"
