"""Experts that were chosen by kind of token, and experts that nobody trained."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from homunculi.instruments.experts import choices, frequency_bands, informs, measure, token_classes
from homunculi.instruments.observation import Observation
from homunculi.instruments.observing import look, observe
from homunculi.models import build

PIECES = (" the", "ing", ".", "7", "\n", " Tom", "ly", "!", " 12", "<|endoftext|>")
TAPS = ("steps.*.experts.logits", "steps.*.experts.weights", "steps.*.router.taking", "steps.*.paths.*.taking")


def thinking(**config: object) -> torch.nn.Module:
    torch.manual_seed(0)
    shape = {"vocab_size": 40, "d_model": 32, "n_heads": 2, "max_seq_len": 64, "n_experts": 4, "n_active": 2}
    return build("homunculi", **{**shape, **config})


def test_pieces_have_classes() -> None:
    assert token_classes(PIECES).tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]
    assert token_classes(()) is None


def test_bands_of_frequency_hold_about_equal_numbers_of_tokens() -> None:
    ids_BT = torch.tensor([[0] * 25 + [1] * 13 + [2] * 12 + [i for i in range(3, 13) for _ in range(5)]])
    band_V = frequency_bands(ids_BT)
    assert band_V[:3].tolist() == [0, 1, 1]
    assert np.bincount(band_V[ids_BT[0].numpy()]).tolist() == [25, 25, 25, 25]


def planted(kind_of: torch.Tensor, ids_BT: torch.Tensor) -> Observation:
    """The first choice is the kind of the token; in the second pass half of the tokens take part, the rest shows 0."""
    logits_BTE = 5.0 * torch.nn.functional.one_hot(kind_of[ids_BT] % 4, 4).float()
    taking_BT = torch.arange(ids_BT.shape[1]).expand_as(ids_BT) % 2 == 0
    gates_BTE = torch.ones_like(logits_BTE)
    gates_BTE[:, : ids_BT.shape[1] // 2, 1] = 0.2
    taps = {
        "steps.1.experts.logits": logits_BTE,
        "steps.2.experts.logits": logits_BTE * taking_BT[..., None],
        "steps.2.router.taking": taking_BT,
        "steps.1.prefrontal.open_experts": gates_BTE,
    }
    return Observation(thinking(), ids_BT, taps, torch.zeros(*ids_BT.shape, 40), pieces=PIECES)


def test_experts_chosen_by_kind_tell_all_about_it_and_shuffled_tokens_nothing() -> None:
    torch.manual_seed(1)
    kind_of = torch.from_numpy(token_classes(PIECES))
    ids_BT = torch.randint(0, 8, (4, 250))  # kinds 0 to 3 and 4, which shares an expert with kind 0
    measured = measure(planted(kind_of, ids_BT))
    share = np.bincount(kind_of[ids_BT].flatten() % 4, minlength=4) / 1000
    entropy = -(share * np.log(share)).sum()
    told = measured.values["class information"]
    assert told[0, 0] == pytest.approx(entropy)
    assert told[1] == pytest.approx([4 * 3 / 2000, 4 * 3 / 1000], abs=0.01)
    assert measured.values["load"][0] == pytest.approx(share)
    assert measured.values["mean class information"] > 50 * measured.values["mean class information null sd"]
    by_class = measured.values["load by class"][0]
    assert by_class[:4] == pytest.approx(np.eye(4)) and by_class[4].tolist() == [1, 0, 0, 0]
    assert measured.values["closed open_experts"].tolist() == [[0, 0.5, 0, 0]]


def test_only_tokens_that_take_the_pass_are_counted() -> None:
    ids_BT = torch.tensor([[0, 1, 0, 1]])  # the second pass takes the word starts, and shows zeros for the others
    measured = measure(planted(torch.from_numpy(token_classes(PIECES)), ids_BT))
    assert measured.values["load"].tolist() == [[0.5, 0.5, 0, 0], [1, 0, 0, 0]]


def test_information_is_that_of_a_known_table() -> None:
    expert_N = np.array([0] * 40 + [0] * 10 + [1] * 10 + [1] * 40)
    kind_N = np.array([0] * 40 + [1] * 10 + [0] * 10 + [1] * 40)
    known = 0.8 * math.log(0.4 / 0.25) + 0.2 * math.log(0.1 / 0.25)
    measured, shuffled, deviation = informs(expert_N, kind_N)
    assert measured == pytest.approx(known)
    assert shuffled < 0.03 and deviation < 0.03


@pytest.mark.parametrize("bias", [(0.0, 0.0, 0.0, 0.0), (3.0, -3.0, 0.0, 0.5)])
def test_load_is_what_the_model_itself_counts(bias: tuple[float, ...]) -> None:
    model = thinking()
    model.neocortex[0].experts.bias_E.copy_(torch.tensor(bias))
    seen = observe(model, torch.randint(0, 40, (4, 64)), TAPS)
    loads = [np.bincount(chosen_NA.ravel(), minlength=4) / chosen_NA.size for _, chosen_NA, _ in choices(seen)]
    np.testing.assert_allclose(np.mean(loads, 0), seen.statistics["load_0"].numpy(), atol=1e-6)


def test_tokens_that_go_past_the_experts_are_left_out() -> None:
    model = thinking(paths=("experts",), path_share=0.5, burst=0)
    seen = observe(model, torch.randint(0, 40, (2, 64)), TAPS)
    through = [tensor for name, tensor in seen.taps.items() if name.endswith("paths.experts.taking")]
    assert [len(chosen_NA) for _, chosen_NA, _ in choices(seen)] == [int(tensor.sum()) for tensor in through]
    assert len(choices(seen)[0][1]) <= 64


def test_untrained_experts_know_no_classes_of_words_that_mean_nothing() -> None:
    torch.manual_seed(3)
    values = look(thinking(), torch.randint(0, 40, (8, 64)), ["experts"], pieces=PIECES * 4)["experts"].values
    assert abs(values["mean class information"]) < 0.1 * math.log(4)
    assert values["mean balance"] > 0.8
    assert look(thinking(), torch.randint(0, 40, (1, 2)), ["experts"])["experts"].values["load"].sum() > 0
