"""Scale, rank and dead units of states whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from homunculi.instruments.activation import effective_rank
from homunculi.instruments.observing import look, observe
from homunculi.models import build
from homunculi.runs.measures import Measurement

SHAPE = {"vocab_size": 50, "d_model": 32, "n_blocks": 3, "n_heads": 2, "max_seq_len": 24, "activation": "gelu"}


def found(model: torch.nn.Module) -> dict[str, np.ndarray]:
    torch.manual_seed(1)
    ids_BT = torch.randint(0, 50, (4, 24))
    measured = look(model, ids_BT, ["activation"])["activation"]
    return dict(zip(measured.labels["measure"], measured.values["activation"], strict=True))


def untrained() -> torch.nn.Module:
    torch.manual_seed(0)
    return build("gpt", **SHAPE)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_planted_rank_is_found(rank: int) -> None:
    torch.manual_seed(rank)
    directions_RD = torch.linalg.qr(torch.randn(16, rank))[0].mT
    signs_NR = torch.randn(4000, rank)
    assert effective_rank(signs_NR @ directions_RD + 3.0) == pytest.approx(rank, rel=0.01)


def test_units_that_were_silenced_are_counted_as_dead() -> None:
    model = untrained()
    before = found(model)["share of dead units"]
    with torch.no_grad():
        weight_FD = model.blocks[1].mlp["in"].weight
        weight_FD[: weight_FD.shape[0] // 4] = 0.0
    after = found(model)["share of dead units"]
    assert before == pytest.approx(0.0, abs=0.01)
    assert after == pytest.approx([0.0, 0.25, 0.0], abs=0.01)


def test_scale_is_the_root_mean_square_of_the_state() -> None:
    model = untrained()
    with torch.no_grad():
        for block in model.blocks:
            block.attn.o.weight.zero_()
            block.mlp.out.weight.zero_()
        model.embed.weight.copy_(torch.where(torch.rand(50, 32) < 0.5, -2.0, 2.0))
    assert found(model)["rms"] == pytest.approx([2.0, 2.0, 2.0])


def test_an_untrained_model_uses_many_directions_and_one_with_two_uses_two() -> None:
    model = untrained()
    control = found(model)
    assert (control["effective rank"] > 8).all() and (control["share of dead units"] == 0).all()
    with torch.no_grad():
        for block in model.blocks:
            block.attn.o.weight.zero_()
            block.mlp.out.weight.zero_()
        model.embed.weight.copy_(torch.randn(50, 2) @ torch.linalg.qr(torch.randn(32, 2))[0].mT)
    assert found(model)["effective rank"] == pytest.approx([2, 2, 2], abs=0.3)


def test_axes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="2 axes"):
        Measurement({"a": np.zeros((2, 3))}, {"a": ("step",)})


def test_tokens_that_do_not_take_a_step_are_left_out() -> None:
    torch.manual_seed(0)
    model = build("mor", vocab_size=40, d_model=32, n_heads=2, max_seq_len=24, n_slots=4, n_passes=2, burst=1)
    ids_BT = torch.randint(0, 40, (3, 24))
    seen = observe(model, ids_BT, ["steps.*.resid_post", "steps.*.router.taking", "steps.*.mlp.post"])
    taking_BT = seen.taps["steps.2.router.taking"].bool()
    assert 0 < int(taking_BT.sum()) < taking_BT.numel()
    values = look(model, ids_BT, ["activation"])["activation"].values["activation"]
    state_ND = seen.taps["steps.2.resid_post"][taking_BT]
    assert values[0, 2] == pytest.approx(float(state_ND.square().mean().sqrt()), rel=1e-5)
    assert values[1, 2] == pytest.approx(effective_rank(state_ND), rel=1e-5)
    assert values[2, 2] < 0.5, "units of tokens that skip the step are not near zero, they are not there"
