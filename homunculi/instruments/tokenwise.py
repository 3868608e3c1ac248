"""Numbers of tokens against each other: ranks, bins of equal mass, correlations over rows, who takes part in a step.

Arrays are float64 on the host, whatever the model computes in and wherever. NaN stands for a token that has no number.

Legend: B rows, T positions, N tokens.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from homunculi.instruments.observation import Observation, Site

Numbers = NDArray[np.float64]
Places = NDArray[np.int64]
Mask = NDArray[np.bool_]
N_BINS = 10
DRAWS = 200


class Correlation(NamedTuple):
    """Spearman's rank correlation over tokens.

    Attributes:
        rho: NaN with fewer than three tokens or where one side does not vary.
        low, high: 95 % bootstrap over rows, ranks held fixed, `widened`; NaN with fewer than three rows.
        null_sd: deviation of rho when one side is shifted along its row by a random distance, which keeps what
            neighbours share and breaks what belongs to a token; NaN where rows are too short to be shifted.
    """

    rho: float
    low: float
    high: float
    null_sd: float

    def scalars(self, name: str) -> dict[str, Any]:
        """As values of a measurement: ``name``, ``name low``, ``name high``, ``name null sd``."""
        ends = {"": self.rho, " low": self.low, " high": self.high, " null sd": self.null_sd}
        return {name + end: np.array(value) for end, value in ends.items()}


def numbers(tensor: Tensor) -> Numbers:
    """A tensor of any type, on any device, as float64 on the host."""
    found: Numbers = tensor.detach().cpu().double().numpy()
    return found


def rank(x_N: Numbers) -> Numbers:
    """Ranks from 0; equal values share their mean rank."""
    _, group_N, sizes = np.unique(x_N, return_inverse=True, return_counts=True)
    ends = np.cumsum(sizes)
    middles: Numbers = ends - (sizes + 1) / 2
    return middles[group_N.reshape(x_N.shape)]


def correlate(a_BT: Numbers, b_BT: Numbers, seed: int = 0) -> Correlation:
    """Spearman's correlation of two numbers a token; where either is NaN the token is left out."""
    there_BT = np.isfinite(a_BT) & np.isfinite(b_BT)
    row_N = np.nonzero(there_BT)[0]
    if len(row_N) < 3:
        return Correlation(np.nan, np.nan, np.nan, np.nan)
    a_N, b_N = (rank(x[there_BT]) for x in (a_BT, b_BT))
    a_N, b_N = a_N - a_N.mean(), b_N - b_N.mean()
    scale = float(np.sqrt((a_N @ a_N) * (b_N @ b_N)))
    if scale == 0:
        return Correlation(np.nan, np.nan, np.nan, np.nan)
    draw = np.random.default_rng(seed)
    shifted = [float(a_N[_shifted(row_N, draw)] @ b_N) / scale for _ in range(DRAWS)]
    rho = float(a_N @ b_N) / scale
    low, high = widened(rho, _over_rows(row_N, a_N, b_N, draw), len(np.unique(row_N)))
    return Correlation(rho, max(low, -1.0), min(high, 1.0), float(np.std(shifted)) or np.nan)


def widened(value: float, bounds: tuple[float, float], n: int) -> tuple[float, float]:
    """Bounds of a percentile bootstrap over n things, as far apart as Student's t asks: over a handful of rows they are
    far too narrow."""
    z, freedom = 1.96, max(1, n - 1)
    t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    wider = t / z * float(np.sqrt(n / freedom))
    return value - wider * (value - bounds[0]), value + wider * (bounds[1] - value)


def _shifted(row_N: Places, draw: np.random.Generator) -> Places:
    """Where each token takes its number from when every row is turned by a distance of its own."""
    _, starts, sizes = np.unique(row_N, return_index=True, return_counts=True)
    turns = draw.integers(sizes)
    group_N = np.repeat(np.arange(len(sizes)), sizes)
    place_N = np.arange(len(row_N)) - starts[group_N]
    found: Places = starts[group_N] + (place_N + turns[group_N]) % sizes[group_N]
    return found


def _over_rows(row_N: Places, a_N: Numbers, b_N: Numbers, draw: np.random.Generator) -> tuple[float, float]:
    """Bounds of the correlation of ranks when rows are drawn again with replacement."""
    _, group_N = np.unique(row_N, return_inverse=True)
    n_rows = int(group_N[-1]) + 1
    if n_rows < 3:
        return np.nan, np.nan
    columns = (np.ones_like(a_N), a_N, b_N, a_N * a_N, b_N * b_N, a_N * b_N)
    sums_RC = np.stack([np.bincount(group_N, column, n_rows) for column in columns], 1)
    times_SR = draw.multinomial(n_rows, np.full(n_rows, 1 / n_rows), DRAWS)
    n, a, b, aa, bb, ab = (times_SR @ sums_RC).T
    with np.errstate(invalid="ignore", divide="ignore"):
        rho_S = (ab - a * b / n) / np.sqrt((aa - a * a / n) * (bb - b * b / n))
    if not np.isfinite(rho_S).any():
        return np.nan, np.nan
    low, high = np.nanquantile(rho_S, [0.025, 0.975])
    return float(low), float(high)


def equal_mass_bins(x_N: Numbers, n_bins: int = N_BINS) -> tuple[Places, int]:
    """Of each number its bin, from the smallest on, and how many bins there are: fewer where there are few numbers.

    Bins differ by one token at most; equal numbers go to bins in their order."""
    n_bins = min(n_bins, len(x_N))
    order_N = np.argsort(x_N, kind="stable")
    bin_N = np.empty(len(x_N), dtype=np.int64)
    bin_N[order_N] = np.arange(len(x_N)) * n_bins // max(1, len(x_N))
    return bin_N, n_bins


def mean_by(bin_N: Places, x_N: Numbers, n_bins: int) -> Numbers:
    """Mean of the numbers of each bin; NaN where it is empty."""
    counts = np.bincount(bin_N, minlength=n_bins)
    with np.errstate(invalid="ignore"):
        means: Numbers = np.bincount(bin_N, x_N, n_bins) / counts
    return means


def takes_part(seen: Observation, site: Site, tensor_BTX: Tensor, path: str = "") -> Mask:
    """Which tokens (B, T) a tensor of a step speaks of.

    Taps inside a pass show every position and hold zero where a token does not take the pass, so the pass's
    `router.taking` (and `paths.<path>.taking`, where a token may go past a part) says whose numbers count. Where a
    tensor holds something at tokens that do not take part, its step lies outside the pass and all count.
    """
    there_BT = np.ones(tuple(tensor_BTX.shape[:2]), dtype=np.bool_)
    says_BT = (tensor_BTX != 0).flatten(2).any(-1).cpu().numpy() if tensor_BTX.dim() > 2 else None
    for name in ("router.taking", f"paths.{path}.taking"):
        same_pass = [t for s, t in seen.sites(name).items() if s.step <= site.step and s.repeat == site.repeat]
        if not same_pass:
            continue
        taking_BT = same_pass[-1].cpu().numpy().astype(np.bool_)
        if says_BT is None or not (says_BT & ~taking_BT).any():
            there_BT &= taking_BT
    return there_BT
