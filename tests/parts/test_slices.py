"""Slices of a readable state: which words a step reaches, which steps may be done at once, and their memory."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from homunculi.core.taps import NO_TAPS
from homunculi.errors import InputError
from homunculi.parts.readable import Reading, rms
from homunculi.parts.slices import Slice, SliceConfig, SliceMemory, check_waves, reaches, schedule, waves_of


def numbers(one: Slice) -> set[int]:
    return set(one.places().tolist())


@pytest.mark.parametrize(("n_words", "n_steps", "size"), [(61, 4, 15), (61, 7, 61), (64, 3, 20), (5, 8, 2), (7, 1, 1)])
def test_step_i_reads_from_its_share_on_and_writes_half_a_vocabulary_away(
    n_words: int, n_steps: int, size: int
) -> None:
    for i, reach in enumerate(reaches(n_words, n_steps, size)):
        begin = i * (n_words // n_steps)
        assert reach.read.places().tolist() == [(begin + j) % n_words for j in range(size)]
        assert reach.write.places().tolist() == [(begin + n_words // 2 + j) % n_words for j in range(size)]


@pytest.mark.parametrize("size", [1, 3, 6, 7])
def test_a_slice_taken_and_spread_is_what_indices_give(size: int) -> None:
    x, part = torch.randn(2, 3, 7), torch.randn(2, 3, size)
    for start in range(7):
        one = Slice(start, size, 7)
        assert torch.equal(one.of(x), x[..., one.places()])
        assert torch.equal(one.spread(part), torch.zeros(2, 3, 7).index_copy(2, one.places(), part))


def test_two_slices_meet_where_they_have_a_word_in_common() -> None:
    every = [Slice(start, size, 7) for start in range(7) for size in (1, 3, 7)]
    assert all(a.meets(b) == bool(numbers(a) & numbers(b)) for a in every for b in every)


def test_waves_of_the_published_shape() -> None:
    steps = schedule(reaches(1024, 8, 256), "greedy")
    assert [[steps[i].block for i in wave] for wave in waves_of(steps)] == [[0, 2], [1, 3], [4, 6], [5, 7]]
    assert [step.slot for step in steps] == list(range(8))
    one_by_one = schedule(reaches(1024, 8, 256), "none")
    assert [(step.block, step.wave) for step in one_by_one] == [(i, i) for i in range(8)]


@pytest.mark.parametrize("n_words", [7, 61, 64, 100])
def test_no_step_of_a_wave_or_before_its_turn_depends_on_another(n_words: int) -> None:
    several = 0
    for n_steps in range(1, 14):
        for size in range(1, n_words + 1, 3):
            found = reaches(n_words, n_steps, size)
            steps = schedule(found, "greedy")
            assert sorted(step.block for step in steps) == list(range(n_steps))
            for late, one in enumerate(steps):
                for other in steps[:late]:
                    a, b = found[one.block], found[other.block]
                    crossing = numbers(a.read) & numbers(b.write) | numbers(b.read) & numbers(a.write)
                    assert not (other.block > one.block and crossing), "done before a step that it depends on"
                    together = one.wave == other.wave
                    assert not (together and (crossing or numbers(a.write) & numbers(b.write)))
                    several += together
    assert several


def test_the_memory_is_the_sum_over_the_strict_past() -> None:
    torch.manual_seed(0)
    memory, g = SliceMemory(5, 1.0).double(), torch.randn(2, 9, 5, dtype=torch.float64)
    n, decay = rms(g), memory.decay_logit.sigmoid()
    q, k, v = (F.linear(n, one.weight) for one in (memory.q, memory.k, memory.v))
    expected = g.clone()
    for t in range(9):
        for s in range(t):
            weight = decay ** (t - s - 1) * (q[:, t] * k[:, s]).sum(-1, keepdim=True) / 5**0.5
            expected[:, t] += 0.1 * F.linear(weight * v[:, s], memory.o.weight)
    torch.testing.assert_close(memory(g, NO_TAPS, Reading()), expected)


def test_a_slice_is_a_quarter_of_the_vocabulary_unless_it_is_given() -> None:
    assert [SliceConfig(vocab_size=n).slice_size for n in (1024, 61, 3)] == [256, 15, 1]
    assert SliceConfig(vocab_size=61, d_slice=20).slice_size == 20
    with pytest.raises(InputError, match="d_slice"):
        SliceConfig(vocab_size=61, d_slice=62).check()
    with pytest.raises(InputError, match="waves"):
        check_waves("many")
