"""The packet of modulation: closed, frozen, taken at one step."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields

import pytest
import torch

from homunculi.core.modulation import NEUTRAL, Modulation


def test_at_takes_one_step_of_every_given_signal() -> None:
    gain, gate = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    at_one = Modulation(gain=gain, gate=gate).at(1)
    assert at_one.gain is not None and at_one.gate is not None
    assert torch.equal(at_one.gain, gain[..., 1:2])
    assert torch.equal(at_one.gate, gate[..., 1:2])
    assert at_one.precision is None and at_one.patience is None


def test_neutral_is_nothing_at_every_step() -> None:
    assert NEUTRAL.at(7) == NEUTRAL == Modulation()
    assert all(getattr(NEUTRAL, field.name) is None for field in fields(Modulation))


def test_the_packet_is_closed_and_frozen() -> None:
    assert len(fields(Modulation)) <= 6
    with pytest.raises(FrozenInstanceError):
        NEUTRAL.gain = torch.ones(1)  # type: ignore[misc]
    with pytest.raises(TypeError):
        Modulation(dopamine=torch.ones(1))  # type: ignore[call-arg]
