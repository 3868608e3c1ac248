"""Hard routing with the original's noise: chosen activations, frozen positions, halting in training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from reference import Reference, read
from torch import Tensor

from homunculi.core.model import LanguageModel
from homunculi.core.output import Output
from homunculi.core.taps import Recording

CASES = ("v11b_hard_routing", "v11b_hard_routing_nonoise", "v11b_hard_routing_train")


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, parity_folder: Path) -> Reference:
    return read(parity_folder / "vocabulary-space" / f"{request.param}.safetensors")


def in_training(case: Reference) -> bool:
    return case.metadata["mode"].startswith("train")


def built(case: Reference) -> LanguageModel:
    return case.build("vocabulary-space/v11b_hard_routing").train(in_training(case))


def with_its_noise(case: Reference, model: LanguageModel) -> tuple[Output, Recording]:
    noise = {int(k): t for k, t in case.under("noise/").items()}

    def replace(drawn: Tensor, name: str) -> Tensor:
        return noise[int(name.split(".")[1])].to(drawn.dtype)

    seen = Recording("*", others={"steps.*.mlp.noise": replace})
    return model(case["input_ids"], seen), seen


def furthest(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return (ours.double() - theirs.double()).abs().max().item()


def test_logits_states_and_halting_are_the_originals(case: Reference) -> None:
    output, seen = with_its_noise(case, built(case).double())
    states, ps = case.under("state/"), case.under("halt_prob/")
    n_steps = len(states) - 1
    for i in range(n_steps - in_training(case)):  # the last recorded one of training is the mean that is read out
        theirs = states[str(i + 1)]
        assert furthest(seen[f"steps.{i}.resid_post"], theirs) < 1e-5 * max(1.0, theirs.abs().max().item()), i
    for i in range(n_steps - 1):
        assert furthest(seen[f"steps.{i}.halt"], ps[str(i)]) < 1e-5
    assert furthest(output.logits, case["logits"]) < max(1e-5, float(case.metadata["jitter_1e-6"]))


def test_losses_and_gradients_are_the_originals(case: Reference) -> None:
    model = built(case)
    output, _ = with_its_noise(case, model)
    cross_entropy = F.cross_entropy(output.logits.flatten(0, 1), case["targets"].flatten())
    loss = torch.stack([cross_entropy, *output.loss_terms.values()]).sum()
    assert cross_entropy.item() == pytest.approx(case["loss_ce"].item(), abs=1e-5)
    assert loss.item() == pytest.approx(case["loss"].item(), abs=1e-5)
    assert output.loss_terms.keys() == ({"ponder"} if in_training(case) else set())
    loss.backward()
    theirs, weights = case.under("grads/"), case.weights
    for own, parameter in model.named_parameters():
        name = next(n for n in theirs if torch.equal(weights[n].flatten(), parameter.detach().flatten()))
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        expected = theirs.pop(name).reshape(parameter.shape)
        assert furthest(gradient, expected) < 1e-3 * max(1e-2, expected.abs().max().item()), f"{own}, theirs {name}"
    assert not theirs


def test_without_noise_evaluation_is_deterministic_and_another_function(parity_folder: Path) -> None:
    """The original draws noise in evaluation; this model does not, so its evaluation is that of noise 0."""
    case = read(parity_folder / "vocabulary-space" / "v11b_hard_routing.safetensors")
    model = built(case)
    with torch.no_grad():
        first, second = model(case["input_ids"]).logits, model(case["input_ids"]).logits
    assert torch.equal(first, second)
    assert furthest(first, case["logits"]) > 0.1
