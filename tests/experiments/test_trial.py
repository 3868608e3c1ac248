"""The random-token trial finds who looks ahead, a narrow look and one that training opens included, and nobody else."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import toys
import toys_language
from torch import Tensor, nn
from toys import CONTEXT, VOCAB

from homunculi.experiments import trial
from homunculi.experiments.certificate import Check
from homunculi.experiments.trial import check_random_tokens

BOTH = {"random_tokens", "random_tokens_training"}
LEAKS = [
    (toys.MeanPooling, BOTH),
    (toys.ReversedMask, BOTH),
    (toys.TopKAlongSequence, BOTH),
    (toys.OneAhead, BOTH),
    (toys.InsideChunks, BOTH),
    (toys.BehindZero, BOTH),
    (toys.OpensByTraining, BOTH),
    (toys.OneLengthOnly, BOTH),
    (toys.LeaksInTraining, {"random_tokens_training"}),
]
HONEST = [toys.Toy, toys.Recurrent, toys.RecurrentSum, toys.Dropped, toys.Admitting, toys.BatchCoupled, toys.RowsInLine]


def tried(model: nn.Module, seed: int = 0, seconds: float = 60.0) -> tuple[list[Check], list[str]]:
    notes: list[str] = []
    with torch.no_grad(), torch.random.fork_rng():
        logits_BTV = torch.zeros(1, 1, VOCAB)
        return check_random_tokens(model, logits_BTV, CONTEXT, seed=seed, seconds=seconds, notes=notes), notes


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make()


@pytest.mark.parametrize(("make", "expected"), LEAKS)
def test_a_look_ahead_is_found(make: Callable[[], nn.Module], expected: set[str]) -> None:
    checks, notes = tried(seeded(make))
    assert {check.name for check in checks if not check.passed} == expected
    assert {check.name for check in checks} == BOTH and not notes
    assert all(f"{math.log(trial.N_IDS):.4f}" in check.note for check in checks if not check.passed)


def test_one_number_a_block_about_the_whole_row_is_found() -> None:
    checks, _ = tried(toys_language.ControlledByAll(toys_language.config()))
    assert not any(check.passed for check in checks)


@pytest.mark.parametrize("make", HONEST)
def test_who_does_not_look_is_not_accused(make: Callable[[], nn.Module]) -> None:
    checks, notes = tried(seeded(make))
    assert {check.name for check in checks} == BOTH and all(check.passed for check in checks)
    assert not notes


@pytest.mark.parametrize("scale", [0.1, 30.0])
def test_a_confident_wrong_guess_is_no_look_ahead(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "HELD_OUT_TOKENS", 2048)
    model = seeded(toys.Toy)
    with torch.no_grad():
        model.get_submodule("out").get_parameter("weight").mul_(scale)
    ids_K = torch.arange(trial.N_IDS)
    for seed in range(20):
        one = trial._Trial(model, ids_K, torch.Generator().manual_seed(seed), 60.0, [4, CONTEXT])
        assert one.measured("random_tokens", training=False).passed


def test_a_model_of_ours_adapts_as_in_any_training() -> None:
    model = toys_language.Adapting(toys_language.config(n_blocks=1, d_model=16, dropout=0.1))
    checks, _ = tried(model)
    assert all(check.passed for check in checks)
    steps = [told for told in model.told if isinstance(told, tuple)]
    statistics = [told for told in model.told if isinstance(told, dict)]
    assert steps == [(step, trial.STEPS) for step in range(1, trial.STEPS + 1)]
    assert statistics == [{"gain": False}] * (trial.STEPS // 2)  # dropout: every second step is in training mode


def test_the_model_is_left_alone_and_one_seed_gives_one_result() -> None:
    model = seeded(toys.Dropped).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first, second, other = tried(model)[0], tried(model)[0], tried(model, seed=1)[0]
    assert first == second != other
    assert not model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_frozen_model_is_trained_all_the_same() -> None:
    checks, _ = tried(seeded(toys.OneAhead).requires_grad_(False))
    assert not any(check.passed for check in checks)


def test_what_the_time_did_not_allow_is_noted() -> None:
    checks, notes = tried(seeded(toys.Toy), seconds=1e-9)
    assert len(checks) == 2 and f"cut short by time after 1 of {trial.STEPS} steps" in notes[0]


def test_a_trial_that_cannot_be_held_is_left_out_with_a_reason() -> None:
    diverging, constant = seeded(toys.Diverging), nn.Identity()
    for model, reason in ((diverging, "diverged at step"), (seeded(toys.Uncopyable), "cannot be copied")):
        assert tried(model)[0] == [] and reason in tried(model)[1][0]
    notes: list[str] = []
    logits_BTV = torch.zeros(1, 4, VOCAB)
    assert check_random_tokens(constant, logits_BTV, CONTEXT, seed=0, seconds=1, notes=notes) == []
    assert "nothing to train" in notes[0]


def test_ids_that_are_never_given_are_not_drawn() -> None:
    logits_BTV = torch.randn(1, 5, VOCAB)
    logits_BTV[..., 3:7], logits_BTV[..., 7:] = float("-inf"), -1e12
    ids_K = trial._ids_in_play(logits_BTV, torch.Generator().manual_seed(0))
    assert sorted(ids_K.tolist()) == [0, 1, 2]
    assert trial._ids_in_play(torch.full((1, 2, VOCAB), float("nan")), torch.Generator()).numel() == 0


def test_the_favour_of_a_token_is_zero_for_who_cannot_know_it() -> None:
    generator = torch.Generator().manual_seed(0)
    logits_BTK = torch.randn(4000, 5, 4, generator=generator, dtype=torch.float64).log_softmax(-1)
    which_BT = torch.randint(4, (4000, 6), generator=generator)
    honest: Tensor = trial._favour(logits_BTK, which_BT)
    assert abs(honest.mean()) < 5 * trial._error(honest.mean(1))
    knowing = logits_BTK.scatter_add(-1, which_BT[:, 1:, None], torch.full((4000, 5, 1), 0.1, dtype=torch.float64))
    assert trial._favour(knowing, which_BT).mean().item() == pytest.approx(0.075, abs=0.02)
