"""The registry of instruments: a file in this folder, or an entry point ``homunculi.instruments``, adds one."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from importlib.metadata import entry_points
from typing import Any, Literal

from homunculi.errors import InputError
from homunculi.runs.measures import Measurement, View

Reads = Literal["forward", "update"]
_NOT_INSTRUMENTS = {"registry", "observation", "observing", "stream", "tokenwise", "hooks"}
_REGISTERED: dict[str, Instrument] = {}


@dataclass(frozen=True, slots=True)
class Instrument:
    """A registered instrument.

    Attributes:
        name: as users write it, and of its folder in a run.
        view: how its values are drawn.
        title: of its panel.
        question: what it answers, in one sentence.
        taps: patterns of taps that it reads, where a model has them.
        needs: patterns without which it has nothing to measure in a model.
        reads: forward, an `Observation` of the probe batch; update, an `UpdateSeen`.
        measure: from what it reads to a `Measurement`, or None where there is nothing to measure.
    """

    name: str
    view: View
    title: str
    question: str
    taps: tuple[str, ...]
    needs: tuple[str, ...]
    reads: Reads
    measure: Callable[[Any], Measurement | None]

    def suits(self, tap_names: list[str]) -> bool:
        """Whether a model with these taps has what it needs."""
        return all(any(fnmatchcase(name, pattern) for name in tap_names) for pattern in self.needs)


def instrument(
    name: str,
    view: View,
    title: str,
    question: str,
    taps: tuple[str, ...] = (),
    needs: tuple[str, ...] = (),
    reads: Reads = "forward",
) -> Callable[[Callable[[Any], Measurement | None]], Callable[[Any], Measurement | None]]:
    """Decorator that registers a function as an instrument; arguments as of `Instrument`.

    Raises:
        ValueError: another function has the name already.
    """

    def register(measure: Callable[[Any], Measurement | None]) -> Callable[[Any], Measurement | None]:
        known = _REGISTERED.get(name)
        if known is not None and known.measure.__module__ != measure.__module__:
            raise ValueError(f"instrument {name!r} is registered twice: {known.measure} and {measure}")
        _REGISTERED[name] = Instrument(name, view, title, question, (*taps, *needs), needs, reads, measure)
        return measure

    return register


def names() -> list[str]:
    """Names of all instruments, sorted."""
    package = importlib.import_module(__package__ or "homunculi.instruments")
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        if module.name.rsplit(".", 1)[-1] not in _NOT_INSTRUMENTS:
            importlib.import_module(module.name)
    for entry in entry_points(group="homunculi.instruments"):
        entry.load()
    return sorted(_REGISTERED)


def get(name: str) -> Instrument:
    """The instrument of that name.

    Raises:
        InputError: there is none; near names are listed.
    """
    if name not in _REGISTERED:
        known = names()
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise InputError(f"{name}: no such instrument; {hint}")
    return _REGISTERED[name]


def require(chosen: Iterable[str]) -> None:
    """Refuse names that no instrument has.

    Raises:
        InputError: as `get`.
    """
    for name in chosen:
        get(name)
