"""Tables for documents from the record of a battery of skills.

    python -m benchmarks.skills_table skills.json                        # every architecture at every task
    python -m benchmarks.skills_table skills.json --pair homunculi gpt   # where the first is better or worse
    python -m benchmarks.skills_table skills.json --whole homunculi      # what each other side lacks against it

Pairs are the same seed on the same rows; intervals are Student's at 95 %, p is Holm's: over the tasks of a pair, and
over all tasks and sides of `--whole`.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from homunculi.errors import InputError
from homunculi.evals.statistics import Interval, holm, paired_interval, verdict

Json = dict[str, Any]
FEWEST_SEEDS = 5  # with fewer a difference is a first look


class Pair(NamedTuple):
    """A side against another at a task: the difference of their scores, Holm's p, and what may be said."""

    side: str
    task: str
    interval: Interval
    p: float
    said: str


def pairs(record: Json, sides: Sequence[str], baseline: str) -> list[Pair]:
    """Each side minus the baseline at each task that both have with at least two seeds in common.

    Raises:
        InputError: a side has no score.
    """
    seeds = {(one["architecture"], one["task"]): one["seeds"] for one in record["scores"]}
    known = list(dict.fromkeys(side for side, _ in seeds))
    if unknown := [side for side in (*sides, baseline) if side not in known]:
        raise InputError(f"{unknown[0]}: has no score; there are {', '.join(known)}")
    found = []
    for side in sides:
        for task in dict.fromkeys(task for _, task in seeds):
            own, other = seeds.get((side, task), {}), seeds.get((baseline, task), {})
            both = [seed for seed in own if seed in other]
            if len(both) > 1:
                interval = paired_interval([other[seed] for seed in both], [own[seed] for seed in both])
                found.append((side, task, interval))
    adjusted = holm([interval.p for _, _, interval in found]) if found else []
    return [
        Pair(side, task, interval, p, verdict(interval, lower_is_better=False, adjusted_p=p))
        for (side, task, interval), p in zip(found, adjusted, strict=True)
    ]


def score_lines(record: Json) -> Iterator[str]:
    """A Markdown table, a row a task; the highest mean of a row is bold."""
    scores = {(one["architecture"], one["task"]): one for one in record["scores"]}
    sides = list(dict.fromkeys(side for side, _ in scores))
    yield from _head("task", *sides, "chance")
    for task in dict.fromkeys(task for _, task in scores):
        own = [scores.get((side, task)) for side in sides]
        best = max(one["score"] for one in own if one)
        chance = next(one["chance"] for one in own if one)
        yield _row(task, *(_score(one, best) for one in own), f"{chance:.2f}")


def _score(one: Json | None, best: float) -> str:
    if one is None:
        return "–"
    mean = f"**{one['score']:.2f}**" if one["score"] == best else f"{one['score']:.2f}"
    if one["low"] is None:
        return f"{mean} (one seed)"
    return f"{mean} ({one['low']:.2f} … {one['high']:.2f}{_few(one['n'])})"


def _few(n: int) -> str:
    return f"; {n} seeds" if n < FEWEST_SEEDS else ""


def pair_lines(found: Sequence[Pair]) -> Iterator[str]:
    """A Markdown table of one side against another, the largest differences first."""
    yield from _head("task", "difference", "95 % interval", "seeds", "p (Holm)", "")
    for one in sorted(found, key=lambda one: -abs(one.interval.difference)):
        low, high = _signed(one.interval.low), _signed(one.interval.high)
        n = one.interval.n
        yield _row(one.task, _signed(one.interval.difference), f"{low} … {high}", str(n), f"{one.p:.3f}", one.said)


def drop_lines(found: Sequence[Pair]) -> Iterator[str]:
    """A Markdown table of what each side scores against the whole, a row a task; bold: shown to differ."""
    sides = list(dict.fromkeys(one.side for one in found))
    cells = {(one.side, one.task): _drop(one) for one in found}
    yield from _head("task", *sides)
    for task in dict.fromkeys(one.task for one in found):
        yield _row(task, *(cells.get((side, task), "–") for side in sides))


def _drop(one: Pair) -> str:
    mean = _signed(one.interval.difference)
    mean = f"**{mean}**" if one.said in ("better", "worse") else mean
    return f"{mean} ({_signed(one.interval.low)} … {_signed(one.interval.high)}{_few(one.interval.n)})"


def _signed(value: float) -> str:
    return f"{value:+.2f}" if math.isfinite(value) else "–"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _head(*cells: str) -> Iterator[str]:
    yield _row(*cells)
    yield "|" + "---|" * len(cells)


def main(words: Sequence[str] | None = None) -> None:
    """Print the tables that are asked for."""
    parser = argparse.ArgumentParser(description="Tables from the record of a battery of skills.")
    parser.add_argument("record", type=Path, help="skills.json")
    parser.add_argument("--pair", nargs=2, metavar=("SIDE", "BASELINE"), help="where the first is better or worse")
    parser.add_argument("--whole", metavar="SIDE", help="the side that all others are ablations of")
    given = parser.parse_args(words)
    record = json.loads(given.record.read_text())
    if given.pair:
        lines = pair_lines(pairs(record, given.pair[:1], given.pair[1]))
    elif given.whole:
        others = [
            name for name in dict.fromkeys(one["architecture"] for one in record["scores"]) if name != given.whole
        ]
        lines = drop_lines(pairs(record, others, given.whole))
    else:
        lines = score_lines(record)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
