"""Depth of a router that was set by hand, and of one that nobody trained."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from homunculi.instruments.depth import depths, measure
from homunculi.instruments.observation import Observation
from homunculi.instruments.observing import look, observe, suitable
from homunculi.models import build

SHAPE = {"vocab_size": 40, "d_model": 32, "n_heads": 2, "max_seq_len": 64}


def routed(**config: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return build("mor", **SHAPE, n_slots=5, n_passes=3, **config)


def by_hand(shuffle: bool = False) -> tuple[Observation, Tensor]:
    """Every token's depth is drawn, and the harder the next token, the deeper: its logit falls with the depth."""
    torch.manual_seed(1)
    ids_BT, depth_BT = torch.randint(0, 40, (4, 64)), torch.randint(1, 4, (4, 64))
    logits_BTV = torch.zeros(4, 64, 40)
    hard_BT = depth_BT[:, torch.randperm(64)] if shuffle else depth_BT
    logits_BTV[:, :-1].scatter_(2, ids_BT[:, 1:, None], -hard_BT[:, :-1, None].float())
    taps = {"steps.2.router.taking": depth_BT >= 2, "steps.3.router.taking": depth_BT >= 3}
    return Observation(routed(), ids_BT, taps, logits_BTV), depth_BT


def test_a_router_set_by_hand_is_found_exactly() -> None:
    seen, depth_BT = by_hand()
    found = depths(seen)
    assert found is not None
    np.testing.assert_array_equal(found[0], depth_BT.numpy())
    measured = measure(seen)
    share = torch.bincount(depth_BT.flatten(), minlength=4) / 256
    np.testing.assert_allclose(measured.values["share of tokens"], share.numpy())
    assert measured.labels["passes"] == ("0", "1", "2", "3")
    assert float(measured.values["mean depth"]) == pytest.approx(depth_BT.float().mean().item())
    assert float(measured.values["rho"]) == pytest.approx(1.0)
    deciles = measured.values["depth by surprisal"]
    assert (np.diff(deciles) >= 0).all() and (deciles[0], deciles[-1]) == (1.0, 3.0)


@pytest.mark.parametrize("name", ["mor", "homunculi"])
@pytest.mark.parametrize("router", ["threshold", "token_choice", "expert_choice"])
def test_mean_depth_is_what_the_model_itself_counts(name: str, router: str) -> None:
    torch.manual_seed(4)
    model, ids_BT = build(name, **SHAPE, n_passes=3, router=router), torch.randint(0, 40, (3, 64))
    seen = observe(model, ids_BT, ["steps.*.router.taking"])
    assert measure(seen).values["mean depth"] == pytest.approx(seen.statistics["mean_depth"].item(), rel=1e-6)


def test_depth_of_other_tokens_says_nothing_about_surprisal() -> None:
    values = measure(by_hand(shuffle=True)[0]).values
    assert abs(values["rho"]) < 4 * values["rho null sd"]
    assert values["rho low"] < values["rho high"]


def test_a_pass_that_a_router_decides_from_the_start_counts_too() -> None:
    model = routed(capacities=(0.5, 0.5, 0.5), burst=0)
    measured = look(model, torch.randint(0, 40, (2, 64)), ["depth"])["depth"]
    assert measured.values["share of tokens"][0] >= 0.5


def test_an_untrained_router_goes_no_deeper_before_hard_tokens() -> None:
    torch.manual_seed(2)
    values = look(routed(), torch.randint(0, 40, (8, 64)), ["depth"])["depth"].values
    assert abs(values["rho"]) < 4 * values["rho null sd"]
    assert 1 < values["mean depth"] < 3


def test_depth_is_nothing_to_ask_of_a_model_without_a_router_and_two_tokens_are_enough() -> None:
    plain = build("gpt", **SHAPE, n_blocks=2)
    assert not suitable(plain, ["depth"])
    assert measure(Observation(plain, torch.zeros(1, 4, dtype=torch.long), {}, torch.zeros(1, 4, 40))) is None
    assert look(routed(), torch.randint(0, 40, (3, 2)), ["depth"])["depth"].values["share of tokens"].sum() == 1
