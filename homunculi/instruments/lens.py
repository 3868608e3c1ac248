"""What the model would say if it stopped after each step: the logit lens (nostalgebraist 2020).

The read-out, made for the state after the last step, is applied to the state after each; how far a state is from being
readable and how far it is from the answer are not the same, so an early step may know more than the lens shows.

Legend: B rows, T positions, D width, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from homunculi.instruments.observation import Observation
from homunculi.instruments.registry import instrument
from homunculi.instruments.stream import NEEDS, TAPS, after_steps, read_rows
from homunculi.runs.measures import Measurement

MEASURES = ("log_probability", "rank", "median_rank", "divergence", "agreement")


@instrument(
    "lens",
    view="line",
    title="Logit lens",
    question="At which step does the model know what it will say, and which word comes next?",
    taps=TAPS,
    needs=NEEDS,
)
def measure(seen: Observation) -> Measurement | None:
    if seen.ids_BT.shape[1] < 2:
        return None
    states = after_steps(seen)
    if not states:
        return None
    dtype = seen.sites("resid_post")[next(iter(states))].dtype
    final_BTV = seen.logits_BTV[:, :-1].float().log_softmax(-1)
    rows = torch.stack([_of_state(seen, after.state_BTD.to(dtype), final_BTV) for after in states.values()])
    values = dict(zip(MEASURES, rows.mT.cpu().numpy().astype(np.float32), strict=True))
    return Measurement(
        values,
        dict.fromkeys(values, ("step",)),
        {"step": tuple(site.label for site in states)},
        {"log_probability": "nats", "divergence": "nats"},
        notes=(
            "rank: of the true next token among all words, 1 is best, the geometric mean over tokens",
            "divergence: KL of the model's answer from the lens's; agreement: share of tokens at which they agree",
            "tokens that a step skips are read with the state they kept",
        ),
    )


def _of_state(seen: Observation, x_BTD: Tensor, final_BTV: Tensor) -> Tensor:
    """The measures of a state, (M)."""
    n_vocab, found = final_BTV.shape[-1], []
    for rows, logits in read_rows(seen.model, x_BTD[:, :-1], n_vocab):
        said_BTV, last_BTV = logits.log_softmax(-1), final_BTV[rows]
        right_BT1 = said_BTV.gather(-1, seen.ids_BT[rows, 1:, None])
        rank_BT = 1 + (said_BTV > right_BT1).sum(-1)
        divergence_BT = (last_BTV.exp() * (last_BTV - said_BTV)).sum(-1)
        same_BT = (said_BTV.argmax(-1) == last_BTV.argmax(-1)).float()
        found.append(torch.stack([right_BT1[..., 0], rank_BT.float(), divergence_BT, same_BT]).flatten(1))
    probability, rank, divergence, same = torch.cat(found, 1)
    means = probability.mean(), rank.log().mean().exp(), rank.median(), divergence.mean(), same.mean()
    return torch.stack(means)
