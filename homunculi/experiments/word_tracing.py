"""What each step of a model would say at each token of a text, and which words it raised and lowered.

Legend: B batch (one row), T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from homunculi.experiments.panels import label_of
from homunculi.instruments.observation import Observation
from homunculi.instruments.stream import after_steps, before_steps, states_of
from homunculi.instruments.words import raised_and_lowered
from homunculi.runs.scans import Lens, Panel, Words
from homunculi.text.labels import labels
from homunculi.text.tokenizers import Tokenizer

WORDS = 5  # likeliest words, a token
MOVED = 3  # words raised, and as many lowered, a token
LEAST = 0.0005  # a change of probability that is told


def lens_of(seen: Observation, tokenizer: Tokenizer) -> tuple[list[Lens], Panel | None]:
    """What the read-out makes of the state after each step: the likeliest words, the rank of what came, and the words
    that the step raised and lowered most. With a panel of how far each step moved all words; None: nobody knows.

    A token that a step does not take has the state that the last step which took it left.
    """
    states, pieces = states_of(seen), _Pieces(tokenizer)
    begun = before_steps(seen, states)
    found, moved = [], []
    left_BTD: Tensor | None = None
    left_TV: Tensor | None = None
    for site, after in after_steps(seen).items():
        logits_TV, p_TV = _said(seen, states[site.label])
        present_T = after.present_BT[0]
        shown_T = seen.taps[f"steps.{site.step}.resid_post"][0].isfinite().all(-1) & p_TV.isfinite().all(-1)
        label = label_of(seen.model.schedule, site.step)
        up: tuple[Words, ...] = ()
        down: tuple[Words, ...] = ()
        if site.label in begun:
            before_BTD = begun[site.label]
            before_TV = left_TV if left_TV is not None and before_BTD is left_BTD else _said(seen, before_BTD)[1]
            change_TV = torch.where((shown_T & present_T)[:, None], p_TV - before_TV, torch.nan)
            up, down = (pieces.named(moves) for moves in raised_and_lowered(change_TV, MOVED, MOVED, LEAST))
            moved.append((label, (change_TV.abs().sum(-1) / 2).double().cpu().numpy()))
        words, rank = _words(p_TV, shown_T, pieces), _ranks(seen, logits_TV, shown_T)
        found.append(Lens(site.step, label, words, rank, up, down))
        left_BTD, left_TV = states[site.label], p_TV
    return found, _panel(moved)


class _Pieces:
    """Ids as words, each looked up once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.known: dict[int, str] = {}

    def named(self, rows: Sequence[Sequence[tuple[int, float]]]) -> tuple[Words, ...]:
        """Rows of ids and numbers, with words for ids."""
        for token in {token for row in rows for token, _ in row} - self.known.keys():
            self.known[token] = labels(self.tokenizer, [token])[0]
        return tuple(tuple((self.known[token], number) for token, number in row) for row in rows)


def _said(seen: Observation, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and probabilities of a state, (T, V)."""
    logits_TV = seen.model.readout(x_BTD)[0].float()
    return logits_TV, logits_TV.softmax(-1)


def _words(p_TV: Tensor, shown_T: Tensor, pieces: _Pieces) -> tuple[Words, ...]:
    top = p_TV.topk(min(WORDS, p_TV.shape[-1]), dim=-1)
    rows = zip(top.indices.tolist(), top.values.tolist(), shown_T.tolist(), strict=True)
    return pieces.named([list(zip(ids, ps, strict=True)) if shown else [] for ids, ps, shown in rows])


def _ranks(seen: Observation, logits_TV: Tensor, shown_T: Tensor) -> tuple[int | None, ...]:
    right_T1 = logits_TV[:-1].gather(1, seen.ids_BT[0, 1:, None])
    places = (1 + logits_TV[:-1].gt(right_T1).sum(-1)).tolist()
    return (*(place if shown else None for place, shown in zip(places, shown_T.tolist(), strict=False)), None)


def _panel(moved: Sequence[tuple[str, np.ndarray]]) -> Panel | None:
    if not moved:
        return None
    values = np.stack([row for _, row in moved])
    high = float(np.nanmax(values)) if np.isfinite(values).any() else 1.0
    names = tuple(label for label, _ in moved)
    return Panel("words moved", "Words moved by the step", "share of probability", names, values, 0.0, high or 1.0)
