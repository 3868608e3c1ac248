"""A model that copies from a window shows its cliff there."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from homunculi.instruments.observation import Observation
from homunculi.instruments.observing import look
from homunculi.instruments.recall import band_of, bands_up_to, distances, measure
from homunculi.models import build

B, T, V, WINDOW = 8, 256, 120, 16


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return build("gpt", vocab_size=V, d_model=32, n_blocks=2, n_heads=2, max_seq_len=T)


def copying(window: int, noise: float = 0.0) -> Observation:
    """Every token that stood among the last `window` is three nats likelier than the others."""
    torch.manual_seed(1)
    ids_BT = torch.randint(0, V, (B, T))
    logits_BTV = noise * torch.randn(B, T, V)
    for t in range(T):
        logits_BTV[:, t].scatter_(1, ids_BT[:, max(0, t - window + 1) : t + 1], 3.0)
    return Observation(model(), ids_BT, {}, logits_BTV)


def test_distances_are_to_the_last_of_the_type() -> None:
    assert distances(np.array([[5, 7, 5, 5, 7, 9]])).tolist() == [[0, 0, 2, 1, 3, 0]]
    bands = dict(zip(range(1, 18), band_of(np.arange(1, 18)), strict=True))
    assert [bands[d] for d in (1, 2, 3, 4, 5, 8, 9, 16, 17)] == [0, 1, 2, 2, 3, 3, 4, 4, 5]
    assert bands_up_to(17) == ("1", "2", "3 to 4", "5 to 8", "9 to 16", "17 to 17")


def test_a_window_of_sixteen_has_its_cliff_at_sixteen() -> None:
    measured = measure(copying(WINDOW))
    gain = dict(zip(measured.labels["distance"], measured.values["recall by distance"], strict=True))
    assert measured.values["reach of recall"] == WINDOW
    assert min(gain["3 to 4"], gain["5 to 8"], gain["9 to 16"]) > 2.5
    assert abs(gain["17 to 32"]) < 0.3 and abs(gain["65 to 128"]) < 0.3
    assert measured.values["recall near"] > 2.5 and abs(measured.values["recall far"]) < 0.3


def test_a_wider_window_reaches_farther() -> None:
    measured = measure(copying(64, noise=0.3)).values
    assert measured["reach of recall"] == 64
    assert measured["recall"] > 5 * measured["recall null sd"]


def test_losses_that_know_no_context_show_no_recall() -> None:
    torch.manual_seed(2)
    ids_BT = torch.randint(0, V, (B, T))
    values = measure(Observation(model(), ids_BT, {}, torch.randn(B, T, V))).values
    assert abs(values["recall"]) < 4 * values["recall null sd"]
    assert np.isnan(values["reach of recall"])
    assert abs(values["gain of context"]) < 0.2


def test_an_untrained_model_recalls_nothing() -> None:
    torch.manual_seed(3)
    values = look(model(), torch.randint(0, V, (B, T)), ["recall"])["recall"].values
    assert abs(values["recall"]) < 4 * values["recall null sd"]
    assert abs(values["recall far"]) < 0.05


def test_context_that_helps_lowers_the_loss_by_position() -> None:
    ids_BT = torch.randint(0, V, (B, T))
    logits_BTV = torch.zeros(B, T, V)
    logits_BTV[:, T // 2 :].scatter_(2, ids_BT.roll(-1, 1)[:, T // 2 :, None], 50.0)
    measured = measure(Observation(model(), ids_BT, {}, logits_BTV)).values
    assert measured["gain of context"] == pytest.approx(np.log(V), abs=0.1)
    assert measured["loss by position"][[0, -1]] == pytest.approx([np.log(V), 0], abs=0.1)


def test_two_tokens_are_enough() -> None:
    values = measure(Observation(model(), torch.zeros(2, 2, dtype=torch.long), {}, torch.zeros(2, 2, V))).values
    assert values["loss by position"].tolist() == pytest.approx([np.log(V)])
