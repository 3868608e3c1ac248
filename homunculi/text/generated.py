"""Generated worlds as corpora: documents with the log of what truly happened in them."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib
import json
import typing
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol

from homunculi.errors import InputError

# Name in a spec: the module that has `documents(config, split)`, and the class of its configuration.
WORLDS = {"stories": ("homunculi.text.worlds.stories", "StoryConfig")}


class Story(Protocol):
    """A document of a world."""

    @property
    def text(self) -> str: ...

    def to_json(self) -> dict[str, Any]: ...


class WorldCorpus:
    """Documents that a module of `homunculi.text.worlds` generates; train and validation stories are disjoint."""

    folder: Path | None = None
    has_val = True
    has_events = True

    def __init__(self, name: str, module: ModuleType, config: Any) -> None:
        self.name = name
        self.config = config
        self._module = module

    @cached_property
    def fingerprint(self) -> str:
        """Of the configuration and of the code that generates, so that a changed generator is a changed corpus."""
        digest = hashlib.sha256(json.dumps(dataclasses.asdict(self.config), sort_keys=True, default=str).encode())
        source = self._module.__file__
        for path in sorted(Path(source).parent.glob("*.py")) if source else []:
            digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()

    def documents(self, split: Literal["train", "val", "all"]) -> Iterator[str]:
        return (story.text for story in self._stories(split))

    def entries(self, split: Literal["train", "val", "all"]) -> Iterator[tuple[str, str | None]]:
        return ((story.text, json.dumps(story.to_json(), ensure_ascii=False)) for story in self._stories(split))

    def _stories(self, split: str) -> Iterator[Story]:
        for name in ("train", "val") if split == "all" else (split,):
            yield from self._module.documents(self.config, name)


def open_world(spec: str) -> WorldCorpus:
    """The world of ``NAME`` or ``NAME?field=value&field=value``; several words of one field are joined by ``+``.

    Raises:
        InputError: a field does not exist, its value has the wrong type or is out of range.
    """
    name, _, query = spec.partition("?")
    module_name, class_name = WORLDS[name]
    module = importlib.import_module(module_name)
    config_class = getattr(module, class_name)
    values = dict(_parse_field(pair, spec, config_class) for pair in query.split("&") if pair)
    return WorldCorpus(spec, module, config_class(**values))


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split("+"))


_PARSERS: dict[Any, Callable[[str], Any]] = {int: int, float: float, str: str, tuple[str, ...]: _words}


def _parse_field(pair: str, spec: str, config_class: type) -> tuple[str, Any]:
    name, _, text = pair.partition("=")
    types = typing.get_type_hints(config_class)
    fields = [field.name for field in dataclasses.fields(config_class) if types[field.name] in _PARSERS]
    if name not in fields:
        near = difflib.get_close_matches(name, fields, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(fields)}"
        raise InputError(f"corpus {spec!r} has no field {name!r}: {hint}")
    try:
        return name, _PARSERS[types[name]](text)
    except ValueError as error:
        kind = types[name].__name__
        raise InputError(f"corpus {spec!r}: {name} is {text!r}, which is no {kind}: write {name}=VALUE") from error
