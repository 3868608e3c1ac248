"""A forecast that is true, one that is noise, and one that nobody trained."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from homunculi.instruments.observation import Observation, surprisal_of
from homunculi.instruments.observing import look
from homunculi.instruments.salience import measure
from homunculi.instruments.tokenwise import correlate, rank
from homunculi.models import build

V = 40


def thinking(**config: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return build("homunculi", vocab_size=V, d_model=32, n_heads=2, max_seq_len=64, **config)


def planted(kind: str, dtype: torch.dtype = torch.float32) -> Observation:
    """A forecast of what comes next, exact where it takes part, and 0 elsewhere; or the same of other tokens."""
    torch.manual_seed(1)
    ids_BT, logits_BTV = torch.randint(0, V, (4, 64)), 2 * torch.randn(4, 64, V)
    true_BT = torch.nn.functional.pad(surprisal_of(logits_BTV, ids_BT), (0, 1), value=1.0) / math.log(V)
    said_BT = true_BT if kind == "true" else true_BT[:, torch.randperm(64)]
    taking_BT = torch.rand(4, 64) < 0.5
    taps = {
        "amygdala.salience": torch.rand(4, 64, 1),
        "steps.1.amygdala.forecast": said_BT[..., None].to(dtype),
        "steps.1.amygdala.salience": said_BT[..., None].to(dtype) / 10,
        "steps.2.router.taking": taking_BT,
        "steps.2.amygdala.salience": (true_BT * taking_BT)[..., None].to(dtype),
    }
    return Observation(thinking(), ids_BT, taps, logits_BTV)


def test_a_true_forecast_has_no_error_and_ranks_all_tokens() -> None:
    measured = measure(planted("true"))
    assert measured.values["forecast error"] == pytest.approx(0, abs=1e-5)
    assert measured.values["forecast rho"] == pytest.approx(1) and measured.values["salience rho"] == pytest.approx(1)
    assert measured.labels["salience at"] == ("input", "step 1", "step 2")
    at_input, first, second = measured.values["surprisal by salience"]
    assert (np.diff(first) > 0).all() and (np.diff(second) > 0).all()  # zeros of skipped tokens would lie in decile 1
    assert not (np.diff(at_input) > 0).all()
    assert measured.values["forecast error of a constant"] > 0.5


def test_a_forecast_of_other_tokens_is_no_better_than_a_constant() -> None:
    values = measure(planted("other")).values
    assert abs(values["forecast rho"]) < 4 * values["forecast rho null sd"]
    assert values["forecast error"] > values["forecast error of a constant"]


def test_half_precision_is_read() -> None:
    assert measure(planted("true", torch.bfloat16)).values["forecast rho"] > 0.99


def test_an_untrained_forecast_knows_nothing() -> None:
    torch.manual_seed(2)
    values = look(thinking(), torch.randint(0, V, (8, 64)), ["salience"])["salience"].values
    assert abs(values["forecast rho"]) < 4 * values["forecast rho null sd"]
    assert values["forecast error"] > 5 * values["forecast error of a constant"]


def test_a_forecast_of_something_else_has_no_error_in_nats() -> None:
    model = thinking(forecast="reducible")
    values = look(model, torch.randint(0, V, (4, 2)), ["salience"])["salience"].values
    assert "forecast rho" in values and "forecast error" not in values


def test_intervals_over_few_rows_hold_the_truth_as_often_as_they_say() -> None:
    draw = np.random.default_rng(0)
    held = 0
    for seed in range(60):  # what a row is like moves both numbers, so that rows differ and 256 tokens are few things
        row_B1 = 0.5 * draw.normal(size=(4, 1))
        a_BT = draw.normal(size=(4, 64)) + row_B1
        found = correlate(a_BT, draw.normal(size=(4, 64)) + 0.5 * draw.normal(size=(4, 1)), seed)
        held += found.low <= 0 <= found.high
    assert held >= 45
    assert correlate(a_BT, -a_BT).low == -1


def test_equal_numbers_share_their_rank_and_missing_ones_are_left_out() -> None:
    assert rank(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [2.5, 0.0, 2.5, 1.0]
    a_BT = np.array([[1.0, 2.0, np.nan], [3.0, 4.0, 9.0]])
    assert correlate(a_BT, np.array([[1.0, 4.0, 0.0], [9.0, 16.0, np.nan]])).rho == pytest.approx(1)
    assert math.isnan(correlate(a_BT, np.ones((2, 3))).rho)
