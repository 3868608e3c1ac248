"""The seventeen vocabulary-space models, against outputs of the original code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from reference import Reference, read, recorded
from torch import Tensor

from homunculi import certify
from homunculi.core.model import LanguageModel
from homunculi.core.taps import Recording
from homunculi.interop.published.vocabulary_space import VARIANTS

CASES = (
    *(name for name in VARIANTS if name != "v11b_hard_routing"),
    "v8_lowrank_vv_relu2",
    "v9_linattn_swish",
    "v12_vocab_slice_waves",
    "v12_vocab_slice_sequential",
    "v15_aux_loss_dense",
)


def load(parity_folder: Path, name: str) -> Reference:
    return read(parity_folder / "vocabulary-space" / f"{name}.safetensors")


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, parity_folder: Path) -> Reference:
    return load(parity_folder, request.param)


def built(case: Reference) -> LanguageModel:
    return case.build(f"vocabulary-space/{case.metadata['variant']}")


def furthest(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return (ours.double() - theirs.double()).abs().max().item()


def test_logits_and_states_are_the_originals(case: Reference) -> None:
    """Computed in float64: what is left is the rounding of the original's float32."""
    model = built(case).double()
    logits, seen = recorded(model, case["input_ids"])
    states = {name: t for name, t in case.under("state/").items() if name.isdigit()}
    ours = [seen["embed"], *(seen[name] for name in seen if name.endswith(".resid_post"))]
    if len(ours) == len(states):
        for name, theirs in states.items():
            assert furthest(ours[int(name)], theirs) < 1e-5 * max(1.0, theirs.abs().max().item()), f"state {name}"
    assert furthest(logits, case["logits"]) < 3e-5  # by how much two recomputations of the originals differ


def test_losses_are_the_originals(case: Reference) -> None:
    output = built(case).double()(case["input_ids"])
    cross_entropy = F.cross_entropy(output.logits.flatten(0, 1), case["targets"].flatten())
    assert cross_entropy.item() == pytest.approx(case["loss_ce"].item(), abs=1e-5)


def test_gradients_are_the_originals(case: Reference) -> None:
    model = built(case)
    seen = Recording("steps.*.resid_post")
    output = model(case["input_ids"], seen)
    loss = F.cross_entropy(output.logits.flatten(0, 1), case["targets"].flatten())
    terms = [*output.loss_terms.values(), *losses_of_steps(model, case, [seen[name] for name in seen])]
    torch.stack([loss, *terms]).sum().backward()
    theirs, weights = case.under("grads/"), case.weights
    for own, parameter in model.named_parameters():
        name = next(n for n in theirs if torch.equal(weights[n].flatten(), parameter.detach().flatten()))
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        expected = theirs.pop(name).reshape(parameter.shape)
        scale = max(1e-2, expected.abs().max().item())
        assert furthest(gradient, expected) < 1e-3 * scale, f"{own}, theirs {name}"
    assert not theirs


def losses_of_steps(model: LanguageModel, case: Reference, states: list[Tensor]) -> list[Tensor]:
    """What v15 adds to its cross-entropy, in evaluation too: that after each step, the last position included."""
    weight, decay = case.config.get("aux_loss_weight", 0), case.config.get("aux_loss_decay", 1)
    if not weight:
        return []
    logits = [model.readout(state).flatten(0, 1) for state in states]
    losses = [F.cross_entropy(one, case["targets"].flatten()) for one in logits]
    return [weight * decay ** (len(losses) - 1 - i) * loss for i, loss in enumerate(losses)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_certified_causal(variant: str, parity_folder: Path) -> None:
    model = built(load(parity_folder, variant))
    certificate = certify(model, 64, 20, trial_seconds=0)
    assert certificate.causal and certificate.causal_in_training, certificate.failed
