"""What a controller hears: instructions, tasks, statistics of blocks, its own past; each against its definition."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from homunculi.core.taps import Recording, Taps
from homunculi.errors import InputError
from homunculi.models.ncn.controller import Read, Recurrence, recur
from tests.models.controlled import fresh, ids, moved, set_to

# Instructions and tasks.


def test_an_instruction_is_the_mean_of_the_first_tokens() -> None:
    model = moved(instruction_tokens=3)
    seen = Recording("control.instruction")
    rows = ids()
    model(rows, seen)
    own_BTD = model.controller.own_norm(model.embed(rows))
    expected = torch.stack([own_BTD[:, : min(t + 1, 3)].mean(1) for t in range(16)], 1)
    torch.testing.assert_close(seen["control.instruction"], expected)
    packed = Recording("control.instruction")
    model(rows, packed, documents_BT=(torch.arange(16) >= 5).long().expand(2, -1))
    torch.testing.assert_close(
        packed["control.instruction"][:, 7:], own_BTD[:, 5:8].mean(1, keepdim=True).expand(-1, 9, -1)
    )
    torch.testing.assert_close(packed["control.instruction"][:, :5], expected[:, :5])


def test_a_task_token_in_front_is_heard_to_the_end() -> None:
    """With a pool of the token alone nothing else of the past reaches the controller."""
    rows = ids()
    changed = rows.clone()
    changed[:, 0] = (changed[:, 0] + 1) % 23
    for n_tokens, heard in ((1, True), (0, False)):
        model, found = moved(instruction_tokens=n_tokens, pooling="last"), []
        for given in (rows, changed):
            seen = Recording("control.gain")
            model(given, seen)
            found.append(seen["control.gain"])
        differ_T = (found[0] != found[1]).any(-1).all(0)
        assert differ_T[0] and bool(differ_T[1:].all()) == bool(differ_T[1:].any()) == heard


def test_each_row_may_have_its_own_task() -> None:
    """A task's number as a vector with a single 1: its column of the weights is the task's embedding."""
    model, rows = moved(n_controls=3), ids()
    seen = Recording("control.hidden")
    model(rows, seen)
    model.set_controls(torch.eye(3)[[2, 0]])
    tasks = Recording("control.hidden")
    mixed = model(rows, tasks).logits
    weight_CN = model.controller.from_controls.weight
    expected = torch.atanh(seen["control.hidden"]) + weight_CN.T[[2, 0]][:, None]
    torch.testing.assert_close(torch.atanh(tasks["control.hidden"]), expected)
    alone = []
    for row, task in enumerate((2, 0)):
        model.set_controls(torch.eye(3)[task])
        alone.append(model(rows[row : row + 1]).logits)
    torch.testing.assert_close(mixed, torch.cat(alone), rtol=1e-10, atol=1e-10)
    assert torch.equal(model.state_dict()["controller.controls"], torch.eye(3)[0].double())
    with pytest.raises(InputError, match="n_controls=3 numbers, or as many a row"):
        model.set_controls(torch.zeros(2, 2))


def test_sliders_act_while_decoding_row_by_row() -> None:
    model, rows = moved(n_controls=2), ids()
    model.set_controls([[1.0, 0.0], [0.0, -1.0]])
    cache, found = model.new_cache(2, 16), []
    for piece in rows.split([7, 1, 8], dim=1):
        found.append(model(piece, cache=cache).logits)
        cache.advance(piece.shape[1])
    torch.testing.assert_close(torch.cat(found, 1), model(rows).logits, rtol=1e-9, atol=1e-9)


# Statistics of the block before.

WATCHING: dict[str, Any] = {"n_blocks": 3, "statistics": ("entropy", "change")}


def test_a_block_hears_entropy_and_change_of_the_one_before() -> None:
    model = moved(**WATCHING)
    seen = Recording("steps.*")
    output = model(ids(), seen)
    assert "steps.0.control.statistics" not in seen.seen
    for block in (1, 2):
        heard_BTI, before = seen[f"steps.{block}.control.statistics"], f"steps.{block - 1}."
        pattern_BHTS = seen[before + "attn.pattern"]
        entropy_BT = torch.special.entr(pattern_BHTS).sum(-1).mean(1) / math.log(16)
        torch.testing.assert_close(heard_BTI[..., 0], entropy_BT)
        stream, wrote = seen[before + "resid_pre"], seen[before + "resid_post"] - seen[before + "resid_pre"]
        sizes = [t.square().sum(-1).sqrt() for t in (stream, wrote)]
        torch.testing.assert_close(heard_BTI[..., 1], sizes[1] / (sizes[0] + sizes[1]))
    both = torch.stack([seen[f"steps.{i}.control.statistics"] for i in (1, 2)])
    assert output.statistics["heard/entropy"].item() == pytest.approx(both[..., 0].mean().item())
    assert output.statistics["heard/change"].item() == pytest.approx(both[..., 1].mean().item())
    assert (both[..., 0] >= 0).all() and (both <= 1).all() and (both[:, :, 0, 0] == 0).all()  # one token: no choice


def test_sharp_attention_is_heard_as_low_entropy() -> None:
    model = moved(**WATCHING)

    def entropy(precision: float) -> float:
        seen = Recording("steps.1.control.statistics", others={"steps.0.control.precision": set_to(precision)})
        model(ids(), seen)
        return seen["steps.1.control.statistics"][..., 0].mean().item()

    assert entropy(0.25) > entropy(1.0) > entropy(4.0) > entropy(100.0)


def test_statistics_move_the_blocks_after_and_no_earlier_one() -> None:
    model = moved(**WATCHING)
    plain, written = (
        Recording("*control.*"),
        Recording("*control.*", others={"steps.1.control.statistics": set_to(0.9)}),
    )
    model(ids(), plain)
    model(ids(), written)
    assert torch.equal(plain["steps.0.control.gain"], written["steps.0.control.gain"])
    for block in (1, 2):
        assert not torch.allclose(plain[f"steps.{block}.control.gain"], written[f"steps.{block}.control.gain"])


def test_no_gradient_goes_through_what_is_heard() -> None:
    model = moved(**WATCHING)
    kept: list[Tensor] = []
    model(ids(), Taps({"steps.*.control.statistics": lambda tensor, name: kept.append(tensor)}))
    assert len(kept) == 2 and not any(tensor.requires_grad for tensor in kept)


def test_signals_of_blocks_are_one_tensor_for_loss_and_monitors() -> None:
    model = fresh(homeostasis=0.5, **WATCHING)
    output = model(ids(), Taps({"steps.2.control.gain": set_to(1.6)}))
    assert output.loss_terms["homeostasis"].item() == pytest.approx(0.5 * 0.6**2 / 3)
    assert output.statistics["signal/gain/mean"].item() == pytest.approx(1.2)


def test_the_cost_of_entropy_is_that_of_the_scores() -> None:
    plain, change, entropy = (
        fresh(n_blocks=3, statistics=names).budget(10) for names in ((), ("change",), ("entropy", "change"))
    )
    assert plain.forward_only_flops_per_token == change.forward_only_flops_per_token == 0
    scores = 2 * 10 * 16 * 2  # multiply-adds of 10 keys of width 16 in two of three blocks
    assert entropy.forward_only_flops_per_token == scores
    assert entropy.flops_per_token - change.flops_per_token == scores + 2 * 2 * 8  # and one more input of h


# The recurrence.


def test_doubling_is_the_recurrence() -> None:
    generator = torch.Generator().manual_seed(0)
    keep, x = (torch.rand(2, 37, 5, dtype=torch.float64, generator=generator) for _ in range(2))
    keep[:, 11] = 0.0
    state, expected = torch.zeros(2, 5, dtype=torch.float64), []
    for t in range(37):
        state = keep[:, t] * state + x[:, t]
        expected.append(state)
    torch.testing.assert_close(recur(keep, x), torch.stack(expected, 1), rtol=1e-12, atol=1e-12)


def test_the_state_takes_in_and_keeps_by_token() -> None:
    torch.manual_seed(0)
    part = Recurrence(6).double()
    h_BTC = torch.randn(2, 9, 6, dtype=torch.float64)
    state, expected = torch.zeros(2, 6, dtype=torch.float64), []
    for t in range(9):
        takes = torch.sigmoid(part.take(h_BTC[:, t]) + part.take_bias_C)
        state = (1 - takes) * state + takes * part.bring(h_BTC[:, t])
        expected.append(state)
    torch.testing.assert_close(part(h_BTC, Read(None)), torch.stack(expected, 1))
    apart = torch.cat([part(piece, Read(None)) for piece in h_BTC.split([4, 5], 1)], 1)
    torch.testing.assert_close(part(h_BTC, Read((torch.arange(9) >= 4).expand(2, -1))), apart)


def test_the_controller_remembers_what_its_pool_does_not_show() -> None:
    """With the token alone for a pool, an earlier token reaches later signals through the state only."""
    rows = ids()
    changed = rows.clone()
    changed[:, 4] = (changed[:, 4] + 1) % 23
    for recurrence in ("gated", "none"):
        model, found = moved(recurrence=recurrence, pooling="last"), []
        for given in (rows, changed):
            seen = Recording("control.gain")
            model(given, seen)
            found.append(seen["control.gain"])
        assert torch.equal(found[0][:, :4], found[1][:, :4])
        assert torch.equal(found[0][:, 5:], found[1][:, 5:]) == (recurrence == "none")


def test_what_a_controller_remembers_does_not_grow() -> None:
    for config in ({}, {"recurrence": "gated", "instruction_tokens": 2, "pooling": "adiabatic"}):
        model = fresh(**config)
        assert model.new_cache(2, 16).slots[-1].state_BC.shape == (2, 8 if config else 0)
        grown = [model.new_cache(2, n).n_bytes for n in (4, 8, 16)]
        assert grown[2] - grown[1] == 2 * (grown[1] - grown[0]) == 8 * 2 * 2 * model.budget().cache_bytes_per_token
