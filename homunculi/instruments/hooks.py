"""Read or replace what passes the taps of a model, from Python: for one forward, or for all inside a `with` block.

    output, seen = run_with_cache(model, ids_BT, "steps.*.resid_post")
    output = run_with_hooks(model, ids_BT, {"control.gain": lambda signal, name: signal * 0.5})
    with hooked(model, {"steps.2.attn.out": zero}):
        continue_text(model, …)

Nothing here changes the model's mode or whether gradients are kept: `model.eval()` and `torch.no_grad()` stay yours.

Legend: B batch, T positions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from homunculi.core.catalogue import catalogue
from homunculi.core.model import LanguageModel
from homunculi.core.output import Output
from homunculi.core.taps import NO_TAPS, Hook, Recording, TapInfo, TapPoint, Taps, require_names
from homunculi.errors import InputError

_FORWARD = ("ids_BT", "taps", "cache", "documents_BT")
_CATALOGUES: WeakKeyDictionary[LanguageModel, tuple[Any, list[TapInfo]]] = WeakKeyDictionary()


def taps_of(model: LanguageModel) -> list[TapInfo]:
    """`homunculi.core.catalogue.catalogue`, made once for each model and schedule: making it takes a good part of a
    second."""
    known = _CATALOGUES.get(model)
    if known is None or known[0] != model.schedule:
        known = _CATALOGUES[model] = model.schedule, catalogue(model)
    return known[1]


class HooksBefore(Taps):
    """Hooks in front of other taps, which are told what the hooks leave. A `homunculi.core.taps.TapPoint`."""

    def __init__(self, hooks: Iterable[tuple[str, Hook]], others: TapPoint, prefix: str = "") -> None:
        super().__init__(hooks, prefix)
        self.others = others

    def __call__(self, site: str, tensor: Tensor) -> Tensor:
        return self.others(site, super().__call__(site, tensor))

    def at(self, step: int) -> HooksBefore:
        return HooksBefore(self.hooks, self.others.at(step), f"{self.prefix}steps.{step}.")

    def wants(self, site: str) -> bool:
        return super().wants(site) or self.others.wants(site)

    def among(self, present_BT: Tensor) -> HooksBefore:
        """The same, where only some tokens pass, which the others may ask."""
        told = getattr(self.others, "among", None)
        return self if told is None else HooksBefore(self.hooks, told(present_BT), self.prefix)


def run_with_cache(
    model: LanguageModel, ids_BT: Tensor | Sequence[int], *patterns: str
) -> tuple[Output, dict[str, Tensor]]:
    """One forward, and what passed the taps of these patterns, by name in the order of the forward.

    Args:
        ids_BT: token ids (B, T), or the ids of one sequence.
        patterns: names or patterns of taps; none: all, which fills memory for a large model.

    Raises:
        InputError: a pattern matches no tap of the model; near ones are listed.
    """
    require_names(patterns, [tap.name for tap in taps_of(model)])
    recording = Recording(*(patterns or ("*",)))
    return model(_ids(model, ids_BT), recording), recording.seen


def run_with_hooks(model: LanguageModel, ids_BT: Tensor | Sequence[int], hooks: Mapping[str, Hook]) -> Output:
    """One forward with hooks: name or pattern of taps → ``hook(tensor, name)``, which returns None or what goes on.

    Raises:
        InputError: a pattern matches no tap of the model, or a hook returned another shape or type.
    """
    with hooked(model, hooks):
        return model(_ids(model, ids_BT))


@contextmanager
def hooked(model: LanguageModel, hooks: Mapping[str, Hook]) -> Iterator[LanguageModel]:
    """All forwards of `model` inside the block pass these hooks: with a cache, so while generating, too.

    Of blocks inside each other the inner hooks see what the outer ones leave. What is part of the model
    (`train.interventions` of its run) comes before all, listeners of a single forward after all. In a step from a cache
    a hook sees the new tokens alone.

    Raises:
        InputError: a pattern matches no tap of the model; near ones are listed.
    """
    require_names(hooks, [tap.name for tap in taps_of(model)])
    asked = tuple(hooks.items())
    with tapped(model, lambda others, cache: HooksBefore(asked, others)):
        yield model


@contextmanager
def tapped(model: LanguageModel, put: Any) -> Iterator[None]:
    """Inside the block the taps of every forward are ``put(taps, cache)`` of those that it is given."""
    handle = model.register_forward_pre_hook(partial(_put, put), prepend=True, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _put(put: Any, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
    given = dict(zip(_FORWARD, args, strict=False)) | kwargs
    given["taps"] = put(given.get("taps", NO_TAPS), given.get("cache"))
    return (given.pop("ids_BT"),), given


def patch_from(seen: Mapping[str, Tensor], *patterns: str, positions: Sequence[int] | None = None) -> dict[str, Hook]:
    """Hooks that put what passed another forward in the place of what passes: activation patching.

        _, seen = run_with_cache(model, other_ids, "steps.3.resid_post")
        output = run_with_hooks(model, ids, patch_from(seen, positions=[5]))

    Args:
        seen: as `run_with_cache` gives it.
        patterns: which of it; none: all.
        positions: of the tokens that are patched; None: all, which needs texts of one length.

    Raises:
        InputError: nothing in `seen` matches a pattern. The hooks raise it where shapes do not fit.
    """
    require_names(patterns, seen)
    chosen = [name for name in seen if not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)]
    return {name: partial(_patch, seen[name], positions) for name in chosen}


def _patch(source: Tensor, positions: Sequence[int] | None, tensor: Tensor, name: str) -> Tensor:
    source = source.detach().to(tensor)
    if positions is None:
        if source.shape != tensor.shape:
            raise InputError(
                f"tap {name}: what was kept has shape {tuple(source.shape)}, what passes {tuple(tensor.shape)}; patch "
                "a forward over as many tokens, without a cache, or name positions"
            )
        return source
    where = torch.tensor(list(positions), device=tensor.device)
    n_tokens = min(source.shape[1], tensor.shape[1])
    if len(where) and (int(where.min()) < 0 or int(where.max()) >= n_tokens):
        raise InputError(f"tap {name}: positions {list(positions)} do not all lie in the first {n_tokens} tokens")
    return tensor.index_copy(1, where, source.index_select(1, where))


def _ids(model: LanguageModel, ids_BT: Tensor | Sequence[int]) -> Tensor:
    found = ids_BT if isinstance(ids_BT, Tensor) else torch.tensor(list(ids_BT), dtype=torch.long)
    found = found[None] if found.dim() == 1 else found
    return found.to(next(model.parameters()).device)
