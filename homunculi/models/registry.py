"""The registry of architectures: a file in this folder, or an entry point ``homunculi.models``, adds one."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.metadata import entry_points
from typing import Any

from ..core.model import LanguageModel
from ..errors import InputError

_REGISTERED: dict[str, Architecture] = {}
_NOT_ARCHITECTURES = {"registry", "files"}


Settings = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Part:
    """A part that an ablation can take out of an architecture.

    Settings are fields of the model's configuration, or dotted settings of a run (``train.plasticity``). Their values
    may be functions of the model's configuration. A part takes part where `removed` would change a configuration, or,
    where nothing can be removed, where one of its taps is passed.

    Attributes:
        name: as users write it.
        removed: settings that leave it out.
        replaced: settings that put a plain part of its size in its place.
        neutral: tap pattern → the value at which its signal does nothing.
        shuffled: tap patterns of what it says about a token; None: those of `neutral`.
        misdirected: settings that give its signal to something else, where it passes no tap.
        note: what a reader of a result has to know.
        when: whether a configuration has it, where that does not follow from its settings.
    """

    name: str
    removed: Settings = field(default_factory=dict)
    replaced: Settings = field(default_factory=dict)
    neutral: Mapping[str, float] = field(default_factory=dict)
    shuffled: tuple[str, ...] | None = None
    misdirected: Settings = field(default_factory=dict)
    note: str = ""
    when: Callable[[Any], bool] = lambda config: True


def without(setting: str, *names: str) -> Callable[[Any], tuple[str, ...]]:
    """What is left of a configuration's tuple of names, for `Part`."""
    return lambda config: tuple(name for name in getattr(config, setting) if name not in names)


def including(setting: str, *names: str) -> Callable[[Any], tuple[str, ...]]:
    """A configuration's tuple of names with further ones, for `Part`."""
    return lambda config: (*getattr(config, setting), *names)


@dataclass(frozen=True, slots=True)
class Architecture:
    """A registered architecture.

    Attributes:
        name: as users write it.
        config_type: frozen dataclass that describes a model.
        model_type: the `LanguageModel` built from it.
        exemptions: contract checks it does not pass, by name, each with the reason.
        variants: fields of small configurations that the contract suite tests, beside sizes that it sets by itself.
        parts: what `homunculi ablate` can take out, in the order in which it does.
    """

    name: str
    config_type: type[Any]
    model_type: type[LanguageModel]
    exemptions: Mapping[str, str] = field(default_factory=dict)
    variants: tuple[Mapping[str, Any], ...] = ({},)
    parts: tuple[Part, ...] = ()


def architecture(
    name: str,
    config: type[Any],
    exemptions: Mapping[str, str] | None = None,
    variants: tuple[Mapping[str, Any], ...] = ({},),
    parts: tuple[Part, ...] = (),
) -> Callable[[type[LanguageModel]], type[LanguageModel]]:
    """Class decorator that registers a model under `name`.

    Raises:
        ValueError: another class has the name already.
    """

    def register(model_type: type[LanguageModel]) -> type[LanguageModel]:
        known = _REGISTERED.get(name)
        if known is not None and known.model_type.__qualname__ != model_type.__qualname__:
            raise ValueError(f"architecture {name!r} is registered twice: {known.model_type} and {model_type}")
        _REGISTERED[name] = Architecture(name, config, model_type, dict(exemptions or {}), variants, parts)
        return model_type

    return register


def names() -> list[str]:
    """Names of all architectures, sorted."""
    package = importlib.import_module(__package__ or "homunculi.models")
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if module.name.rsplit(".", 1)[-1] not in _NOT_ARCHITECTURES:
            importlib.import_module(module.name)
    for entry in entry_points(group="homunculi.models"):
        entry.load()
    return sorted(_REGISTERED)


def get(name: str) -> Architecture:
    """The architecture of that name.

    Raises:
        InputError: there is none; near names are listed.
    """
    if name not in _REGISTERED:
        known = names()
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise InputError(f"{name}: no such architecture; {hint}")
    return _REGISTERED[name]


def name_of(config: Any) -> str:
    """The architecture that a configuration belongs to.

    Raises:
        InputError: no registered architecture has a configuration of that type.
    """
    for known in _REGISTERED.values():
        if type(config) is known.config_type:
            return known.name
    raise InputError(f"model: {type(config).__name__} is not the configuration of a registered architecture")


def build(name: str, **config: Any) -> LanguageModel:
    """Build a model with random weights (seed torch first for the same ones).

    Raises:
        InputError: unknown architecture or field, or a value out of range.
    """
    found = get(name)
    try:
        return found.model_type(found.config_type(**config))
    except TypeError as error:
        raise InputError(f"model.{name}: {error}") from error
