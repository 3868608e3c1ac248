"""Whether a model uses its context: loss by position, and loss of tokens that stood in the row before, by distance.

What a token gains from having stood before is the mean loss of the first tokens of its type in their rows less its own
loss. A model that copies from a window gains inside it and nothing beyond: lost context. A type needs a first token and
a later one in the probe; first tokens stand earlier in their rows, where all losses are somewhat higher.

Legend: B rows, T positions, N tokens that were predicted.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from homunculi.instruments.observation import Observation
from homunculi.instruments.registry import instrument
from homunculi.instruments.tokenwise import Mask, Numbers, Places, mean_by, numbers
from homunculi.runs.measures import Measurement

NEAR, FAR = 8, 64
SHUFFLES = 40
FEWEST, SURE = 5, 3.0  # tokens of a band that may say how far recall reaches, and errors that it has to lie above 0


@instrument(
    "recall",
    view="line",
    title="Use of context",
    question="Does more context help, and how far back does a token help its like?",
)
def measure(seen: Observation) -> Measurement | None:
    T = seen.ids_BT.shape[1]
    if T < 2:
        return None
    ids_BT, loss_BT = seen.ids_BT.cpu().numpy(), numbers(seen.surprisals)
    n_bands = len(bands_up_to(T - 1))
    by_position = mean_by(np.tile(band_of(np.arange(1, T)), len(ids_BT)), loss_BT.ravel(), n_bands)
    id_N = ids_BT[:, 1:].ravel()
    distance_N = distances(ids_BT)[:, 1:].ravel()
    gain_N = gains(id_N, loss_BT.ravel(), distance_N)
    there_N = np.isfinite(gain_N)
    band_N = band_of(distance_N[there_N])
    by_distance, error, tokens = _with_errors(band_N, gain_N[there_N], id_N[there_N], n_bands)
    deviation = _by_chance(id_N, loss_BT.ravel(), distance_N)
    values: dict[str, Any] = {
        "loss by position": by_position,
        "recall by distance": by_distance,
        "tokens by distance": tokens,
        "gain of context": np.array(_gain_of_context(loss_BT)),
        "recall": np.array(_mean(gain_N[there_N])),
        "recall null sd": np.array(deviation),
        "recall near": np.array(_mean(gain_N[there_N & (distance_N <= NEAR)])),
        "recall far": np.array(_mean(gain_N[there_N & (distance_N > FAR)])),
        "recall of types": np.array(_by_type(id_N[there_N], gain_N[there_N])),
        "reach of recall": np.array(min(reach(by_distance, error, tokens), T - 1.0)),
    }
    axes = {"recall by distance": ("distance",), "tokens by distance": ("distance",)}
    axes["loss by position"] = ("position",)
    labels = {"distance": bands_up_to(T - 1), "position": bands_up_to(T - 1)}
    units = {name: "nats" for name in values if name.startswith(("loss", "recall", "gain"))}
    return Measurement(values, axes, labels, units | {"reach of recall": "tokens"}, _NOTES)


_NOTES = (
    "recall: mean loss of the first tokens of the same type in their rows, less the loss of a token whose type stood "
    f"before; near: at most {NEAR} tokens before; far: more than {FAR}. Null sd: losses shuffled within types",
    "gain of context: loss in the first eighth of a row less that in its second half",
    "recall of types: every type counts once, so that words that stand everywhere do not drown names",
    f"reach: end of the farthest band, of at least {FEWEST} tokens and {SURE:g} standard errors above 0, that keeps "
    "half of what the best band gains",
)


def distances(ids_BT: Places) -> Places:
    """How many positions before each token its type stood last in the row, (B, T); 0: it did not."""
    found_BT = np.zeros(ids_BT.shape, dtype=np.int64)
    for found_T, ids_T in zip(found_BT, ids_BT, strict=True):
        order = np.argsort(ids_T, kind="stable")
        again = ids_T[order[1:]] == ids_T[order[:-1]]
        found_T[order[1:][again]] = (order[1:] - order[:-1])[again]
    return found_BT


def gains(id_N: Places, loss_N: Numbers, distance_N: Places) -> Numbers:
    """Mean loss of first tokens of the type less own loss, of tokens whose type stood before; else NaN."""
    first_N: Mask = distance_N == 0
    n_types = int(id_N.max(initial=0)) + 1
    fresh_V = mean_by(id_N[first_N], loss_N[first_N], n_types)
    gain_N: Numbers = np.where(first_N, np.nan, fresh_V[id_N] - loss_N)
    return gain_N


def _by_chance(id_N: Places, loss_N: Numbers, distance_N: Places) -> float:
    """Deviation of mean recall when losses are shuffled among tokens of a type."""
    draw = np.random.default_rng(0)
    by_type = np.argsort(id_N, kind="stable")
    found = []
    for _ in range(SHUFFLES):
        shuffled_N = np.empty_like(loss_N)
        shuffled_N[by_type] = loss_N[np.lexsort((draw.random(len(id_N)), id_N))]
        gain_N = gains(id_N, shuffled_N, distance_N)
        found.append(_mean(gain_N[np.isfinite(gain_N)]))
    return float(np.std(found))


def _by_type(id_N: Places, gain_N: Numbers) -> float:
    """Mean over types of the mean gain of each: words that stand everywhere count once."""
    kinds, group_N = np.unique(id_N, return_inverse=True)
    return _mean(mean_by(group_N, gain_N, len(kinds)))


def _with_errors(band_N: Places, gain_N: Numbers, id_N: Places, n_bands: int) -> tuple[Numbers, Numbers, Places]:
    """Of each band the mean gain, its standard error, and how many tokens it has. Tokens of one type are held against
    the same first tokens, so that they err together: errors are those of sums over types."""
    tokens = np.bincount(band_N, minlength=n_bands)
    mean = mean_by(band_N, gain_N, n_bands)
    _, group_N = np.unique(id_N, return_inverse=True)
    n_types = int(group_N.max(initial=-1)) + 1
    off_KT = np.bincount(band_N * n_types + group_N, gain_N - mean[band_N], n_bands * n_types).reshape(n_bands, n_types)
    return mean, np.sqrt((off_KT**2).sum(1)) / np.maximum(tokens, 1), tokens


def reach(gain: Numbers, error: Numbers, tokens: Places) -> float:
    """End of the farthest band whose gain is at least half of the best; NaN where none gains beyond its error."""
    there = (tokens >= FEWEST) & (np.nan_to_num(gain) > SURE * np.nan_to_num(error))
    if not there.any():
        return float("nan")
    best = gain[there].max()
    return float(2 ** int(np.nonzero(there & (np.nan_to_num(gain) >= best / 2))[0][-1]))


def band_of(distance: Places) -> Places:
    """1 is band 0, 2 is 1, 3 and 4 are 2, 5 to 8 are 3, and so on."""
    bands: Places = np.ceil(np.log2(np.maximum(distance, 1))).astype(np.int64)
    return bands


def bands_up_to(most: int) -> tuple[str, ...]:
    """Names of the bands of `band_of` from 1 to `most`."""
    names, low, high = ["1"], 2, 2
    while low <= most:
        names.append(str(low) if high == low else f"{low} to {min(high, most)}")
        low, high = high + 1, 2 * high
    return tuple(names)


def _gain_of_context(loss_BT: Numbers) -> float:
    n = loss_BT.shape[1]
    return float(loss_BT[:, : max(1, n // 8)].mean() - loss_BT[:, n // 2 :].mean())


def _mean(x: Numbers) -> float:
    return float(x.mean()) if len(x) else float("nan")
