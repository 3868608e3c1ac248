"""Losses of states read out directly, and what share of the gain each step makes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from homunculi.core.catalogue import catalogue
from homunculi.errors import InputError
from homunculi.evals.loss import held_out_loss
from homunculi.experiments.readability import read_steps, shares_of_gain, step_losses
from homunculi.models import build, get, names
from tests.instruments.planted_words import Planted, expected, some_ids


def test_losses_of_a_readable_model_are_those_of_its_states() -> None:
    ids_BT = some_ids()
    p_3BTV = expected(ids_BT, 8.0, 6.0)[:, :, :-1]
    loss_3 = -np.log(np.take_along_axis(p_3BTV, ids_BT[None, :, 1:, None].numpy(), -1)).mean((1, 2, 3))
    assert step_losses(Planted(8.0, 6.0), ids_BT) == pytest.approx(loss_3.tolist(), rel=1e-4)


@pytest.mark.parametrize("name", [name for name in names() if name not in ("mor_published", "vocab_columns")])
def test_the_last_loss_is_the_models_whatever_the_architecture(name: str) -> None:
    torch.manual_seed(0)
    model = build(name, **({"vocab_size": 64} | dict(get(name).variants[0]))).train()
    ids_BT = torch.randint(0, 64, (2, 16))
    losses = step_losses(model, ids_BT)
    shown = [tap for tap in catalogue(model) if tap.name.endswith(".resid_post")]
    assert model.training and len(losses) == len(shown) + 1
    with torch.no_grad():
        logits = model.eval()(ids_BT).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids_BT[:, 1:].flatten())
    assert losses[-1] == pytest.approx(float(loss), rel=1e-4)


@pytest.mark.parametrize("name", ["gpt", "vocab_dense_memory", "vocab_shared_maps"])
def test_a_document_is_read_as_where_it_stands_alone_and_as_evaluation_reads_it(name: str) -> None:
    torch.manual_seed(0)
    model = build(name, **({"vocab_size": 64, "max_seq_len": 24} | dict(get(name).variants[0])))
    ids_BT = torch.randint(1, 64, (2, 24))
    ids_BT[:, 10] = 0  # opens the second document
    apart = step_losses(model, ids_BT, separator=0)
    first, second = (np.array(step_losses(model, part)) for part in (ids_BT[:, :11], ids_BT[:, 10:]))
    assert apart == pytest.approx((10 * first + 13 * second) / 23, rel=1e-5)
    assert abs(apart[-1] - step_losses(model, ids_BT)[-1]) > 1e-4
    evaluated = held_out_loss(model, ids_BT.numpy(), np.ones(64), separator=0)
    assert apart[-1] == pytest.approx(evaluated.loss, rel=1e-5)


def test_a_top_word_is_kept_where_it_is_the_final_one() -> None:
    ids_BT = some_ids()
    kept = [one.kept for one in read_steps(Planted(8.0, 6.0), ids_BT)]
    top_3BT = expected(ids_BT, 8.0, 6.0)[:, :, :-1].argmax(-1)
    assert kept == pytest.approx((top_3BT == top_3BT[-1]).mean((1, 2)).tolist())
    assert kept[0] < 1 and kept[-1] == 1


def test_a_list_of_ids_is_one_row() -> None:
    model, ids = Planted(8.0, 6.0), some_ids(1)[0]
    assert step_losses(model, ids.tolist()) == step_losses(model, ids[None])


def test_shares_of_the_gain_sum_to_one_and_a_step_that_loses_is_below_zero() -> None:
    assert shares_of_gain([5.0, 3.0, 3.5, 1.0]) == pytest.approx([0.5, -0.125, 0.625])
    assert all(math.isnan(share) for share in shares_of_gain([1.0, 2.0, 1.5]))


def test_what_cannot_be_read_is_refused_in_one_line() -> None:
    with pytest.raises(InputError, match=r"ids: shape \(1, 1\) holds nothing to predict"):
        step_losses(Planted(1.0, 1.0), [3])
    torch.manual_seed(0)
    partial = build("mor_published", vocab_size=40, d_model=32, n_heads=2, max_seq_len=24)
    with pytest.raises(InputError, match="model: shows no states"):
        step_losses(partial, torch.randint(0, 40, (3, 24)))
    columns = build("vocab_columns", **({"vocab_size": 64} | dict(get("vocab_columns").variants[0])))
    with pytest.raises(InputError, match="model: a step does not begin where the one before ended"):
        step_losses(columns, torch.randint(0, 64, (2, 8)))
