"""Routers by themselves: they hold the shares they are given, and stand-ins learn whom training takes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from homunculi.core.taps import NO_TAPS
from homunculi.errors import InputError
from homunculi.parts.expert_choice import ExpertChoiceRouter
from homunculi.parts.routers import Choice, RoutingOptions, Span, ThresholdRouter, TokenChoiceRouter


@pytest.mark.parametrize("field", ["depth_weight", "balance", "stand_in"])
def test_a_wrong_router_option_is_named(field: str) -> None:
    with pytest.raises(InputError, match=f"model.routing.{field}"):
        RoutingOptions(**{field: "other"})


def test_thresholds_hold_the_shares() -> None:
    torch.manual_seed(0)
    router = ThresholdRouter(16, (1.0, 0.5, 0.25), 4, (1, 3, 5), RoutingOptions())
    router.init_weights()
    recent = []
    for update in range(300):
        x_BTD, last = torch.randn(8, 64, 16) + 0.5, None
        with torch.no_grad():  # a router that learns: the scores drift and grow
            router.scores["1"].weight.mul_(1.01).add_(0.01)
        choices: list[Choice] = []
        with torch.no_grad():
            for r in range(3):
                last = router(r, x_BTD, last, Span(torch.arange(64)[None]), NO_TAPS)
                choices.append(last)
            statistics = router.statistics(choices)
            router.after_update(statistics)
        recent = [*recent, statistics["wanting"]][-100:]
        if not update:
            assert (statistics["wanting"] - router.capacity_R).abs().max() > 0.05, "held from the start: shows nothing"
    assert torch.stack(recent).mean(0).tolist() == pytest.approx([1.0, 0.5, 0.25], abs=0.01)


def test_a_bias_balances_the_depths_without_a_loss() -> None:
    torch.manual_seed(0)
    options = RoutingOptions(balance="loss_free", balance_rate=0.01)
    router = TokenChoiceRouter(16, (1.0, 0.5, 0.25), 4, (1, 3, 5), options)
    router.init_weights()
    offset_D, recent = torch.randn(16), []
    for update in range(300):
        x_BTD = torch.randn(8, 64, 16) + offset_D
        with torch.no_grad():
            choice = router(0, x_BTD, None, Span(torch.arange(64)[None]), NO_TAPS)
            statistics = router.statistics([choice])
            assert router.loss_terms([choice]) == {}
            router.after_update(statistics)
        recent = [*recent, statistics["chosen"]][-100:]
        if not update:
            assert (statistics["chosen"] - router.share_E).abs().max() > 0.1, "balanced from the start: shows nothing"
    assert torch.stack(recent).mean(0).tolist() == pytest.approx([0.5, 0.25, 0.25], abs=0.03)


def test_the_balancing_loss_is_least_at_the_wanted_shares() -> None:
    router = TokenChoiceRouter(16, (1.0, 0.5, 0.5), 4, (1, 3, 5), RoutingOptions(balance_coefficient=1.0))
    assert router.depths == (1, 3)

    def loss(deep: int) -> float:
        stop_BT = torch.tensor([[3] * deep + [1] * (8 - deep)])
        weight_BTE = F.one_hot((stop_BT == 3).long(), 2).float()
        return router.loss_terms([Choice(evidence=weight_BTE, stop_BT=stop_BT)])["balance"].item()

    losses = [loss(n) for n in range(9)]
    assert losses[4] == pytest.approx(1.0) and min(losses) == losses[4] and losses[0] == losses[8] == pytest.approx(2.0)


def test_the_loss_teaches_the_stand_in_to_say_who_goes_on() -> None:
    for stand_in in ("score", "auxiliary"):
        torch.manual_seed(0)
        router = ExpertChoiceRouter(16, (1.0, 0.25), 4, (1, 3), RoutingOptions(stand_in=stand_in))  # type: ignore[arg-type]
        router.init_weights()
        optimizer, found = torch.optim.Adam(router.parameters(), lr=0.05), []
        for _ in range(80):
            x_BTD = torch.randn(8, 64, 16) - 0.3
            choices = [Choice(), router(1, x_BTD, Choice(), Span(torch.arange(64)[None]), NO_TAPS)]
            found.append(router.statistics(choices)["agreement"].item())
            optimizer.zero_grad()
            router.loss_terms(choices)["stand_in"].backward()
            optimizer.step()
        assert found[-1] > max(0.8, found[0] + 0.1), stand_in
