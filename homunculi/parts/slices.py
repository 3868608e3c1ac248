"""Slices of a readable state: a step reads some words, and writes on as many words half a vocabulary away.

The words are numbered in a round, after the last comes the first. Step i of N reads k words from i·⌊V/N⌋ on, and
writes on the k words from i·⌊V/N⌋ + ⌊V/2⌋ on. So that no index is gathered, a slice is taken and put back in one or two
contiguous pieces.

    g = x[read];  g += s · o · W_o decay(W_q n / √k, W_k n, W_v n), n = rms(g)
    x[write] += w / √k · W_up act(W_down rms(g) + b)

Legend: B batch, T positions, V vocabulary, K words of a slice, M hidden width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.held import Holding
from ..core.schedule import Schedule, Step
from ..core.taps import TapPoint
from ..errors import InputError
from ..settings import check_range
from .decay_attention import decay_attention
from .linear import Linear
from .readable import ACTIVATIONS, ReadableConfig, Reading, number, rms

MAP_STD = 0.1  # of the feed-forward maps at the start
Waves = Literal["greedy", "none"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SliceConfig(ReadableConfig):
    """What models of slices are told beside.

    Attributes:
        d_slice: words that a step reads, and words that it writes; 0: a quarter of the vocabulary.
        first_decay: logit of the memory's decay before training.
    """

    d_slice: int = 0
    first_decay: float = 3.0

    def check(self) -> None:
        ReadableConfig.check(self)
        check_range("model.d_slice", self.d_slice, low=0)
        if 0 < self.vocab_size < self.d_slice:
            raise InputError(f"model.d_slice: {self.d_slice} words are more than model.vocab_size={self.vocab_size}")

    @property
    def slice_size(self) -> int:
        """Words of a slice."""
        return self.d_slice or max(1, self.vocab_size // 4)


@dataclass(frozen=True, kw_only=True, slots=True)
class SliceStepConfig(SliceConfig):
    """What models with a feed-forward part over slices are told beside.

    Attributes:
        d_mlp: hidden width of the feed-forward part; 0: twice the words of a slice.
    """

    d_mlp: int = 0
    activation: Literal["gelu", "swish", "relu2", "relu"] = "gelu"

    def check(self) -> None:
        SliceConfig.check(self)
        check_range("model.d_mlp", self.d_mlp, low=0)

    @property
    def hidden_width(self) -> int:
        """Hidden width of the feed-forward part."""
        return self.d_mlp or 2 * self.slice_size

    @property
    def step_size(self) -> int:
        """Parameters of a step that multiply activations."""
        return self.slice_size * (4 * self.slice_size + 2 * self.hidden_width)


@dataclass(frozen=True, slots=True)
class Slice:
    """`size` words from number `start` on, of a round of `n_words`."""

    start: int
    size: int
    n_words: int

    @property
    def beyond(self) -> int:
        """How many of them come after the last word, so at the first ones; 0 or less: none."""
        return self.start + self.size - self.n_words

    def of(self, x_BTV: Tensor) -> Tensor:
        """The part of a state, (B, T, K)."""
        if self.beyond <= 0:
            return x_BTV[..., self.start : self.start + self.size]
        return torch.cat([x_BTV[..., self.start :], x_BTV[..., : self.beyond]], -1)

    def spread(self, part_BTK: Tensor) -> Tensor:
        """A state that is this part here, and 0 elsewhere: (B, T, V)."""
        if self.beyond <= 0:
            return F.pad(part_BTK, (self.start, -self.beyond))
        n = self.size - self.beyond
        return torch.cat([F.pad(part_BTK[..., n:], (0, self.n_words - self.size)), part_BTK[..., :n]], -1)

    def meets(self, other: Slice) -> bool:
        """Whether they have a word in common."""
        ahead = (other.start - self.start) % self.n_words
        return ahead < self.size or ahead + other.size > self.n_words

    def places(self) -> Tensor:
        """The numbers of its words, in order: (K,)."""
        return (self.start + torch.arange(self.size)) % self.n_words


@dataclass(frozen=True, slots=True)
class Reach:
    """Which words a step reads and writes."""

    read: Slice
    write: Slice

    def meets(self, other: Reach) -> bool:
        """Whether one reads what the other writes, so that their order matters."""
        return self.read.meets(other.write) or self.write.meets(other.read)

    def is_free_of(self, other: Reach) -> bool:
        """Whether both can be done at once: neither reads or writes what the other writes."""
        return not (self.meets(other) or self.write.meets(other.write))


def reaches(n_words: int, n_steps: int, size: int) -> tuple[Reach, ...]:
    """Those of all steps, in order."""
    starts = [i * (n_words // n_steps) for i in range(n_steps)]
    return tuple(
        Reach(Slice(start, size, n_words), Slice((start + n_words // 2) % n_words, size, n_words)) for start in starts
    )


def schedule(steps: Sequence[Reach], waves: Waves) -> Schedule:
    """The steps in the order in which they are done.

    Greedy: as many steps as can be are done at once, from the same state: of those that are left, each in turn joins
    the wave if it writes and reads nothing that one of the wave writes, and if no step that stays behind before it
    writes what it reads or reads what it writes. So the order makes no difference but of rounding.
    """
    left, order = list(range(len(steps))), list[list[int]]()
    while left:
        wave, behind = list[int](), list[int]()
        for i in left:
            free = not wave or (waves == "greedy" and all(steps[i].is_free_of(steps[j]) for j in wave))
            joins = free and not any(steps[i].meets(steps[j]) for j in behind)
            (wave if joins else behind).append(i)
        order.append(wave)
        left = behind
    pairs = [(block, n) for n, wave in enumerate(order) for block in wave]
    return tuple(Step(block=block, slot=slot, wave=wave) for slot, (block, wave) in enumerate(pairs))


def waves_of(steps: Schedule) -> tuple[tuple[int, ...], ...]:
    """The steps of each wave, in order."""
    last = max(step.wave for step in steps)
    return tuple(tuple(i for i, step in enumerate(steps) if step.wave == n) for n in range(last + 1))


def check_waves(waves: str) -> None:
    """Refuse a word that says nothing.

    Raises:
        InputError: it is none of `Waves`.
    """
    if waves not in get_args(Waves):
        raise InputError(f"model.waves: {waves!r} is none of {', '.join(get_args(Waves))}")


class SliceAttention(Holding, ABC):
    """What the slices of earlier tokens add to that of a token: s · o · W_o z, by dense maps of K words.

    Args:
        size: words of a slice.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (Linear(size, size) for _ in range(4))
        self.out_scale, self.scale = number(0.1), number(1)

    @abstractmethod
    def mixed(self, q_BTK: Tensor, k_BTK: Tensor, v_BTK: Tensor, n_BTK: Tensor, reading: Reading) -> Tensor:
        """z: what each token reads of those before it; `n_BTK` is what queries, keys and values were made of."""

    def forward(self, g_BTK: Tensor, taps: TapPoint, reading: Reading) -> Tensor:
        """The slice with what is added to it."""
        n_BTK = rms(g_BTK)
        qkv = self.once("qkv", n_BTK.dtype, lambda: self._joined().to(n_BTK.dtype))
        parts = F.linear(n_BTK, qkv).chunk(3, -1)
        q_BTK, k_BTK, v_BTK = (taps(f"attn.{name}", part) for name, part in zip("qkv", parts, strict=True))
        z_BTK = taps("attn.z", self.mixed(q_BTK, k_BTK, v_BTK, n_BTK, reading))
        return g_BTK + taps("attn.out", (self.scale * self.out_scale).to(z_BTK.dtype) * self.o(z_BTK))

    def _joined(self) -> Tensor:
        return torch.cat([self.q.weight * self.q.in_features**-0.5, self.k.weight, self.v.weight])


class SliceMemory(SliceAttention):
    """The memory decays by the same factor with every token."""

    def __init__(self, size: int, first_decay: float) -> None:
        super().__init__(size)
        self.decay_logit = number(first_decay)

    def mixed(self, q_BTK: Tensor, k_BTK: Tensor, v_BTK: Tensor, n_BTK: Tensor, reading: Reading) -> Tensor:
        decay = F.logsigmoid(self.decay_logit)[None]
        return decay_attention(q_BTK[:, None], k_BTK[:, None], v_BTK[:, None], decay, reading)[:, 0]


class SliceStep(nn.Module):
    """The memory over a slice, then the feed-forward part; what it says is to be added elsewhere.

    Args:
        config: sizes.
        reach: which words it reads and writes.
    """

    def __init__(self, config: SliceStepConfig, reach: Reach) -> None:
        super().__init__()
        size, d_mlp = config.slice_size, config.hidden_width
        self.reach, self.activation = reach, ACTIVATIONS[config.activation]
        self.memory = SliceMemory(size, config.first_decay)
        self.down, self.up = Linear(size, d_mlp), Linear(d_mlp, size)
        self.bias_M = nn.Parameter(torch.zeros(d_mlp))
        self.write_scale = number(0.1)
        for one in (self.down, self.up):
            nn.init.normal_(one.weight, std=MAP_STD)

    def forward(self, x_BTV: Tensor, taps: TapPoint, reading: Reading) -> Tensor:
        """What is to be added to the words of `reach.write`, (B, T, K)."""
        n_BTK = rms(self.memory(self.reach.read.of(x_BTV), taps, reading))
        post_BTM = self.activation(taps("mlp.pre", self.down(n_BTK) + self.bias_M.to(n_BTK.dtype)))
        scale = self.write_scale * self.reach.write.size**-0.5
        return taps("mlp.out", scale.to(n_BTK.dtype) * self.up(taps("mlp.post", post_BTM)))
