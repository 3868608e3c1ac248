"""Outcomes that are known before: a harness that does not reproduce them measures something else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from homunculi.experiments.skills.cells import Json
from homunculi.experiments.skills.learning import learn
from homunculi.experiments.skills.plan import Settings, ask, points
from homunculi.experiments.skills.sizing import Frame, Side, small
from homunculi.models import Architecture, get, registry
from homunculi.models.gpt import GPT, Config


def learned(side: Side, task: str, steps: int, rows: int = 32, blocks: int = 2, **dials: Any) -> Json:
    """What one small model comes to at one value of a task."""
    frame = Frame(blocks=blocks)
    settings = Settings(seeds=1, steps=steps, rows=rows, eval_rows=128, lrs=(3e-3,), wds=(0.1,), frame=frame)
    typed = {name: str(value) for name, value in dials.items()}
    point = points([side], ask([task], typed), settings)
    assert len(point) == 1
    return learn(point[0].grid[0], torch.device("cpu"))


def plain(blocks: int = 2) -> Side:
    return Side("plain", small(get("gpt").config_type(), Frame(blocks=blocks)))


def test_two_layers_of_attention_recall() -> None:
    found = learned(plain(), "recall", 1000, 64, pairs=4, length=16, vocabulary=8)
    assert found["test"]["accuracy"] > 0.98
    assert found["steps_taken"] < 1000  # solved, so it ends early


def test_one_layer_of_attention_does_not_recall_twice() -> None:
    found = learned(plain(1), "compositional_recall", 300, blocks=1, hops=2, pairs=6, vocabulary=12)
    assert found["test"]["accuracy"] < 0.35


def test_a_transformer_learns_parity_and_does_not_carry_it_to_longer_rows() -> None:
    found = learned(plain(), "parity", 500, length=8)
    assert found["test"]["accuracy"] > 0.85
    assert {one["value"] for one in found["beyond"]} == {64, 128}
    assert all(abs(one["accuracy"] - 0.5) < 0.06 for one in found["beyond"])


@dataclass(frozen=True, kw_only=True, slots=True)
class UnplacedConfig(Config):
    """Of the model below."""


class Unplaced(GPT):
    """The plain transformer without positions: nothing is rotated."""

    def __init__(self, config: UnplacedConfig) -> None:
        super().__init__(config)
        rotation = self.rope.at

        def at(positions: Tensor | slice, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
            cos, sin = rotation(positions, dtype)
            return torch.ones_like(cos), torch.zeros_like(sin)

        self.rope.at = at  # type: ignore[method-assign]


@pytest.fixture
def unplaced(monkeypatch: pytest.MonkeyPatch) -> Side:
    known = Architecture("unplaced", UnplacedConfig, Unplaced)
    monkeypatch.setitem(registry._REGISTERED, "unplaced", known)
    return Side("unplaced", small(UnplacedConfig(), Frame()))


def test_attention_without_positions_cannot_copy_in_order(unplaced: Side) -> None:
    dials = {"tokens": 8, "vocabulary": 8}
    assert learned(plain(), "selective_copy", 250, **dials)["test"]["accuracy"] > 0.9
    assert learned(unplaced, "selective_copy", 250, **dials)["test"]["accuracy"] < 0.65


def test_part_of_a_sequence_is_recovered_from_one_state() -> None:
    found = learned(plain(), "compression", 200, 64, tokens=8, vocabulary=4)
    assert found["test"]["accuracy"] > 0.35  # chance is 0.25
