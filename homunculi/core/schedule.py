"""A schedule: which stored block is applied at each step of depth.

A block is not a depth. Blocks are stored once; steps address each application of one. Taps, cache slots and FLOPs
follow steps; parameters, optimiser groups and checkpoints follow blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import InputError

Sharing = Literal["cycle", "middle_cycle", "sequence", "middle_sequence"]


@dataclass(frozen=True, slots=True)
class Step:
    """One application of a stored block.

    Attributes:
        block: index of the stored block, from 0.
        slot: index of the cache slot that this application reads and writes.
        wave: steps of one wave read the same state and their updates are summed; nearly always one step a wave.
    """

    block: int
    slot: int
    wave: int


Schedule = tuple[Step, ...]


def in_order(blocks: tuple[int, ...] | range) -> Schedule:
    """One step for each index of `blocks`, each with a cache slot and a wave of its own."""
    return tuple(Step(block=block, slot=i, wave=i) for i, block in enumerate(blocks))


def shared(sharing: Sharing, n_slots: int, n_passes: int) -> Schedule:
    """`n_slots` steps over fewer stored blocks, each of the shared ones applied `n_passes` times.

    A cycle repeats the whole run of shared blocks, (0 1)(0 1); a sequence repeats each block before the next, 0 0 1 1.
    The middle schemes keep a first and a last block of their own around it (Bae et al. 2025, section 2.1). Every step
    has a cache slot and a wave of its own.

    Raises:
        InputError: the slots that share blocks cannot be divided into `n_passes` equal parts.
    """
    middle = sharing in ("middle_cycle", "middle_sequence")
    n_shared = n_slots - 2 * middle
    if n_passes < 1 or n_shared < 1 or n_shared % n_passes:
        where = f"{n_slots} steps less the first and the last" if middle else f"{n_slots} steps"
        raise InputError(f"sharing={sharing}: {where} cannot be divided into {n_passes} equal passes")
    n_blocks = n_shared // n_passes
    if sharing in ("cycle", "middle_cycle"):
        order = [k for _ in range(n_passes) for k in range(n_blocks)]
    else:
        order = [k for k in range(n_blocks) for _ in range(n_passes)]
    return in_order((0, *(1 + k for k in order), n_blocks + 1) if middle else tuple(order))


def repeat_of(schedule: Schedule, i: int) -> int:
    """How often the block of step `i` was applied before that step."""
    return sum(step.block == schedule[i].block for step in schedule[:i])


def show(schedule: Schedule) -> str:
    """The order of blocks, repeated runs folded: ``0 [1 2]x3 3``."""
    blocks = [step.block for step in schedule]
    words: list[str] = []
    i = 0
    while i < len(blocks):
        width, times = _longest_repeat(blocks, i)
        run = " ".join(str(block) for block in blocks[i : i + width])
        words.append(run if times == 1 else f"{run}x{times}" if width == 1 else f"[{run}]x{times}")
        i += width * times
    return " ".join(words)


def _longest_repeat(blocks: list[int], start: int) -> tuple[int, int]:
    """Width and count of the repetition at `start` that covers most steps (the narrowest of equals)."""
    best = (1, 1)
    for width in range(1, (len(blocks) - start) // 2 + 1):
        unit = blocks[start : start + width]
        times = 1
        while blocks[start + width * times : start + width * (times + 1)] == unit:
            times += 1
        if times > 1 and width * times > best[0] * best[1]:
            best = (width, times)
    return best
