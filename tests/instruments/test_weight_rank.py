"""Directions that were planted in weights, and in their change, are counted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from homunculi.core.model import LanguageModel
from homunculi.instruments.observing import look
from homunculi.instruments.weight_rank import MEASURES, participation_ratios
from homunculi.models import build
from homunculi.runs.measures import Measurement

SHAPE = {"vocab_size": 50, "d_model": 32, "n_blocks": 2, "n_heads": 2, "max_seq_len": 24}
CHANGED = "blocks.1.mlp.out.weight"


def untrained() -> LanguageModel:
    torch.manual_seed(0)
    return build("gpt", **SHAPE)


def found(model: LanguageModel, first: dict[str, torch.Tensor]) -> Measurement:
    return look(model, torch.zeros(1, 8, dtype=torch.long), ["weight_rank"], first=first)["weight_rank"]


def column(measured: Measurement, name: str) -> dict[str, float]:
    values = measured.values["weights"][:, MEASURES.index(name)]
    return dict(zip(measured.labels["matrix"], values.tolist(), strict=True))


def first_of(model: LanguageModel) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("rank", [1, 4, 16])
@pytest.mark.parametrize("shape", [(16, 40), (40, 16)])
def test_a_planted_number_of_equal_directions_is_counted(rank: int, shape: tuple[int, int]) -> None:
    torch.manual_seed(rank)
    left = torch.linalg.qr(torch.randn(shape[0], rank))[0]
    right = torch.linalg.qr(torch.randn(shape[1], rank))[0]
    ratios = participation_ratios({"planted": 1e-6 * left @ right.mT, "other": torch.randn(shape)})
    assert ratios["planted"] == pytest.approx(rank, rel=1e-4)
    assert 1 < ratios["other"] < 16


def test_unequal_directions_count_as_their_squared_singular_values_say() -> None:
    matrix = torch.diag(torch.tensor([2.0, 1.0, 0.0]))
    assert participation_ratios({"m": matrix})["m"] == pytest.approx((4 + 1) ** 2 / (16 + 1))


def test_a_planted_change_of_rank_one_is_found_in_its_matrix_alone() -> None:
    model = untrained()
    first = first_of(model)
    with torch.no_grad():
        weight = dict(model.named_parameters())[CHANGED]
        change = torch.outer(torch.randn(weight.shape[0]), torch.randn(weight.shape[1]))
        weight += 0.5 * weight.norm() * change / change.norm()
    measured = found(model, first)
    changes = column(measured, "relative change")
    assert changes.pop(CHANGED) == pytest.approx(0.5, rel=1e-5)
    assert set(changes.values()) == {0.0}
    directions = column(measured, "participation ratio of the change")
    assert directions.pop(CHANGED) == pytest.approx(1.0, rel=1e-4)
    assert np.isnan(list(directions.values())).all()
    assert float(measured.values["mean_participation_ratio_of_change"]) == pytest.approx(1.0, rel=1e-4)


def test_an_untrained_model_uses_most_directions_and_has_not_moved() -> None:
    model = untrained()
    measured = found(model, first_of(model))
    assert set(column(measured, "relative change").values()) == {0.0}
    shares = column(measured, "share of the smaller side")
    assert min(shares.values()) > 0.3 and max(shares.values()) < 1.0
    assert np.isnan(measured.values["mean_participation_ratio_of_change"])
    assert all(p.dim() == 2 for name, p in model.named_parameters() if name in shares)


def test_where_first_weights_are_unknown_only_the_present_ones_are_measured() -> None:
    measured = found(untrained(), {})
    assert np.isnan(list(column(measured, "relative change").values())).all()
    assert np.isfinite(list(column(measured, "participation ratio").values())).all()
