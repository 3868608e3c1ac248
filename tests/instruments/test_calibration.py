"""A model that says the truth, one that is too sure by a known amount, and one that nobody trained."""

from __future__ import annotations

import math

import pytest
import torch

from homunculi.instruments.calibration import measure
from homunculi.instruments.observation import Observation
from homunculi.instruments.observing import look
from homunculi.models import build

B, T, V = 8, 256, 12


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return build("gpt", vocab_size=V, d_model=32, n_blocks=1, n_heads=2, max_seq_len=T)


def world(temperature: float, shuffled: bool = False) -> tuple[Observation, torch.Tensor]:
    """Tokens drawn from known distributions, and a model that says them at a temperature."""
    torch.manual_seed(1)
    log_BTV = torch.log_softmax(2 * torch.randn(B, T, V), -1)
    ids_BT = torch.zeros(B, T, dtype=torch.long)
    ids_BT[:, 1:] = torch.multinomial(log_BTV[:, :-1].exp().flatten(0, 1), 1).view(B, T - 1)
    if shuffled:
        ids_BT[:, 1:] = ids_BT[:, 1:][:, torch.randperm(T - 1)]
    return Observation(model(), ids_BT, {}, log_BTV / temperature), log_BTV[:, :-1]


def test_a_model_that_says_the_truth_is_calibrated() -> None:
    seen, log_BTV = world(1.0)
    values = measure(seen).values
    assert values["calibration error"] < values["calibration error by luck"] + 4 * values["calibration error null sd"]
    assert values["calibration error"] < 0.04 and abs(values["overconfidence"]) < 0.03
    assert abs(values["loss beyond entropy"]) < 0.1
    entropy = -(log_BTV.exp() * log_BTV).sum(-1)
    assert values["entropy"] == pytest.approx(entropy.mean().item(), rel=1e-5)
    assert values["brier"] == pytest.approx(1 - log_BTV.exp().square().sum(-1).mean().item(), abs=0.03)


def test_half_the_temperature_is_too_sure_by_what_can_be_computed() -> None:
    seen, log_BTV = world(0.5)
    values = measure(seen).values
    said, true = (2 * log_BTV).softmax(-1).amax(-1), log_BTV.exp().amax(-1)
    known = (said - true).mean().item()
    assert known > 0.1
    assert values["overconfidence"] == pytest.approx(known, abs=0.03)
    assert values["calibration error"] == pytest.approx(known, abs=0.03)
    assert values["loss beyond entropy"] > 0.3


def test_truth_about_other_tokens_is_confidence_without_ground() -> None:
    values = measure(world(1.0, shuffled=True)[0]).values
    assert values["overconfidence"] > 0.3
    assert values["entropy rho"] < 0  # the surer, the worse


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_untrained_model_is_unsure_and_knows_it(dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    values = look(model().to(dtype), torch.randint(0, V, (B, T)), ["calibration"])["calibration"].values
    assert values["entropy"] == pytest.approx(math.log(V), abs=0.05)
    assert values["calibration error"] < values["calibration error by luck"] + 5 * values["calibration error null sd"]


def test_two_tokens_are_enough_and_one_is_not() -> None:
    assert measure(Observation(model(), torch.zeros(1, 2, dtype=torch.long), {}, torch.zeros(1, 2, V))) is not None
    assert measure(Observation(model(), torch.zeros(1, 1, dtype=torch.long), {}, torch.zeros(1, 1, V))) is None


def test_a_probability_of_zero_breaks_nothing() -> None:
    logits_BTV = torch.full((1, 4, V), -math.inf)
    logits_BTV[..., 0] = 0.0
    values = measure(Observation(model(), torch.zeros(1, 4, dtype=torch.long), {}, logits_BTV)).values
    assert (values["entropy"], values["loss"], values["brier"]) == (0, 0, 0)
