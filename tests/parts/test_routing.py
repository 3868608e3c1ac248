"""Admission under a quota, and running blocks on gathered tokens: the same as counting one by one and computing all."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from homunculi.core.cache import KVSlot, SlotOfRows
from homunculi.core.taps import NO_TAPS, Recording, Taps
from homunculi.parts.gathered import Gathered, GatheredTaps, gather, gather_now, look, measure
from homunculi.parts.routing import Quota, RoutedSlot, admit, put_sum, select, take

SHARES = [(0.5, 0), (1 / 3, 2), (2 / 3, 1), (1.0, 0), (0.05, 3)]


def wishes(n_rows: int = 3, n_tokens: int = 40, seed: int = 0) -> Tensor:
    """Rows that want often, seldom, and in one long run after nothing."""
    drawn_BT = torch.rand(n_rows, n_tokens, generator=torch.Generator().manual_seed(seed))
    wants_BT = drawn_BT < torch.tensor([0.8, 0.2, 0.0])[:n_rows, None]
    wants_BT[2:, n_tokens // 2 :] = True
    return wants_BT


def counted_one_by_one(wants_BT: Tensor, quota: Quota) -> Tensor:
    counts = torch.zeros(wants_BT.shape, dtype=torch.long)
    for row, wants in enumerate(wants_BT.tolist()):
        count = 0
        for t, wish in enumerate(wants):
            count += wish and count < quota.of_first(t + 1)
            counts[row, t] = count
    return counts


@pytest.mark.parametrize(("share", "burst"), SHARES)
def test_admission_equals_counting_one_by_one(share: float, burst: int) -> None:
    quota = Quota(share, burst)
    for seed in range(5):
        wants_BT = wishes(seed=seed)
        counts_BT = admit(wants_BT, quota.at(torch.arange(40)[None]))
        assert torch.equal(counts_BT, counted_one_by_one(wants_BT, quota))


@pytest.mark.parametrize(("share", "burst"), SHARES)
def test_the_quota_at_each_position_is_that_of_the_first_tokens(share: float, burst: int) -> None:
    quota = Quota(share, burst)
    assert quota.at(torch.arange(300)).tolist() == [quota.of_first(n) for n in range(1, 301)]


def test_whole_shares_are_not_rounded_up() -> None:
    assert [Quota(1 / 3, 0).of_first(n) for n in (3, 30, 300, 3000)] == [1, 10, 100, 1000]
    assert Quota(2 / 3, 0).at(torch.tensor([2, 299])).tolist() == [2, 200]


@pytest.mark.parametrize(("share", "burst"), SHARES)
def test_a_later_wish_changes_no_earlier_admission(share: float, burst: int) -> None:
    quota_BT = Quota(share, burst).at(torch.arange(40)[None])
    wants_BT = wishes()
    changed_BT = wants_BT.clone()
    changed_BT[:, 20:] ^= True
    before, after = admit(wants_BT, quota_BT), admit(changed_BT, quota_BT)
    assert torch.equal(before[:, :20], after[:, :20]) and not torch.equal(before, after)


def test_admission_goes_on_from_a_count_in_pieces() -> None:
    quota, wants_BT = Quota(0.4, 2), wishes()
    whole = admit(wants_BT, quota.at(torch.arange(40)[None]))
    before_B, pieces = None, []
    for start, stop in ((0, 1), (1, 2), (2, 30), (30, 40)):
        quota_BT = quota.at(torch.arange(start, stop)[None])
        pieces.append(admit(wants_BT[:, start:stop], quota_BT, before_B))
        before_B = pieces[-1][:, -1]
    assert torch.equal(torch.cat(pieces, 1), whole)


def test_selection_lists_takers_in_order_and_never_more_than_its_places() -> None:
    quota, wants_BT = Quota(0.5, 1), wishes()
    count_BT = admit(wants_BT, quota.at(torch.arange(40)[None]))
    taking_BT = torch.diff(count_BT, dim=1, prepend=torch.zeros(3, 1, dtype=torch.long)) > 0
    selection = select(count_BT, quota.of_first(40))
    for row in range(3):
        expected = taking_BT[row].nonzero()[:, 0].tolist()
        n = len(expected)
        assert selection.index_BC[row, :n].tolist() == expected
        assert selection.taken_BC[row].tolist() == [True] * n + [False] * (21 - n)
        assert selection.count_BC[row].tolist() == list(range(1, n + 1)) + [0] * (21 - n)
    narrow = select(count_BT, 3)
    assert torch.equal(narrow.index_BC, selection.index_BC[:, :3])


def test_taking_and_putting_back_touches_the_selected_tokens_only() -> None:
    x_BTD = torch.randn(3, 40, 4, dtype=torch.float64, requires_grad=True)
    count_BT = admit(wishes(), Quota(0.5, 1).at(torch.arange(40)[None]))
    taking_BT = torch.diff(count_BT, dim=1, prepend=torch.zeros(3, 1, dtype=torch.long)) > 0
    selection = select(count_BT, 21)
    out_BTD = put_sum(x_BTD, 2 * take(x_BTD, selection.index_BC), selection)
    assert torch.equal(out_BTD, torch.where(taking_BT[..., None], 3 * x_BTD, x_BTD))
    (gradient,) = torch.autograd.grad(out_BTD.sum(), x_BTD)
    assert torch.equal(gradient, (1 + 2 * taking_BT[..., None].double()).expand_as(x_BTD))


def test_a_routed_slot_lays_keys_side_by_side_and_empty_places_beyond_all() -> None:
    slot = RoutedSlot.empty((2, 1, 6, 3), torch.float32, torch.device("cpu"))
    selection = select(torch.tensor([[1, 1, 2], [0, 0, 1]]), 2)
    where_BC, seen_BCL = slot.places(selection)
    assert where_BC.tolist() == [[0, 1], [0, 6]]
    assert seen_BCL[0].sum(-1).tolist() == [1, 2] and seen_BCL[1, 0].sum() == 1


# Gathered blocks.


def takers(taking: list[list[int]]) -> Tensor:
    return torch.tensor(taking).cumsum(1)


def gathered_now(count_BT: Tensor, before_B: Tensor, recorded: bool = False) -> Gathered | None:
    crowd = look(count_BT, before_B)
    return gather_now(crowd, measure(crowd, recorded))


def test_the_host_finds_the_smallest_block_and_the_rows_that_take_part() -> None:
    nothing = torch.zeros(3, dtype=torch.long)
    assert gathered_now(takers([[0, 0], [0, 0], [0, 0]]), nothing) is None
    some = gathered_now(takers([[0, 0, 0], [1, 0, 1], [0, 1, 0]]), nothing)
    assert some is not None and some.rows_A is not None
    assert some.rows_A.tolist() == [1, 2] and some.selection.index_BC.tolist() == [[0, 2], [1, 0]] and some.n_seen == 2
    everyone = gathered_now(5 + takers([[1], [1], [1]]), 5 + nothing)
    assert everyone is not None and everyone.rows_A is None and everyone.n_seen == 6


def test_a_recorded_block_has_rows_to_spare_that_nothing_happens_to() -> None:
    took_B = torch.zeros(64, dtype=torch.long)
    took_B[[3, 17, 40, 41, 63]] = 1
    block = gathered_now(7 + took_B[:, None], torch.full((64,), 7), recorded=True)
    assert block is not None and block.rows_A is not None and len(block.rows_A) == 6
    assert block.rows_A[:5].tolist() == [3, 17, 40, 41, 63] and block.selection.taken_BC[:, 0].tolist() == [
        True
    ] * 5 + [False]
    slot = KVSlot.empty((64, 1, 20, 2), torch.float32, torch.device("cpu"))
    assert block.places(slot)[:, 0].tolist() == [7] * 5 + [19]
    x_BTD = torch.randn(64, 1, 4)
    expected = x_BTD + took_B[:, None, None]
    torch.testing.assert_close(block.put_sum(x_BTD, torch.ones(6, 1, 4)), expected)


def test_some_rows_change_and_the_others_stay() -> None:
    x_BTD = torch.randn(3, 2, 4)
    block = gathered_now(takers([[0, 0], [1, 0], [0, 1]]), torch.zeros(3, dtype=torch.long))
    assert block is not None
    assert torch.equal(block.take(x_BTD)[:, 0], torch.stack([x_BTD[1, 0], x_BTD[2, 1]]))
    assert torch.equal(block.take_numbers(torch.tensor([[7, 8]])), torch.tensor([[7], [8]]))
    expected = x_BTD.clone()
    expected[1, 0] += 1
    expected[2, 1] += 1
    assert torch.equal(block.put_sum(x_BTD, torch.ones(2, 1, 4)), expected)


@pytest.mark.parametrize("rows", [None, [2, 0]])
def test_rows_of_a_slot_are_written_and_read_where_they_are(rows: list[int] | None) -> None:
    whole = KVSlot.empty((3, 2, 5, 4), torch.float32, torch.device("cpu"))
    rows_A = None if rows is None else torch.tensor(rows)
    places = [0, 1, 2] if rows is None else rows
    k_BHTK = torch.randn(len(places), 2, 1, 4)
    k, v = SlotOfRows(whole, rows_A, 3).extend(k_BHTK, 2 * k_BHTK, torch.full((len(places), 1), 2))
    assert k.shape == (len(places), 2, 3, 4) and torch.equal(k[:, :, 2:], k_BHTK) and torch.equal(v, 2 * k)
    assert torch.equal(whole.k_BHLK[places, :, 2], k_BHTK[:, :, 0])
    assert whole.k_BHLK.count_nonzero() == k_BHTK.numel()


def block_of(taking: list[list[int]], n_places: int) -> Gathered:
    return gather(takers(taking), n_places)


def test_taps_show_a_gathered_block_at_full_length() -> None:
    block = block_of([[0, 1, 0, 1], [1, 0, 0, 0]], 2)
    seen = Recording("*")
    inside = GatheredTaps(seen, block, (2, 4), keys_gathered=True).at(3)
    x_ACD = torch.tensor([[[1.0], [2.0]], [[3.0], [9.0]]])
    assert torch.equal(inside("resid_pre", x_ACD), x_ACD)
    assert seen["steps.3.resid_pre"][..., 0].tolist() == [[0, 1, 0, 2], [3, 0, 0, 0]]
    scores_AHCC = torch.tensor([[[[1.0, 0.0], [2.0, 3.0]]], [[[4.0, 0.0], [5.0, 6.0]]]])
    assert inside("attn.scores", scores_AHCC) is scores_AHCC
    shown = seen["steps.3.attn.scores"]
    assert shown.shape == (2, 1, 4, 4) and shown[0, 0, 3].tolist() == [-torch.inf, 2, -torch.inf, 3]
    assert shown[1, 0, 0].tolist() == [4, -torch.inf, -torch.inf, -torch.inf]


def test_what_a_hook_writes_reaches_the_block_and_its_empty_places_stay() -> None:
    block = block_of([[0, 1, 0, 1], [1, 0, 0, 0]], 2)
    inside = GatheredTaps(Taps({"*": lambda x, name: 10 * x + 1}), block, (2, 4), keys_gathered=True)
    x_ACD = torch.tensor([[[1.0], [2.0]], [[3.0], [9.0]]])
    assert inside("mlp.out", x_ACD)[..., 0].tolist() == [[11, 21], [31, 9]]
    pattern_AHCC = torch.tensor([[[[1.0, 0.0], [0.5, 0.5]]], [[[1.0, 0.0], [0.25, 0.75]]]])
    written = inside("attn.pattern", pattern_AHCC)
    assert torch.equal(written[0], 10 * pattern_AHCC[0] + 1)
    assert written[1, 0].tolist() == [[11, 0.0], [0.25, 0.75]]


def test_taps_that_nobody_hears_cost_nothing() -> None:
    block, x_ACD = block_of([[1, 1]], 2), torch.randn(1, 2, 3)
    assert GatheredTaps(NO_TAPS, block, (1, 2), keys_gathered=True)("mlp.out", x_ACD) is x_ACD
