"""A readable model built by hand: its first step adds a word everywhere, its second removes it and adds another."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from homunculi.core.budget import Budget
from homunculi.core.cache import Cache
from homunculi.core.output import Hidden
from homunculi.core.taps import NO_TAPS, TapPoint
from homunculi.parts.readable import EPS, ReadableConfig, ReadableModel

N_WORDS, FIRST, SECOND = 16, 7, 11
SCALE = 1.5
PIECES = tuple(f"w{i}" for i in range(N_WORDS))


class Planted(ReadableModel):
    """Adds `added_SV[i]` to every state in step i. `words`: the two words, of `n_words`."""

    def __init__(
        self, first: float, second: float, n_words: int = N_WORDS, words: tuple[int, int] = (FIRST, SECOND)
    ) -> None:
        super().__init__(ReadableConfig(vocab_size=n_words, n_steps=2, max_seq_len=32, first_scale=SCALE))
        self.added_SV = nn.Parameter(torch.zeros(2, n_words))
        with torch.no_grad():
            self.added_SV[0, words[0]], self.added_SV[1, words[0]], self.added_SV[1, words[1]] = first, -first, second

    def trunk(
        self, ids_BT: Tensor, taps: TapPoint = NO_TAPS, cache: Cache | None = None, documents_BT: Tensor | None = None
    ) -> Hidden:
        x_BTV = self.start(ids_BT, taps)
        for i, added_V in enumerate(self.added_SV):
            x_BTV = taps.at(i)("resid_post", taps.at(i)("resid_pre", x_BTV) + added_V)
        return Hidden(x_BTV)

    def budget(self, context: int | None = None) -> Budget:
        return self.counted(0, 0)


def some_ids(n_rows: int = 3, n_tokens: int = 12) -> Tensor:
    """Ids of other words than the planted ones."""
    others = torch.tensor([i for i in range(N_WORDS) if i not in (FIRST, SECOND)])
    return others[torch.randint(len(others), (n_rows, n_tokens), generator=torch.Generator().manual_seed(1))]


def expected(ids_BT: Tensor, first: float, second: float) -> np.ndarray:
    """Probabilities of all words at the start, after the first and after the second step, (3, B, T, V): by hand."""
    start = np.eye(N_WORDS)[ids_BT.numpy()] / np.sqrt(1 / N_WORDS + EPS)
    states = np.stack([start, start, start])
    states[1, ..., FIRST] += first
    states[2, ..., SECOND] += second
    normed = states / np.sqrt((states**2).mean(-1, keepdims=True) + EPS)
    raised = np.exp(30 * np.tanh(normed * SCALE / 30))
    return raised / raised.sum(-1, keepdims=True)
