"""A negative control, never a model: the low-rank model with the mask of its authors' code before daaff06, reversed.

There each position read nothing but the future, z_t = Σ_{s>t} a^(s−t−1) (q_t · k_s) w_s: the memory of the causal
model, run over rows whose time is reversed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from homunculi.models.vocabulary.low_rank import Config, LowRank, Step
from homunculi.parts.readable import Reading


class FutureStep(Step):
    """Its memory reads what comes later, and only that."""

    def attend(self, q_BTV: Tensor, k_BTV: Tensor, v_BTV: Tensor, reading: Reading) -> Tensor:
        return super().attend(q_BTV.flip(1), k_BTV.flip(1), v_BTV.flip(1), reading).flip(1)


class ReversedMask(LowRank):
    """NEGATIVE CONTROL: looks ahead."""

    cacheless = "what it reads is not there yet"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.steps = nn.ModuleList(FutureStep(config) for _ in self.schedule)


def train_on_random_tokens(model: LowRank, n_updates: int, n_rows: int = 8, lr: float = 1e-2, seed: int = 0) -> None:
    """Updates on fresh rows of tokens drawn evenly: there is nothing to learn but to look."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr)
    model.train()
    for _ in range(n_updates):
        n_words, length = model.config.vocab_size, model.config.max_seq_len
        ids_BT = torch.randint(n_words, (n_rows, length), generator=generator)
        logits_BTV = model(ids_BT).logits[:, :-1]
        loss = F.cross_entropy(logits_BTV.flatten(0, 1), ids_BT[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
