"""The lens reads a word that was planted, where it was planted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from homunculi.core.taps import Recording
from homunculi.instruments.lens import measure
from homunculi.instruments.observation import Observation
from homunculi.instruments.observing import look
from homunculi.models import build

SHAPE = {"vocab_size": 40, "d_model": 64, "n_blocks": 4, "n_heads": 2, "max_seq_len": 24}


def untrained() -> torch.nn.Module:
    torch.manual_seed(0)
    return build("gpt", **SHAPE).eval()


def some_ids() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randint(0, 40, (3, 24))


def test_a_planted_answer_is_found_from_its_step_on() -> None:
    model, ids_BT = untrained(), some_ids()
    with torch.no_grad():
        model.embed.weight.copy_(torch.linalg.qr(torch.randn(64, 40))[0].mT * 4)
        for block in model.blocks:
            block.attn.o.weight.zero_()
            block.mlp.out.weight.zero_()
    answers_BTD = model.embed(ids_BT.roll(-1, 1)).detach()
    recording = Recording("steps.*.resid_post", others={"steps.2.resid_post": lambda t, _: answers_BTD})
    with torch.no_grad():
        output = model(ids_BT, recording)
    found = measure(Observation(model, ids_BT, recording.seen, output.logits))
    assert found is not None
    assert found.values["rank"][2:] == pytest.approx([1.0, 1.0])
    assert found.values["median_rank"][2:] == pytest.approx([1.0, 1.0])
    assert found.values["rank"][:2].min() > 2
    assert found.values["divergence"][2:] == pytest.approx([0.0, 0.0], abs=1e-5)
    assert found.values["divergence"][:2].min() > 5
    assert found.values["agreement"][2:].tolist() == [1.0, 1.0]
    scores_BTV = output.logits[:, :-1].log_softmax(-1)
    right = scores_BTV.gather(-1, ids_BT[:, 1:, None]).mean()
    assert found.values["log_probability"][2:] == pytest.approx([float(right)] * 2, rel=1e-5)


def test_measures_are_those_of_their_definitions() -> None:
    model, ids_BT = untrained(), some_ids()
    found = look(model, ids_BT, ["lens"])["lens"]
    recording = Recording("steps.1.resid_post")
    with torch.no_grad():
        final = model(ids_BT, recording).logits[:, :-1].log_softmax(-1)
        said = model.readout(recording["steps.1.resid_post"])[:, :-1].log_softmax(-1)
    right = ids_BT[:, 1:]
    order = said.argsort(-1, descending=True)
    ranks = 1 + (order == right[..., None]).float().argmax(-1).double()
    assert found.values["rank"][1] == pytest.approx(float(ranks.log().mean().exp()), rel=1e-4)
    divergence = torch.nn.functional.kl_div(said, final, log_target=True, reduction="none").sum(-1).mean()
    assert found.values["divergence"][1] == pytest.approx(float(divergence), rel=1e-3)


def test_an_untrained_model_knows_no_next_word_at_any_step() -> None:
    found = look(untrained(), some_ids(), ["lens"])["lens"]
    assert np.all(found.values["rank"] > 8)
    assert found.values["divergence"][-1] == pytest.approx(0.0, abs=1e-6)
    assert found.values["agreement"][-1] == 1.0
    assert found.labels["step"] == ("0", "1", "2", "3")
