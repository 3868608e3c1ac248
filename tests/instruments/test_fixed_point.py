"""Contractions that were planted are found with their factor."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from homunculi.core.taps import Recording
from homunculi.instruments.fixed_point import measure
from homunculi.instruments.observation import Observation
from homunculi.instruments.observing import look
from homunculi.models import build
from homunculi.runs.measures import Measurement

SHAPE = {"vocab_size": 40, "d_model": 32, "n_heads": 2, "max_seq_len": 24}
PASSES = 4


def recursive(**config: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return build("recursive", **(SHAPE | config)).eval()


def some_ids() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randint(0, 40, (3, 24))


def planted(map_D: torch.Tensor) -> Measurement:
    """A loop whose pass is x → m + M (x − m), put there by hooks in a real forward."""
    model, ids_BT = recursive(n_slots=2 + PASSES, n_passes=PASSES), some_ids()
    target_BTD, state = 3 * torch.randn(3, 24, 32), {}

    def settle(tensor: torch.Tensor, name: str) -> torch.Tensor:
        state["x"] = target_BTD + (state["x"] - target_BTD) @ map_D
        return state["x"]

    def begin(tensor: torch.Tensor, name: str) -> None:
        state["x"] = tensor

    hooks = {"steps.0.resid_post": begin} | {f"steps.{r}.resid_post": settle for r in range(1, 1 + PASSES)}
    recording = Recording("embed", "steps.*.resid_post", others=hooks)
    with torch.no_grad():
        output = model(ids_BT, recording)
    found = measure(Observation(model, ids_BT, recording.seen, output.logits))
    assert found is not None
    return found


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.5])
def test_a_planted_contraction_is_found_with_its_factor(factor: float) -> None:
    found = planted(factor * torch.eye(32))
    assert found.values["ratio"][0, 1:] == pytest.approx([factor] * (PASSES - 1), rel=1e-4)
    assert found.values["cosine"][0, 1:] == pytest.approx([1.0] * (PASSES - 1), abs=1e-4)
    assert found.values["shrinking"][0, 1:].tolist() == [float(factor < 1)] * (PASSES - 1)
    assert np.isnan(found.values["ratio"][0, 0])
    assert found.labels == {"loop": ("block 1",), "pass": ("1", "2", "3", "4")}


def test_an_orbit_is_told_from_an_approach() -> None:
    found = planted(-torch.eye(32))
    assert found.values["ratio"][0, 1:] == pytest.approx([1.0] * (PASSES - 1), rel=1e-4)
    assert found.values["cosine"][0, 1:] == pytest.approx([-1.0] * (PASSES - 1), abs=1e-4)


def test_change_is_relative_to_the_state_before() -> None:
    model, ids_BT = recursive(n_slots=4, n_passes=2), some_ids()
    found = look(model, ids_BT, ["fixed_point"])["fixed_point"]
    recording = Recording("steps.*.resid_post")
    with torch.no_grad():
        model(ids_BT, recording)
    before, after = recording["steps.1.resid_post"], recording["steps.2.resid_post"]
    expected = float(((after - before).norm(dim=-1) / before.norm(dim=-1)).mean())
    assert found.values["change"][0, 1] == pytest.approx(expected, rel=1e-4)


def test_blocks_repeated_by_themselves_are_loops_of_their_own() -> None:
    model = recursive(n_slots=6, n_passes=2, sharing="middle_sequence")
    found = look(model, some_ids(), ["fixed_point"])["fixed_point"]
    assert found.labels["loop"] == ("block 1", "block 2")
    assert np.isfinite(found.values["ratio"][:, 1]).all()


def test_an_untrained_loop_does_not_settle() -> None:
    found = look(recursive(n_slots=2 + PASSES, n_passes=PASSES), some_ids(), ["fixed_point"])["fixed_point"]
    assert found.values["ratio"][0, 1:].min() > 0.8


def test_a_model_that_repeats_nothing_has_none() -> None:
    torch.manual_seed(0)
    assert look(build("gpt", n_blocks=2, **SHAPE), some_ids(), ["fixed_point"]) == {}
