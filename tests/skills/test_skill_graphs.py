"""Captured graphs: which models may be captured, and that whatever fails falls back to the same computation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from homunculi.core.model import LanguageModel
from homunculi.experiments.skills.graphs import Captured, captured, varies
from homunculi.experiments.skills.reading import SkillLoss
from homunculi.experiments.skills.sizing import Frame, small
from homunculi.models import get


def model_of(name: str, **own: Any) -> LanguageModel:
    torch.manual_seed(0)
    config = small(get(name).config_type(), Frame(width=16, blocks=1))
    return get(name).model_type(replace(config, **own))


def packed() -> torch.Tensor:
    return torch.randint(64, (2, 2, 8), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "own", "follows"),
    [
        ("gpt", {}, False),
        ("recursive", {}, False),
        ("recursive", {"growth": "steps"}, True),
        ("recursive", {"growth": "loss"}, True),
        ("recursive", {"pass_count": "random"}, True),
    ],
)
def test_what_follows_a_schedule_is_not_captured(name: str, own: dict[str, Any], follows: bool) -> None:
    model = model_of(name, **own)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert varies(model, 100) is follows
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())


def test_a_cpu_computes_as_it_is() -> None:
    model = model_of("gpt")
    loss = SkillLoss(model)
    assert captured(loss, model, torch.device("cpu"), 10) is loss


@pytest.mark.parametrize("fails_at", ["set_sync_debug_mode", "make_graphed_callables"])
def test_what_cannot_be_captured_is_launched_singly_with_the_reason(
    fails_at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: Any, **others: Any) -> None:
        raise RuntimeError("a read\nfrom the device")

    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)
    monkeypatch.setattr(torch.cuda, fails_at, fail)
    loss = SkillLoss(model_of("gpt"))
    wrapped = Captured(loss)
    assert wrapped(packed()).cross_entropy.equal(loss(packed()).cross_entropy)
    assert wrapped.reason == "RuntimeError: a read from the device"
    wrapped(packed()).cross_entropy.backward()
    assert all(p.grad is not None for p in loss.parameters())
