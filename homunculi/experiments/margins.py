"""How near a model's hard choices are to flipping: thresholds, top-k, sorting, rounding.

Causality is asked in float64; the model that trains and generates computes in float32 or less. Where a hard choice lies
within a rounding of its threshold, the two are different functions, and cached decoding may choose otherwise than the
full forward did. So the same forward runs in both types and every choice is compared.

Legend: B batch, T positions.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from homunculi.experiments.certificate import Check
from homunculi.experiments.subject import Subject

# More choices than this share may not depend on rounding.
LIMIT = 0.1
_COMPARING = {"gt", "ge", "lt", "le"}
_RANKING = {"topk", "sort", "argsort", "argmax", "argmin", "kthvalue", "searchsorted", "bucketize"}
_ROUNDING = {"round", "floor", "ceil", "trunc", "sign", "heaviside"}


class _Choices(TorchDispatchMode):
    """Keeps what operations choose by numbers: the results of comparing, ranking and rounding them."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[str, Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in _COMPARING | _RANKING | _ROUNDING and any(map(_is_real, tree_leaves(args))):
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor) and leaf.numel() and (name in _ROUNDING or not leaf.is_floating_point()):
                    self.made.append((name, leaf.detach().cpu().clone()))
        return result


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def check_hard_choices(subject: Subject, ids_BT: Tensor) -> Check | None:
    """The share of choices of one operation that float32 makes otherwise than float64: of the operation that has most.

    None where the model makes no hard choice, or is not asked in float64.
    """
    if subject.module is None or not subject.wide:
        return None
    narrow_module = copy.deepcopy(subject.module).float()
    narrow = Subject(narrow_module, narrow_module, wide=False, seed=subject.seed)
    wide, other = (_choices(s, ids_BT) for s in (subject, narrow))
    if not wide:
        return None
    # After a choice that flips, blocks may have other sizes: what can no longer be laid side by side is left out.
    pairs = [(a, b) for (name, a), (other_name, b) in zip(wide, other, strict=False) if name == other_name]
    flips = [((a != b).sum().item(), a.numel()) for a, b in pairs if a.shape == b.shape]
    n_flips, n_choices = (sum(column) for column in zip(*flips, strict=True)) if flips else (0, 0)
    note = f"{n_flips} of {n_choices} choices depend on float32's rounding"
    return Check.of("hard_choices", max((n / of for n, of in flips), default=0.0), LIMIT, note)


def _choices(subject: Subject, ids_BT: Tensor) -> list[tuple[str, Tensor]]:
    with _Choices() as choices, torch.no_grad():
        subject.logits(ids_BT)
    return choices.made
