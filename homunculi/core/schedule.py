"""A schedule: which stored block is applied at each step of depth.

A block is not a depth. Blocks are stored once; steps address each application of one. Taps, cache slots and FLOPs
follow steps; parameters, optimiser groups and checkpoints follow blocks.
"""

from __future__ import annotations

from dataclasses import dataclass


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
