"""Whether a logit depends on a later token: by changed tokens, by gradients, by prefixes, by reading token by token.

A difference is relative: |a − b| / (max(|a|, |b|) + typical), where typical is the median size of the logits that are
not zero, so that neither a common scale nor a few huge entries (a masked vocabulary) hide it.

Legend: B batch, T positions, D width, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from homunculi.core.model import LanguageModel
from homunculi.core.taps import Taps
from homunculi.experiments.certificate import Check
from homunculi.experiments.subject import Subject

_CHUNK = 64
_SAMPLE = 65_536
LEAST_LENGTHS = 4  # prefixes that are asked whatever the time
RESIDUES = 16  # the longest lengths of all: so many in a row leave every remainder by every divisor up to that
READING_ROWS = 8  # rows in which a text is read token by token, each from another place on
_NAMED = 6  # refused lengths that a note names


def differences(a_BTV: Tensor, b_BTV: Tensor) -> Tensor:
    """The largest relative difference at each position, (B, T); infinite where one of two is not a number."""
    if torch.equal(a_BTV, b_BTV):
        return a_BTV.new_zeros(a_BTV.shape[:2], dtype=torch.float64)
    typical = _typical_size(a_BTV, b_BTV)
    pieces = zip(a_BTV.split(_CHUNK, 1), b_BTV.split(_CHUNK, 1), strict=True)
    return torch.cat([_relative(a.double(), b.double(), typical).amax(-1) for a, b in pieces], dim=1)


def _typical_size(*tensors: Tensor) -> Tensor:
    flat = torch.cat([t.flatten()[:: max(1, t.numel() // _SAMPLE)] for t in tensors]).double().abs()
    flat = flat[flat.isfinite() & (flat > 0)]
    return flat.median() if flat.numel() else flat.new_ones(())


def _relative(a: Tensor, b: Tensor, typical: Tensor) -> Tensor:
    apart = (a - b).abs() / (torch.maximum(a.abs(), b.abs()) + typical)
    return torch.where(a == b, 0.0, apart).nan_to_num(nan=float("inf"))


@dataclass(frozen=True, slots=True)
class Edit:
    """Ids that differ from others at `position` and perhaps after it, never before."""

    position: int
    ids_BT: Tensor


def redrawn(ids_BT: Tensor, start: int, end: int, vocab_size: int, generator: torch.Generator) -> Tensor:
    """Other ids at positions `start` to `end` − 1, every one of them changed."""
    changed = ids_BT.clone()
    shift = torch.randint(1, vocab_size, changed[:, start:end].shape, generator=generator)
    changed[:, start:end] = (changed[:, start:end] + shift) % vocab_size
    return changed


def token_edits(ids_BT: Tensor, vocab_size: int, n_edits: int, generator: torch.Generator) -> list[Edit]:
    """Edits in order of what they reveal: suffixes and single tokens in turn, fixed positions before drawn ones.

    A suffix is drawn anew, or becomes all zeros (a usual padding or separator id). Every edited token really changes.
    """
    T = ids_BT.shape[1]
    positions = [T // 2 + 1, T - 1, 1, T // 4 * 2, 2, T // 2]
    while len(positions) < n_edits:
        positions.append(int(torch.randint(1, T, (), generator=generator)))
    edits = []
    for i, position in enumerate(positions[:n_edits]):
        position = min(max(1, position), T - 1)
        changed = redrawn(ids_BT, position, T if i % 2 == 0 else position + 1, vocab_size, generator)
        if i % 4 == 2:
            changed[:, position + 1 :] = 0
        edits.append(Edit(position, changed))
    return edits


def check_token_edits(subject: Subject, ids_BT: Tensor, edits: list[Edit], *, training: bool) -> Check:
    """Earlier logits do not move when later tokens change."""
    base = subject.logits(ids_BT, training=training)
    worst, note, moved = 0.0, "", False
    for edit in edits:
        p = edit.position
        edited = subject.logits(edit.ids_BT, training=training)
        apart = differences(base[:, :p], edited[:, :p]).amax(0)
        moved = moved or not torch.equal(base[:, p:], edited[:, p:])
        if apart.max() > max(worst, subject.limit):
            note = f"a change from position {p} on moves the logits of position {int(apart.argmax())}"
        worst = max(worst, float(apart.max()))
    if not moved:
        note = "no change of a token moves any logit: the model ignores its input"
    return Check.of("token_edits" + _suffix(training), worst, subject.limit, note)


def _suffix(training: bool) -> str:
    return "_training" if training else ""


class _InputLeaves(TorchFunctionMode):
    """Cuts the graph where the given ids look up rows of a table: each result becomes a leaf."""

    def __init__(self, ids_BT: Tensor) -> None:
        super().__init__()
        self.ids_BT, self.leaves = ids_BT, list[Tensor]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        index = None
        if func is F.embedding:
            index = args[0] if args else kwargs["input"]
        elif func in (torch.embedding, Tensor.__getitem__):
            index = args[1] if len(args) > 1 else kwargs["indices"]
        return self.leaf(result) if self._are_ids(index) and result.is_floating_point() else result

    def _are_ids(self, index: Any) -> bool:
        if not isinstance(index, Tensor) or index.dtype != self.ids_BT.dtype or index.numel() != self.ids_BT.numel():
            return False
        return torch.equal(index.flatten(), self.ids_BT.flatten())

    def leaf(self, tensor: Tensor, name: str = "") -> Tensor:
        self.leaves.append(tensor.detach().requires_grad_())
        return self.leaves[-1]


def check_gradients(
    subject: Subject, ids_BT: Tensor, cuts: list[int], generator: torch.Generator, *, training: bool
) -> Check | None:
    """The gradient of earlier logits, weighted at random, by later input embeddings is zero.

    The value is the largest later gradient as a share of the largest earlier one. None where no embedding of the ids
    is found, or the model hands on no gradient.

    Args:
        cuts: positions that part earlier from later.
    """
    worst, note = 0.0, ""
    with torch.enable_grad():
        found = _logits_and_leaves(subject, ids_BT, training)
        if found is None:
            return None
        logits_BTV, leaves = found
        for p in cuts:
            weights = torch.randn(logits_BTV.shape[-1], generator=generator, dtype=torch.float64)
            earlier = logits_BTV[:, :p].nan_to_num(neginf=0.0, posinf=0.0)
            score = (earlier * weights.to(earlier)).sum()
            gradients = torch.autograd.grad(score, leaves, retain_graph=True, allow_unused=True)
            shares = [_later_share(g, ids_BT.shape[1], p) for g in gradients if g is not None]
            if not shares:
                return None
            apart = max(shares)
            if apart > max(worst, subject.limit):
                note = f"logits before position {p} have a gradient by the tokens from there on"
            worst = max(worst, apart)
    return Check.of("gradients" + _suffix(training), worst, subject.limit, note)


def _logits_and_leaves(subject: Subject, ids_BT: Tensor, training: bool) -> tuple[Tensor, list[Tensor]] | None:
    """Logits as a function of the input embeddings: where the ids are looked up, else at the tap ``embed``."""
    found = _InputLeaves(ids_BT.to(subject.device))
    with found:
        logits_BTV = subject.logits(ids_BT, training=training)
    if not found.leaves and isinstance(subject.module, LanguageModel):
        logits_BTV = subject.logits(ids_BT, training=training, taps=Taps({"embed": found.leaf}))
    return (logits_BTV, found.leaves) if found.leaves and logits_BTV.requires_grad else None


def _later_share(gradient: Tensor, n_tokens: int, p: int) -> float:
    by_position = gradient.reshape(-1, n_tokens, gradient.numel() // n_tokens).abs().amax((0, 2))
    earlier, later = by_position[:p].max().item(), by_position[p:].max().item()
    return later / earlier if earlier else (float("inf") if later else 0.0)


@dataclass(slots=True)
class Suspects:
    """Where a look ahead is to be sought first, by forwards of other shapes. Hints: only a changed token convicts.

    Attributes:
        cuts: of the whole row: positions from which on tokens should be changed.
        lengths: lengths at which a prefix alone gives other logits, with the cuts to try in a row of that length.
        settled: all positions agree with a forward that could not look ahead, or that was asked for itself.
    """

    cuts: list[int] = field(default_factory=list)
    lengths: dict[int, list[int]] = field(default_factory=dict)
    settled: bool = False

    def add_prefix(self, n_tokens: int, differs_T: Tensor) -> None:
        """A prefix alone differs at some positions: the whole looks beyond it, or the prefix looks ahead itself."""
        self.cuts.append(n_tokens)
        self.lengths[n_tokens] = cuts_behind(differs_T)


def cuts_behind(differs_T: Tensor) -> list[int]:
    """The cuts that part some of the positions marked, the first ones and the last, from all later tokens."""
    positions = differs_T.nonzero()[:, 0].tolist()
    chosen = dict.fromkeys([*positions[:4], *positions[-1:]])
    return [i + 1 for i in chosen if i + 1 < len(differs_T)]


def lengths_in_order(context: int, generator: torch.Generator) -> list[int]:
    """All lengths below the context, those first that tell most: the longest, the shortest, around powers of two."""
    around = [2**k + near for k in range(5, context.bit_length()) for near in (-1, 0, 1)]
    late = range(context - 2, context - 1 - RESIDUES, -1)
    others = (torch.randperm(context, generator=generator) + 1).tolist()
    wished = [1, 2, context // 2 + 1, context - 1, *late, *range(3, 2 + RESIDUES), *around, *others]
    return [n for n in dict.fromkeys(wished) if 1 <= n < context]


def check_prefixes(
    subject: Subject, ids_BT: Tensor, lengths: list[int], suspects: Suspects, seconds: float = float("inf")
) -> Check:
    """A prefix alone gives the logits that it gives inside the whole.

    A model that is not ours may refuse some lengths, but not all.

    Args:
        lengths: in the order of asking, which ends after so many seconds.
        suspects: told which prefixes differ.
    """
    began = time.perf_counter()
    whole = subject.logits(ids_BT)
    worst, note, coverage = 0.0, "", f"all {len(lengths)} shorter lengths"
    refused = list[int]()
    for n_asked, n in enumerate(lengths):
        if n_asked >= LEAST_LENGTHS and time.perf_counter() - began > seconds:
            coverage = f"{n_asked} of {len(lengths)} shorter lengths"
            break
        try:
            alone = subject.logits(ids_BT[:, :n])
        except Exception:
            refused.append(n)
            if isinstance(subject.module, LanguageModel) or len(refused) == len(lengths):
                raise
            continue
        apart = differences(whole[:, :n], alone).amax(0)
        if apart.max() > subject.limit:
            suspects.add_prefix(n, apart > subject.limit)
            if apart.max() > worst:
                note = f"the first {n} tokens alone give other logits at position {int(apart.argmax())}"
        worst = max(worst, float(apart.max()))
    if refused and not note:
        more = f" and {len(refused) - _NAMED} other numbers of" if len(refused) > _NAMED else ""
        note = f"the model does not take {', '.join(map(str, refused[:_NAMED]))}{more} tokens"
    return Check.of("prefix_consistency", worst, subject.limit, note or coverage)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Calls of a few tokens are too small to be shared between threads, which would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_token_by_token(subject: Subject, ids_BT: Tensor, suspects: Suspects, seconds: float) -> Check:
    """Read through a cache, one token a call, every position gets the logits of the full forward.

    A call is handed no later token, so where all agree, the full forward looks at none, by any pair of positions. To
    be quick about it, the text is read in several rows, each of which takes up to its place in one piece.

    Args:
        ids_BT: one row.
        suspects: told which positions differ, and that the matter is settled if none does.
        seconds: after which reading ends.
    """
    began, n_tokens = time.perf_counter(), ids_BT.shape[1]
    n_rows = max(1, min(READING_ROWS, n_tokens // READING_ROWS))
    n_steps = -(-(n_tokens - 1) // n_rows)
    at_B = torch.tensor([max(1, n_tokens - row * n_steps) for row in range(n_rows, 0, -1)])
    whole_BTV, apart_T = subject.logits(ids_BT), torch.zeros(n_tokens, dtype=torch.float64)

    def compare(logits_BV: Tensor, positions_B: Tensor) -> None:
        found_B = differences(logits_BV[:, None], whole_BTV[0, positions_B.to(whole_BTV.device), None])[:, 0].cpu()
        apart_T[positions_B] = torch.maximum(apart_T[positions_B], found_B)

    with subject.types():
        cache = subject.module.new_cache(n_rows, n_tokens)  # type: ignore[union-attr, operator]
    starts_BT = ids_BT[:, : int(at_B.max())].expand(n_rows, -1)
    starts_BT = starts_BT.where(torch.arange(starts_BT.shape[1]) < at_B[:, None], 0)
    cache.announce(at_B.to(subject.device))
    compare(subject.logits(starts_BT, cache=cache)[torch.arange(n_rows), at_B - 1], at_B - 1)
    cache.advance(at_B.to(subject.device))
    n_read = 0
    with _one_thread():
        while n_read < n_steps and time.perf_counter() - began < seconds:
            compare(subject.logits(ids_BT[0, at_B + n_read, None], cache=cache)[:, 0], at_B + n_read)
            cache.advance(1)
            n_read += 1
    worst = float(apart_T.max())
    suspects.cuts[:0] = cuts_behind(apart_T > subject.limit)
    suspects.settled = n_read == n_steps and worst <= subject.limit
    note = f"reading token by token gives other logits at position {int(apart_T.argmax())}"
    left_over = f"{n_read} of {n_steps} steps in the time given" if n_read < n_steps else ""
    return Check.of("token_by_token", worst, subject.limit, note if worst > subject.limit else left_over)
