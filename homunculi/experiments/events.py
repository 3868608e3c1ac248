"""What signals do around chosen words: averages over texts, against matched control words.

Each occurrence of a chosen word is paired with control words of the same text that are about as
frequent (within a factor of two) and stand in the same part of it. A text's difference is the mean over its events less
the mean over their controls, at each lag. If the word meant nothing to a signal, a text's difference would be as often
negative as positive: signs are flipped at random, text by text. `p` is the share of such flips whose largest |t| over
all lags and all signals reaches that of the signal, so that looking at many signals and lags finds nothing by itself.

Legend: S signals, T tokens, L lags, N texts, P permutations.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homunculi.errors import InputError
from homunculi.runs.scans import numbers
from homunculi.text.tokenizers import Tokenizer

WINDOW = 8
FEWEST_TEXTS = 6
MOST_CONTROLS = 4
N_PERMUTATIONS = 2000
_PART = 0.25  # of a text: how far a control may stand from its event
WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
Array = NDArray[np.float64]
Read = Callable[[str], tuple[list[str], Array]]


@dataclass(frozen=True, slots=True)
class Event:
    """Where a chosen word begins, and where its controls do; places of tokens."""

    at: int
    controls: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Average:
    """What signals do around events.

    Attributes:
        names: of the signals.
        lags: tokens from the event on.
        event, control: means over texts, (S, L); difference: of the two in the same texts, where both are known.
        low, high: between them lie 95 % of the differences of flipped signs, (S, L): what chance does.
        peak: the lag of the largest |t| of each signal; t: that.
        p: of each signal, corrected for all lags and all signals.
        n_texts, n_events: with at least one control.
    """

    names: tuple[str, ...]
    lags: tuple[int, ...]
    event: Array
    control: Array
    difference: Array
    low: Array
    high: Array
    peak: tuple[int, ...]
    t: tuple[float, ...]
    p: tuple[float, ...]
    n_texts: int
    n_events: int

    def to_json(self) -> dict[str, Any]:
        arrays = {key: numbers(getattr(self, key)) for key in ("event", "control", "difference", "low", "high")}
        plain = {key: list(getattr(self, key)) for key in ("names", "lags", "peak", "p")}
        return plain | {"t": numbers(self.t)} | arrays | {"n_texts": self.n_texts, "n_events": self.n_events}


def words_of(tokenizer: Tokenizer, text: str) -> list[tuple[str, int]]:
    """Words in small letters, each with the place of the token in which it begins; a scan's start is token 0."""
    ends = np.cumsum([len(tokenizer.token_bytes(i)) for i in tokenizer.encode(text)])
    places = {}
    at = 0
    for i, character in enumerate(text):  # bytes before each character
        places[i] = at
        at += len(character.encode("utf-8"))
    starts = [(match[0].lower(), places[match.start()]) for match in WORD.finditer(text)]
    return [(word, 1 + int(np.searchsorted(ends, start, side="right"))) for word, start in starts]


def find_events(
    texts: Sequence[Sequence[tuple[str, int]]], chosen: Sequence[str], seed: int = 0, window: int = WINDOW
) -> list[list[Event]]:
    """Of each text the events that have a control. A control begins outside the window of every event.

    Args:
        texts: words with places, of each text.
        chosen: words, in any case.
    """
    targets = {word.lower() for word in chosen}
    counts = Counter(word for text in texts for word, _ in text)
    drawn = np.random.default_rng(seed)
    found = []
    for text in texts:
        at = [place for word, place in text if word in targets]
        length = max([place for _, place in text], default=0)
        apart = [
            (word, place) for word, place in text if word not in targets and all(abs(place - e) > window for e in at)
        ]
        events = []
        for word, place in text:
            if word not in targets:
                continue
            alike = [
                other
                for name, other in apart
                if 0.5 <= counts[name] / counts[word] <= 2 and abs(other - place) <= max(_PART * length, 2 * window)
            ]
            if alike:
                picked = drawn.choice(len(alike), size=min(MOST_CONTROLS, len(alike)), replace=False)
                events.append(Event(place, tuple(sorted(alike[i] for i in picked))))
        found.append(events)
    return found


def average_around(
    names: Sequence[str],
    signals: Sequence[Array],
    events: Sequence[Sequence[Event]],
    window: int = WINDOW,
    n_permutations: int = N_PERMUTATIONS,
    seed: int = 0,
) -> Average:
    """Average signals (S, T) of texts around their events; see the top of this file.

    Raises:
        InputError: fewer than `FEWEST_TEXTS` texts have an event with a control.
    """
    used = [(values, mine) for values, mine in zip(signals, events, strict=True) if mine]
    if len(used) < FEWEST_TEXTS:
        raise InputError(
            f"only {len(used)} texts have one of these words and a control for it; {FEWEST_TEXTS} are needed: choose "
            "more frequent words, or more texts"
        )
    event_NSL = np.stack([_mean([_cut(v, e.at, window) for e in mine]) for v, mine in used])
    control_NSL = np.stack([_mean([_cut(v, c, window) for e in mine for c in e.controls]) for v, mine in used])
    difference_NSL = event_NSL - control_NSL
    difference_NSL[:, np.isfinite(difference_NSL).sum(0) < FEWEST_TEXTS] = np.nan
    t_SL, flipped_t_PSL, flipped_PSL = _flip(difference_NSL, n_permutations, seed)
    largest_S = np.nan_to_num(np.abs(t_SL)).max(1)
    chance_P = np.nan_to_num(np.abs(flipped_t_PSL)).max((1, 2))
    p_S = (1 + (chance_P[:, None] >= largest_S - 1e-12).sum(0)) / (1 + n_permutations)
    lags = tuple(range(-window, window + 1))
    band = np.quantile(np.nan_to_num(flipped_PSL), (0.025, 0.975), axis=0)
    unknown = ~np.isfinite(difference_NSL).any(0)
    low_SL, high_SL = (np.where(unknown, np.nan, edge) for edge in band)
    return Average(
        tuple(names),
        lags,
        _mean(list(event_NSL)),
        _mean(list(control_NSL)),
        _mean(list(difference_NSL)),
        low_SL,
        high_SL,
        tuple(lags[int(i)] for i in np.nan_to_num(np.abs(t_SL)).argmax(1)),
        tuple(map(float, largest_S)),
        tuple(map(float, p_S)),
        len(used),
        sum(len(mine) for _, mine in used),
    )


def _cut(values_ST: Array, at: int, window: int) -> Array:
    """(S, L) around a place, NaN beyond the ends of the text."""
    padded = np.pad(values_ST, ((0, 0), (window, window)), constant_values=np.nan)
    return padded[:, at : at + 2 * window + 1]


def _mean(arrays: Sequence[Array]) -> Array:
    """The mean of those known at each place; NaN where none is."""
    stacked = np.stack(arrays)
    known = np.isfinite(stacked)
    with np.errstate(invalid="ignore"):
        return np.where(known, stacked, 0.0).sum(0) / np.where(known.any(0), known.sum(0), np.nan)


def _flip(difference_NSL: Array, n_permutations: int, seed: int) -> tuple[Array, Array, Array]:
    """t of the differences, t and mean of those with signs flipped text by text."""
    known = np.isfinite(difference_NSL)
    filled = np.where(known, difference_NSL, 0.0)
    n_SL = np.maximum(known.sum(0), 2)
    squares_SL = (filled**2).sum(0)
    signs_PN = np.random.default_rng(seed).choice([-1.0, 1.0], size=(n_permutations, len(filled)))

    def t_of(mean: Array) -> Array:
        spread = np.sqrt(np.maximum(squares_SL - n_SL * mean**2, 1e-24) / (n_SL - 1))
        return mean / (spread / np.sqrt(n_SL) + 1e-12)

    mean_PSL = np.tensordot(signs_PN, filled, axes=1) / n_SL
    return t_of(filled.sum(0) / n_SL), t_of(mean_PSL), mean_PSL


def around(read: Read, tokenizer: Tokenizer, texts: Sequence[str], chosen: Sequence[str], seed: int = 0) -> Average:
    """Event averages of a model.

    Args:
        read: a text → names and values (S, T) of its signals (`homunculi.experiments.scan.tracks_of`).
        chosen: words.

    Raises:
        InputError: no word is given, or too few texts have one.
    """
    if not chosen:
        raise InputError("around: give at least one word, as in --around but,however")
    words = [words_of(tokenizer, text) for text in texts]
    events = find_events(words, chosen, seed)
    kept = [(text, mine) for text, mine in zip(texts, events, strict=True) if mine]
    tracks = [read(text) for text, _ in kept]
    names = tracks[0][0] if tracks else ()
    return average_around(names, [values for _, values in tracks], [mine for _, mine in kept], seed=seed)
