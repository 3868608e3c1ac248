"""What a model costs: parameters four ways, FLOPs and cache bytes a token; and the size that costs a given amount."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

from torch import nn

from ..errors import InputError


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """Counts of one configuration.

    A model counts the forward of its mode where the two differ: random passes, or places of a gathered block, are those
    of its present update in training mode.

    Attributes:
        parameters: stored parameters, each counted once.
        embedding_parameters: those of token tables that only look up or read out tokens.
        executed_parameters: parameters that multiply activations for one token, counted at each application (a
            block applied three times counts three times; a token table that is only looked up counts 0, as the
            read-out it counts). Where not every token takes part: the mean over a sequence.
        flops_per_token: forward FLOPs a token at full context, a multiply-add as two; attention is counted over
            the whole square, as `torch.utils.flop_counter` does.
        cache_bytes_per_token: bytes of decoding cache that each token adds, in bfloat16.
        forward_only_flops_per_token: part of `flops_per_token` through which training sends no gradient back.
    """

    parameters: int
    embedding_parameters: int
    executed_parameters: int
    flops_per_token: int
    cache_bytes_per_token: int
    forward_only_flops_per_token: int = 0

    @property
    def non_embedding_parameters(self) -> int:
        return self.parameters - self.embedding_parameters

    @property
    def training_flops_per_token(self) -> int:
        """Forward and backward; the backward of a product is two products of the same size."""
        return 3 * self.flops_per_token - 2 * self.forward_only_flops_per_token

    def to_json(self) -> dict[str, int]:
        return asdict(self) | {"non_embedding_parameters": self.non_embedding_parameters}


def count_parameters(module: nn.Module) -> int:
    """Stored parameters, a shared tensor once."""
    return sum(parameter.numel() for parameter in module.parameters())


def fit(
    size_of: Callable[[int], float], target: float, *, low: int, high: int, step: int = 1, tolerance: float = 0.01
) -> int:
    """The number from `low` to `high`, in steps of `step`, whose size is nearest to `target`.

    Args:
        size_of: does not fall as the number rises; asked about a few numbers only.
        target: above 0.
        tolerance: how far the size may be from the target, as a share of it.

    Raises:
        InputError: no number comes that near, or the range is empty.
    """
    number, size = nearest(size_of, target, low=low, high=high, step=step)
    if abs(size - target) > tolerance * target:
        raise InputError(
            f"budget: no number from {low} to {high} in steps of {step} comes within {100 * tolerance:g} % of "
            f"{target:,.0f}; the nearest, {number}, gives {size:,.0f}"
        )
    return number


def nearest(size_of: Callable[[int], float], target: float, *, low: int, high: int, step: int = 1) -> tuple[int, float]:
    """As `fit`, however near it comes: the number and its size. Of two that are equally near, the smaller number.

    Raises:
        InputError: the range is empty, or the target not above 0.
    """
    if step < 1 or low > high or not target > 0:
        raise InputError(f"budget: no search from {low} to {high} in steps of {step} for {target}; give target above 0")
    below, above = (0, size_of(low)), ((high - low) // step, 0.0)
    above = (above[0], size_of(low + step * above[0]) if above[0] else below[1])
    narrowing = 0
    while above[0] - below[0] > 1 and below[1] < target < above[1]:
        # Sizes grow almost evenly, so the straight line is followed, and every third time the middle is taken.
        share = (target - below[1]) / (above[1] - below[1]) if narrowing % 3 < 2 else 0.5
        guess = below[0] + round(share * (above[0] - below[0]))
        guess = min(above[0] - 1, max(below[0] + 1, guess))
        found = guess, size_of(low + step * guess)
        below, above = (found, above) if found[1] <= target else (below, found)
        narrowing += 1
    index, size = min(below, above, key=lambda pair: abs(pair[1] - target))
    return low + step * index, size
