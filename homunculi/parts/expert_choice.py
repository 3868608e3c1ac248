"""The router that looks ahead: training takes the highest scores of a sequence, evaluation asks a causal stand-in.

Legend: B batch, T positions, D width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.taps import TapPoint
from .linear import Linear
from .routers import Choice, Router, RoutingOptions, Span, ThresholdRouter, scored, seated

WARMUP_LEVELS = 6  # a compiled model is compiled once for each, and compilers stop at eight


class ExpertChoiceRouter(ThresholdRouter):
    """In training, of those who took the pass before, the ⌊share · T⌋ highest scores of each sequence go on.

    That looks at later tokens. In evaluation, and wherever a cache is read, a threshold of 0 (a probability of one
    half) decides, held against the logit of a stand-in: the score itself or an auxiliary router's. Either learns by the
    cross-entropy of who went on.

    Attributes:
        level: of the warm-up of capacities: 1 at its start, 0 at its end and without one.
    """

    def __init__(
        self, d_model: int, capacities: Sequence[float], burst: int, first_steps: Sequence[int], options: RoutingOptions
    ) -> None:
        super().__init__(d_model, capacities, burst, first_steps, options)
        apart = options.stand_in == "auxiliary"
        self.stand_ins = nn.ModuleDict({str(r): Linear(d_model, 1) for r in self.routed} if apart else {})
        self.level = 0.0

    def choose(
        self, r: int, x_BTD: Tensor, score: Tensor | None, last: Choice | None, span: Span, taps: TapPoint
    ) -> Choice:
        if score is None or not self.training or span.counts is not None:
            return super().choose(r, x_BTD, score, last, span, taps)
        here = taps.at(self.first_steps[r])
        score_BT = here("router.score", score)
        gate_BT = here("router.gate", 2 * torch.sigmoid(score_BT))
        n_places = self.places(r, score_BT.shape[1])
        ranked_BT = score_BT if last is None or last.taking_BT is None else score_BT.where(last.taking_BT, -torch.inf)
        highest_BT = torch.zeros_like(ranked_BT, dtype=torch.bool).scatter(1, ranked_BT.topk(n_places).indices, True)
        taking_BT, count_BT = seated(highest_BT, torch.full_like(highest_BT, n_places, dtype=torch.long), None, here)
        return Choice(taking_BT, count_BT, gate_BT, evidence=self.evidence(r, x_BTD, score_BT, here))

    def evidence(self, r: int, x_BTD: Tensor, score_BT: Tensor, here: TapPoint) -> Tensor:
        if not self.stand_ins:
            return score_BT
        return here("router.stand_in", scored(self.stand_ins[str(r)], x_BTD.detach())[..., 0])

    def places(self, r: int, n_tokens: int) -> int:
        if not self.training:
            return super().places(r, n_tokens)
        share = self.capacities[r] + (1 - self.capacities[r]) * self.level
        return max(1, math.floor(share * n_tokens + 1e-9))

    def statistics(self, choices: Sequence[Choice]) -> dict[str, Tensor]:
        """In training `agreement` instead of `refused`: of the tokens asked, about how many the stand-in was right."""
        found = Router.statistics(self, choices)
        if not self.training or not self.routed:
            return found
        right = [_mean_over(asked, (logit > 0) == taking) for logit, taking, asked in _decisions(choices)]
        return found | {"agreement": torch.stack(right).mean()}

    def loss_terms(self, choices: Sequence[Choice]) -> dict[str, Tensor]:
        if not self.training or not self.routed:
            return {}
        losses = [
            _mean_over(asked, F.binary_cross_entropy_with_logits(logit.float(), taking.float(), reduction="none"))
            for logit, taking, asked in _decisions(choices)
        ]
        return {"stand_in": self.options.stand_in_coefficient * torch.stack(losses).sum()}

    def before_update(self, step: int, steps: int) -> None:
        """The capacities of update `step`, on one of few levels, so that few sizes have to be compiled."""
        warmup = self.options.capacity_warmup_frac * steps
        done = min(1.0, (step - 1) / warmup) if warmup else 1.0
        self.level = math.ceil(WARMUP_LEVELS * 0.5 * (1 + math.cos(math.pi * done)) - 1e-9) / WARMUP_LEVELS

    def after_update(self, statistics: dict[str, Tensor]) -> None:
        """The threshold stays at 0."""


def _decisions(choices: Sequence[Choice]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Of each routed pass: what the stand-in said, who went on, who was asked."""
    asked_BT = None
    for choice in choices:
        if choice.evidence is not None and choice.taking_BT is not None:
            yield choice.evidence, choice.taking_BT, torch.ones_like(choice.taking_BT) if asked_BT is None else asked_BT
            asked_BT = choice.taking_BT


def _mean_over(asked_BT: Tensor, value_BT: Tensor) -> Tensor:
    return (value_BT * asked_BT).sum() / asked_BT.sum()
