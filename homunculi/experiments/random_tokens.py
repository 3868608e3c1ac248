"""A model as it is, asked to foresee tokens drawn evenly at random, which nobody can without looking at them.

However it was trained, a causal model loses at least ln V nats a token there on average. And since each token is drawn
independently of all before it, its guess is right with a chance of exactly 1/V, each time anew: the number of right
guesses is binomial, and a share of them above 1/V that chance does not explain is a look ahead.
`homunculi.experiments.trial` goes further: it trains a copy on such tokens first.

Legend: B batch, T positions, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from homunculi.errors import InputError
from homunculi.experiments.subject import device_of, logits_in

LEVEL = 0.999  # one causal model in two thousand is accused
LOGITS_AT_ONCE = 2**24
HALVINGS = 60


@dataclass(frozen=True, slots=True)
class RandomTokens:
    """What a model made of random tokens; it unpacks to cross-entropy and top-1.

    Attributes:
        cross_entropy: mean, nats a token.
        top1: the share of tokens that were the model's first guess.
        n_guesses: tokens that were asked for.
        vocab_size: V.
        low, high: the exact binomial interval of `top1`.
    """

    cross_entropy: float
    top1: float
    n_guesses: int
    vocab_size: int
    low: float
    high: float

    def __iter__(self) -> Iterator[float]:
        return iter((self.cross_entropy, self.top1))

    @property
    def floor(self) -> float:
        """The least mean loss of a causal model, ln V nats."""
        return math.log(self.vocab_size)

    @property
    def chance(self) -> float:
        """The share that a causal model guesses right."""
        return 1 / self.vocab_size

    @property
    def looks_ahead(self) -> bool:
        """Whether more was guessed right than chance explains."""
        return self.low > self.chance

    def __str__(self) -> str:
        verdict = "more than chance: it looks ahead" if self.looks_ahead else "no more than chance explains"
        return (
            f"{self.n_guesses} random tokens: cross-entropy {self.cross_entropy:.3f} (floor {self.floor:.3f}), top-1 "
            f"{self.top1:.2%} [{self.low:.2%}, {self.high:.2%}] (chance {self.chance:.2%}), {verdict}"
        )


def random_token_trial(
    model: Callable[..., Any], n_rows: int, length: int, seed: int, *, vocab_size: int = 0, level: float = LEVEL
) -> RandomTokens:
    """Mean loss and first guesses of a model, in evaluation, on rows of random tokens.

    Args:
        model: a module or function from ids (B, T) to logits (B, T, V); its mode is left as it was.
        length: tokens of a row, all but the first of which are asked for.
        seed: of the tokens.
        vocab_size: ids are drawn below it; 0: what the model's configuration says.
        level: of the interval.

    Raises:
        InputError: no row, rows of less than two tokens, a level outside (0, 1), or no size of the vocabulary.
    """
    n_words = vocab_size or getattr(getattr(model, "config", None), "vocab_size", 0)
    for name, value, least in (("n_rows", n_rows, 1), ("length", length, 2), ("vocab_size", n_words, 2)):
        if value < least:
            raise InputError(f"random tokens: {name}={value}, needs at least {least}")
    ids_BT = torch.randint(n_words, (n_rows, length), generator=torch.Generator().manual_seed(seed))
    loss, n_right = 0.0, 0
    with _evaluating(model) as device, torch.no_grad():
        for some_BT in ids_BT.split(max(1, LOGITS_AT_ONCE // (length * n_words))):
            some_BT = some_BT.to(device)
            logits_NV = logits_in(model(some_BT))[:, :-1].flatten(0, 1).float()
            next_N = some_BT[:, 1:].flatten()
            loss += F.cross_entropy(logits_NV, next_N, reduction="none").double().sum().item()
            n_right += int((logits_NV.argmax(-1) == next_N).sum())
    n = n_rows * (length - 1)
    return RandomTokens(loss / n, n_right / n, n, n_words, *binomial_interval(n_right, n, level))


def binomial_interval(n_right: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """The chances of success that do not make `n_right` of `n` too unlikely (Clopper and Pearson 1934).

    Raises:
        InputError: counts that are none, or a level outside (0, 1).
    """
    if not 0 <= n_right <= n or n < 1:
        raise InputError(f"binomial interval: {n_right} of {n}; give counts")
    if not 0 < level < 1:
        raise InputError(f"level: {level} must lie between 0 and 1, for example 0.95")
    rare = (1 - level) / 2
    low = 0.0 if n_right == 0 else _crossing(lambda p: _tail(n_right, n, p) - rare)
    high = 1.0 if n_right == n else 1 - _crossing(lambda p: _tail(n - n_right, n, p) - rare)
    return low, high


def _tail(k: int, n: int, p: float) -> float:
    """P(X ≥ k) of n trials with chance p."""
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    i = np.arange(k, n + 1)
    terms = logs[n] - logs[i] - logs[n - i] + i * math.log(p) + (n - i) * math.log1p(-p)
    return float(np.exp(terms).sum())


def _crossing(rising: Callable[[float], float]) -> float:
    """Where a function that rises on (0, 1) becomes positive."""
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return (low + high) / 2


@contextmanager
def _evaluating(model: Callable[..., Any]) -> Iterator[torch.device]:
    """A module in evaluation mode; the device of its tensors."""
    if not isinstance(model, nn.Module):
        yield torch.device("cpu")
        return
    training = {module: module.training for module in model.modules()}
    try:
        yield device_of(model.eval())
    finally:
        for module, mode in training.items():
            module.training = mode
