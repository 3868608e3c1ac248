"""From what a person types to a run configuration."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from homunculi.errors import InputError
from homunculi.settings import override
from homunculi.train.config import RunConfig

_FILES: dict[Path, Any] = {}


def configured(recipe: str, assignments: Sequence[str]) -> tuple[RunConfig, RunConfig]:
    """The recipe's configuration with `key=value` assignments applied, and as the recipe gives it."""
    base = load_recipe(recipe)
    return override(base, assignments), base


def load_recipe(recipe: str) -> RunConfig:
    """Call a recipe: ``name``, ``module:function`` of homunculi_recipes, or ``file.py:function``.

    Raises:
        InputError: there is no such recipe, or it does not return a RunConfig.
    """
    module_name, _, function_name = recipe.rpartition(":") if ":" in recipe else (recipe, "", "")
    if module_name.endswith(".py"):
        module = _import_file(Path(module_name))
        function_name = function_name or Path(module_name).stem
    else:
        module = _import_installed(module_name)
        function_name = function_name or module_name.rsplit(".", 1)[-1]
    function = getattr(module, function_name, None)
    if not callable(function):
        raise InputError(f"{recipe}: {module_name} has no function {function_name}; write {module_name}:FUNCTION")
    config = function()
    if not isinstance(config, RunConfig):
        raise InputError(f"{recipe}: returns a {type(config).__name__}, a recipe returns a RunConfig")
    return config


def recipe_names() -> list[str]:
    """Names of the installed recipes."""
    package = importlib.import_module("homunculi_recipes")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


def _import_installed(name: str) -> Any:
    known = recipe_names()
    if name.split(".")[0] not in known:
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}; or give file.py:function"
        raise InputError(f"{name}: no such recipe; {hint}")
    return importlib.import_module(f"homunculi_recipes.{name}")


def _import_file(path: Path) -> Any:
    """The module of a recipe file. Once a process: an architecture that it registers must stay the same class."""
    if not path.is_file():
        raise InputError(f"{path}: no such recipe file")
    loaded = _FILES.get(path.resolve())
    if loaded is not None:
        return loaded
    spec = importlib.util.spec_from_file_location(f"recipe_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise InputError(f"{path}:{error.lineno}: {error.msg}") from error
    _FILES[path.resolve()] = module
    return module
