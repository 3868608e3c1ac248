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


@dataclass(frozen=True, slots=True)
class Architecture:
    """A registered architecture.

    Attributes:
        name: as users write it.
        config_type: frozen dataclass that describes a model.
        model_type: the `LanguageModel` built from it.
        exemptions: contract checks it does not pass, by name, each with the reason.
        variants: fields of small configurations that the contract suite tests, beside sizes that it sets by itself.
    """

    name: str
    config_type: type[Any]
    model_type: type[LanguageModel]
    exemptions: Mapping[str, str] = field(default_factory=dict)
    variants: tuple[Mapping[str, Any], ...] = ({},)


def architecture(
    name: str,
    config: type[Any],
    exemptions: Mapping[str, str] | None = None,
    variants: tuple[Mapping[str, Any], ...] = ({},),
) -> Callable[[type[LanguageModel]], type[LanguageModel]]:
    """Class decorator that registers a model under `name`.

    Raises:
        ValueError: another class has the name already.
    """

    def register(model_type: type[LanguageModel]) -> type[LanguageModel]:
        known = _REGISTERED.get(name)
        if known is not None and known.model_type.__qualname__ != model_type.__qualname__:
            raise ValueError(f"architecture {name!r} is registered twice: {known.model_type} and {model_type}")
        _REGISTERED[name] = Architecture(name, config, model_type, dict(exemptions or {}), variants)
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
