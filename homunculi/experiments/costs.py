"""What a training run costs, worked out without storing its model.

Models are built on the meta device. Parameters are those beside token tables; FLOPs are those of the whole training
run, of the passes that each update makes (a loop that grows with its validation loss counts as grown from the second
update on: no more than that); tokens are steps · batch_tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from homunculi.core.budget import Budget
from homunculi.core.model import LanguageModel
from homunculi.models import get, name_of
from homunculi.text.tokenizers import make_tokenizer
from homunculi.train.config import RunConfig

QUANTITIES = ("parameters", "flops", "tokens")
_ASKED = 4096  # updates of a run whose costs are asked for, at most


class Cost(NamedTuple):
    """What is matched: parameters beside token tables, FLOPs and tokens of the whole training run."""

    parameters: float
    flops: float
    tokens: float

    def over(self, other: Cost) -> dict[str, float]:
        """The ratio of each to the other's."""
        return {name: mine / theirs for name, mine, theirs in zip(QUANTITIES, self, other, strict=True)}

    def miss(self, target: Cost, wanted: Sequence[str]) -> float:
        """How far the farthest of `wanted` is from the target's, as a share of it."""
        ratios = self.over(target)
        return max((abs(ratios[name] - 1) for name in wanted), default=0.0)


class Stages(NamedTuple):
    """One update for each cost that updates of a run have.

    Attributes:
        steps: of the run.
        shares: a step, and the share of the run's steps that cost as much.
    """

    steps: int
    shares: tuple[tuple[int, float], ...]


def vocabulary_of(config: RunConfig) -> int:
    """The model's vocabulary; where it is left open the tokenizer's, the largest that training one may give.

    Raises:
        InputError: a tokenizer's file is missing or unfit.
    """
    given: int = config.model.vocab_size
    if given or config.text.tokenizer == "bpe":
        return given or config.text.vocab_size
    return make_tokenizer(config.text, iter(())).vocab_size


def complete(config: RunConfig) -> Any:
    """The model's configuration with its vocabulary."""
    return replace(config.model, vocab_size=vocabulary_of(config))


def budget_of(config: RunConfig) -> Budget:
    """Costs of an evaluation at the training context."""
    return _evaluation_budget(complete(config))


def cost_of(config: RunConfig) -> Cost:
    """Costs of the run."""
    model = complete(config)
    return cost_of_shape(model, config, stages_of(model, config.steps))


def cost_of_shape(model: Any, config: RunConfig, stages: Stages) -> Cost:
    """Costs of the run with another model.

    Args:
        model: its configuration, with a vocabulary.
        config: tokens and steps.
        stages: of the run; the same for models that differ in width and number of blocks only.
    """
    parameters, flops = _sizes(model, stages)
    tokens = config.steps * config.batch_tokens
    return Cost(parameters, flops * tokens, tokens)


@lru_cache(maxsize=128)
def stages_of(model: Any, steps: int) -> Stages:
    """Which updates stand for all. They are asked from the last to the first: a loop that grows with its loss is
    grown until it is told of the first."""
    built = _build(model).train()
    if type(built).before_update is LanguageModel.before_update:
        return Stages(1, ((1, 1.0),))
    for most in (16, _ASKED):  # few tell whether updates differ at all
        built, n_asked = _build(model).train(), min(most, steps)
        asked = [steps - i * (steps - 1) // max(1, n_asked - 1) for i in range(n_asked)]
        alike: dict[int, list[int]] = {}
        for step in asked:
            alike.setdefault(_flops_at(built, step, steps), []).append(step)
        if len(alike) == 1:
            break
    return Stages(steps, tuple((same[0], len(same) / len(asked)) for same in alike.values()))


@lru_cache(maxsize=8192)
def _sizes(model: Any, stages: Stages) -> tuple[int, float]:
    """Parameters beside token tables, and training FLOPs of the mean token."""
    built = _build(model).train()
    flops = sum(share * _flops_at(built, step, stages.steps) for step, share in stages.shares)
    return built.budget().non_embedding_parameters, flops


@lru_cache(maxsize=1024)
def _evaluation_budget(model: Any) -> Budget:
    return _build(model).eval().budget()


def _flops_at(built: LanguageModel, step: int, steps: int) -> int:
    """Training FLOPs a token of one update."""
    built.before_update(step, steps)
    return built.budget().training_flops_per_token


def _build(model: Any) -> LanguageModel:
    with torch.device("meta"):
        return get(name_of(model)).model_type(model)
