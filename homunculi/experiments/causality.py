"""Whether a logit depends on a later token: by changed tokens, by gradients, by prefixes.

A difference is relative: |a − b| / (max(|a|, |b|) + typical), where typical is the median size of the logits that are
not zero, so that neither a common scale nor a few huge entries (a masked vocabulary) hide it.

Legend: B batch, T positions, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
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
        end = T if i % 2 == 0 else position + 1
        changed = ids_BT.clone()
        shift = torch.randint(1, vocab_size, changed[:, position:end].shape, generator=generator)
        changed[:, position:end] = (changed[:, position:end] + shift) % vocab_size
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


def check_prefixes(subject: Subject, ids_BT: Tensor, lengths: list[int]) -> Check:
    """A prefix alone gives the logits that it gives inside the whole.

    A model that is not ours may refuse some lengths, but not all.
    """
    whole = subject.logits(ids_BT)
    worst, note = 0.0, ""
    refused = []
    for n in lengths:
        try:
            alone = subject.logits(ids_BT[:, :n])
        except Exception:
            refused.append(n)
            if isinstance(subject.module, LanguageModel) or len(refused) == len(lengths):
                raise
            continue
        apart = differences(whole[:, :n], alone).amax(0)
        if apart.max() > max(worst, subject.limit):
            note = f"the first {n} tokens alone give other logits at position {int(apart.argmax())}"
        worst = max(worst, float(apart.max()))
    if refused and not note:
        note = f"the model does not take {', '.join(map(str, refused))} tokens"
    return Check.of("prefix_consistency", worst, subject.limit, note)
