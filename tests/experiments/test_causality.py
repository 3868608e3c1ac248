"""The measure of a difference, the edits, and the perturbation that certification rests on."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from homunculi.experiments.causality import differences, token_edits
from homunculi.experiments.subject import NOISE, add_noise


@settings(derandomize=True, deadline=None, max_examples=60)
@given(context=st.integers(2, 70), vocab_size=st.integers(2, 50), n_edits=st.integers(1, 12), seed=st.integers(0, 99))
def test_an_edit_changes_its_position_and_nothing_before(
    context: int, vocab_size: int, n_edits: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    ids_BT = torch.randint(vocab_size, (1, context), generator=generator)
    edits = token_edits(ids_BT, vocab_size, n_edits, generator)
    assert len(edits) == n_edits
    for edit in edits:
        p = edit.position
        assert 1 <= p < context
        assert torch.equal(edit.ids_BT[:, :p], ids_BT[:, :p])
        assert edit.ids_BT[0, p] != ids_BT[0, p]
        assert edit.ids_BT.min() >= 0 and edit.ids_BT.max() < vocab_size


def test_edits_are_of_single_tokens_and_of_suffixes() -> None:
    ids_BT = torch.zeros(1, 40, dtype=torch.long)
    edits = token_edits(ids_BT + 5, 11, 12, torch.Generator().manual_seed(0))
    changed = [int((edit.ids_BT != 5).sum()) for edit in edits]
    assert 1 in changed and max(changed) > 20
    assert any(edit.ids_BT[0, -1] == 0 for edit in edits)


def test_difference_is_relative_and_told_by_position() -> None:
    a_BTV = torch.randn(2, 100, 7, dtype=torch.float64)
    b_BTV = a_BTV.clone()
    b_BTV[1, 80, 3] += 1e-3
    found = differences(a_BTV, b_BTV)
    assert found.shape == (2, 100)
    assert found.nonzero().tolist() == [[1, 80]]
    assert torch.allclose(found, differences(1e-6 * a_BTV, 1e-6 * b_BTV))
    assert not differences(a_BTV, a_BTV.clone()).any()


def test_huge_entries_do_not_hide_a_difference_and_missing_numbers_are_infinite() -> None:
    a_BTV = torch.ones(1, 3, 6)
    a_BTV[..., 0], a_BTV[..., 1] = float("-inf"), -1e30
    b_BTV = a_BTV.clone()
    b_BTV[0, 1, 2] += 0.01
    assert 1e-3 < differences(a_BTV, b_BTV)[0, 1] < 1e-1
    b_BTV[0, 2, 3] = float("nan")
    assert differences(a_BTV, b_BTV)[0, 2] == float("inf")
    a_BTV[0, 2, 3] = float("nan")
    assert differences(a_BTV, b_BTV)[0, 2] == float("inf")
    assert differences(a_BTV, b_BTV)[0, 0] == 0


def test_noise_is_seeded_scaled_and_spares_what_is_frozen() -> None:
    def perturbed(seed: int) -> nn.ParameterDict:
        parameters = nn.ParameterDict({"zero": torch.zeros(4000), "large": torch.full((4000,), 50.0)})
        parameters["frozen"] = nn.Parameter(torch.ones(5), requires_grad=False)
        add_noise(parameters, seed)
        return parameters

    first = perturbed(seed=1)
    assert abs(first["zero"].std().item() / NOISE - 1) < 0.1
    assert abs(first["large"].std().item() / (50 * NOISE) - 1) < 0.1
    assert torch.equal(first["frozen"], torch.ones(5))
    assert torch.equal(first["zero"], perturbed(seed=1)["zero"])
    assert not torch.equal(first["zero"], perturbed(seed=2)["zero"])


def test_noise_reaches_a_model_that_is_frozen_as_a_whole() -> None:
    linear = nn.Linear(3, 3).requires_grad_(False)
    before = linear.weight.clone()
    add_noise(linear, seed=0)
    assert not torch.equal(linear.weight, before)
