"""Configurations and weights under other people's names, read strictly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from homunculi.errors import InputError

_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false", list: "a list"}
_REQUIRED = object()


class Given:
    """A configuration whose settings are asked for by name and type.

    Args:
        values: the settings.
        path: what errors call it.

    Raises:
        InputError: it is no mapping.
    """

    def __init__(self, values: Any, path: str = "config") -> None:
        if not isinstance(values, Mapping):
            raise InputError(f"{path}: expected an object with settings, got {_shown(values)}")
        self.values, self.path = values, path

    def get(self, name: str, kind: type, default: Any = _REQUIRED) -> Any:
        """The setting `name` as a `kind` (int, float, str, bool or list), or the default where it is absent.

        Raises:
            InputError: it is missing and has no default, or is of another type.
        """
        if name not in self.values:
            if default is _REQUIRED:
                raise InputError(f"{self.path}.{name}: missing")
            return default
        value = self.values[name]
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise InputError(f"{self.path}.{name}: expected {_NAMES[kind]}, got {_shown(value)}")
        return value

    def choose(self, name: str, choices: Mapping[str, Any], default: str | None = None) -> Any:
        """What the setting's text stands for.

        Raises:
            InputError: it is missing and has no default, or is not among the choices.
        """
        word = self.get(name, str, _REQUIRED if default is None else default)
        if word not in choices:
            raise InputError(f"{self.path}.{name}: {_shown(word)} is not among {', '.join(choices)}")
        return choices[word]

    def require(self, name: str, *expected: Any) -> None:
        """Check that a setting, where it is given, has the first of these values or one that means the same.

        Raises:
            InputError: it has another one.
        """
        if name in self.values and self.values[name] not in expected:
            raise InputError(f"{self.path}.{name}: {_shown(self.values[name])}, only {expected[0]} is reproduced here")

    def group(self, name: str) -> Given:
        """The settings inside `name`; none where it is absent or null."""
        return Given(self.values.get(name) or {}, f"{self.path}.{name}")


class Weights:
    """Tensors by their authors' names.

    Raises:
        InputError: something among them is no tensor.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            if not isinstance(tensor, Tensor):
                raise InputError(f"weights: {name} is no tensor but {_shown(tensor)}")
        self.tensors, self.used = dict(tensors), set[str]()

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def fill(self, model: nn.Module, names: Mapping[str, Sequence[str]]) -> None:
        """Copy tensors into the model.

        Args:
            model: receives one tensor for each entry of its state.
            names: its own names → the authors' names of the same tensor, the first the usual one. All of those that
                are present must hold the same.

        Raises:
            InputError: a tensor is missing, of another shape or kind, or two that are tied differ.
        """
        state = {own: self._take(names[own], tensor.shape) for own, tensor in model.state_dict().items()}
        with torch.no_grad():
            model.load_state_dict(state, strict=True)

    def _take(self, names: Sequence[str], shape: torch.Size) -> Tensor:
        present = [name for name in names if name in self.tensors]
        if not present:
            raise InputError(f"weights: {names[0]} is missing")
        found = [self._as(name, shape) for name in present]
        for name, tensor in zip(present, found, strict=True):
            if not torch.equal(tensor, found[0]):
                raise InputError(f"weights: {name} differs from {present[0]}, to which it is tied")
        self.used.update(present)
        return found[0]

    def _as(self, name: str, shape: torch.Size) -> Tensor:
        """One tensor; a number may come as a row of one."""
        tensor = self.tensors[name]
        if tensor.shape != shape and not tensor.numel() == shape.numel() == 1:
            raise InputError(f"weights: {name} is {tuple(tensor.shape)}, this configuration needs {tuple(shape)}")
        if not tensor.is_floating_point():
            raise InputError(f"weights: {name} holds {tensor.dtype}, expected floating-point numbers")
        return tensor.reshape(shape)

    def confirm(self, name: str, expected: Tensor) -> None:
        """Check that a tensor which follows from the configuration, where it is given, holds what follows.

        Numbers are then taken over into `expected`, so that their rounding is that of the authors.

        Raises:
            InputError: it holds something else.
        """
        if name not in self.tensors:
            return
        tensor = self.tensors[name]
        if tensor.shape != expected.shape or not torch.allclose(tensor.double(), expected.double(), atol=1e-5):
            raise InputError(f"weights: {name} is not what config says it is; leave it out, it is computed")
        if expected.is_floating_point():
            expected.copy_(tensor)
        self.used.add(name)

    def refuse_rest(self) -> None:
        """Check that every tensor has been used.

        Raises:
            InputError: one has not.
        """
        rest = sorted(self.tensors.keys() - self.used)
        if rest:
            more = f" (and {len(rest) - 1} more)" if len(rest) > 1 else ""
            raise InputError(f"weights: {rest[0]}{more} belongs to no part of the model that config describes")


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else text[:59] + "…"
