"""What the published models of slices show beside logits: waves, losses of steps, columns, buffers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from reference import Reference, read, recorded
from torch import Tensor

from homunculi.core.model import LanguageModel
from homunculi.errors import InputError
from homunculi.interop import published
from homunculi.models.vocabulary.columns import Columns
from homunculi.models.vocabulary.slices import Slices

SLICES = ("v12_vocab_slice", "v13_with_embedding", "v15_aux_loss", "v16_multi_branch")


def load(parity_folder: Path, name: str) -> Reference:
    return read(parity_folder / "vocabulary-space" / f"{name}.safetensors")


def built(case: Reference) -> LanguageModel:
    return case.build(f"vocabulary-space/{case.metadata['variant']}")


def close(ours: Tensor, theirs: Tensor) -> bool:
    return torch.allclose(ours.double(), theirs.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["v12_vocab_slice", "v12_vocab_slice_waves", "v12_vocab_slice_sequential"])
def test_waves_and_the_states_after_them_are_the_originals(name: str, parity_folder: Path) -> None:
    case = load(parity_folder, name)
    model = built(case).double()
    assert isinstance(model, Slices)
    waves = [[model.schedule[i].block for i in wave] for wave in model.waves]
    assert waves == json.loads(case.metadata["waves"])
    _, seen = recorded(model, case["input_ids"])
    after = [seen[name] for name in seen if name.endswith("resid_post")]
    assert len(after) == len(waves)
    assert all(close(state, case[f"state/{n + 1}"]) for n, state in enumerate(after))


def test_the_losses_of_steps_are_the_originals(parity_folder: Path) -> None:
    """In evaluation the original adds them to the loss that it reports; ours are of training, and up to the last."""
    case = load(parity_folder, "v15_aux_loss")
    model = built(case).double()
    _, seen = recorded(model, case["input_ids"])
    logits = [model.readout(seen[f"steps.{i}.resid_post"]) for i in range(3)]
    assert all(close(one, case[f"aux_logits/{i}"]) for i, one in enumerate(logits))
    targets = case["targets"]
    losses = [F.cross_entropy(one.flatten(0, 1), targets.flatten()) for one in logits]
    assert close(case["loss_ce"] + 0.1 * (0.81 * losses[0] + 0.9 * losses[1] + losses[2]), case["loss"])
    known = [F.cross_entropy(one[:, :-1].flatten(0, 1), case["input_ids"][:, 1:].flatten()) for one in logits]
    term = model.train().trunk(case["input_ids"]).loss_terms["steps"]
    assert torch.equal(case["input_ids"][:, 1:], targets[:, :-1])
    assert close(term, 0.1 * (0.81 * known[0] + 0.9 * known[1] + known[2]))


def test_columns_and_their_vote_are_the_originals(parity_folder: Path) -> None:
    case = load(parity_folder, "v16_multi_branch")
    model = built(case).double()
    assert isinstance(model, Columns)
    _, seen = recorded(model, case["input_ids"])
    for c in range(2):
        assert close(seen["embed"], case[f"column/{c}/state/0"])
        for i in range(2):
            assert close(seen[f"steps.{2 * c + i}.resid_post"], case[f"column/{c}/state/{i + 1}"])
    with torch.no_grad():
        assert close(model.trunk(case["input_ids"]).x_BTD, case["state/final"])


@pytest.mark.parametrize("name", SLICES)
def test_buffers_may_be_left_out_but_not_be_others(name: str, parity_folder: Path) -> None:
    case = load(parity_folder, name)
    buffers = json.loads(case.metadata["buffers"])
    rest = {n: t for n, t in case.tensors.items() if n.removeprefix("weights/") not in buffers}
    logits = built(replace(case, tensors=rest))(case["input_ids"]).logits
    assert torch.equal(logits, built(case)(case["input_ids"]).logits)
    for buffer in buffers[:2]:
        wrong = case.tensors | {f"weights/{buffer}": case[f"weights/{buffer}"].flip(-1)}
        with pytest.raises(InputError, match=buffer):
            built(replace(case, tensors=wrong))


def test_waves_that_change_the_order_of_steps_which_matters_are_refused() -> None:
    """The original would do step 10 before step 1, whose words it reads: no order of ours."""
    config = {"vocab_size": 1024, "num_steps": 13, "k_active": 241}
    with pytest.raises(InputError, match=r"config\.parallel_waves: would do step 10 before step 1"):
        published.build("vocabulary-space/v12_vocab_slice", config, {})


def test_relu_is_another_function_where_the_original_knows_it(parity_folder: Path) -> None:
    case = load(parity_folder, "v12_vocab_slice")
    with_relu = replace(case, config=case.config | {"activation": "relu"})
    assert not torch.equal(built(with_relu)(case["input_ids"]).logits, built(case)(case["input_ids"]).logits)
