"""Schedules: printed with repetitions folded, read back, repeats counted."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homunculi.core.schedule import Sharing, in_order, repeat_of, shared, show
from homunculi.errors import InputError


@pytest.mark.parametrize(
    ("blocks", "shown"),
    [
        ((), ""),
        ((0,), "0"),
        ((0, 1, 2), "0 1 2"),
        ((0, 1, 2, 1, 2, 1, 2, 3), "0 [1 2]x3 3"),
        ((5, 5, 5), "5x3"),
        ((0, 0, 1, 1), "0x2 1x2"),
        ((0, 1, 0, 1, 2, 2, 10), "[0 1]x2 2x2 10"),
        ((1, 1, 2, 1, 1, 2), "[1 1 2]x2"),
    ],
)
def test_show_folds_repetitions(blocks: tuple[int, ...], shown: str) -> None:
    assert show(in_order(blocks)) == shown


def read(shown: str) -> list[int]:
    """The blocks that a shown schedule stands for."""
    blocks: list[int] = []
    for group, times, one, once in re.findall(r"\[([\d ]+)\]x(\d+)|(\d+)(?:x(\d+))?", shown):
        unit = [int(word) for word in (group or one).split()]
        blocks += unit * int(times or once or 1)
    return blocks


@settings(derandomize=True, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=14))
def test_what_is_shown_can_be_read_back(blocks: list[int]) -> None:
    assert read(show(in_order(tuple(blocks)))) == blocks


@settings(derandomize=True, deadline=None)
@given(
    st.lists(st.integers(0, 9), max_size=4), st.lists(st.integers(10, 12), min_size=1, max_size=3), st.integers(2, 6)
)
def test_a_repeated_middle_is_shown_no_longer_than_once(head: list[int], cycle: list[int], times: int) -> None:
    blocks = head + cycle * times
    assert read(show(in_order(tuple(blocks)))) == blocks
    assert len(show(in_order(tuple(blocks)))) <= len(" ".join(map(str, head + cycle))) + len("[]x6") + 2


@settings(derandomize=True, deadline=None)
@given(st.lists(st.integers(0, 4), max_size=12))
def test_every_step_has_its_own_slot_and_wave_and_counts_repeats(blocks: list[int]) -> None:
    schedule = in_order(tuple(blocks))
    assert [step.block for step in schedule] == blocks
    assert [(step.slot, step.wave) for step in schedule] == [(i, i) for i in range(len(blocks))]
    assert [repeat_of(schedule, i) for i in range(len(blocks))] == [blocks[:i].count(b) for i, b in enumerate(blocks)]


@pytest.mark.parametrize(
    ("sharing", "n_slots", "n_passes", "blocks"),
    [
        ("cycle", 6, 3, (0, 1, 0, 1, 0, 1)),
        ("sequence", 6, 3, (0, 0, 0, 1, 1, 1)),
        ("middle_cycle", 8, 3, (0, 1, 2, 1, 2, 1, 2, 3)),
        ("middle_sequence", 8, 3, (0, 1, 1, 1, 2, 2, 2, 3)),
        ("middle_cycle", 3, 1, (0, 1, 2)),
    ],
)
def test_sharing_orders_blocks(sharing: Sharing, n_slots: int, n_passes: int, blocks: tuple[int, ...]) -> None:
    schedule = shared(sharing, n_slots, n_passes)
    assert tuple(step.block for step in schedule) == blocks
    assert [step.slot for step in schedule] == list(range(n_slots))


@pytest.mark.parametrize(("sharing", "n_slots", "n_passes"), [("cycle", 5, 2), ("middle_cycle", 2, 1), ("cycle", 4, 0)])
def test_slots_that_do_not_divide_are_refused(sharing: Sharing, n_slots: int, n_passes: int) -> None:
    with pytest.raises(InputError, match=f"sharing={sharing}"):
        shared(sharing, n_slots, n_passes)
