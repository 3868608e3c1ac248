"""Signals that are held, or say what they say of another token, while a run trains and whenever it is evaluated.

``PATTERN=neutral:1.0`` puts one number in the place of all that passes the taps of that pattern, ``PATTERN=scaled:0.5``
multiplies it (a score of −∞, which says that nothing is there, stays). ``PATTERN=shuffled`` gives each token the signal
of an earlier token of its own sequence. How far back follows from the position alone, by a fixed mixing of its number
that gives every earlier position about the same chance; the first token keeps its own. So the values are those that the
model makes, nothing comes from a later token or from another sequence, and what a signal says about its token is lost.
Gradients go back to where a signal was made. Where only some tokens pass a tap, signals are exchanged among those.

All are part of what the model computes: its loss in training, every evaluation, its certificate.

Legend: B batch, T positions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from homunculi.core.catalogue import catalogue
from homunculi.core.model import LanguageModel
from homunculi.core.taps import NO_TAPS, TapInfo, TapPoint, require_names
from homunculi.errors import InputError
from homunculi.models import get, name_of

CACHELESS = "a shuffled signal is that of an earlier token, which a cache does not keep"
_FIELD = "train.interventions"
_FORWARD = ("ids_BT", "taps", "cache", "documents_BT")


class Change(Protocol):
    """What is done at the taps of a pattern."""

    @property
    def pattern(self) -> str: ...

    @property
    def shuffles(self) -> bool:
        """Whether it needs earlier tokens of the sequence, which a cache does not keep."""
        ...

    def apply(self, name: str, tensor: Tensor, present_BT: Tensor | None) -> Tensor:
        """What goes on in the place of what passes a tap; `present_BT`: who passes, None: every token."""
        ...


@dataclass(frozen=True, slots=True)
class Intervention:
    """A `Change`: a number in place of the signal (neutral), the signal times a number (scaled), or shuffled."""

    pattern: str
    kind: Literal["neutral", "scaled", "shuffled"]
    value: float = 0.0

    @property
    def shuffles(self) -> bool:
        return self.kind == "shuffled"

    def apply(self, name: str, tensor: Tensor, present_BT: Tensor | None) -> Tensor:
        if self.kind == "shuffled":
            return shuffled(tensor, present_BT)
        if self.kind == "neutral":  # filled rather than made anew: what made the signal gets a gradient, of zero
            return tensor.masked_fill(torch.ones_like(tensor, dtype=torch.bool), self.value)
        if not tensor.is_floating_point():
            raise InputError(f"{self.pattern}=scaled: {name} passes no quantities; write neutral:NUMBER")
        return torch.where(tensor.isneginf(), tensor, tensor * self.value)


def read_intervention(text: str, field: str = _FIELD) -> Intervention:
    """``PATTERN=neutral:NUMBER``, ``PATTERN=scaled:NUMBER`` or ``PATTERN=shuffled`` as a value.

    Raises:
        InputError: it is none of them; the message begins with `field`.
    """
    pattern, _, action = text.partition("=")
    kind, _, number = action.partition(":")
    if pattern and action == "shuffled":
        return Intervention(pattern, "shuffled")
    try:
        value = float(number) if pattern else math.nan
    except ValueError:
        value = math.nan
    if math.isfinite(value) and kind == "neutral":
        return Intervention(pattern, "neutral", value)
    if math.isfinite(value) and kind == "scaled":
        return Intervention(pattern, "scaled", value)
    raise InputError(f"{field}: {text}: write PATTERN=neutral:NUMBER, PATTERN=scaled:NUMBER or PATTERN=shuffled")


class Interventions:
    """Taps that change what passes them, and then hand it to others. A `homunculi.core.taps.TapPoint`.

    Args:
        changes: a tap's name → what is done there, in order.
        others: told what the model goes on with.
        prefix: of the names of sites.
        present_BT: who passes, where not every token does.
    """

    def __init__(
        self,
        changes: Mapping[str, tuple[Change, ...]],
        others: TapPoint = NO_TAPS,
        prefix: str = "",
        present_BT: Tensor | None = None,
    ) -> None:
        self.changes, self.others, self.prefix, self.present_BT = changes, others, prefix, present_BT

    def __call__(self, site: str, tensor: Tensor) -> Tensor:
        for change in self.changes.get(self.prefix + site, ()):
            tensor = change.apply(self.prefix + site, tensor, self.present_BT)
        return self.others(site, tensor)

    def at(self, step: int) -> Interventions:
        return Interventions(self.changes, self.others.at(step), f"{self.prefix}steps.{step}.", self.present_BT)

    def wants(self, site: str) -> bool:
        return self.prefix + site in self.changes or self.others.wants(site)

    def among(self, present_BT: Tensor) -> Interventions:
        """The same, where only some tokens pass; the others are told where they ask for it."""
        told = getattr(self.others, "among", None)
        others = self.others if told is None else told(present_BT)
        return Interventions(self.changes, others, self.prefix, present_BT)

    def before(self, others: TapPoint) -> Interventions:
        """The same in front of other taps, at the top of a model."""
        return Interventions(self.changes, others)


def shuffled(signal_BT: Tensor, present_BT: Tensor | None = None) -> Tensor:
    """Each position with what an earlier one has, (B, T, …); among those present, the nearest one before that."""
    n_rows, n_tokens = signal_BT.shape[:2]
    source_T = earlier_positions(n_tokens, signal_BT.device)
    if present_BT is None:
        return signal_BT[:, source_T]
    place_T = torch.arange(n_tokens, device=signal_BT.device)
    latest_BT = torch.where(present_BT, place_T, -1).cummax(1).values
    source_BT = latest_BT[:, source_T]
    source_BT = torch.where(source_BT < 0, place_T, source_BT)
    return signal_BT[torch.arange(n_rows, device=signal_BT.device)[:, None], source_BT]


def earlier_positions(n_tokens: int, device: torch.device | str = "cpu") -> Tensor:
    """(T,) for each position an earlier one, for the first itself; the same for every length of sequence."""
    place_T = torch.arange(n_tokens, device=device)
    mixed_T = (place_T * 1_103_515_245 + 12_345) % 2**31
    for shift, factor in ((15, 0x2C1B3C6D), (12, 0x297A2D39), (15, 1)):
        mixed_T = (mixed_T ^ (mixed_T >> shift)) * factor % 2**31
    return (place_T - 1 - mixed_T % place_T.clamp(min=1)).clamp(min=0)


def intervene(model: LanguageModel, interventions: Sequence[str]) -> None:
    """Make interventions part of what `model` computes, wherever it is called from.

    A model with shuffled signals refuses a cache (`LanguageModel.cacheless` says why).

    Raises:
        InputError: not an intervention, no such tap (near ones are listed), or a tap at which it cannot be done.
    """
    if not interventions:
        return
    asked = [read_intervention(text) for text in interventions]
    model.always = Interventions(_resolved(asked, catalogue(model)))
    if any(one.shuffles for one in asked):
        model.cacheless = CACHELESS
    model.register_forward_pre_hook(_put_first, with_kwargs=True)


def check_interventions(model: Any, interventions: Sequence[str]) -> None:
    """Refuse what `intervene` would refuse for models of that configuration.

    Raises:
        InputError: as `intervene`.
    """
    if interventions:
        _resolved([read_intervention(text) for text in interventions], taps_of(model))


@lru_cache(maxsize=16)
def taps_of(model: Any) -> tuple[TapInfo, ...]:
    """The taps of models of a configuration, whose vocabulary is set."""
    with torch.random.fork_rng([]):
        return tuple(catalogue(get(name_of(model)).model_type(model)))


def _resolved(asked: Sequence[Change], taps: Sequence[TapInfo]) -> dict[str, tuple[Change, ...]]:
    """`resolve` for what is part of a training run."""
    changes = resolve(asked, taps, _FIELD)
    outside = next((name for name in changes if name.startswith("readout.")), None)
    if outside is not None:
        raise InputError(
            f"{_FIELD}: {outside} is of the read-out, which training computes by itself; choose a tap before it"
        )
    return changes


def resolve(asked: Sequence[Change], taps: Sequence[TapInfo], field: str) -> dict[str, tuple[Change, ...]]:
    """Names of taps with what is done there.

    Raises:
        InputError: no such tap (near ones are listed), or one at which it cannot be done.
    """
    try:
        require_names([one.pattern for one in asked], [tap.name for tap in taps])
    except InputError as error:
        raise InputError(f"{field}: {error}") from None
    changes: dict[str, tuple[Change, ...]] = {}
    for one in asked:
        for tap in taps:
            if fnmatchcase(tap.name, one.pattern):
                _check(one, tap, field)
                changes[tap.name] = (*changes.get(tap.name, ()), one)
    return changes


def _check(one: Change, tap: TapInfo, field: str) -> None:
    if one.shuffles and tap.shape[:2] != ("B", "T"):
        shape = ", ".join(map(str, tap.shape))
        raise InputError(f"{field}: {tap.name} has shape ({shape}); only what each token has, (B, T, …), is shuffled")


def _put_first(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
    """The arguments of a forward, with a model's interventions in front of the taps that it is given."""
    given = dict(zip(_FORWARD, args, strict=False)) | kwargs
    always, cacheless = getattr(model, "always", None), getattr(model, "cacheless", "")
    if given.get("cache") is not None and cacheless:
        raise InputError(f"{_FIELD}: no cache and so no samples: {cacheless}")
    if isinstance(always, Interventions):
        given["taps"] = always.before(given.get("taps", NO_TAPS))
    return (given.pop("ids_BT"),), given


def describe_interventions(model: LanguageModel, interventions: Sequence[str]) -> list[str]:
    """What a run's plan says of them; nothing where there are none."""
    if not interventions:
        return []
    lines = [f"changed      signals, in training and in every evaluation: {', '.join(interventions)}"]
    return [*lines, *([f"samples      none: {model.cacheless}"] if model.cacheless else [])]
