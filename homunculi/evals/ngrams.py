"""Count models over the same tokens as a network: what can be had without learning anything but counts.

Every model gives proper distributions over the whole vocabulary for every context, seen or not. Contexts lie within
the window alone, as a network's do: the first predictions of a window have shorter ones. All counting is sorting of
64-bit keys. Legend: B, R rows, T ids in a row, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from itertools import groupby, islice, pairwise
from typing import Any, Self

import numpy as np

from homunculi.errors import InputError
from homunculi.evals.loss import HeldOutLoss
from homunculi.text.batches import Batches
from homunculi.text.shards import TokenisedText
from homunculi.text.streams import join_streams

HALF_LIVES = (16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 2048.0)
_MOST_HELD = 65_536  # tokens that a mixture weight is fitted on
_AT_ONCE = 4_000_000  # entries of a temporary array


@dataclass(frozen=True, eq=False, slots=True)
class Grams:
    """The different n-grams of one order and how often each occurs.

    `keys` (n,) int64 ascend: the ids as digits of a number to the base V; all V for order 1. `counts` are (n,) int32.
    """

    order: int
    vocab_size: int
    keys: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True, eq=False, slots=True)
class Level:
    """p(w | h) = (count(h w) - discount of that count + mass(h) · lower p(w)) / total(h); where total is 0, lower p.

    Attributes:
        counts: (n,) of the n-grams. totals, masses: of each n-gram of the order below, as the context h.
        discounts: (4,) of counts 0, 1, 2, and 3 or more.
    """

    grams: Grams
    counts: np.ndarray
    totals: np.ndarray
    masses: np.ndarray
    discounts: np.ndarray

    def refine(self, here: np.ndarray, context: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """Probabilities of n-grams from those of the order below; places of n-grams and contexts, -1 for unseen."""
        counts = np.where(here >= 0, self.counts[here], 0)
        totals = np.where(context >= 0, self.totals[context], 0)
        own = counts - self.discounts[np.minimum(counts, 3)] + self.masses[context] * lower
        return np.where(totals > 0, own / np.maximum(totals, 1), lower)


@dataclass(frozen=True, eq=False, slots=True)
class Fit:
    """A fitted model: the lowest level's probabilities, and for each order from 2 on two levels.

    `own` speaks where the context has that order's length and no more, `lower` is what a higher order falls back on.
    """

    unigram_V: np.ndarray
    own: list[Level]
    lower: list[Level]


def count_ngrams(tokens: np.ndarray, vocab_size: int, order: int) -> list[Grams]:
    """All n-grams of orders 1 to `order`.

    Args:
        tokens: (n,) ids, one text; or (R, T + 1) windows, each of which predicts its last T: n-grams then lie within
            rows, and the first token of a row is not counted by itself.
        order: at least 1; V to its power must stay below 2^63.

    Raises:
        InputError: too few tokens, ids outside the vocabulary, or an order that is too high for it.
    """
    if order < 1 or vocab_size < 1 or vocab_size**order >= 2**63:
        raise InputError(f"order {order} with {vocab_size} tokens: use an order from 1 to {highest_order(vocab_size)}")
    ids = _checked_ids(np.asarray(tokens), vocab_size)
    if ids.ndim != 2 or ids.shape[1] < max(2, order):
        raise InputError(f"tokens: rows of {ids.shape[-1]} are too short for order {order}: give more text")
    single = np.bincount(ids[:, 1:].ravel(), minlength=vocab_size)
    orders = [Grams(1, vocab_size, np.arange(vocab_size), single.astype(np.int32))]
    for n in range(2, order + 1):
        keys = _keys(ids, n, vocab_size).ravel()
        keys.sort()
        starts = _run_starts(keys)
        orders.append(Grams(n, vocab_size, keys[starts], np.diff(starts, append=len(keys)).astype(np.int32)))
    return orders


def highest_order(vocab_size: int) -> int:
    """The longest n-gram whose key fits into 63 bits, at most 8."""
    return max(n for n in range(9) if max(2, vocab_size) ** n < 2**63)


class Interpolated:
    """n-grams in which every context hands on a part of its probability to the context one token shorter.

    Args:
        order: at least 2.
    """

    def __init__(self, order: int = 3) -> None:
        if order < 2:
            raise InputError(
                f"order {order}: an n-gram model needs at least 2; UnigramCache is the one without context"
            )
        self.order = order
        self._fit: Fit | None = None

    def fit(self, tokens: np.ndarray, vocab_size: int) -> Self:
        """Count; arguments and errors of `count_ngrams`."""
        return self.fit_counts(count_ngrams(tokens, vocab_size, self.order))

    def fit_counts(self, orders: Sequence[Grams]) -> Self:
        """From n-grams of orders 1 to this one or higher, as `count_ngrams` gives them."""
        if len(orders) < self.order:
            raise InputError(f"order {self.order}: only orders up to {len(orders)} were counted; count higher")
        self._fit = self._smooth(orders[: self.order])
        return self

    def log_probs(self, ids_BT: np.ndarray) -> np.ndarray:
        """(B, T - 1) natural logs of p(each id but the first), from the ids before it in its row."""
        if self._fit is None:
            raise InputError("this model has counted nothing: call fit before log_probs")
        ids = _checked_ids(ids_BT, len(self._fit.unigram_V))
        p = self._fit.unigram_V[ids[:, 1:]]
        found = np.empty_like(p)
        before = ids  # places of the n-grams of one order less, by the column where they end
        for n, (own, lower) in enumerate(zip(self._fit.own, self._fit.lower, strict=True), start=2):
            here = _places(own.grams.keys, _keys(ids, n, own.grams.vocab_size))
            if not here.size:
                break
            found[:, n - 2 :] = own.refine(here, before[:, :-1], p)
            p = lower.refine(here, before[:, :-1], p)[:, 1:]
            before = here
        return np.log(found)

    def _smooth(self, orders: Sequence[Grams]) -> Fit:
        raise NotImplementedError


class WittenBell(Interpolated):
    """A context hands on as many parts as it has different continuations (Witten and Bell 1991, method C).

    p(w|h) = (c(hw) + T(h) p(w|h')) / (c(h) + T(h)), T(h) the different tokens seen after h, h' one token shorter; the
    last resort is the uniform distribution.
    """

    def _smooth(self, orders: Sequence[Grams]) -> Fit:
        levels = [_level(grams, grams.counts, below) for below, grams in pairwise(orders)]
        return Fit(_unigram(orders[0].counts), levels, levels)


class Bigram(WittenBell):
    """From the token before."""

    def __init__(self) -> None:
        super().__init__(2)


class Trigram(WittenBell):
    """From the two tokens before."""

    def __init__(self) -> None:
        super().__init__(3)


class KneserNey(Interpolated):
    """Interpolated modified Kneser–Ney (Chen and Goodman 1998): three discounts a level, read off the counts of counts.

    Levels that others fall back on count in how many contexts an n-gram was seen, not how often; the level of a
    context's full length, at a window's start too, counts occurrences. The last resort is the uniform distribution.
    """

    def _smooth(self, orders: Sequence[Grams]) -> Fit:
        contexts = [_count_contexts(grams, longer) for grams, longer in pairwise(orders)]
        own = [_level(grams, grams.counts, below, _discounts(grams.counts)) for below, grams in pairwise(orders)]
        lower = [
            _level(grams, counts, below, _discounts(counts))
            for (below, grams), counts in zip(pairwise(orders), contexts[1:], strict=False)
        ]
        taken = _discounts(contexts[0])[np.minimum(contexts[0], 3)]
        unigram = (contexts[0] - taken + taken.sum() / len(taken)) / contexts[0].sum()
        return Fit(unigram, own, [*lower, own[-1]])  # nothing falls back on the highest order


class UnigramCache:
    """Frequencies of tokens, mixed with what this window said lately (Kuhn and De Mori 1990).

    p(w) = (1 - λ) p₁(w) + λ Σ δ^age [id = w] / Σ δ^age over the window's past. λ and the half-life of δ are those of
    the least loss on the last fiftieth of the training text, p₁ counted on the rest; afterwards p₁ counts everything.
    """

    def __init__(self) -> None:
        self.weight, self.half_life = 0.0, HALF_LIVES[0]
        self._unigram_V: np.ndarray | None = None

    def fit(self, tokens: np.ndarray, vocab_size: int) -> Self:
        """Count and fit the mixture; arguments and errors of `count_ngrams`, and at least 8 tokens."""
        rows = _rows_of(np.asarray(tokens))
        _checked_ids(rows, vocab_size)
        n_held = min(max(1, len(rows) // 50), -(-_MOST_HELD // rows.shape[1]))
        known = _unigram(np.bincount(rows[:-n_held, 1:].ravel(), minlength=vocab_size))
        held = rows[-n_held:].astype(np.int64)
        own = known[held[:, 1:]]
        best = -np.inf
        for half_life in HALF_LIVES:
            cached = _cached(held, half_life)
            weight = _best_weight(own, cached)
            if (found := np.log((1 - weight) * own + weight * cached).sum()) > best:
                best, self.half_life, self.weight = found, half_life, weight
        self._unigram_V = _unigram(np.bincount(rows[:, 1:].ravel(), minlength=vocab_size))
        return self

    def log_probs(self, ids_BT: np.ndarray) -> np.ndarray:
        """(B, T - 1) natural logs of p(each next id)."""
        if self._unigram_V is None:
            raise InputError("this model has counted nothing: call fit before log_probs")
        ids = _checked_ids(ids_BT, len(self._unigram_V))
        return np.log((1 - self.weight) * self._unigram_V[ids[:, 1:]] + self.weight * _cached(ids, self.half_life))


def evaluate(
    model: Interpolated | UnigramCache, windows: Iterable[np.ndarray], byte_lengths: np.ndarray
) -> HeldOutLoss:
    """Loss over windows of T + 1 ids, each predicting its last T, counted as `evals.loss.held_out_loss` counts.

    Args:
        windows: of any lengths, with ids of the vocabulary. byte_lengths: (V,) bytes of each token.
    """
    nats, n_tokens, n_bytes = 0.0, 0, 0
    for ids in _stacked(windows):
        nats -= float(model.log_probs(ids).sum())
        n_tokens += ids[:, 1:].size
        n_bytes += int(byte_lengths[ids[:, 1:]].sum())
    return HeldOutLoss(nats, n_tokens, n_bytes)


def distinct_rows(batches: Batches, steps: int) -> np.ndarray:
    """(R, T + 1) the windows that a run of `steps` updates reads, in order, each once.

    A window that comes again in a later pass is left out: it tells a count model nothing new, and discounts come from
    what was counted once and twice, which repetition would wipe out.
    """
    rows: dict[bytes, np.ndarray] = {}
    for step in range(steps):
        for row in batches.at(step).astype(np.uint32):
            rows.setdefault(sha256(row).digest(), row)
    return np.stack(list(rows.values()))


def baselines(
    text: TokenisedText,
    windows: Iterable[np.ndarray],
    byte_lengths: np.ndarray,
    *,
    rows: np.ndarray | None = None,
    orders: Sequence[int] = (3, 4, 5),
) -> list[dict[str, Any]]:
    """Loss and bits per byte of every count model, all from one counting.

    Args:
        windows: to evaluate on. byte_lengths: (V,) bytes of each token.
        rows: what the models learn from, for example the `distinct_rows` of a run; None: the whole training text once.
        orders: of Kneser–Ney; those whose keys do not fit the vocabulary are left out.

    Returns: objects with name, val_loss (nats a token) and val_bpb. Errors of `count_ngrams`.
    """
    vocab_size, kept = text.tokenizer.vocab_size, list(windows)
    if rows is None:
        rows = np.asarray(join_streams([named.stream for named in text.streams]).tokens)
    usable = [order for order in orders if order <= highest_order(vocab_size)]
    found = [("unigram cache", evaluate(UnigramCache().fit(rows, vocab_size), kept, byte_lengths))]
    counts = count_ngrams(rows, vocab_size, max([3, *usable]))
    makers: dict[str, Callable[[], Interpolated]] = {"bigram": Bigram, "trigram": Trigram}
    makers |= {f"kneser-ney {order}": partial(KneserNey, order) for order in usable}
    for name, make in makers.items():  # one model at a time in memory
        found.append((name, evaluate(make().fit_counts(counts), kept, byte_lengths)))
    return [{"name": name, "val_loss": loss.loss, "val_bpb": loss.bits_per_byte} for name, loss in found]


def _keys(ids: np.ndarray, order: int, vocab_size: int) -> np.ndarray:
    """(R, T - order + 1) int64: every n-gram of every row as one number."""
    n = max(0, ids.shape[1] - order + 1)
    keys = ids[:, :n].astype(np.int64)
    for offset in range(1, order):
        keys *= vocab_size
        keys += ids[:, offset : offset + n]
    return keys


def _run_starts(ascending: np.ndarray) -> np.ndarray:
    """Where each different value begins."""
    return np.flatnonzero(np.concatenate([[True], ascending[1:] != ascending[:-1]]))


def _places(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where each wanted key stands among the ascending keys; -1 where it does not."""
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, at, -1)


def _level(grams: Grams, counts: np.ndarray, below: Grams, discounts: np.ndarray | None = None) -> Level:
    """Totals and masses of every context; without discounts those of Witten and Bell."""
    contexts = grams.keys // grams.vocab_size
    starts = _run_starts(contexts)
    at = np.searchsorted(below.keys, contexts[starts])
    totals, masses = np.zeros(len(below.keys)), np.zeros(len(below.keys))
    totals[at] = np.add.reduceat(counts, starts)
    if discounts is None:
        masses[at] = np.diff(starts, append=len(counts))
        return Level(grams, counts, totals + masses, masses, np.zeros(4))
    masses[at] = np.add.reduceat(discounts[np.minimum(counts, 3)], starts)
    return Level(grams, counts, totals, masses, discounts)


def _count_contexts(grams: Grams, longer: Grams) -> np.ndarray:
    """(n,) int32 in how many different contexts of one token each n-gram was seen."""
    endings = longer.keys % grams.vocab_size**grams.order
    endings.sort()
    starts = _run_starts(endings)
    found = np.zeros(len(grams.keys), dtype=np.int32)
    found[np.searchsorted(grams.keys, endings[starts])] = np.diff(starts, append=len(endings))
    return found


def _discounts(counts: np.ndarray) -> np.ndarray:
    """(4,) of counts 0, 1, 2, and more; absolute discounting where the text is too small for three of them."""
    n = np.bincount(np.minimum(counts, 5), minlength=6)
    if not n[1] or not n[2]:
        return np.array([0.0, 0.5, 0.5, 0.5])
    y = n[1] / (n[1] + 2 * n[2])
    found = [y, 2 - 3 * y * n[3] / n[2], 3 - 4 * y * n[4] / n[3] if n[3] else y]
    return np.array([0.0, *(discount if discount > 0 else y for discount in found)])


def _unigram(counts: np.ndarray) -> np.ndarray:
    """Of Witten and Bell."""
    n_seen = np.count_nonzero(counts)
    return (counts + n_seen / len(counts)) / (counts.sum() + n_seen)


def _cached(ids: np.ndarray, half_life: float) -> np.ndarray:
    """(B, T - 1) share of each next id in its row's past, weighted by age."""
    length = ids.shape[1]
    ages_TT = np.arange(length - 1)[:, None] - np.arange(length)
    decay_TT = np.where(ages_TT >= 0, 0.5 ** (np.maximum(ages_TT, 0) / half_life), 0.0)
    decay_TT /= decay_TT.sum(1, keepdims=True)
    n_rows = max(1, _AT_ONCE // length**2)
    parts = [ids[row : row + n_rows] for row in range(0, len(ids), n_rows)]
    return np.concatenate([((part[:, 1:, None] == part[:, None, :]) * decay_TT).sum(2) for part in parts])


def _best_weight(own: np.ndarray, cached: np.ndarray) -> float:
    """The share of `cached` with the greatest likelihood, by halving: the log-likelihood is concave in it."""
    low, high = 0.0, 0.999
    for _ in range(30):
        weight = (low + high) / 2
        rising = float(((cached - own) / ((1 - weight) * own + weight * cached)).sum()) > 0
        low, high = (weight, high) if rising else (low, weight)
    return low


def _rows_of(tokens: np.ndarray) -> np.ndarray:
    """At least two rows: as given, or one text cut into rows that share a token with the next."""
    if tokens.ndim == 2 and len(tokens) > 1:
        return tokens
    text = tokens.ravel()
    if len(text) < 8:
        raise InputError(f"tokens: {len(text)} are too few to fit a cache; give at least 8")
    width = min(513, len(text) // 4)
    return np.lib.stride_tricks.sliding_window_view(text, width)[:: width - 1]


def _stacked(windows: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Neighbours of one length as (B, T + 1) arrays of a bounded size."""
    for length, group in groupby(windows, key=len):
        while chunk := list(islice(group, max(1, _MOST_HELD // max(1, length)))):
            yield np.stack(chunk).astype(np.int64)


def _checked_ids(ids: np.ndarray, vocab_size: int) -> np.ndarray:
    ids = np.atleast_2d(ids)
    if ids.dtype.kind not in "iu" or (ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size):
        raise InputError(f"tokens: not all are whole numbers from 0 to {vocab_size - 1}: use the text's own tokenizer")
    return ids
