"""Taps: every interesting tensor of a model passes a named point where it can be read or replaced.

Grammar of names: ``embed`` · ``steps.{i}.{site}`` · ``control.{signal}`` · ``readout.{norm|logits}``. Within a step
the sites use TransformerLens's words: ``resid_pre``, ``attn.q|k|v|scores|pattern|z|out``, ``resid_mid``,
``mlp.pre|post|out``, ``resid_post``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Protocol

from torch import Tensor

from ..errors import InputError

Hook = Callable[[Tensor, str], "Tensor | None"]


class TapPoint(Protocol):
    """What a forward calls. `taps(site, tensor)` returns the tensor to go on with."""

    def __call__(self, site: str, tensor: Tensor) -> Tensor: ...

    def at(self, step: int) -> TapPoint:
        """The same taps inside step `step`."""
        ...

    def wants(self, site: str) -> bool:
        """Whether anybody listens at `site`: asked before computing what only a listener needs."""
        ...


class NoTaps:
    """Nobody listens: every call returns its argument. The default of every forward, free under compilation."""

    def __call__(self, site: str, tensor: Tensor) -> Tensor:
        return tensor

    def at(self, step: int) -> NoTaps:
        return self

    def wants(self, site: str) -> bool:
        return False


NO_TAPS = NoTaps()


class Taps:
    """Hooks on names or patterns (``steps.*.resid_post``).

    A hook is called as ``hook(tensor, name)``. Returning None only reads; returning a tensor of the same shape and
    dtype replaces the tensor from there on.
    """

    def __init__(self, hooks: Mapping[str, Hook] | Iterable[tuple[str, Hook]], prefix: str = "") -> None:
        self.hooks = tuple(hooks.items() if isinstance(hooks, Mapping) else hooks)
        self.prefix = prefix

    def __call__(self, site: str, tensor: Tensor) -> Tensor:
        name = self.prefix + site
        for pattern, hook in self.hooks:
            if fnmatchcase(name, pattern):
                answer = hook(tensor, name)
                if answer is not None:
                    tensor = _checked(answer, tensor, name)
        return tensor

    def at(self, step: int) -> Taps:
        return Taps(self.hooks, f"{self.prefix}steps.{step}.")

    def wants(self, site: str) -> bool:
        return any(fnmatchcase(self.prefix + site, pattern) for pattern, _ in self.hooks)


def _checked(answer: Tensor, tensor: Tensor, name: str) -> Tensor:
    if answer.shape != tensor.shape or answer.dtype != tensor.dtype:
        raise InputError(
            f"tap {name}: the hook returned {tuple(answer.shape)} {answer.dtype}, "
            f"it must return {tuple(tensor.shape)} {tensor.dtype} or None"
        )
    return answer


class Recording(Taps):
    """Taps that keep what passes, by name, in the order of the forward pass.

    Args:
        patterns: which names to keep; required, because keeping everything fills memory.
        others: further hooks, called before the keeping.
    """

    def __init__(self, *patterns: str, others: Mapping[str, Hook] | None = None) -> None:
        self.seen: dict[str, Tensor] = {}
        keep: list[tuple[str, Hook]] = [(pattern, self._keep) for pattern in patterns]
        super().__init__([*(others or {}).items(), *keep])

    def _keep(self, tensor: Tensor, name: str) -> None:
        self.seen[name] = tensor

    def __getitem__(self, name: str) -> Tensor:
        return self.seen[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.seen)


@dataclass(frozen=True, slots=True)
class TapInfo:
    """One entry of a model's catalogue: where it is and what passes there.

    Attributes:
        name: the tap's name.
        shape: with ``B`` and ``T`` for batch and positions, numbers for the rest.
        block: stored block of the step, None outside steps.
        repeat: how often that block was applied before, None outside steps.
    """

    name: str
    shape: tuple[str | int, ...]
    block: int | None
    repeat: int | None


def require_names(patterns: Iterable[str], catalogue: Iterable[str]) -> None:
    """Check that each pattern matches a tap.

    Raises:
        InputError: a pattern matches nothing; the message lists near matches.
    """
    names = list(catalogue)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = get_close_matches(pattern, names, n=3, cutoff=0.5) or names[:3]
            raise InputError(f"tap {pattern}: no such tap; near: {', '.join(near)}")
