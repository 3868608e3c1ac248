"""Modules of several packages as files of one folder that import one another relatively.

The loader of remote code in transformers looks for lines ``from .name import …`` and copies just the files named so;
what is written here keeps to that form.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path

from homunculi.errors import InputError

HOME = __name__.partition(".")[0]


def flatten(texts: Mapping[str, str], packages: Collection[str]) -> dict[str, str]:
    """Sources by module name: `texts` and all modules of `packages` that they import, directly or not.

    Args:
        texts: names and sources of the folder's own modules; their absolute imports of `packages` are rewritten.
        packages: top-level packages of which modules are copied; imports of others stay as they are.

    Raises:
        InputError: a module without a source file, two modules of one name, or an import that cannot be rewritten.
    """
    flat: dict[str, str] = {}
    waiting: list[str] = []
    for name, text in texts.items():
        flat[name], needed = _rewrite(_Source(name, text), packages)
        waiting += needed
    origins: dict[str, str] = {}
    while waiting:
        module = waiting.pop()
        name = flat_name(module)
        if origins.get(name) == module:
            continue
        if name in flat:
            raise InputError(
                f"{module}: its file would be {name}.py, as that of {origins.get(name, 'the export itself')}"
            )
        origins[name] = module
        text, needed = _rewrite(_read(module), packages)
        flat[name] = f"# {module}, as part of an export\n{text}"
        waiting += needed
    return dict(sorted(flat.items()))


def flat_name(module: str) -> str:
    """The file's name of a module: ``core_taps`` for ``homunculi.core.taps``, ``outside_…`` for other packages."""
    inner = module.removeprefix(f"{HOME}.")
    return re.sub(r"\W", "_", inner if inner != module or module == HOME else f"outside.{module}")


@dataclass(frozen=True)
class _Source:
    """A module's text. `package`: what its relative imports start from; empty: they name files of the folder."""

    module: str
    text: str
    package: str = ""


def _read(module: str) -> _Source:
    origin = getattr(sys.modules.get(module), "__file__", None) or getattr(_spec(module), "origin", None)
    if origin is None or not Path(origin).is_file():
        raise InputError(f"{module}: has no source file, so that it cannot be exported; put it into a file")
    package = module if _is_package(module) else module.rpartition(".")[0]
    return _Source(module, Path(origin).read_text(encoding="utf-8"), package or module)


def _is_package(module: str) -> bool:
    if module in sys.modules:
        return hasattr(sys.modules[module], "__path__")
    return getattr(_spec(module), "submodule_search_locations", None) is not None


def _is_module(module: str) -> bool:
    return module in sys.modules or _spec(module) is not None


def _spec(module: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(module)
    except (ModuleNotFoundError, ValueError):  # its package does not exist, or it was loaded without a specification
        return None


@dataclass
class _Edits:
    """Replacements of pieces of a text, by offsets in its UTF-8, and the modules that the new pieces import."""

    pieces: list[tuple[int, int, str]] = field(default_factory=list)
    needed: list[str] = field(default_factory=list)


def _rewrite(source: _Source, packages: Collection[str]) -> tuple[str, list[str]]:
    """The text with its imports of `packages` made relative to one folder, and the modules they name."""
    data = source.text.encode("utf-8")
    starts = [0]
    for line in data.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    edits = _Edits()
    for node, replacement in _replacements(source, packages, edits.needed):
        first = starts[node[0].lineno - 1] + node[0].col_offset
        last = starts[(node[-1].end_lineno or 0) - 1] + (node[-1].end_col_offset or 0)
        indent = data[starts[node[0].lineno - 1] : first].decode("utf-8")
        if len(replacement) > 1 and indent.strip():
            raise InputError(f"{source.module}, line {node[0].lineno}: put this import on a line of its own")
        edits.pieces.append((first, last, f"\n{indent}".join(replacement)))
    for first, last, piece in sorted(edits.pieces, reverse=True):
        data = data[:first] + piece.encode("utf-8") + data[last:]
    return data.decode("utf-8"), edits.needed


def _replacements(
    source: _Source, packages: Collection[str], needed: list[str]
) -> Iterator[tuple[list[ast.stmt], list[str]]]:
    """Statements, one or several in a row, and the lines that take their place."""
    waiting: list[ast.AST] = [ast.parse(source.text)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            yield node.body, ["pass"]  # names for type checkers alone: what they import would be copied for nothing
            waiting += node.orelse
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.ImportFrom):
            lines = _from_import(node, source, packages, needed)
        elif isinstance(node, ast.Import):
            lines = _plain_import(node, source, packages, needed)
        else:
            continue
        if lines is not None:
            yield [node], lines


def _from_import(
    node: ast.ImportFrom, source: _Source, packages: Collection[str], needed: list[str]
) -> list[str] | None:
    if node.level and not source.package:
        return None  # a file of the folder
    stem = node.module or ""
    if node.level:
        base = source.package.split(".")
        if node.level > len(base):
            raise InputError(f"{source.module}, line {node.lineno}: an import from above its package")
        stem = ".".join([*base[: len(base) - node.level + 1], *([stem] if stem else [])])
    if stem.partition(".")[0] not in packages:
        return None
    lines, names = [], []
    for alias in node.names:
        inner = f"{stem}.{alias.name}"
        if _is_package(stem) and alias.name != "*" and _is_module(inner):
            lines += _import_module(inner, alias.asname or alias.name, needed)
        else:
            names.append(f"{alias.name} as {alias.asname}" if alias.asname else alias.name)
    if names:
        needed.append(stem)
        lines.insert(0, f"from .{flat_name(stem)} import {', '.join(names)}")
    return lines


def _plain_import(node: ast.Import, source: _Source, packages: Collection[str], needed: list[str]) -> list[str] | None:
    if not any(alias.name.partition(".")[0] in packages for alias in node.names):
        return None
    lines = []
    for alias in node.names:
        if alias.name.partition(".")[0] not in packages:
            lines.append(f"import {alias.name} as {alias.asname}" if alias.asname else f"import {alias.name}")
        elif alias.asname is None:
            raise InputError(
                f"{source.module}, line {node.lineno}: write `from … import …` instead of import {alias.name}, "
                "so that it can be exported"
            )
        else:
            lines += _import_module(alias.name, alias.asname, needed)
    return lines


def _import_module(module: str, name: str, needed: list[str]) -> list[str]:
    """A module under a name. The first line is there for the loader, which does not follow the second."""
    needed.append(module)
    flat = flat_name(module)
    return [f"from .{flat} import __name__ as _{flat}", f"from . import {flat} as {name}"]
