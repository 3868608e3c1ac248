"""Loss after each step: known answers, and the last one is the model's own."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from homunculi.core.taps import Recording
from homunculi.instruments.observation import Observation, surprisal_of
from homunculi.instruments.observing import look
from homunculi.instruments.pass_loss import measure
from homunculi.models import build

SHAPE = {"vocab_size": 40, "d_model": 64, "n_heads": 2, "max_seq_len": 24}


def untrained(arch: str, **config: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return build(arch, **(SHAPE | config)).eval()


def some_ids() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randint(0, 40, (3, 24))


def test_a_state_that_says_nothing_costs_the_log_of_the_vocabulary_and_the_answer_takes_it_off() -> None:
    model, ids_BT = untrained("gpt", n_blocks=3), some_ids()
    with torch.no_grad():
        model.embed.weight[:, 0] = 0.0
        for block in model.blocks:
            block.attn.o.weight.zero_()
            block.mlp.out.weight.zero_()
    mute_BTD = torch.zeros(3, 24, 64)
    mute_BTD[..., 0] = 1.0  # no row of the tied table has anything there
    answers_BTD = model.embed(ids_BT.roll(-1, 1)).detach() * 100
    put = {"steps.0.resid_post": lambda t, _: mute_BTD, "steps.1.resid_post": lambda t, _: answers_BTD}
    recording = Recording("steps.*.resid_post", others=put)
    with torch.no_grad():
        output = model(ids_BT, recording)
    seen = Observation(model, ids_BT, recording.seen, output.logits, byte_lengths=tuple([3] * 40))
    found = measure(seen)
    assert found is not None
    best = float(surprisal_of(output.logits, ids_BT).mean())
    assert best < math.log(40) - 0.3
    assert found.values["loss"] == pytest.approx([math.log(40), best, best], rel=1e-4)
    assert found.values["gain"][1:] == pytest.approx([math.log(40) - best, 0.0], rel=1e-3, abs=1e-5)
    assert np.isnan(found.values["gain"][0])
    assert found.values["bits_per_byte"] == pytest.approx(found.values["loss"] / math.log(2) / 3, rel=1e-5)


@pytest.mark.parametrize("arch", ["gpt", "recursive", "mor", "homunculi"])
def test_the_last_step_has_the_loss_of_the_model(arch: str) -> None:
    model, ids_BT = untrained(arch), some_ids()
    found = look(model, ids_BT, ["pass_loss"])["pass_loss"]
    with torch.no_grad():
        loss = float(surprisal_of(model(ids_BT).logits, ids_BT).mean())
    assert found.values["loss"][-1] == pytest.approx(loss, rel=1e-5)
    assert "bits_per_byte" not in found.values


def test_an_untrained_model_gains_nothing() -> None:
    found = look(untrained("recursive"), some_ids(), ["pass_loss"])["pass_loss"]
    assert np.abs(found.values["gain"][1:]).max() < 0.1
    assert found.values["loss"] == pytest.approx(math.log(40), rel=0.05)


def test_what_a_pass_gains_is_told_for_those_who_take_it() -> None:
    model, ids_BT = untrained("mor", n_slots=4, n_passes=2, capacities=(1.0, 0.25)), some_ids()
    found = look(model, ids_BT, ["pass_loss"])["pass_loss"]
    recording = Recording("steps.2.router.taking")
    with torch.no_grad():
        model(ids_BT, recording)
    share = float(recording["steps.2.router.taking"][:, :-1].float().mean())
    assert 0 < share < 0.9
    assert found.values["gain_taking"][2] * share == pytest.approx(found.values["gain"][2], rel=1e-3)
