"""Modular addition from a share of all pairs: learned by heart first, by rule later, if at all.

    a b =
        ↑ (a + b) mod p      counted: the equals sign

There are p² pairs. A fixed shuffle of them (the same for all seeds) gives the first `share` to training and the rest to
validation and test by halves, so that what is tested was never seen; the pair turned round may have been. Training rows
repeat, as there are no others. The rule that trained transformers find is one of rotations (Nanda et al. 2023).

Split: held-out pairs. After Power et al. 2022 (arXiv 2201.02177); Nanda et al. 2023 (arXiv 2301.05217).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from homunculi.errors import InputError
from homunculi.tasks.registry import Dial, Examples, Split, task
from homunculi.tasks.splits import mixed


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % factor for factor in range(2, int(number**0.5) + 1))


def _check(prime: int, **_: Any) -> None:
    if not _is_prime(prime):
        near = next(above for above in range(prime, 2 * prime) if _is_prime(above))
        raise InputError(f"modular_addition.prime: {prime} is no prime; {near} is")


@lru_cache(maxsize=8)
def pairs(prime: int, share: float, split: Split) -> np.ndarray:
    """Numbers a·p + b of the pairs of a split, in a fixed random order. [N] int64."""
    order_N = np.argsort(mixed(np.arange(prime**2)), kind="stable")
    n_train = round(share * prime**2)
    n_valid = (prime**2 - n_train) // 2
    start, stop = {
        "train": (0, n_train),
        "valid": (n_train, n_train + n_valid),
        "test": (n_train + n_valid, prime**2),
    }[split]
    return order_N[start:stop]


@task(
    name="modular_addition",
    title="Modular addition from few pairs",
    question="Is a rule found that gives the pairs which were never seen?",
    source="Power et al. 2022, arXiv 2201.02177; Nanda et al. 2023, arXiv 2301.05217",
    dials={
        "share": Dial(0.6, (0.8, 0.6, 0.4, 0.3), 0.05, 0.95, "share of all pairs that is trained on"),
        "prime": Dial(53, (31, 53, 97, 113), 11, 509, "modulus"),
    },
    swept="share",
    vocabulary=lambda prime, **_: prime + 1,
    length=lambda **_: 3,
    chance=lambda prime, **_: 1 / prime,
    ceiling=lambda **_: 1.0,
    check=_check,
)
def generate(rng: np.random.Generator, n_rows: int, *, split: Split, share: float, prime: int) -> Examples:
    """Rows of one sum each; dials as described by the task."""
    chosen_B = rng.choice(pairs(prime, share, split), size=n_rows)
    a_B, b_B = chosen_B // prime, chosen_B % prime
    ids_BT = np.stack([a_B, b_B, np.full(n_rows, prime)], axis=1)
    targets_BT, counted_BT = np.zeros_like(ids_BT), np.zeros(ids_BT.shape, bool)
    targets_BT[:, 2], counted_BT[:, 2] = (a_B + b_B) % prime, True
    return Examples(ids_BT, targets_BT, counted_BT)
