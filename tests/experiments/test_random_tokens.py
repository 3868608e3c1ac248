"""Random tokens show who looks ahead; the published low-rank model with its reversed mask is the negative control."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from reversed_mask import ReversedMask, train_on_random_tokens
from torch import Tensor

from homunculi import certify
from homunculi.errors import InputError
from homunculi.experiments.random_tokens import binomial_interval, random_token_trial
from homunculi.models.vocabulary.low_rank import Config, LowRank

TINY = Config(vocab_size=24, n_steps=2, max_seq_len=12, rank=16, first_scale=0.4, first_decay=0.0)


def built(kind: type[LowRank]) -> LowRank:
    torch.manual_seed(0)
    return kind(TINY)


def test_the_control_reads_the_future_and_nothing_else() -> None:
    model = built(ReversedMask).double().eval()
    ids_BT = torch.randint(24, (1, 12), generator=torch.Generator().manual_seed(0))
    earlier, later = ids_BT.clone(), ids_BT.clone()
    earlier[:, :5] = (earlier[:, :5] + 1) % 24
    later[:, 7:] = ids_BT[:, :1]
    with torch.no_grad():
        plain, other_past, other_future = (model(ids).logits for ids in (ids_BT, earlier, later))
    assert torch.equal(plain[:, 5:], other_past[:, 5:])
    assert not torch.allclose(plain[:, :7], other_future[:, :7])


def test_certification_refuses_the_control_and_not_the_model() -> None:
    refused = certify(built(ReversedMask), 24, 12, trial_seconds=0)
    assert not refused.causal and not refused.causal_in_training
    assert {"token_edits", "gradients", "every_cut"} <= {check.name for check in refused.checks if not check.passed}
    passed = certify(built(LowRank), 24, 12, trial_seconds=0)
    assert passed.causal and passed.causal_in_training, passed.failed


def test_only_who_looks_ahead_foresees_random_tokens() -> None:
    found = {}
    for kind in (LowRank, ReversedMask):
        model = built(kind)
        train_on_random_tokens(model, 100, lr=0.03)
        found[kind] = random_token_trial(model, 128, 12, seed=7)
    causal, control = found[LowRank], found[ReversedMask]
    assert not causal.looks_ahead and causal.low < causal.chance < causal.high
    assert causal.cross_entropy > causal.floor - 0.02
    assert "no more than chance" in str(causal)
    assert control.looks_ahead and control.top1 > 0.5
    assert control.cross_entropy < control.floor - 1
    assert "looks ahead" in str(control)


def test_any_function_can_be_asked() -> None:
    def copies_the_next(ids_BT: Tensor) -> Tensor:
        return 50.0 * F.one_hot(ids_BT.roll(-1, 1), 9).float()

    def repeats(ids_BT: Tensor) -> Tensor:
        return F.one_hot(ids_BT, 9).float()

    cross_entropy, top1 = random_token_trial(copies_the_next, 4, 16, 0, vocab_size=9)
    assert cross_entropy < 1e-3 and top1 == 1
    found = random_token_trial(repeats, 40, 16, 0, vocab_size=9)
    assert found.n_guesses == 600 and not found.looks_ahead
    assert found.floor == pytest.approx(math.log(9)) and found.cross_entropy > found.floor
    assert found == random_token_trial(repeats, 40, 16, 0, vocab_size=9)
    assert found != random_token_trial(repeats, 40, 16, 1, vocab_size=9)


def test_the_mode_of_the_model_is_left_as_it_was() -> None:
    model = built(LowRank).train()
    model.steps[1].eval()
    random_token_trial(model, 2, 12, 0)
    assert model.training and model.steps[0].training and not model.steps[1].training


@pytest.mark.parametrize(
    ("n_right", "n", "low", "high"), [(0, 10, 0.0, 0.308497), (5, 10, 0.187086, 0.812914), (10, 10, 0.691503, 1.0)]
)
def test_intervals_are_those_of_the_binomial_distribution(n_right: int, n: int, low: float, high: float) -> None:
    assert binomial_interval(n_right, n) == pytest.approx((low, high), abs=1e-6)


def test_what_cannot_be_asked_is_refused_in_one_line() -> None:
    for rows, length, words, name in ((0, 5, 9, "n_rows"), (1, 1, 9, "length"), (1, 5, 0, "vocab_size")):
        with pytest.raises(InputError, match=name):
            random_token_trial(lambda ids: ids, rows, length, 0, vocab_size=words)
    for n_right, n, level in ((3, 2, 0.95), (1, 2, 1.0)):
        with pytest.raises(InputError):
            binomial_interval(n_right, n, level)
