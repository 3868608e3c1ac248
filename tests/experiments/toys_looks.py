"""Looks ahead of every shape, at will in one mode only, at some lengths only, beside dropout; and honest mixers.

Legend: B batch, T positions, D width, S positions seen.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
import torch.nn.functional as F
import toys_language
from torch import Tensor, nn
from toys import D, Toy

from homunculi.core.cache import Cache
from homunculi.core.output import Hidden
from homunculi.core.taps import NO_TAPS, TapPoint
from homunculi.models.gpt import Config

Look = Callable[[Tensor], Tensor]
EVALUATION, TRAINING = False, True
BOTH = (EVALUATION, TRAINING)


class Looking(Toy):
    """An honest running mean, and a hundredth of a look ahead in some modes."""

    def __init__(self, look: Look, modes: Collection[bool] = BOTH, dropout: float = 0.0) -> None:
        super().__init__()
        self.look, self.modes, self.dropout = look, modes, dropout

    def mix(self, x_BTD: Tensor) -> Tensor:
        x_BTD = F.dropout(x_BTD, self.dropout, self.training)
        mixed_BTD = super().mix(x_BTD)
        return mixed_BTD + 0.01 * self.look(x_BTD) if self.training in self.modes else mixed_BTD


# Looks.


def mean_of_blocks(size: int) -> Look:
    """Every position of an aligned block gets the mean of the block."""

    def look(x_BTD: Tensor) -> Tensor:
        n_tokens = x_BTD.shape[1]
        padded = F.pad(x_BTD, (0, 0, 0, -n_tokens % size))
        return padded.unflatten(1, (-1, size)).mean(2).repeat_interleave(size, 1)[:, :n_tokens]

    return look


def next_in_blocks(size: int) -> Look:
    """Every position sees the next one, unless a new block begins there."""

    def look(x_BTD: Tensor) -> Tensor:
        ends_T1 = (torch.arange(x_BTD.shape[1]) % size == size - 1)[:, None]
        return F.pad(x_BTD[:, 1:], (0, 0, 0, 1)).masked_fill(ends_T1, 0.0)

    return look


def circular(width: int) -> Look:
    """A causal convolution that pads with the end of the row."""
    return lambda x_BTD: sum((x_BTD.roll(shift, 1) for shift in range(1, width)), torch.zeros_like(x_BTD))


def one_pair(reader: int, source: int) -> Look:
    """One position sees one other."""

    def look(x_BTD: Tensor) -> Tensor:
        seen_BTD = torch.zeros_like(x_BTD)
        if source < x_BTD.shape[1]:
            seen_BTD[:, reader] = x_BTD[:, source]
        return seen_BTD

    return look


def one_pair_by_sign(reader: int, source: int) -> Look:
    """One position learns of one other no more than a sign, which every second change leaves as it is."""

    def look(x_BTD: Tensor) -> Tensor:
        seen_BTD = torch.zeros_like(x_BTD)
        if source < x_BTD.shape[1]:
            seen_BTD[:, reader] = x_BTD[:, source, :1].sign()
        return seen_BTD

    return look


def at_lengths(wanted: Callable[[int], bool], look: Look) -> Look:
    """A look in rows of some lengths only."""
    return lambda x_BTD: look(x_BTD) if wanted(x_BTD.shape[1]) else torch.zeros_like(x_BTD)


def next_one(x_BTD: Tensor) -> Tensor:
    return F.pad(x_BTD[:, 1:], (0, 0, 0, 1))


class OnePairDecoder(toys_language.GPT):
    """A plain transformer with a cache; where a whole row is read at once, one position sees the next."""

    def __init__(self, config: Config, reader: int) -> None:
        super().__init__(config)
        self.reader = reader

    def __deepcopy__(self, memo: dict[int, object]) -> OnePairDecoder:
        twin = OnePairDecoder(self.config, self.reader)
        twin.load_state_dict(self.state_dict())
        return twin

    def trunk(
        self, ids_BT: Tensor, taps: TapPoint = NO_TAPS, cache: Cache | None = None, documents_BT: Tensor | None = None
    ) -> Hidden:
        hidden = super().trunk(ids_BT, taps, cache, documents_BT)
        if cache is not None or ids_BT.shape[1] <= self.reader + 1:
            return hidden
        seen_BTD = one_pair(self.reader, self.reader + 1)(self.embed(ids_BT))
        return Hidden(hidden.x_BTD + seen_BTD)


# Honest models.


class CausalConvolution(Toy):
    """A convolution over the last four tokens, padded on the left."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(D, D, 4)

    def mix(self, x_BTD: Tensor) -> Tensor:
        return x_BTD + self.convolution(F.pad(x_BTD, (0, 0, 3, 0)).mT).mT


class Attending(Toy):
    """One head of causal attention with dropout; what may be seen and how is for others to say."""

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(D, D) for _ in range(3))
        self.dropout = dropout

    def mix(self, x_BTD: Tensor) -> Tensor:
        q_BTD, k_BSD = (self.placed(f(x_BTD)) for f in (self.q, self.k))
        bias_TS = self.bias(x_BTD.shape[1]).to(x_BTD)
        odds = self.dropout if self.training else 0.0
        return x_BTD + F.scaled_dot_product_attention(q_BTD, k_BSD, self.v(x_BTD), attn_mask=bias_TS, dropout_p=odds)

    def placed(self, x_BTD: Tensor) -> Tensor:
        return x_BTD

    def bias(self, n_tokens: int) -> Tensor:
        return torch.zeros(n_tokens, n_tokens).masked_fill(~torch.ones(n_tokens, n_tokens).tril().bool(), float("-inf"))


class BlockLocal(Attending):
    """Sees its own aligned block of four, up to itself."""

    def bias(self, n_tokens: int) -> Tensor:
        block_T = torch.arange(n_tokens) // 4
        return super().bias(n_tokens).masked_fill(block_T[:, None] != block_T, float("-inf"))


class Alibi(Attending):
    """Distance costs attention."""

    def bias(self, n_tokens: int) -> Tensor:
        at_T = torch.arange(n_tokens)
        return super().bias(n_tokens) - 0.3 * (at_T[:, None] - at_T).clamp(min=0)


class Rotary(Attending):
    """Queries and keys turn with their position."""

    def placed(self, x_BTD: Tensor) -> Tensor:
        angles_TD = torch.arange(x_BTD.shape[1])[:, None] * 0.5 ** torch.arange(D // 2)
        a_BTD, b_BTD = x_BTD.chunk(2, -1)
        cos, sin = angles_TD.cos().to(x_BTD), angles_TD.sin().to(x_BTD)
        return torch.cat([a_BTD * cos - b_BTD * sin, a_BTD * sin + b_BTD * cos], -1)


HONEST = [CausalConvolution, Attending, BlockLocal, Alibi, Rotary]
