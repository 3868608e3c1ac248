"""Gradients and changes that were set by hand are found in the part where they were set."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from homunculi.instruments.observation import UpdateSeen
from homunculi.instruments.updates import MEASURES, measure, part_of
from homunculi.models import build
from homunculi.runs.measures import Measurement

SHAPE = {"vocab_size": 50, "d_model": 32, "n_blocks": 2, "n_heads": 2, "max_seq_len": 24}


def weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: p.detach().clone() for name, p in build("gpt", **SHAPE).named_parameters()}


def seen(before: dict[str, Tensor]) -> UpdateSeen:
    """An update that changed nothing: the control."""
    zeros = {name: torch.zeros_like(value) for name, value in before.items()}
    return UpdateSeen(3, 0.01, zeros, before, dict(before))


def rows(found: Measurement) -> dict[str, dict[str, float]]:
    table = found.values["updates"]
    return {
        part: dict(zip(MEASURES, row.tolist(), strict=True))
        for part, row in zip(found.labels["part"], table, strict=True)
    }


def test_an_update_that_did_nothing_shows_nothing() -> None:
    found = measure(seen(weights()))
    for row in rows(found).values():
        assert (row["gradient norm"], row["update / weight"], row["rate multiplier"]) == (0.0, 0.0, 1.0)
    assert float(found.values["gradient_norm"]) == float(found.values["update_ratio"]) == 0.0
    assert float(found.values["lr"]) == pytest.approx(0.01)


def test_a_gradient_set_by_hand_is_found_where_it_was_set() -> None:
    before = weights()
    control = seen(before)
    planted = dict(control.gradients) | {
        "blocks.1.attn.q.weight": torch.full((32, 32), 0.5),
        "blocks.1.attn.k.weight": torch.full((32, 32), -0.5),
    }
    found = measure(dataclasses.replace(control, gradients=planted))
    expected = math.sqrt(2 * 32 * 32 * 0.25)
    norms = {part: row["gradient norm"] for part, row in rows(found).items()}
    assert norms.pop("blocks.1.attn") == pytest.approx(expected)
    assert set(norms.values()) == {0.0}
    assert float(found.values["gradient_norm"]) == pytest.approx(expected)


def test_a_parameter_without_a_gradient_is_no_zero() -> None:
    control = seen(weights())
    gradients = {name: g for name, g in control.gradients.items() if not name.startswith("embed")}
    found = rows(measure(dataclasses.replace(control, gradients=gradients)))
    assert math.isnan(found["embed"]["gradient norm"]) and found["blocks.0.mlp"]["gradient norm"] == 0.0


def test_a_planted_change_is_found_relative_to_the_weights() -> None:
    before = weights()
    after = {name: 1.25 * value if name.startswith("blocks.0.mlp.") else value for name, value in before.items()}
    ratios = {
        part: row["update / weight"]
        for part, row in rows(measure(dataclasses.replace(seen(before), after=after))).items()
    }
    assert ratios.pop("blocks.0.mlp") == pytest.approx(0.25, rel=1e-5)
    assert set(ratios.values()) == {0.0}


def test_planted_multipliers_are_told_by_part() -> None:
    found = rows(measure(dataclasses.replace(seen(weights()), multipliers={"blocks.0": 1.5, "blocks.1.attn": 0.5})))
    multipliers = {part: row["rate multiplier"] for part, row in found.items()}
    assert multipliers["blocks.0.attn"] == multipliers["blocks.0.mlp"] == multipliers["blocks.0"] == 1.5
    assert multipliers["blocks.1.attn"] == 0.5 and multipliers["blocks.1.mlp"] == multipliers["embed"] == 1.0


def test_weights_of_zero_have_no_ratio() -> None:
    before = {"a.weight": torch.zeros(2, 2)}
    after = {"a.weight": torch.ones(2, 2)}
    assert np.isnan(measure(UpdateSeen(1, 1.0, {}, before, after)).values["update_ratio"])


@pytest.mark.parametrize(
    ("name", "n_axes", "part"),
    [
        ("embed.weight", 2, "embed"),
        ("norm.weight", 1, "norm"),
        ("alarm_R", 1, "alarm_R"),
        ("blocks.3.attn.q.weight", 2, "blocks.3.attn"),
        ("blocks.3.attn.q_norm.weight", 1, "blocks.3.attn"),
        ("blocks.3.attn_norm.weight", 1, "blocks.3"),
        ("regions.0.router.weight", 2, "regions.0.router"),
        ("regions.0.experts.maps.in.3", 2, "regions.0.experts"),
        ("regions.0.salience_E", 1, "regions.0"),
        ("first.mlp.in.weight", 2, "first.mlp"),
        ("first.mlp_norm.weight", 1, "first"),
        ("plan.sensitivity.gain", 0, "plan"),
    ],
)
def test_parts_follow_from_names(name: str, n_axes: int, part: str) -> None:
    assert part_of(name, n_axes) == part
