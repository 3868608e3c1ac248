"""Depth chosen and forced against depth needed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from homunculi.core.model import LanguageModel
from homunculi.experiments.changing import changed, depths_of
from homunculi.experiments.skills.depth import depth_of
from homunculi.experiments.skills.feed import pack
from homunculi.experiments.skills.plan import Settings, ask, points
from homunculi.experiments.skills.reading import judge
from homunculi.experiments.skills.scores import depth_json
from homunculi.experiments.skills.sizing import Frame, Side, small
from homunculi.models import get
from homunculi.tasks import registry
from homunculi.tasks.registry import Examples

CPU = torch.device("cpu")
FRAME = Frame(width=16, blocks=1, match="none")


def model_of(name: str, **own: Any) -> LanguageModel:
    torch.manual_seed(0)
    config = replace(small(get(name).config_type(), FRAME), max_seq_len=128, **own)
    return get(name).model_type(config)


def examples() -> Examples:
    task = registry.get("pointer_chasing")
    return task.generate(np.random.default_rng(0), 16, split="test", steps=4, arrows=18, vocabulary=32)


def test_a_model_without_a_choice_has_no_depth_and_a_task_without_steps_asks_for_none() -> None:
    assert depth_of(model_of("gpt"), examples(), CPU) is None
    parity = registry.get("parity").generate(np.random.default_rng(0), 4, split="test", length=8)
    assert depth_of(model_of("recursive"), parity, CPU) is None


def test_a_loop_is_forced_to_every_depth_and_beyond_and_keeps_its_own() -> None:
    model = model_of("recursive", n_passes=2, n_slots=4)
    found = depth_of(model, examples(), CPU)
    assert found is not None
    assert found["chosen"] is None
    assert [one["passes"] for one in found["forced"]] == [1, 2, 3, 4]
    at_own = next(one for one in found["forced"] if one["passes"] == 2)
    assert at_own["by_needed"] == found["own"]["by_needed"]
    assert found["needed"] == [1, 2, 3, 4]


@pytest.mark.parametrize("router", ["threshold", "token_choice"])
def test_a_router_tells_the_depth_of_every_counted_position(router: str) -> None:
    seen = examples()
    found = depth_of(model_of("mor", router=router), seen, CPU)
    assert found is not None
    chosen = found["chosen"]
    assert chosen["steps"] == found["needed"]
    assert sum(chosen["n_by_needed"]) == int(seen.counted_BT.sum())
    assert all(1 <= depth <= chosen["deepest"] for depth in chosen["by_needed"])
    weighted = np.dot(chosen["by_needed"], chosen["n_by_needed"]) / sum(chosen["n_by_needed"])
    assert chosen["mean"] == pytest.approx(weighted)


def test_a_router_that_follows_what_is_needed_is_seen_to(monkeypatch: pytest.MonkeyPatch) -> None:
    from homunculi.experiments.skills import depth as module

    seen = examples()
    assert seen.needed_BT is not None
    monkeypatch.setattr(module, "depths", lambda observed: (seen.needed_BT.astype(float), 4))
    found = depth_of(model_of("mor"), seen, CPU)
    assert found is not None
    assert found["chosen"]["rho"] == pytest.approx(1.0)
    assert found["chosen"]["by_needed"] == [1.0, 2.0, 3.0, 4.0]


def test_depths_of_several_seeds_are_averaged() -> None:
    settings = Settings(seeds=2, steps=1, rows=2, eval_rows=4, lrs=(1e-3,), wds=(0.0,), frame=FRAME)
    side = Side("recursive", small(get("recursive").config_type(), FRAME))
    point = points([side], ask(["parity"], {"length": "8"}), settings)[0]
    results = {}
    for i, cell in enumerate([point.grid[0], *point.other_seeds(point.grid[0], 2)]):
        chosen = {"deepest": 3, "mean": 2.0, "by_needed": [1.0 + i], "steps": [2], "rho": 0.5 * i}
        own = {"accuracy": 0.5, "by_needed": [0.5 + 0.2 * i]}
        forced = [{"passes": 1} | own]
        depth = {"needed": [2], "own": own, "forced": forced, "chosen": chosen}
        judged = {"accuracy": 0.5, "loss": 1.0}
        results[cell.key] = {"cell": cell.to_json(), "depth": depth, "diverged": False, "valid": judged, "test": judged}
    found = depth_json(point, results, 2)
    assert found is not None
    assert found["own"]["by_needed"] == [pytest.approx(0.6)]
    assert found["chosen"]["by_needed"] == [1.5]
    assert (found["chosen"]["rho"], found["chosen"]["n"]) == (0.25, 2)


@pytest.mark.parametrize("name", ["mor", "homunculi"])
def test_a_router_that_is_forced_is_judged_at_that_depth(name: str) -> None:
    """A judgement under a forced depth is that of the forward under it; each depth has one of its own."""
    model, seen = model_of(name).eval(), examples()
    ids_BT, targets_BT = pack(seen)
    losses = []
    for depth in depths_of(model):
        with changed(model, [f"depth={depth}"]), torch.no_grad():
            logits_BTV = model(ids_BT).logits
            losses.append(judge(model, seen, CPU).loss)
        wanted = torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), ignore_index=-100)
        assert losses[-1] == pytest.approx(float(wanted), rel=1e-5)
    assert len(losses) == 3 and len({round(loss, 6) for loss in losses}) == 3
