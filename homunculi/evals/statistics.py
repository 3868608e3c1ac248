"""What a comparison may say: paired intervals over seeds, verdicts, curves, ladders of sizes, bootstraps over items.

Over seeds the interval is Student's, on the differences of runs that share a seed: with three to eight seeds a
percentile bootstrap finds differences between identical systems far more often than it admits, so it is kept for
documents and items, of which there are many. Losses and bits per byte are better when lower.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from homunculi.errors import InputError

Numbers = Sequence[float] | np.ndarray
Verdict = Literal["better", "worse", "no difference shown"]
FEWEST_ITEMS = 10  # with fewer a percentile bootstrap is far too narrow


@dataclass(frozen=True, slots=True)
class Interval:
    """The mean of n paired differences, its t interval in the same unit, and the two-sided p of no difference."""

    difference: float
    low: float
    high: float
    n: int
    p: float


@dataclass(frozen=True, slots=True)
class ItemInterval:
    """A mean over documents or items with its percentile bootstrap interval; n items."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class PowerLaw:
    """loss = floor + coefficient · size^-exponent.

    Attributes:
        exponent: positive where loss falls with size. low, high: its t interval.
        coefficient: at size 1.
        floor: the loss of an endless size; 0 where none was fitted.
        n: points.
        residual: standard deviation of what is left, of the log of the loss (no floor) or of the loss (floor).
    """

    exponent: float
    low: float
    high: float
    coefficient: float
    floor: float
    n: int
    residual: float

    def at(self, size: float) -> float:
        """The loss that the law gives a size."""
        return self.floor + self.coefficient * size**-self.exponent


def paired_interval(a: Numbers, b: Numbers, level: float = 0.95) -> Interval:
    """The mean of b - a with its t interval of n - 1 degrees of freedom.

    Args:
        a, b: the same measurement of two systems; place i of both is the same seed on the same batches.
        level: of the interval, in (0, 1).

    Returns: differences that are all equal have no spread: low = high = difference, and p is 0, or 1 if it is zero.

    Raises:
        InputError: fewer than two pairs, unequal lengths, or a value that is not finite.
    """
    _check_level(level)
    first, second = _numbers("a", a), _numbers("b", b)
    if len(first) != len(second):
        raise InputError(f"{len(first)} values of a and {len(second)} of b: give one of each for every seed")
    n = len(first)
    if n < 2:
        raise InputError(f"{n} seed a side shows no spread: run at least 2 seeds a side, and 5 for a claim (--seeds 5)")
    differences = second - first
    equal = bool((differences == differences[0]).all())
    difference = float(differences[0] if equal else differences.mean())
    error = 0.0 if equal else float(differences.std(ddof=1)) / math.sqrt(n)
    if not error:
        return Interval(difference, difference, difference, n, 0.0 if difference else 1.0)
    reach = t_quantile(0.5 + level / 2, n - 1) * error
    p = min(1.0, 2 * t_tail(abs(difference) / error, n - 1))
    return Interval(difference, difference - reach, difference + reach, n, p)


def verdict(
    interval: Interval, *, lower_is_better: bool = True, alpha: float = 0.05, adjusted_p: float | None = None
) -> Verdict:
    """What may be said of b against a.

    Args:
        interval: of b - a.
        lower_is_better: true of losses, false of accuracies.
        alpha: the largest share of identical systems that may be told apart.
        adjusted_p: `holm`'s, where several pairs are judged together; it takes the place of the interval's own.
    """
    p = interval.p if adjusted_p is None else adjusted_p
    if not p < alpha or interval.difference == 0:
        return "no difference shown"
    return "better" if (interval.difference < 0) == lower_is_better else "worse"


def holm(p_values: Numbers) -> list[float]:
    """Adjusted p of several hypotheses judged together (Holm 1979): rejecting those below α errs at all in at most α.

    Returns: in the order given, never below the given p, in the given order of size, at most 1.

    Raises:
        InputError: a p outside [0, 1].
    """
    p = _numbers("p_values", p_values)
    if ((p < 0) | (p > 1)).any():
        raise InputError(f"p_values: {list(p_values)} are not all in [0, 1]: give probabilities")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return [float(value) for value in adjusted]


def t_tail(t: float, degrees: float) -> float:
    """P(T > t) of Student's distribution, through the incomplete beta function (DLMF 8.17).

    Raises:
        InputError: degrees of freedom that are not above 0.
    """
    if not degrees > 0 or math.isnan(t):
        raise InputError(f"t distribution: t = {t} with {degrees} degrees of freedom; there must be more than 0")
    square = t * t
    if math.isinf(square):
        return 0.0 if t > 0 else 1.0
    x, y = degrees / (degrees + square), square / (degrees + square)
    tail = 0.5 * _incomplete_beta(degrees / 2, 0.5, x, y)
    return tail if t >= 0 else 1.0 - tail


@lru_cache(maxsize=256)
def t_quantile(probability: float, degrees: float) -> float:
    """The t that Student's distribution stays below with the given probability.

    Raises:
        InputError: a probability outside (0, 1) or degrees of freedom that are not above 0.
    """
    if not 0 < probability < 1:
        raise InputError(f"t quantile: probability {probability} must lie between 0 and 1")
    if probability < 0.5:
        return -t_quantile(1 - probability, degrees)
    beyond = 1 - probability
    low, high = 0.0, 1.0
    while t_tail(high, degrees) > beyond:
        low, high = high, high * 2
    while low < (middle := (low + high) / 2) < high:  # until two neighbouring floats enclose it
        if t_tail(middle, degrees) > beyond:
            low = middle
        else:
            high = middle
    return high


def _incomplete_beta(a: float, b: float, x: float, y: float) -> float:
    """Regularised I_x(a, b), y being 1 - x without its rounding."""
    if x <= 0 or y <= 0:
        return 0.0 if x <= 0 else 1.0
    log_front = a * math.log(x) + b * math.log(y) + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    if x > (a + 1) / (a + b + 2):  # where the fraction converges slowly, take the other side's
        return 1.0 - math.exp(log_front) * _beta_fraction(b, a, y) / b
    return math.exp(log_front) * _beta_fraction(a, b, x) / a


def _beta_fraction(a: float, b: float, x: float) -> float:
    """The continued fraction of DLMF 8.17.22, evaluated forwards by Lentz's method."""
    value, above, below = 1.0, 1.0, 0.0
    for i in range(1, 100_000):
        m = i // 2
        if i % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        below = 1.0 / (1.0 + term * below or 1e-300)
        above = 1.0 + term / above or 1e-300
        value *= above * below
        if abs(above * below - 1.0) < 1e-15:
            break
    return 1.0 / value


def area_under(tokens: Numbers, losses: Numbers) -> float:
    """Area under a curve of losses over tokens, divided by the tokens it spans: its mean height, in the loss's unit.

    Args:
        tokens: (n,) strictly increasing, n at least 2.
        losses: (n,), joined by straight lines.

    Raises:
        InputError: fewer than two points, tokens that do not increase, unequal lengths, values that are not finite.
    """
    x, y = _curve(tokens, losses)
    if len(x) < 2:
        raise InputError("losses: a curve of 1 point has no area; evaluate at least twice (lower eval_every)")
    return float(((y[1:] + y[:-1]) / 2 * np.diff(x)).sum() / (x[-1] - x[0]))


def tokens_to_reach(tokens: Numbers, losses: Numbers, target: float) -> float | None:
    """Tokens at which a curve, joined by straight lines, first comes down to `target`; None where it never does.

    A curve that starts at or below the target has reached it at its first point.

    Raises:
        InputError: as `area_under`, but one point is enough.
    """
    x, y = _curve(tokens, losses)
    if not (y <= target).any():
        return None
    i = int(np.argmax(y <= target))
    if i == 0:
        return float(x[0])
    share = (y[i - 1] - target) / (y[i - 1] - y[i])
    return float(x[i - 1] + share * (x[i] - x[i - 1]))


def fit_power_law(sizes: Numbers, losses: Numbers, level: float = 0.95) -> PowerLaw:
    """loss = c · size^-exponent: a straight line through the logs, by least squares, t interval of n - 2 degrees.

    The choice for a ladder of four sizes: with a floor as well, three numbers are read off four points, one degree of
    freedom is left (its t quantile is 12.7) and floor and exponent trade places almost freely. Without one, the
    exponent is the slope over the range that was measured, and says nothing of sizes beyond it.

    Args:
        sizes: above 0, at least three different ones; a size may occur once for each seed.
        losses: above 0.
        level: of the interval, in (0, 1).

    Raises:
        InputError: too few sizes, or values that are not above 0.
    """
    _check_level(level)
    x, y = (np.log(values) for values in _ladder(sizes, losses, fewest=3))
    centred = x - x.mean()
    slope = float(centred @ y / (centred @ centred))
    rest = y - y.mean() - slope * centred
    residual = math.sqrt(float(rest @ rest) / (len(x) - 2))
    reach = t_quantile(0.5 + level / 2, len(x) - 2) * residual / math.sqrt(float(centred @ centred))
    coefficient = math.exp(float(y.mean() - slope * x.mean()))
    return PowerLaw(-slope, -slope - reach, -slope + reach, coefficient, 0.0, len(x), residual)


def fit_power_law_with_floor(sizes: Numbers, losses: Numbers, level: float = 0.95) -> PowerLaw:
    """loss = floor + c · size^-exponent by least squares of the loss, floor and c not below 0; for five sizes or more.

    For every exponent the best floor and c are a linear problem, so one number is searched. The interval is the
    linearised one of n - 3 degrees of freedom, of n - 2 where the best floor is 0.

    Raises:
        InputError: fewer than four sizes, values that are not above 0, or losses that do not fall with size.
    """
    _check_level(level)
    x, y = _ladder(sizes, losses, fewest=4)
    middle = math.exp(float(np.log(x).mean()))
    logs = np.log(x / middle)
    exponent = _search(lambda alpha: _with_floor(logs, y, alpha)[2])
    floor, scale, error = _with_floor(logs, y, exponent)
    if scale <= 0:
        raise InputError("losses do not fall with size: fit no floor, fit_power_law gives the slope")
    powers = np.exp(-exponent * logs)
    columns = [-scale * powers * logs, powers] + ([np.ones_like(logs)] if floor > 0 else [])
    slopes = np.stack(columns, axis=1)
    degrees = len(x) - len(columns)
    spread = math.sqrt(error / degrees)
    reach = t_quantile(0.5 + level / 2, degrees) * spread * math.sqrt(float(np.linalg.pinv(slopes.T @ slopes)[0, 0]))
    coefficient = scale * middle**exponent
    return PowerLaw(exponent, exponent - reach, exponent + reach, coefficient, floor, len(x), spread)


def _with_floor(logs: np.ndarray, y: np.ndarray, exponent: float) -> tuple[float, float, float]:
    """Best floor and scale for an exponent, and the squared error they leave."""
    powers = np.exp(-exponent * logs)
    centred = powers - powers.mean()
    scale = float(centred @ y / (centred @ centred))
    floor = float(y.mean() - scale * powers.mean())
    if floor < 0:
        floor, scale = 0.0, float(powers @ y / (powers @ powers))
    if scale < 0:
        floor, scale = float(y.mean()), 0.0
    rest = y - floor - scale * powers
    return floor, scale, float(rest @ rest)


def _search(error_of: Callable[[float], float]) -> float:
    """The exponent of least error: a grid, then a golden section around its best point."""
    grid = np.geomspace(1e-3, 8.0, 400)
    best = int(np.argmin([error_of(float(alpha)) for alpha in grid]))
    left, right = float(grid[max(0, best - 1)]), float(grid[min(len(grid) - 1, best + 1)])
    golden = (math.sqrt(5) - 1) / 2
    for _ in range(80):
        a, b = right - golden * (right - left), left + golden * (right - left)
        left, right = (left, b) if error_of(a) < error_of(b) else (a, right)
    return (left + right) / 2


def bootstrap_interval(
    values: Numbers,
    level: float = 0.95,
    seed: int = 0,
    n_draws: int = 2000,
    weights: Numbers | None = None,
) -> ItemInterval:
    """A mean over documents or items with its percentile bootstrap interval (Efron 1979). Never for seeds.

    Args:
        values: (n,) one of each document or item; for a paired comparison the differences.
        seed: of the draws. n_draws: resamplings, at least 100.
        weights: (n,) none below 0; the statistic is then Σ values / Σ weights, so bits of each document with its bytes
            give bits per byte. None: the plain mean.

    Raises:
        InputError: fewer than ten items, unequal lengths, values that are not finite, weights that sum to 0.
    """
    _check_level(level)
    items = _numbers("values", values)
    if len(items) < FEWEST_ITEMS:
        raise InputError(
            f"values: {len(items)} are too few for a bootstrap: give at least {FEWEST_ITEMS} documents or items, "
            "or use paired_interval for seeds"
        )
    if n_draws < 100:
        raise InputError(f"n_draws: {n_draws} are too few for an interval: use at least 100")
    shares = np.ones(len(items)) if weights is None else _numbers("weights", weights)
    if len(shares) != len(items) or (shares < 0).any() or shares.sum() == 0:
        raise InputError(f"weights: give one for each of the {len(items)} values, none below 0 and some above")
    drawn = _resampled(items, shares, np.random.default_rng(seed), n_draws)
    low, high = np.quantile(drawn, [0.5 - level / 2, 0.5 + level / 2])
    return ItemInterval(float(items.sum() / shares.sum()), float(low), float(high), len(items))


def _resampled(items: np.ndarray, shares: np.ndarray, random: np.random.Generator, n_draws: int) -> np.ndarray:
    """(n_draws,) ratios of sums over items drawn with replacement, a bounded number of items at once."""
    at_once = max(1, 4_000_000 // len(items))
    ratios = []
    for start in range(0, n_draws, at_once):
        chosen = random.integers(len(items), size=(min(at_once, n_draws - start), len(items)))
        sums = shares[chosen].sum(1)
        ratios.append(items[chosen].sum(1)[sums > 0] / sums[sums > 0])
    return np.concatenate(ratios)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise InputError(f"level: {level} must lie between 0 and 1, for example 0.95")


def _numbers(name: str, values: Numbers) -> np.ndarray:
    try:
        found = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: not all are numbers: give one row of numbers") from error
    if found.ndim != 1:
        raise InputError(f"{name}: has {found.ndim} dimensions: give one row of numbers")
    (broken,) = np.nonzero(~np.isfinite(found))
    if len(broken):
        at = int(broken[0])
        raise InputError(f"{name}: value {at} is {found[at]}: leave it out on every side or measure it again")
    return found


def _curve(tokens: Numbers, losses: Numbers) -> tuple[np.ndarray, np.ndarray]:
    x, y = _numbers("tokens", tokens), _numbers("losses", losses)
    if len(x) != len(y) or not len(x):
        raise InputError(f"a curve of {len(x)} tokens and {len(y)} losses: give one loss for each count of tokens")
    if (np.diff(x) <= 0).any():
        raise InputError("tokens: do not increase along the curve: give every count once, in order")
    return x, y


def _ladder(sizes: Numbers, losses: Numbers, fewest: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = _numbers("sizes", sizes), _numbers("losses", losses)
    if len(x) != len(y):
        raise InputError(f"{len(x)} sizes and {len(y)} losses: give one loss for each size")
    if (x <= 0).any() or (y <= 0).any():
        raise InputError("sizes and losses of a power law must all be above 0")
    if len(np.unique(x)) < fewest:
        raise InputError(f"sizes: {len(np.unique(x))} different ones do not show this law: measure at least {fewest}")
    return x, y
