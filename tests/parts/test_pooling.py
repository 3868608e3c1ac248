"""Causal pooling against its definition: softmax averages of prefixes, decay, refreshes, documents, state, padding."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from homunculi.parts.pooling import HEARD_HALF_LIFE, SCORE_BOUND, CausalPooling, PoolingSlot, decayed_sum, prefix_sum

D, H, T = 8, 2, 13
KINDS: dict[str, dict[str, Any]] = {
    "causal": {},
    "decay": {"half_lives": (2.0, 5.0)},
    "refreshed": {"refresh_every": 4},
    "decay and refreshed": {"half_lives": (2.0, 5.0), "refresh_every": 3},
    "undecided": {"refresh_above": 0.9},
}


def pooling(kind: str) -> CausalPooling:
    torch.manual_seed(0)
    return CausalPooling(D, H, **KINDS[kind]).double()


def inputs(n_rows: int = 2, n_tokens: int = T) -> Tensor:
    return torch.randn(n_rows, n_tokens, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def by_definition(part: CausalPooling, x_TD: Tensor) -> Tensor:
    """One row, one position at a time, with a square of ages and no running sum."""
    scores_TH = SCORE_BOUND * torch.tanh(part.score(x_TD) / SCORE_BOUND)
    values_THK = part.value(x_TD).unflatten(-1, (H, -1))
    pools: list[Tensor] = []
    for t in range(len(x_TD)):
        last = t // part.refresh_every * part.refresh_every
        if part.refresh_above and t and share_heard(scores_TH[: t + 1]) < part.refresh_above:
            pools.append(pools[-1])
            continue
        logits_SH = scores_TH[: last + 1]
        if part.log_half_life_H is not None:
            age_S1 = torch.arange(last, -1, -1, dtype=torch.float64)[:, None]
            logits_SH = logits_SH - age_S1 / part.log_half_life_H.exp() * torch.tensor(2.0).double().log()
        pools.append((logits_SH.softmax(0)[..., None] * values_THK[: last + 1]).sum(0).flatten())
    return torch.stack(pools)


def share_heard(scores_SH: Tensor) -> float:
    """Of the latest tokens, by definition: exp(−KL) of the softmax from the one with equal scores."""
    ages_S1 = torch.arange(len(scores_SH) - 1, -1, -1, dtype=torch.float64)[:, None]
    prior_SH = (-ages_S1 / HEARD_HALF_LIFE * math.log(2)).expand_as(scores_SH)
    p_SH = (scores_SH + prior_SH).softmax(0)
    apart_H = (p_SH * (p_SH.log() - prior_SH.log_softmax(0))).sum(0)
    return math.exp(-apart_H.mean().item())


def read(part: CausalPooling, x_BTD: Tensor, slot: PoolingSlot, start: Tensor, valid: Tensor | None = None) -> Tensor:
    return part(x_BTD, cache=(slot, start[:, None] + torch.arange(x_BTD.shape[1]), valid))


@pytest.mark.parametrize("kind", KINDS)
def test_each_position_holds_the_weighted_average_of_its_prefix(kind: str) -> None:
    part, x_BTD = pooling(kind), inputs()
    expected = torch.stack([by_definition(part, x_TD) for x_TD in x_BTD])
    torch.testing.assert_close(part(x_BTD), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_documents_in_a_row_pool_what_they_pool_apart(kind: str) -> None:
    part, x_BTD = pooling(kind), inputs(1)
    documents_BT = torch.tensor([[3] * 5 + [4] * 1 + [9] * 7])
    apart = torch.cat([part(piece) for piece in x_BTD.split([5, 1, 7], dim=1)], dim=1)
    torch.testing.assert_close(part(x_BTD, documents_BT), apart, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(part(x_BTD)[:, 6:], apart[:, 6:])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [[13], [1] * 13, [5, 1, 7], [2, 11]])
def test_reading_in_pieces_gives_the_whole(kind: str, sizes: list[int]) -> None:
    part, x_BTD = pooling(kind), inputs()
    slot, found, start = part.new_slot(2), [], 0
    for piece in x_BTD.split(sizes, dim=1):
        found.append(read(part, piece, slot, torch.tensor([start, start])))
        start += piece.shape[1]
    torch.testing.assert_close(torch.cat(found, 1), part(x_BTD), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_leaves_no_trace(kind: str) -> None:
    part, x_BTD = pooling(kind), inputs(3)
    whole, lengths_B = part(x_BTD), torch.tensor([7, 0, 4])
    padded = x_BTD[:, :7].clone()
    padded[1], padded[2, 4:] = 50.0, -50.0
    slot = part.new_slot(3)
    first = read(part, padded, slot, torch.zeros(3, dtype=torch.long), torch.arange(7) < lengths_B[:, None])
    torch.testing.assert_close(first[2, :4], whole[2, :4], rtol=1e-10, atol=1e-12)
    rows = torch.arange(3)
    for i in range(6):
        now = read(part, x_BTD[rows, lengths_B + i][:, None], slot, lengths_B + i)
        torch.testing.assert_close(now[:, 0], whole[rows, lengths_B + i], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_later_is_seen_by_value_or_gradient(kind: str) -> None:
    part, x_BTD = pooling(kind), inputs().requires_grad_()
    pool = part(x_BTD)
    (gradient,) = torch.autograd.grad(pool[:, :6].square().sum(), x_BTD)
    assert gradient[:, :6].abs().sum() > 0 and not gradient[:, 6:].any()
    changed = x_BTD.detach().clone()
    changed[:, 6:] *= -3
    assert torch.equal(part(changed)[:, :6], pool[:, :6].detach())


def test_an_undecided_softmax_refreshes_and_a_decided_one_holds() -> None:
    """Equal scores refresh at every token; once one token outweighs all others, the pool stays what it was."""
    part = CausalPooling(D, H, refresh_above=0.5)
    with torch.no_grad():
        part.score.weight.zero_()[:, 0] = 1.0
        part.value.weight.copy_(torch.eye(D))
    x_BTD = inputs(1).float()
    x_BTD[..., 0] = 0.0
    x_BTD[:, 6:, 0] = torch.tensor([12.0, 0, 0, 0, 0, 0, 0])
    pool = part(x_BTD).detach()[0]
    moved = (pool[1:] != pool[:-1]).any(-1)
    assert moved[:5].all() and not moved[5:].any()
    assert (CausalPooling(D, H)(x_BTD)[0, 7:] != pool[7:]).any()


@pytest.mark.parametrize("kind", ["refreshed", "undecided"])
def test_some_tokens_hold_and_some_refresh(kind: str) -> None:
    pool = pooling(kind)(inputs(4, 60)).detach()
    share = (pool[:, 1:] != pool[:, :-1]).any(-1).double().mean()
    assert 0.05 < share < 0.95


@pytest.mark.parametrize("keep", [None, 0.9])
def test_both_ways_of_summing_agree(keep: float | None) -> None:
    x_BTHK = inputs().unflatten(-1, (H, -1))
    keep_H = None if keep is None else torch.full((H,), keep, dtype=torch.float64)
    expected, last = [], torch.zeros_like(x_BTHK[:, 0])
    for t in range(T):
        last = last * (keep or 1.0) + x_BTHK[:, t]
        expected.append(last)
    torch.testing.assert_close(prefix_sum(x_BTHK, keep_H), torch.stack(expected, 1))
    doubled = prefix_sum(x_BTHK, keep_H, torch.zeros(2, T))
    torch.testing.assert_close(doubled, torch.stack(expected, 1))


def test_the_deterministic_switch_gives_the_same_sums() -> None:
    x_BTHK = inputs().unflatten(-1, (H, -1))
    plain = prefix_sum(x_BTHK)
    torch.use_deterministic_algorithms(True)
    try:
        torch.testing.assert_close(prefix_sum(x_BTHK), plain)
    finally:
        torch.use_deterministic_algorithms(False)


def test_extreme_scores_stay_finite_and_are_not_lost() -> None:
    """Scores far beyond the bound, first one way and then the other, in float32."""
    part = CausalPooling(D, H)
    with torch.no_grad():
        part.score.weight.zero_()[:, 0] = 1.0
        part.value.weight.copy_(torch.eye(D))
    x_BTD = torch.ones(1, 400, D)
    x_BTD[:, :, 0] = torch.where(torch.arange(400) % 100 < 50, -1e4, 1e4)
    pool = part(x_BTD).detach()
    torch.testing.assert_close(pool[:, :, 1:], torch.ones_like(pool[:, :, 1:]))
    assert pool[0, 49, 0] == -1e4  # many tiny weights average as well as large ones
    assert pool[0, 60, 0].item() == pytest.approx(1e4)  # and large ones win at once


def test_narrow_inputs_are_summed_in_float32() -> None:
    part, x_BTD = CausalPooling(D, H), inputs(1, 300).float()
    narrow = part(x_BTD.bfloat16())
    assert narrow.dtype == torch.bfloat16
    torch.testing.assert_close(narrow.float(), part(x_BTD), rtol=0.05, atol=0.02)
    slot = part.new_slot(1)
    read(part, x_BTD.bfloat16(), slot, torch.tensor([0]))
    assert slot.sum_BHK.dtype == torch.float32


def test_half_lives_are_learned() -> None:
    part = pooling("decay")
    part(inputs()).square().sum().backward()
    assert part.log_half_life_H is not None and part.log_half_life_H.grad is not None
    assert part.log_half_life_H.grad.abs().min() > 0


@pytest.mark.parametrize("n_tokens", [1, 31, 32, 33, 100])
def test_products_and_doubling_give_the_same_decaying_sum(n_tokens: int) -> None:
    generator = torch.Generator().manual_seed(n_tokens)
    x_BTHK = torch.randn(2, n_tokens, 3, 4, dtype=torch.float64, generator=generator).requires_grad_()
    keep_H = torch.tensor([1.0, 0.5, 1e-9], dtype=torch.float64).requires_grad_()
    found, wanted = decayed_sum(x_BTHK, keep_H), prefix_sum(x_BTHK, keep_H)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    weight = torch.randn(found.shape, dtype=torch.float64, generator=generator)
    for parameter in (x_BTHK, keep_H) if n_tokens > 1 else (x_BTHK,):
        mine, theirs = (torch.autograd.grad((y * weight).sum(), parameter, retain_graph=True) for y in (found, wanted))
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


def test_a_sum_that_forgets_at_once_has_finite_gradients() -> None:
    keep_H = torch.zeros(1).requires_grad_()
    y = decayed_sum(torch.ones(1, 40, 1, 1), keep_H)
    assert torch.equal(y, torch.ones_like(y))
    assert torch.autograd.grad(y.sum(), keep_H)[0].isfinite().all()
