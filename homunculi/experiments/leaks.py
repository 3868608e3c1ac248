"""Every cut of a row, so that a look ahead is found whatever its shape, and a map of who sees what.

A cut at p changes all tokens from p on; no logit before p may move. A look of position i at a later j is crossed by
every cut with i < p <= j, so all cuts of a row, T − 1 of them, cross every pair. They are asked as rows of few batches.
Where that would take too long, they are asked in an order that crosses every usual shape of a leak early, after those
that other comparisons hint at.

Legend: B batch, R rows of edits, T positions, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from homunculi.experiments.causality import LEAST_LENGTHS, Edit, Suspects, cuts_behind, differences, redrawn
from homunculi.experiments.certificate import Check, LeakMap, LeakPair
from homunculi.experiments.subject import Subject

CUT_SECONDS = 12.0  # what the cuts of one mode may take
SETTLED_SECONDS = 4.0  # the same where another comparison has already shown every position
AGAIN = 7  # times that all cuts are asked again with other tokens, for not every one crosses a threshold
AGAIN_SECONDS = 1.0  # within which that must begin
ALIKE_EVERY = 3  # of these times, one with all later tokens alike
MAP_SECONDS = 8.0
SLOW_ROW = 0.2  # seconds of a forward from which on the number of cuts is fixed beforehand
LEAST_CUTS = 4
TOKENS_AT_ONCE = 8192
ATTENDED_AT_ONCE = 2**22  # rows times positions squared, which a plain attention holds for every head
LOGITS_AT_ONCE = 2**24
SUSPECTS = 8
LENGTHS = 4
TRACED = 4
PAIRS = 16
CELLS = 16


class Comparison:
    """Rows with later tokens changed, beside the row as it is: in one mode, several rows a forward.

    Row by row the same random draws are made for both, since both forwards have the same shape and seed.
    """

    def __init__(self, subject: Subject, ids_BT: Tensor, *, training: bool, at_once: int) -> None:
        self.subject, self.ids_BT, self.training, self.at_once = subject, ids_BT, training, at_once
        self._unchanged: dict[int, Tensor] = {}
        self._independent = False

    def ask(self, edits: Iterable[Edit], seconds: float) -> Iterator[list[tuple[Edit, Tensor]]]:
        """Batches of edits, each edit with the moves of the positions before it; at least one batch.

        Rows that depend on each other are asked one a forward.
        """
        began, waiting = time.perf_counter(), list(edits)
        while waiting:
            batch = waiting[: self.at_once]
            moves = self.moves(batch)
            if len(batch) > 1 and not self._independent and any(map(self.counts, moves)):
                self._independent = len(batch) > 2 and not self._rows_coupled(batch)
                if not self._independent:
                    self.at_once = 1
                    continue
            yield list(zip(batch, moves, strict=True))
            del waiting[: len(batch)]
            if time.perf_counter() - began > seconds:
                return

    def counts(self, moves: Tensor) -> bool:
        """Whether some move is more than rounding."""
        return bool((moves > self.subject.limit).any())

    def moves(self, edits: list[Edit]) -> list[Tensor]:
        """By how much the logits at each position before the edit move, in rows of one forward."""
        unchanged_RTV = self._beside(len(edits))
        changed_RTV = self.subject.logits(torch.cat([edit.ids_BT for edit in edits]), training=self.training)
        return [
            differences(unchanged_RTV[r : r + 1, : edit.position], changed_RTV[r : r + 1, : edit.position])[0].cpu()
            for r, edit in enumerate(edits)
        ]

    def _beside(self, n_rows: int) -> Tensor:
        if n_rows not in self._unchanged:
            rows_RT = self.ids_BT.expand(n_rows, -1)
            self._unchanged[n_rows] = self.subject.logits(rows_RT, training=self.training)
        return self._unchanged[n_rows]

    def _rows_coupled(self, edits: list[Edit]) -> bool:
        """Whether an unchanged row moves when it stands before or behind changed ones; needs three rows."""
        unchanged = Edit(self.ids_BT.shape[1], self.ids_BT)
        first, *_, last = self.moves([unchanged, *edits[1:-1], unchanged])
        return self.counts(first) or self.counts(last)


@dataclass(slots=True)
class Cuts:
    """What cuts of rows of one length showed.

    Attributes:
        asked: positions of the cuts.
        found: of those that moved an earlier logit, with the position that moved most.
        edits: what was changed there.
    """

    comparison: Comparison
    asked: set[int] = field(default_factory=set)
    found: dict[int, int] = field(default_factory=dict)
    edits: dict[int, Edit] = field(default_factory=dict)
    worst: float = 0.0

    def ask(self, edits: Iterable[Edit], seconds: float) -> None:
        """Ask until a batch shows a leak or time is over."""
        for batch in self.comparison.ask(edits, seconds):
            for edit, moves in batch:
                self.asked.add(edit.position)
                self.worst = max(self.worst, float(moves.max()))
                if self.comparison.counts(moves):
                    self.found[edit.position], self.edits[edit.position] = int(moves.argmax()), edit
            if self.found:
                return


def cuts_in_order(context: int, generator: torch.Generator) -> list[int]:
    """All cuts of a row: the ends and the middle, beside powers of two, then the rest by chance.

    An odd cut parts an aligned block of any even size, and any cut at all parts the first position from the last.
    """
    around = [2**k + near for k in range(2, context.bit_length()) for near in (1, 0, -1)]
    ends = [1, context - 1, context // 2 + 1, context // 2, 2, context - 2, 3, context - 3]
    others = (torch.randperm(context, generator=generator) + 1).tolist()
    return [p for p in dict.fromkeys([*ends, *around, *others]) if 1 <= p < context]


@dataclass(slots=True)
class LeakSearch:
    """The search through one subject.

    Attributes:
        ids_BT: one row at the full context.
        row_seconds: how long a forward of it takes.
        notes: told which cuts were asked where not all were.
        settled_seconds: what the cuts of a mode may take where another comparison has shown every position.
        leaks: a map of each mode that looks ahead.
    """

    subject: Subject
    ids_BT: Tensor
    vocab_size: int
    generator: torch.Generator
    row_seconds: float
    notes: list[str]
    settled_seconds: float = SETTLED_SECONDS
    leaks: list[LeakMap] = field(default_factory=list)
    _found: list[int] = field(default_factory=list)

    def check(self, suspects: Suspects, *, training: bool) -> Check:
        """No cut moves an earlier logit, in the whole row or in rows of the lengths that are suspect."""
        name = "every_cut" + ("_training" if training else "")
        seconds = self.settled_seconds if suspects.settled else CUT_SECONDS
        cuts = self._cut(self.ids_BT, [*self._found, *suspects.cuts], seconds, training)
        note = self._coverage(cuts, name, suspects.settled)
        for n in [n for n, wished in suspects.lengths.items() if wished][:LENGTHS]:
            if cuts.found:
                break
            shorter = self._cut(self.ids_BT[:, :n], suspects.lengths[n], SETTLED_SECONDS, training)
            shorter.worst = max(cuts.worst, shorter.worst)
            cuts = shorter if shorter.found else cuts
        if cuts.found:
            self._found = sorted(cuts.found) if cuts.comparison.ids_BT.shape == self.ids_BT.shape else []
            leaks = self._map(cuts)
            self.leaks.append(leaks)
            p, reader = next(iter(cuts.found.items()))
            where = "" if leaks.context == self.ids_BT.shape[1] else f" in rows of {leaks.context} tokens"
            note = f"a change from position {p} on moves the logits of position {reader}{where}: {leaks.summary}"
        return Check.of(name, cuts.worst, self.subject.limit, note)

    def _cut(self, ids_BT: Tensor, suspects: list[int], seconds: float, training: bool) -> Cuts:
        """Suspects first, each in a forward of its own; then all cuts, and again with other tokens if that is quick."""
        began, context = time.perf_counter(), ids_BT.shape[1]
        cuts = Cuts(Comparison(self.subject, ids_BT, training=training, at_once=1))
        first = [p for p in dict.fromkeys(suspects) if 1 <= p < context][:SUSPECTS]
        cuts.ask((self._suffix(ids_BT, p) for p in first), seconds)
        order = cuts_in_order(context, self.generator)
        slow = self.row_seconds > SLOW_ROW
        if slow:
            order = order[: max(LEAST_CUTS, int(seconds / self.row_seconds))]
        cuts.comparison.at_once = self._rows_at_once(context, seconds)
        for again in range(1 if slow else 1 + AGAIN):
            left = (AGAIN_SECONDS if again else seconds) - (time.perf_counter() - began)
            if cuts.found or (again and left < 0):
                break
            cuts.ask((self._suffix(ids_BT, p, alike=again % ALIKE_EVERY == 2) for p in order), left)
        return cuts

    def _rows_at_once(self, context: int, seconds: float) -> int:
        by_size = min(
            TOKENS_AT_ONCE // context, ATTENDED_AT_ONCE // context**2, LOGITS_AT_ONCE // (context * self.vocab_size)
        )
        by_time = int(seconds / 8 / max(self.row_seconds, 1e-6))
        return max(1, min(by_size, by_time, context - 1))

    def _suffix(self, ids_BT: Tensor, p: int, *, alike: bool = False) -> Edit:
        """All tokens from p on changed: drawn anew, or all alike, as padding is."""
        changed = redrawn(ids_BT, p, ids_BT.shape[1], self.vocab_size, self.generator)
        if alike:
            changed[:, p:] = changed[:, p : p + 1]
        return Edit(p, changed)

    def _coverage(self, cuts: Cuts, name: str, settled: bool) -> str:
        """How many cuts were asked; which ones is noted where they are not all."""
        n_cuts = self.ids_BT.shape[1] - 1
        if cuts.found or len(cuts.asked) == n_cuts:
            return "" if cuts.found else f"all {n_cuts} cuts"
        other = {
            "every_cut": "; read token by token as well, every position agrees",
            "every_cut_training": "; without dropout, a training forward gives what an evaluating one does",
        }
        self.notes.append(
            f"{name}: {len(cuts.asked)} of {n_cuts} cuts asked in the time given, at {ranges(sorted(cuts.asked))}"
            + (other[name] if settled else "")
        )
        return f"{len(cuts.asked)} of {n_cuts} cuts"

    def suspects_in_training(self, lengths: list[int], seconds: float) -> Suspects:
        """Where training differs from evaluation, and where it depends on the length of the row, dropout left out."""
        suspects, began = Suspects(), time.perf_counter()
        try:
            evaluated = self.subject.logits(self.ids_BT)
            with _WithoutDropout():
                whole = self.subject.logits(self.ids_BT, training=True)
                differs_T = differences(evaluated, whole)[0] > self.subject.limit
                suspects.settled = not differs_T.any()
                suspects.cuts += cuts_behind(differs_T)
                for n_asked, n in enumerate(lengths):
                    if n_asked >= LEAST_LENGTHS and time.perf_counter() - began > seconds:
                        break
                    alone = self.subject.logits(self.ids_BT[:, :n], training=True)
                    differs_T = differences(whole[:, :n], alone)[0] > self.subject.limit
                    if differs_T.any():
                        suspects.add_prefix(n, differs_T)
        except Exception:  # a model that takes one length only, or that no mode can watch: no hints then
            return suspects
        return suspects

    def _map(self, cuts: Cuts) -> LeakMap:
        """Single tokens changed, by turns all over the row; then each cut that they do not explain is traced."""
        comparison, context = cuts.comparison, cuts.comparison.ids_BT.shape[1]
        comparison.at_once = min(comparison.at_once, self._rows_at_once(context, MAP_SECONDS))
        strength_TT = torch.full((context, context), float("nan"), dtype=torch.float64)
        sources = dict.fromkeys([*cuts.found, *_spread(context)])
        like = cuts.edits[next(iter(cuts.found))]
        for batch in comparison.ask((self._single(comparison.ids_BT, j, like) for j in sources), MAP_SECONDS):
            for edit, moves in batch:
                strength_TT[: edit.position, edit.position] = moves
        for p, reader in list(cuts.found.items())[:TRACED]:
            if not (strength_TT[:p, p:] > self.subject.limit).any():
                source, moves = _trace(comparison, cuts.edits[p], reader)
                strength_TT[:source, source] = moves
        mode = "training" if comparison.training else "evaluation"
        return describe(strength_TT.where((strength_TT > self.subject.limit) | strength_TT.isnan(), 0.0), mode)

    def _single(self, ids_BT: Tensor, j: int, like: Edit) -> Edit:
        """One token changed: to what it was in an edit that moved something, if it was another one there."""
        changed = redrawn(ids_BT, j, j + 1, self.vocab_size, self.generator)
        there = like.ids_BT[:, j]
        changed[:, j] = there.where(there != ids_BT[:, j], changed[:, j])
        return Edit(j, changed)


def _trace(comparison: Comparison, edit: Edit, reader: int) -> tuple[int, Tensor]:
    """Halve what an edit changed until one token is left that moves the reader, if one token alone does."""

    def moves(start: int, end: int) -> Tensor:
        changed = comparison.ids_BT.clone()
        changed[:, start:end] = edit.ids_BT[:, start:end]
        return comparison.moves([Edit(start, changed)])[0]

    start, end = edit.position, comparison.ids_BT.shape[1]
    while end - start > 1:
        middle = (start + end) // 2
        if moves(middle, end)[reader] > comparison.subject.limit:
            start = middle
        else:
            end = middle
    return start, moves(start, start + 1)


def _spread(context: int) -> list[int]:
    """All sources, from coarse steps to fine ones."""
    step = 1 << context.bit_length()
    found: dict[int, None] = {context - 1: None}
    while step:
        found |= dict.fromkeys(range(step, context, step))
        step //= 2
    return [j for j in found if j]


def describe(strength_TT: Tensor, mode: str) -> LeakMap:
    """The map of what single tokens moved.

    Args:
        strength_TT: by reader, by source: the relative difference where there is a leak, 0 where there is none, not a
            number where nobody asked.
    """
    context = len(strength_TT)
    readers, sources = strength_TT.nan_to_num(nan=0.0).nonzero().unbind(1)
    pairs = [LeakPair(i, j, float(strength_TT[i, j])) for i, j in zip(readers.tolist(), sources.tolist(), strict=True)]
    asked_T = ~strength_TT[0].isnan()
    cell = -(-context // CELLS)
    blocks = [[block.flatten() for block in rows.split(cell, 1)] for rows in strength_TT.split(cell, 0)]
    known = [[block[~block.isnan()] for block in row] for row in blocks]
    return LeakMap(
        mode=mode,
        context=context,
        summary=pattern(readers, sources, asked_T),
        pairs=tuple(sorted(pairs, key=lambda pair: (-pair.difference, pair.reader, pair.source))[:PAIRS]),
        n_pairs=len(pairs),
        n_sources=int(asked_T.sum()),
        cell=cell,
        cells=tuple(tuple(float(block.max()) if len(block) else None for block in row) for row in known),
    )


def pattern(readers: Tensor, sources: Tensor, asked_T: Tensor) -> str:
    """Who sees what, in words.

    Args:
        readers: of each pair that leaks, and `sources` what they see.
        asked_T: which sources were asked; never the first position, which is nobody's future.
    """
    if not len(readers):
        return "no later token does so alone, only several together"
    context, n_pairs = len(asked_T), len(readers)
    low, high, first = int(readers.min()), int(readers.max()), int(sources.min())
    if n_pairs == 1:
        return f"position {low} sees {first}"
    asked = "" if asked_T[1:].all() else ", of the later tokens that were asked"
    nearest, farthest = int((sources - readers).min()), int((sources - readers).max())
    if n_pairs == int(asked_T.nonzero().sum()):
        return f"every position sees all later ones{asked}"
    if nearest == farthest and n_pairs == int(asked_T[nearest:].sum()):
        return f"every position sees the {'next one' if nearest == 1 else f'one {nearest} ahead'}{asked}"
    for block in range(2, context // 2 + 1):
        if torch.equal(readers // block, sources // block) and low // block != high // block:
            return f"positions see ahead only inside aligned blocks of {block}{asked}"
    who = f"positions {low} to {high} see" if high > low else f"position {low} sees"
    if context - first <= max(1, context // 4):
        return f"{who} {'the last one' if first == context - 1 else f'the last {context - first}'}{asked}"
    if farthest <= max(1, context // 4):
        return f"{who} up to {farthest} ahead{asked}"
    return f"{n_pairs} pairs: {who} some of {first} to {int(sources.max())}{asked}"


def ranges(numbers: list[int]) -> str:
    """Rising numbers in few words: 1-4, 7, 9-12; of many, the first and the last."""
    runs = list[list[int]]()
    for n in numbers:
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    words = [str(a) if a == b else f"{a}-{b}" for a, b in runs]
    return ", ".join(words if len(words) <= 2 * CELLS else [*words[:CELLS], "…", *words[-CELLS:]])


class _WithoutDropout(TorchDispatchMode):
    """Every coin comes up as its odds: what dropout keeps and scales is then the tensor itself."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = getattr(func, "overloadpacket", None)
        if packet is torch.ops.aten.bernoulli_:
            odds = args[1] if len(args) > 1 else kwargs.get("p", 0.5)
            return args[0].copy_(odds) if isinstance(odds, Tensor) else args[0].fill_(odds)
        if packet is torch.ops.aten.native_dropout:
            return args[0].clone(), torch.ones_like(args[0], dtype=torch.bool)
        return func(*args, **kwargs)
