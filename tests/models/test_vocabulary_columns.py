"""Columns: they do not see each other, their branches are shares, and they vote."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from homunculi.core.taps import Recording
from homunculi.errors import InputError
from homunculi.experiments.subject import add_noise
from homunculi.models.vocabulary.columns import Columns, Config, Step

IDS = torch.randint(61, (2, 12), generator=torch.Generator().manual_seed(0))


def made(**config: object) -> Columns:
    torch.manual_seed(0)
    shape = {"vocab_size": 61, "n_steps": 2, "n_columns": 3, "d_slice": 20, "max_seq_len": 20}
    model = Columns(Config(**(shape | config)))
    add_noise(model.double().eval(), seed=1)
    return model


def seen_by(model: Columns, others: Mapping[str, object] | None = None) -> Recording:
    seen = Recording("*", others=others)  # type: ignore[arg-type]
    with torch.no_grad():
        model(IDS, seen)
    return seen


def doubled(x: Tensor, name: str) -> Tensor:
    return 2 * x


def test_columns_start_from_the_same_state_and_do_not_see_each_other() -> None:
    model = made()
    plain, other = seen_by(model), seen_by(model, {"steps.2.mlp.out": doubled})
    assert all(torch.equal(plain[f"steps.{first}.resid_pre"], plain["embed"]) for first in (0, 2, 4))
    same = {i: torch.equal(plain[f"steps.{i}.resid_post"], other[f"steps.{i}.resid_post"]) for i in range(6)}
    assert same == {0: True, 1: True, 2: False, 3: False, 4: True, 5: True}
    assert not torch.equal(plain["readout.norm"], other["readout.norm"])


def test_steps_take_their_slices_in_turns() -> None:
    """Step i of column c is step i · C + c of slices, of 6 on 61 words."""
    model = made()
    starts = [step.reach.read.start for step in model.steps if isinstance(step, Step)]
    assert starts == [0, 30, 10, 40, 20, 50]


def test_the_vote_is_the_softmax_of_confidence_less_inhibition() -> None:
    model = made()
    confidence = torch.tensor([p.item() for p in model.confidences], dtype=torch.float64)
    expected = (confidence - model.inhibition_CC.detach() @ confidence).softmax(0)
    torch.testing.assert_close(model.vote().detach(), expected)
    seen = seen_by(model)
    with torch.no_grad():
        ends = sum(share * seen[f"steps.{2 * c + 1}.resid_post"] for c, share in enumerate(expected))
        torch.testing.assert_close(model.trunk(IDS).x_BTD, ends)


def test_a_sure_column_has_its_way() -> None:
    model = made()
    with torch.no_grad():
        model.confidences[1].fill_(60.0)
        model.inhibition_CC.zero_()
    seen = seen_by(model)
    with torch.no_grad():
        torch.testing.assert_close(model.trunk(IDS).x_BTD, seen["steps.3.resid_post"])


def test_inhibition_learns_but_passes_no_gradient_to_confidence() -> None:
    model = made()
    vote = model.vote()[0]
    held = [p.detach() for p in model.confidences]
    own = torch.stack(held).requires_grad_()
    alone = (own - model.inhibition_CC.detach() @ torch.stack(held)).softmax(0)[0]
    expected = torch.autograd.grad(alone, own)[0]
    *found, inhibition = torch.autograd.grad(vote, [*model.confidences, model.inhibition_CC])
    torch.testing.assert_close(torch.stack(found), expected)
    assert inhibition.any()


@pytest.mark.parametrize("n_branches", [1, 3])
def test_a_step_is_the_sum_of_its_branches_by_their_shares(n_branches: int) -> None:
    model = made(n_branches=n_branches, d_mlp=30)
    seen, step = seen_by(model), model.steps[0]
    share = seen["steps.0.mlp.share"]
    torch.testing.assert_close(share.sum(-1), torch.ones(2, 12, dtype=torch.float64))
    post = seen["steps.0.mlp.post"].chunk(n_branches, -1)
    maps = [step.get_parameter(f"up.{r}.weight").detach() for r in range(n_branches)]
    said = sum(share[..., r, None] * (post[r] @ maps[r].mT) for r in range(n_branches))
    scale = step.get_parameter("write_scale").detach() / 20**0.5
    torch.testing.assert_close(seen["steps.0.mlp.out"], scale * said)


def test_impossible_shapes_are_refused() -> None:
    for field in ({"n_columns": 1}, {"n_branches": 0}, {"d_mlp": 3, "n_branches": 4}):
        with pytest.raises(InputError, match=next(reversed(field))):
            made(**field)
