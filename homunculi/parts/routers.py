"""Routers of passes: which tokens take another pass through shared blocks, and with what weight.

Three of them (Bae et al. 2025, section 2.2, here with updates of the form x + gate · (block(x) − x)):

- threshold: a token goes on where its score is above a threshold that adapts to hold a target share. Causal.
- token choice: a token chooses its number of passes once, at the start. Causal.
- expert choice (`homunculi.parts.expert_choice`): training takes the highest scores of a sequence, which looks at later
  tokens; evaluation asks a causal stand-in that learned to say what training takes.

All are bound by the same quotas (`homunculi.parts.routing`): who goes on while the quota is used up is left out.
A pass whose share is 1 has no router: everybody takes it.

Legend: B batch, T positions of this call, D width, R passes, E depths on offer.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..core.taps import TapPoint
from ..errors import InputError
from ..settings import check_range
from .linear import Linear
from .routing import Quota, admit

RouterKind = Literal["threshold", "token_choice", "expert_choice"]

_SCORE_STD = 0.5  # of the scores of a new router, whose inputs have mean square 1


_WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda score_BTE: score_BTE.softmax(-1),
    "sigmoid": lambda score_BTE: score_BTE.sigmoid(),
    "centred": lambda score_BTE: 2 * score_BTE.sigmoid(),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class RoutingOptions:
    """What the routers can be told beside their shares.

    Attributes:
        threshold_rate: step of a threshold, in deviations of the scores, for a share that is wrong by 1 (threshold).
        gate: of a score s that is above its threshold t, centred: 2σ(s − t), from 1 on; rising: tanh(2 (s − t)), from 0
            on, so that who is just above differs little from who is just below (threshold).
        depth_weight: the weights of the depths on offer compete (softmax) or stand each by itself: sigmoid; centred,
            twice that, so that a new model's updates have their full size (token choice).
        balance: keep to the shares by a loss, or without one by a bias of the choice (token choice).
        balance_coefficient: of that loss; balance_rate: step of that bias.
        stand_in: what decides in evaluation: the router's own score, taught by a loss beside its main task, or an
            auxiliary router that changes nothing else (expert choice).
        stand_in_coefficient: of the loss that teaches it.
        capacity_warmup_frac: part of the run in which the shares fall from 1 along half a cosine, in six steps
            (expert choice); 0: none.
    """

    threshold_rate: float = 0.5
    gate: Literal["centred", "rising"] = "centred"
    depth_weight: Literal["softmax", "sigmoid", "centred"] = "softmax"
    balance: Literal["loss", "loss_free"] = "loss"
    balance_coefficient: float = 0.1
    balance_rate: float = 1e-3
    stand_in: Literal["score", "auxiliary"] = "score"
    stand_in_coefficient: float = 0.03
    capacity_warmup_frac: float = 0.0

    def __post_init__(self) -> None:
        for name in ("threshold_rate", "balance_coefficient", "balance_rate", "stand_in_coefficient"):
            check_range(f"model.routing.{name}", getattr(self, name), low=0.0)
        check_range("model.routing.capacity_warmup_frac", self.capacity_warmup_frac, low=0.0, high=1.0)
        for name, known in (
            ("gate", ("centred", "rising")),
            ("depth_weight", ("softmax", "sigmoid", "centred")),
            ("balance", ("loss", "loss_free")),
            ("stand_in", ("score", "auxiliary")),
        ):
            if getattr(self, name) not in known:
                raise InputError(f"model.routing.{name}: {getattr(self, name)!r} is none of {', '.join(known)}")


def check_capacities(capacities: Sequence[float], n_passes: int) -> None:
    """Refuse shares that no hierarchy of passes can have.

    Raises:
        InputError: not one for each pass, outside (0, 1], or increasing.
    """
    if len(capacities) != n_passes:
        raise InputError(f"model.capacities: {len(capacities)} shares for {n_passes} passes; give one for each")
    for share, before in zip(capacities, (1.0, *capacities), strict=False):
        check_range("model.capacities", share, above=0.0, high=1.0)
        if share > before:
            raise InputError(f"model.capacities: {share} after {before}; a pass takes only who took the one before")


class Span(NamedTuple):
    """Where the tokens of a call stand.

    Attributes:
        positions_BT: in their sequences; one row if all are alike.
        valid_BT: False where a token is padding; None: all are valid.
        counts: of each pass, how many tokens (B,) took it in earlier calls; None: there were none.
    """

    positions_BT: Tensor
    valid_BT: Tensor | None = None
    counts: tuple[Tensor | None, ...] | None = None


class Choice(NamedTuple):
    """Who takes part in a pass.

    Attributes:
        taking_BT: who does; None: everybody.
        count_BT: how many do up to and with each token, earlier calls included; None: everybody.
        gate_BT: weight of the update; None: 1.
        wants_BT: who would have taken part without a quota.
        evidence: what the router decided by: scores (B, T), or weights of the depths on offer (B, T, E).
        stop_BT: after how many passes a token stops, where that is chosen at the start.
    """

    taking_BT: Tensor | None = None
    count_BT: Tensor | None = None
    gate_BT: Tensor | None = None
    wants_BT: Tensor | None = None
    evidence: Tensor | None = None
    stop_BT: Tensor | None = None


class Router(nn.Module):
    """What all routers share: quotas, admission, and what is counted.

    Args:
        capacities: share of the tokens that take each pass, not increasing.
        burst: places beyond the share, see `Quota`.
        first_steps: the schedule's step at which each pass begins: its taps lie there.
    """

    def __init__(self, capacities: Sequence[float], burst: int, first_steps: Sequence[int]) -> None:
        super().__init__()
        self.capacities, self.first_steps = tuple(capacities), tuple(first_steps)
        self.quotas = tuple(Quota(share, burst) for share in capacities)

    @property
    def routed(self) -> list[int]:
        """The passes that not everybody takes."""
        return [r for r, share in enumerate(self.capacities) if share < 1]

    def places(self, r: int, n_tokens: int) -> int:
        """The most tokens of a sequence of `n_tokens` that take part in pass `r`."""
        return self.quotas[r].of_first(n_tokens)

    def forward(self, r: int, x_BTD: Tensor, last: Choice | None, span: Span, taps: TapPoint) -> Choice:
        """Who takes part in pass `r`, given the choice before it (None: `r` is the first)."""
        return self.choose(r, x_BTD, self.score(r, x_BTD), last, span, taps)

    @abstractmethod
    def score(self, r: int, x_BTD: Tensor) -> Tensor | None:
        """What pass `r` is decided by; None: nothing, here."""

    @abstractmethod
    def choose(
        self, r: int, x_BTD: Tensor, score: Tensor | None, last: Choice | None, span: Span, taps: TapPoint
    ) -> Choice:
        """As `forward`, by a given score: what else should count may be added to it."""

    def init_weights(self) -> None:
        """Normal weights, so that scores have a standard deviation of one half."""
        for linear in self.modules():
            if isinstance(linear, Linear):
                nn.init.normal_(linear.weight, std=_SCORE_STD * linear.in_features**-0.5)

    def admitted(
        self, r: int, wants_BT: Tensor, last: Choice | None, span: Span, taps: TapPoint
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of those who want to, may (they took the pass before) and find a place: who wants, who takes part, counts."""
        if last is not None and last.taking_BT is not None:
            wants_BT = wants_BT & last.taking_BT
        if span.valid_BT is not None:
            wants_BT = wants_BT & span.valid_BT
        before_B = None if span.counts is None else span.counts[r]
        quota_BT = self.quotas[r].at(span.positions_BT)
        return wants_BT, *seated(wants_BT, quota_BT, before_B, taps.at(self.first_steps[r]))

    def statistics(self, choices: Sequence[Choice]) -> dict[str, Tensor]:
        """Shares of the tokens: who takes each routed pass, who was refused one; mean number of passes."""
        taken = {f"taking_pass_{r + 1}": _mean(c.taking_BT) for r, c in enumerate(choices) if c.taking_BT is not None}
        if not taken:
            return {}
        pairs = [(c.wants_BT, c.taking_BT) for c in choices]
        refused = [_mean(wants & ~taking) for wants, taking in pairs if wants is not None and taking is not None]
        depth = len(choices) - len(taken) + torch.stack([*taken.values()]).sum()
        return taken | {"mean_depth": depth} | ({"refused": torch.stack(refused).sum()} if refused else {})

    def loss_terms(self, choices: Sequence[Choice]) -> dict[str, Tensor]:
        """What the router adds to the cross-entropy."""
        return {}

    def before_update(self, step: int, steps: int) -> None:
        """See `LanguageModel.before_update`."""

    def after_update(self, statistics: dict[str, Tensor]) -> None:
        """See `LanguageModel.after_update`."""


class ThresholdRouter(Router):
    """Each routed pass has a score w · x / rms(x); who has one above the threshold wants to take part.

    The gate (`RoutingOptions.gate`) grows with the score above the threshold: the way on which scores learn. After
    each update the thresholds follow what was measured in it: they move with the mean score, which a learning router
    can shift by much in one update, and by rate · deviation of the scores · (share that wanted to − capacity).

    Attributes:
        threshold_R: buffer, one a pass.
        mean_R: buffer, the mean scores that the thresholds have followed.
    """

    threshold_R: Tensor
    mean_R: Tensor
    capacity_R: Tensor

    def __init__(
        self, d_model: int, capacities: Sequence[float], burst: int, first_steps: Sequence[int], options: RoutingOptions
    ) -> None:
        super().__init__(capacities, burst, first_steps)
        self.options = options
        self.scores = nn.ModuleDict({str(r): Linear(d_model, 1) for r in self.routed})
        self.register_buffer("threshold_R", torch.zeros(len(self.capacities)))
        self.register_buffer("mean_R", torch.zeros(len(self.capacities)))
        self.register_buffer("capacity_R", torch.tensor(self.capacities), persistent=False)

    def score(self, r: int, x_BTD: Tensor) -> Tensor | None:
        """Scores (B, T) of a routed pass; None of one that everybody takes."""
        return scored(self.scores[str(r)], x_BTD)[..., 0] if str(r) in self.scores else None

    def choose(
        self, r: int, x_BTD: Tensor, score: Tensor | None, last: Choice | None, span: Span, taps: TapPoint
    ) -> Choice:
        if score is None:
            return Choice()
        here = taps.at(self.first_steps[r])
        score_BT = here("router.score", score)
        threshold = self.threshold_R[r]
        above_BT = score_BT - threshold
        gate_BT = torch.tanh(2 * above_BT) if self.options.gate == "rising" else 2 * torch.sigmoid(above_BT)
        gate_BT = here("router.gate", gate_BT.to(score_BT.dtype))
        evidence_BT = self.evidence(r, x_BTD, score_BT, here)
        wants_BT, taking_BT, count_BT = self.admitted(r, evidence_BT > threshold, last, span, taps)
        return Choice(taking_BT, count_BT, gate_BT, wants_BT, evidence_BT)

    def evidence(self, r: int, x_BTD: Tensor, score_BT: Tensor, here: TapPoint) -> Tensor:
        """What is held against the threshold."""
        return score_BT

    def statistics(self, choices: Sequence[Choice]) -> dict[str, Tensor]:
        """Those of all routers, and what the thresholds follow: `wanting`, `score_mean`, `score_deviation` (R each)."""
        if not self.routed:
            return {}
        rows = []
        for r, choice in enumerate(choices):
            if choice.wants_BT is None or choice.evidence is None:
                rows.append(torch.stack([self.capacity_R[r], self.mean_R[r], torch.ones_like(self.mean_R[r])]))
            else:
                score = choice.evidence.detach().float()
                rows.append(torch.stack([_mean(choice.wants_BT), score.mean(), score.std(correction=0)]))
        followed = dict(zip(("wanting", "score_mean", "score_deviation"), torch.stack(rows, 1), strict=True))
        return super().statistics(choices) | followed

    def after_update(self, statistics: dict[str, Tensor]) -> None:
        if self.routed:
            wanting_R, mean_R, deviation_R = (
                statistics[name].to(self.mean_R) for name in ("wanting", "score_mean", "score_deviation")
            )
            step_R = self.options.threshold_rate * deviation_R * (wanting_R - self.capacity_R)
            self.threshold_R.add_(mean_R - self.mean_R + step_R)
            self.mean_R.copy_(mean_R)


class TokenChoiceRouter(Router):
    """Each token chooses, at the start, after how many passes it stops: the likeliest of the depths on offer.

    On offer is each depth at which the capacities stop some. All passes of a token have one gate, the weight of its
    depth. Balance: a loss Σ mean weight · share chosen / share wanted, or a bias of the choice (never of the weight)
    that follows the sign of what is missing (Wang et al. 2024).

    Attributes:
        bias_E: buffer, added before the choice.
    """

    bias_E: Tensor
    depth_E: Tensor
    share_E: Tensor

    def __init__(
        self, d_model: int, capacities: Sequence[float], burst: int, first_steps: Sequence[int], options: RoutingOptions
    ) -> None:
        super().__init__(capacities, burst, first_steps)
        self.options = options
        stopping = [a - b for a, b in zip((1.0, *capacities), (*capacities, 0.0), strict=True)]
        self.depths = tuple(depth for depth, share in enumerate(stopping) if share > 1e-9)
        self.weigh = Linear(d_model, len(self.depths)) if len(self.depths) > 1 else None
        self.register_buffer("bias_E", torch.zeros(len(self.depths)))
        self.register_buffer("depth_E", torch.tensor(self.depths), persistent=False)
        self.register_buffer("share_E", torch.tensor([stopping[d] for d in self.depths]), persistent=False)

    def score(self, r: int, x_BTD: Tensor) -> Tensor | None:
        """Scores (B, T, E) of the depths, before the first pass only."""
        return None if r or self.weigh is None else scored(self.weigh, x_BTD)

    def choose(
        self, r: int, x_BTD: Tensor, score: Tensor | None, last: Choice | None, span: Span, taps: TapPoint
    ) -> Choice:
        plan = self._planned(score, taps) if score is not None else last or Choice()
        if plan.stop_BT is None or self.capacities[r] == 1:
            return plan
        wants_BT, taking_BT, count_BT = self.admitted(r, plan.stop_BT > r, last, span, taps)
        return plan._replace(taking_BT=taking_BT, count_BT=count_BT, wants_BT=wants_BT)

    def _planned(self, score_BTE: Tensor, taps: TapPoint) -> Choice:
        here = taps.at(self.first_steps[0])
        score_BTE = here("router.score", score_BTE)
        weight_BTE = _WEIGHTS[self.options.depth_weight](score_BTE)
        chosen_BT = (weight_BTE + self.bias_E).argmax(-1)
        stop_BT = taps("control.depth", self.depth_E[chosen_BT])
        index_BT = torch.bucketize(stop_BT, self.depth_E).clamp(max=len(self.depths) - 1)
        gate_BT = here("router.gate", weight_BTE.gather(-1, index_BT[..., None])[..., 0])
        return Choice(gate_BT=gate_BT, evidence=weight_BTE, stop_BT=stop_BT)

    def statistics(self, choices: Sequence[Choice]) -> dict[str, Tensor]:
        """Those of all routers, and `chosen` (E), the share that chose each depth on offer."""
        stop_BT = choices[0].stop_BT
        if stop_BT is None:
            return {}
        chosen = torch.stack([_mean(stop_BT == depth) for depth in self.depths])
        return super().statistics(choices) | {"chosen": chosen}

    def loss_terms(self, choices: Sequence[Choice]) -> dict[str, Tensor]:
        weight_BTE, stop_BT = choices[0].evidence, choices[0].stop_BT
        if self.options.balance != "loss" or weight_BTE is None or stop_BT is None:
            return {}
        share_E = (weight_BTE / weight_BTE.sum(-1, keepdim=True)).float().mean((0, 1))
        chosen_E = (stop_BT[..., None] == self.depth_E).float().mean((0, 1))
        return {"balance": self.options.balance_coefficient * (share_E * chosen_E / self.share_E).sum()}

    def after_update(self, statistics: dict[str, Tensor]) -> None:
        if self.options.balance == "loss_free" and "chosen" in statistics:
            missing_E = self.share_E - statistics["chosen"].to(self.share_E)
            self.bias_E.add_(missing_E.sign(), alpha=self.options.balance_rate)


def seated(
    wants_BT: Tensor, quota_BT: Tensor, before_B: Tensor | None, here: TapPoint, site: str = "router.taking"
) -> tuple[Tensor, Tensor]:
    """Who takes part and the running count. Whom a tap adds needs a place like everybody else."""
    count_BT = admit(wants_BT, quota_BT, before_B)
    taking_BT = _rises(count_BT, before_B)
    if here.wants(site):
        count_BT = admit(here(site, taking_BT), quota_BT, before_B)
        taking_BT = _rises(count_BT, before_B)
    return taking_BT, count_BT


def _rises(count_BT: Tensor, before_B: Tensor | None) -> Tensor:
    before_B = torch.zeros_like(count_BT[:, 0]) if before_B is None else before_B
    return torch.diff(count_BT, dim=1, prepend=before_B[:, None]) > 0


def scored(linear: nn.Module, x_BTD: Tensor) -> Tensor:
    """w · x / rms(x), the norm taken after the product, which is much smaller."""
    mean_square = torch.linalg.vector_norm(x_BTD, dim=-1, keepdim=True).square() / x_BTD.shape[-1]
    return linear(x_BTD) * (mean_square + 1e-6).rsqrt()


def _mean(mask_BT: Tensor) -> Tensor:
    return mask_BT.float().mean()
