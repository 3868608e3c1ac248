"""The readable model with hard routing: one activation a token, noise in training only, halting in either mode."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from homunculi.core.taps import Recording
from homunculi.models.vocabulary.hard_routing import CHOICES, Config, HardRouting, gumbel_like, halted


def built(**config: float) -> HardRouting:
    torch.manual_seed(0)
    settings = {"vocab_size": 19, "n_steps": 3, "d_memory": 6, "d_mlp": 10} | config
    return HardRouting(Config(**settings)).double().eval()


def ids() -> Tensor:
    return torch.randint(19, (2, 12), generator=torch.Generator().manual_seed(1))


def test_each_token_is_bent_by_the_activation_that_scores_highest() -> None:
    seen = Recording("steps.1.mlp.*")
    with torch.no_grad():
        built()(ids(), seen)
    chosen_BT = seen["steps.1.mlp.logits"].argmax(-1)
    assert len(chosen_BT.unique()) > 1
    choice_BTF = seen["steps.1.mlp.choice"]
    assert torch.equal(choice_BTF, torch.nn.functional.one_hot(chosen_BT, 4).double())
    for j, bend in enumerate(CHOICES):
        at = chosen_BT == j
        assert torch.allclose(seen["steps.1.mlp.post"][at], bend(seen["steps.1.mlp.pre"][at]))


def test_noise_is_drawn_in_training_alone_and_follows_the_generator() -> None:
    def noise(model: HardRouting, seed: int) -> tuple[Tensor, Tensor]:
        torch.manual_seed(seed)
        seen = Recording("*.mlp.noise")
        return model(ids(), seen).logits, torch.stack([seen[name] for name in seen])

    evaluated, none = noise(built(), 0)
    before = torch.get_rng_state()
    built_model = built()
    torch.set_rng_state(before)
    built_model(ids())
    assert torch.equal(torch.get_rng_state(), before) and not none.any()
    assert torch.equal(evaluated, noise(built_model, 1)[0])
    trained = built_model.train()
    (first, drawn), (again, _), (other, _) = noise(trained, 3), noise(trained, 3), noise(trained, 4)
    assert drawn.any() and torch.equal(first, again) and not torch.equal(first, other)


def test_noise_is_that_of_gumbel() -> None:
    torch.manual_seed(0)
    drawn = gumbel_like(torch.empty(200_000, dtype=torch.float64))
    assert drawn.mean().item() == pytest.approx(0.5772, abs=0.02)
    assert drawn.var().item() == pytest.approx(1.6449, abs=0.05)
    assert gumbel_like(torch.empty(200_000)).isfinite().all()


def test_choosing_sends_a_gradient_as_a_softmax_would() -> None:
    model = built(temperature=0.7)
    transform = model.steps[0].transform
    logits = torch.randn(5, 3, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(5, 3, 4, dtype=torch.float64)
    (hard,) = torch.autograd.grad((transform.choose(logits, Recording()) * weights).sum(), logits)  # type: ignore
    (soft,) = torch.autograd.grad(((logits / 0.7).softmax(-1) * weights).sum(), logits)
    assert torch.allclose(hard, soft)


def halting_at(p: float, position: int):
    """A hook that sets the probability of halting of one position, and of no other."""

    def write(p_BT1: Tensor, name: str) -> Tensor:
        changed = torch.zeros_like(p_BT1)
        changed[:, position] = p
        return changed

    return write


def test_a_halted_token_keeps_its_state_and_is_still_read() -> None:
    model, position = built(), 4
    moving, stopping = (
        Recording("*.resid_post", "*.attn.k", others={"steps.0.halt": halting_at(p, position)}) for p in (0.49, 0.51)
    )
    with torch.no_grad():
        model(ids(), moving), model(ids(), stopping)
    state = [stopping[f"steps.{i}.resid_post"] for i in range(3)]
    assert torch.equal(state[1][:, position], state[0][:, position])
    assert not torch.equal(state[1][:, position + 1], state[0][:, position + 1])
    assert not torch.equal(state[2][:, position + 1], moving["steps.2.resid_post"][:, position + 1])  # reads it
    assert torch.equal(state[1][:, position + 1], moving["steps.1.resid_post"][:, position + 1])
    assert torch.equal(state[2][:, :position], moving["steps.2.resid_post"][:, :position])


def test_halting_weighs_states_and_leaves_the_rest_to_the_last_step() -> None:
    p = [torch.full((1, 1, 1), value, dtype=torch.float64) for value in (0.25, 0.5)]
    states = [torch.full((1, 1, 4), value, dtype=torch.float64) for value in (1.0, 10.0, 100.0)]
    x_BTV, cost_BT1 = halted(states, p)
    assert torch.allclose(x_BTV, torch.full_like(x_BTV, 0.25 * 1 + 0.375 * 10 + 0.375 * 100))
    assert cost_BT1.item() == pytest.approx(0.75 + 0.375 + 0.375)


def test_the_cost_of_pondering_is_a_loss_term_of_training_and_teaches_to_halt() -> None:
    model = built(ponder_weight=0.02)
    assert model(ids()).loss_terms == {}
    terms = model.train()(ids()).loss_terms
    assert terms.keys() == {"ponder"} and 0 < terms["ponder"].item() <= 0.02 * 3
    terms["ponder"].backward()
    assert model.halt.bias.grad is not None and model.halt.bias.grad.item() < 0  # descent raises p


def test_one_step_needs_no_halting() -> None:
    model = built(n_steps=1).train()
    output = model(ids())
    assert output.logits.isfinite().all() and output.loss_terms["ponder"].item() == pytest.approx(0.01)


def test_documents_do_not_see_each_other() -> None:
    model, ids_BT = built(), ids()
    documents_BT = (torch.arange(12) >= 5).long().expand(2, -1)
    with torch.no_grad():
        together, alone = model(ids_BT, documents_BT=documents_BT).logits, model(ids_BT[:, 5:]).logits
    assert torch.allclose(together[:, 5:], alone)
    assert not torch.allclose(together[:, 5:], model(ids_BT).logits[:, 5:])
