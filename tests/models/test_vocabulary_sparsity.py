"""Sparse slices: how many words a state keeps, how uncertain it is, and the losses of steps."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from homunculi.core.taps import Recording, Taps
from homunculi.errors import InputError
from homunculi.experiments.subject import add_noise
from homunculi.models.vocabulary.sparse_slices import Config, SparseSlices, strongest

IDS = torch.randint(61, (2, 12), generator=torch.Generator().manual_seed(0))


def made(**config: object) -> SparseSlices:
    torch.manual_seed(0)
    model = SparseSlices(Config(**({"vocab_size": 61, "n_steps": 4, "n_kept": 9, "max_seq_len": 20} | config)))
    add_noise(model.double().eval(), seed=1)
    return model


def test_the_strongest_are_kept_with_their_equals_and_only_they_pass_a_gradient() -> None:
    x = torch.tensor([3.0, -4.0, 1.0, -1.0, 0.5, 0.0], requires_grad=True)
    kept = strongest(x, 3)
    assert kept.tolist() == [3.0, -4.0, 1.0, -1.0, 0.0, 0.0]
    kept.sum().backward()
    assert x.grad is not None and x.grad.tolist() == [1, 1, 1, 1, 0, 0]
    assert strongest(x, 6) is x


@pytest.mark.parametrize("n_kept", [1, 9, 60])
def test_no_state_keeps_more_words(n_kept: int) -> None:
    seen = Recording("steps.*.resid_post")
    made(n_kept=n_kept)(IDS, seen)
    counts = torch.stack([(seen[name] != 0).sum(-1) for name in seen])
    assert counts.max() == n_kept if n_kept < 60 else counts.max() <= 60


def test_an_eighth_of_the_words_is_kept_unless_a_number_is_given() -> None:
    assert [Config(vocab_size=n).number_kept for n in (1024, 61, 3)] == [128, 7, 1]
    with pytest.raises(InputError, match="unsure_of"):
        Config(vocab_size=61, unsure_of="words")  # type: ignore[arg-type]


@pytest.mark.parametrize("unsure_of", ["readout", "state"])
def test_uncertainty_is_the_share_of_the_largest_entropy(unsure_of: str) -> None:
    model = made(unsure_of=unsure_of)
    x = torch.zeros(1, 3, 61, dtype=torch.float64)
    x[:, 0, 4], x[:, 1, :2], x[:, 2] = 1e6, 1e6, 1.0
    found = model.uncertainty(x)[0]
    if unsure_of == "state":
        assert found.tolist() == pytest.approx([0, math.log(2) / math.log(61), 1])
    else:
        p = model.readout(x)[0].softmax(-1).detach()
        assert found.tolist() == pytest.approx([float(-(row * row.log()).sum()) / math.log(61) for row in p])
        assert found[0] < found[1] < found[2] == pytest.approx(1)


def test_a_step_writes_by_its_uncertainty_which_passes_no_gradient() -> None:
    model, wrote = made(n_kept=61), {}
    for share in (0.0, 1.0, 2.0):
        seen = Recording("*", others={"steps.1.uncertainty": lambda t, name, s=share: torch.full_like(t, s)})
        model(IDS, seen)
        wrote[share] = seen["steps.1.resid_post"] - seen["steps.1.resid_pre"]
    assert not wrote[0.0].any() and wrote[1.0].any()
    torch.testing.assert_close(wrote[2.0], 2 * wrote[1.0])
    x = torch.randn(1, 2, 61, dtype=torch.float64, requires_grad=True)
    assert not model.uncertainty(x).requires_grad


@pytest.mark.parametrize(("unsure_of", "learns"), [("state", False), ("readout", True)])
def test_at_1024_words_the_uncertainty_of_states_lets_nothing_be_written(unsure_of: str, learns: bool) -> None:
    torch.manual_seed(0)
    model = SparseSlices(Config(vocab_size=1024, n_steps=2, d_slice=64, unsure_of=unsure_of, step_loss=0.0))  # type: ignore[arg-type]
    start, x = Recording("embed"), model.trunk(IDS).x_BTD
    model(IDS, start)
    changed = (x - start["embed"]).abs().max().item()
    loss = F.cross_entropy(model(IDS).logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
    loss.backward()
    gradient = max(p.grad.abs().max().item() for p in model.steps.parameters() if p.grad is not None)
    assert (changed > 1e-3) == (gradient > 1e-5) == learns
    if not learns:
        assert changed < 1e-9 and gradient < 1e-9


def test_the_loss_of_steps_is_asked_in_training_alone_and_without_the_last_position() -> None:
    model = made(step_loss=0.3, step_loss_decay=0.5)
    assert model(IDS).loss_terms == {}
    model.train()
    assert model(IDS[:, :1]).loss_terms == {}
    assert made(step_loss=0.0).train()(IDS).loss_terms == {}
    seen = Recording("steps.*.resid_post")
    term = model(IDS, seen).loss_terms["steps"]
    logits = [model.readout(seen[f"steps.{i}.resid_post"])[:, :-1] for i in range(4)]
    losses = [F.cross_entropy(one.flatten(0, 1), IDS[:, 1:].flatten()) for one in logits]
    expected = 0.3 * sum(0.5 ** (3 - i) * loss for i, loss in enumerate(losses))
    torch.testing.assert_close(term, expected)

    def last(x_BTV: Tensor, name: str) -> Tensor:
        return torch.cat([x_BTV[:, :-1], x_BTV[:, -1:].flip(-1)], 1)

    assert torch.equal(model(IDS, Taps({"steps.3.resid_post": last})).loss_terms["steps"], term)


def test_the_loss_of_steps_reaches_the_first_step_directly() -> None:
    model = made().train()
    term = model(IDS).loss_terms["steps"]
    gradients = torch.autograd.grad(term, [model.steps[i].get_parameter("up.weight") for i in range(4)])
    assert all(gradient.any() for gradient in gradients)
