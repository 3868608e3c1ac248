"""Whether signals follow who did what: a sentence against its twin with two words exchanged.

A sentence and its twin with two words exchanged consist of the same words. The phasic distance of
two sentences is the root mean square between their signals over the course of the sentence, each less its own mean, in
deviations of the signal; the tonic distance is that between the means. Both are put beside those of a paraphrase, where
one is given, and of random orders of the same words.

Legend: S signals, T tokens, P points of a sentence's course.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from homunculi.errors import InputError
from homunculi.experiments.events import WORD, Array, Read
from homunculi.runs.scans import numbers

_POINTS = 32  # of a sentence's course
_ORDERS = 20  # random orders of the same words
_FUNCTION_WORDS = frozenset(
    [
        *("a", "an", "the", "this", "that", "these", "those", "and", "or", "but", "is", "are", "was", "were", "be"),
        *("been", "to", "of", "in", "on", "at", "by", "for", "with", "from", "as", "it", "its", "he", "she", "they"),
        *("him", "her", "them", "his", "their", "i", "you", "we", "my", "your", "our", "not", "no", "do", "does"),
        *("did", "has", "have", "had"),
    ]
)


@dataclass(frozen=True, slots=True)
class Pair:
    """A sentence, the same with two words exchanged, and another way to say the sentence, if there is one."""

    sentence: str
    swapped: str
    paraphrase: str | None = None


def read_pair(text: str) -> Pair:
    """``sentence | swapped | paraphrase``; what is left out of a swapped twin is made by `swap_words`.

    Raises:
        InputError: more than three parts, or no two words to exchange.
    """
    parts = [part.strip() for part in text.split("|")]
    if len(parts) > 3 or not parts[0]:
        raise InputError(f"swap: {text!r}: write a sentence, or sentence | swapped | paraphrase")
    swapped = parts[1] if len(parts) > 1 and parts[1] else swap_words(parts[0])
    return Pair(parts[0], swapped, parts[2] if len(parts) > 2 and parts[2] else None)


def swap_words(sentence: str) -> str:
    """The sentence with its first and its last content word exchanged.

    Raises:
        InputError: it has no two of them.
    """
    found = [match for match in WORD.finditer(sentence) if match[0].lower() not in _FUNCTION_WORDS]
    if len(found) < 2 or found[0][0].lower() == found[-1][0].lower():
        raise InputError(f"swap: {sentence!r} has no two words to exchange; write sentence | swapped")
    a, b = found[0], found[-1]
    return sentence[: a.start()] + b[0] + sentence[a.end() : b.start()] + a[0] + sentence[b.end() :]


def distances(a_ST: Array, b_ST: Array, spread_S: Array) -> tuple[Array, Array]:
    """Phasic and tonic distance of two sentences in each signal, (S,), in deviations `spread_S` of the signal."""
    a_SP, b_SP = _course(a_ST), _course(b_ST)
    means = a_SP.mean(1), b_SP.mean(1)
    moving = (a_SP - means[0][:, None]) - (b_SP - means[1][:, None])
    unit = np.maximum(spread_S, 1e-9)
    return np.sqrt((moving**2).mean(1)) / unit, np.abs(means[0] - means[1]) / unit


def _course(values_ST: Array) -> Array:
    """Signals over a sentence, whatever its length, at `_POINTS` places; unknown values lie between known ones."""
    n_tokens = values_ST.shape[1]
    rows = []
    for row in values_ST:
        known = np.isfinite(row)
        at = np.linspace(0, n_tokens - 1, _POINTS)
        rows.append(np.interp(at, np.flatnonzero(known), row[known]) if known.any() else np.zeros(_POINTS))
    return np.stack(rows)


def compare_orders(read: Read, pairs: Sequence[Pair], seed: int = 0) -> dict[str, Any]:
    """Phasic and tonic distances of sentences to their swapped twins, paraphrases and random orders of their words.

    Returns: `names` of the signals, `pairs`, a list, and `mean` over them; each has, by signal, `phasic` and `tonic` of
    `swapped`, `paraphrase` (null where none is given) and `same_words`, and `above`, the share of random orders that
    are nearer to the sentence than its twin is.
    """
    drawn = np.random.default_rng(seed)
    readings: list[tuple[Pair, Array, Array, Array | None, list[Array]]] = []
    names: list[str] = []
    for pair in pairs:
        names, first = read(pair.sentence)
        twin = read(pair.swapped)[1]
        other = None if pair.paraphrase is None else read(pair.paraphrase)[1]
        readings.append((pair, first, twin, other, [read(text)[1] for text in _orders(pair, drawn)]))
    everything = np.concatenate([values for _, *some in readings for values in some[:2]], axis=1)  # type: ignore[misc]
    spread_S = np.nan_to_num(np.nanstd(np.where(np.isfinite(everything), everything, np.nan), axis=1))
    found: list[dict[str, Any]] = []
    for pair, first, twin, other, orders in readings:
        phasic, tonic = distances(first, twin, spread_S)
        shuffled = [distances(first, values, spread_S) for values in orders]
        like = None if other is None else distances(first, other, spread_S)
        found.append(
            {
                "sentence": pair.sentence,
                "swapped": pair.swapped,
                "paraphrase": pair.paraphrase,
                "phasic": _three(phasic, like and like[0], [one[0] for one in shuffled]),
                "tonic": _three(tonic, like and like[1], [one[1] for one in shuffled]),
                "above": numbers(np.mean([one[0] < phasic for one in shuffled], axis=0)) if shuffled else None,
            }
        )
    means = {key: _mean_of([one[key] for one in found]) for key in ("phasic", "tonic")}
    return {"names": names, "pairs": found, "mean": means}


def _orders(pair: Pair, drawn: np.random.Generator) -> list[str]:
    """Random orders of a sentence's words that are neither it nor its twin."""
    words = pair.sentence.split()
    found = {" ".join(words[i] for i in drawn.permutation(len(words))) for _ in range(_ORDERS)}
    return sorted(found - {pair.sentence, pair.swapped})


def _three(swapped: Array, paraphrase: Array | None, same_words: list[Array]) -> dict[str, Any]:
    return {
        "swapped": numbers(swapped),
        "paraphrase": None if paraphrase is None else numbers(paraphrase),
        "same_words": numbers(np.mean(same_words, axis=0)) if same_words else None,
    }


def _mean_of(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    found = {}
    for key in ("swapped", "paraphrase", "same_words"):
        rows = [part[key] for part in parts if part[key] is not None]
        found[key] = numbers(np.mean(np.array(rows, dtype=float), axis=0)) if rows else None
    return found
