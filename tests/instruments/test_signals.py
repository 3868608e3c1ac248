"""Signals that were set by hand are found exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from homunculi.core.taps import Recording
from homunculi.instruments.observation import Observation
from homunculi.instruments.observing import look
from homunculi.instruments.registry import get
from homunculi.instruments.signals import MEASURES, measure
from homunculi.models import build
from homunculi.runs.measures import Measurement

B, T, L = 3, 24, 4


def model_of(arch: str, **config: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    return build(arch, **({"vocab_size": 50, "d_model": 32, "n_heads": 2, "max_seq_len": T} | config)).eval()


def some_ids() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randint(0, 50, (B, T))


def with_set(model: torch.nn.Module, **signals: torch.Tensor) -> Measurement:
    """A forward in which taps hold these numbers; names with `__` for dots."""
    put = {name.replace("__", "."): (lambda t, _, x=x: x.to(t.dtype).expand_as(t)) for name, x in signals.items()}
    recording = Recording(*get("signals").taps, others=put)
    ids_BT = some_ids()
    with torch.no_grad():
        output = model(ids_BT, recording)
    found = measure(Observation(model, ids_BT, recording.seen, output.logits))
    assert found is not None
    return found


def summary(found: Measurement, name: str) -> dict[str, float]:
    row = found.values["summary"][found.labels["signal"].index(name)]
    return dict(zip(MEASURES, map(float, row), strict=True))


def test_hand_set_signals_of_a_controller_are_found_exactly() -> None:
    model = model_of("ncn", n_blocks=L)
    by_token_BT1 = torch.linspace(0.5, 1.5, B * T).view(B, T, 1)
    by_step_L = torch.tensor([0.0, 0.5, 1.5, 2.0])
    found = with_set(model, control__gain=by_token_BT1, control__gate=by_step_L, control__precision=torch.tensor(4.0))
    values = np.linspace(0.5, 1.5, B * T)
    gain = summary(found, "gain")
    assert gain["mean"] == pytest.approx(1.0, abs=1e-6)
    assert (gain["minimum"], gain["maximum"]) == (0.5, 1.5)
    pooled = np.sort(np.repeat(values, L))
    assert gain["5 %"] == pytest.approx(np.quantile(pooled, 0.05), abs=1e-6)
    assert gain["95 %"] == pytest.approx(np.quantile(pooled, 0.95), abs=1e-6)
    assert gain["variance over tokens"] == pytest.approx(values.var(), rel=1e-5)
    assert gain["variance over steps"] == 0
    gate = summary(found, "gate")
    assert gate["variance over tokens"] == 0
    assert gate["variance over steps"] == pytest.approx(np.var([0.0, 0.5, 1.5, 2.0]))
    assert (gate["share at the low bound"], gate["share at the high bound"]) == (0.25, 0.25)
    assert summary(found, "precision")["share at the high bound"] == 1.0
    by_step = found.values["by_step"][found.labels["signal"].index("gate")]
    assert by_step.tolist() == [0.0, 0.5, 1.5, 2.0]
    assert found.values["effective_rank"] == pytest.approx(1.0, abs=1e-4)  # one number a token sets all gains
    squares = [values.var(), np.square(by_step_L.numpy() - 1).mean(), 9.0]
    assert found.values["distance_from_neutral"] == pytest.approx(np.sqrt(np.mean(squares)), rel=1e-5)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_rank_of_a_planted_packet_is_found(rank: int) -> None:
    waves_BTR = torch.stack([torch.sin(2 * torch.pi * (k + 1) * torch.arange(B * T) / (B * T)) for k in range(3)], -1)
    gain, gate, precision = (1 + 0.3 * waves_BTR.view(B, T, 3)[..., min(k, rank - 1), None] for k in range(3))
    found = with_set(model_of("ncn", n_blocks=L), control__gain=gain, control__gate=gate, control__precision=precision)
    shares = np.bincount([min(k, rank - 1) for k in range(3)], minlength=rank) / 3
    assert found.values["effective_rank"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-4)


def test_hand_set_packets_are_found_with_their_passes() -> None:
    model = model_of("homunculi", n_passes=3)
    put = {f"steps__{r}__packet__dopamine": torch.tensor(0.25 * r) for r in (1, 2, 3)}
    found = with_set(model, **put)
    assert found.labels["step"] == ("1", "2", "3")
    assert found.values["by_step"][found.labels["signal"].index("dopamine")].tolist() == [0.25, 0.5, 0.75]
    serotonin = found.values["by_step"][found.labels["signal"].index("serotonin")]
    assert np.isnan(serotonin[0]) and serotonin[1:].tolist() == [1.0, 1.0]


def test_gates_of_heads_count_only_where_a_token_takes_the_pass() -> None:
    model, ids_BT = model_of("homunculi", n_passes=3), some_ids()
    recording = Recording("steps.2.prefrontal.open_heads", "steps.2.router.taking")
    with torch.no_grad():
        model.prefrontal.gates.weight.normal_()
        model(ids_BT, recording)
    taking_BT = recording["steps.2.router.taking"].bool()
    gates = recording["steps.2.prefrontal.open_heads"][taking_BT]
    assert 0 < int(taking_BT.sum()) < taking_BT.numel()
    found = look(model, ids_BT, ["signals"])["signals"]
    place = found.labels["signal"].index("open_heads"), found.labels["step"].index("2")
    assert found.values["by_step"][place] == pytest.approx(float(gates.mean()), rel=1e-5)


@pytest.mark.parametrize(
    "config",
    [{"precision_per": "head"}, {"signals": ("gain", "heads", "film")}, {"statistics": ("change",)}],
    ids=["heads", "units", "step by step"],
)
def test_signals_of_units_and_of_single_steps_are_read(config: dict[str, Any]) -> None:
    found = look(model_of("ncn", n_blocks=L, **config), some_ids(), ["signals"])["signals"]
    assert found.labels["signal"] == tuple(config.get("signals", ("gain", "precision", "gate")))
    assert found.values["by_step"].tolist() == [[1.0] * L] * len(found.labels["signal"])


@pytest.mark.parametrize("arch", ["ncn", "homunculi"])
def test_an_untrained_model_is_neutral(arch: str) -> None:
    found = look(model_of(arch), some_ids(), ["signals"])["signals"]
    assert np.nan_to_num(found.values["by_step"], nan=1.0).tolist() == np.ones_like(found.values["by_step"]).tolist()
    assert found.values["effective_rank"] == 0
    assert found.values["distance_from_neutral"] == 0


def test_a_model_without_signals_has_none() -> None:
    assert look(model_of("gpt"), some_ids(), ["signals"]) == {}
    injecting = model_of("recursive", injection="add", pass_signal="embedding")
    assert look(injecting, some_ids(), ["signals"]) == {}
