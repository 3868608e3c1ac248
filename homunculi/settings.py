"""Typed settings: frozen dataclasses to and from JSON, and ``key=value`` overrides. Standard library only.

A *setting* is a constructor field of a dataclass (fields with ``init=False`` are derived and left out). A *group* is a
setting that holds a dataclass instance; its settings have dotted names, ``model.n_heads``. Groups are told by the
value, not the annotation, so a field annotated with ``Any``, a Protocol or a base class may hold any configuration.
JSON does not say which class such a group has. Two hooks carry that, asked about every group, the outermost included:

- ``tag(group) -> dict``: keys written before the group's own, ``{}`` for none: ``{"architecture": "gpt"}``.
- ``resolve(path, data) -> type | None``: the class of the group at dotted ``path`` (``""`` outermost), None for the
  annotated one. ``data`` is a copy: resolve takes out the keys that tag wrote with ``data.pop``, and whatever stays
  must be settings of the class.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import MISSING, fields, is_dataclass, replace
from fractions import Fraction
from functools import partial
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from homunculi.errors import InputError

D = TypeVar("D")
Tag = Callable[[Any], dict[str, Any]]
Resolve = Callable[[str, dict[str, Any]], "type | None"]

_EXPECTED = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text", NoneType: "none"}
_SWITCH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_NONE = {"none": None, "null": None}
_WHOLE = re.compile(r"([+-]?\d[\d_]{0,99}(?:\.\d+)?)(?:[eE]([+-]?\d{1,2}))?([kMG]?)", re.ASCII)
_POWER = {"": 0, "k": 3, "M": 6, "G": 9}


def override(config: D, assignments: Sequence[str], path: str = "") -> D:
    """Return `config` with settings replaced by ``a.b=value`` texts; `path` is the name of `config` itself in errors.

    Values are read by annotation: ``1_000``, ``4e6`` or ``32k`` (k, M, G: powers of 1000) for whole numbers, ``1,2`` or
    JSON for tuples, ``none`` or ``null`` where None is allowed, true/false/yes/no/1/0, text verbatim. A group is
    validated once, with all that is assigned to it; of two assignments to one setting the last counts.

    Raises:
        InputError: one line that names the setting: unknown, of the wrong type, or refused by ``__post_init__``.
    """
    changes: dict[tuple[str, ...], Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        key = key.strip()
        if not (key and equals):
            raise InputError(f"{_shown(assignment)}: expected key=value")
        changes[tuple(key.split("."))] = _assigned(config, key, text, path)
    return _apply(config, changes, path) if changes else config


def to_json(config: Any, tag: Tag | None = None, path: str = "") -> dict[str, Any]:
    """Return every setting as nested plain JSON values (tuples become lists), each group with its keys from `tag`.

    Raises:
        InputError: a value that its annotation or JSON does not allow (``nan``), which `from_json` would refuse.
        ValueError: `tag` returned a key that is a setting's name.
    """
    kinds = _kinds(type(config))
    written = dict(tag(config)) if tag else {}
    if clash := written.keys() & kinds.keys():
        raise ValueError(f"{_join(path, min(clash))}: a tag has the name of a setting")
    for name, kind in kinds.items():
        dotted = _join(path, name)
        written[name] = _plain(_read(kind, getattr(config, name), dotted, None), dotted, tag)
    return written


def from_json(cls: type[D], data: Any, path: str = "", resolve: Resolve | None = None) -> D:
    """Build what `to_json` wrote. Settings with a default may be absent; `resolve` is described above.

    Raises:
        InputError: unknown or missing setting, wrong type, or refused by ``__post_init__``; names the dotted setting.
    """
    if not isinstance(data, dict):
        raise _refusal(cls, data, path or "settings")
    built: D = _read_group(cls, data, path, resolve)
    return built


def changed(config: Any, base: Any) -> dict[str, tuple[Any, Any]]:
    """Return dotted name -> (value in `base`, value in `config`) for what differs.

    A setting that one side lacks counts as None there. A group of another class also appears under its own name, with
    the full names of the two classes.
    """
    before, after = _flat(base), _flat(config)
    pairs = {name: (before.get(name), after.get(name)) for name in before | after}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def fields_of(config: Any, path: str = "") -> list[tuple[str, str, Any, str]]:
    """Return (dotted name, type, value, doc) of every setting; doc is the field's metadata ``{"help": …}`` or empty."""
    rows = ((dotted, _type_name(kind), value, doc) for dotted, kind, value, doc in _walk(config, path))
    return [row for row in rows if not _is_group(row[2])]


def to_text(value: Any) -> str:
    """Return the text that `override` reads back as `value` (the text ``none`` is None wherever None is allowed)."""
    if isinstance(value, str):
        return value
    return "none" if value is None else json.dumps(_plain(_read(Any, value, "value", None), "value", None))


def check_range(
    name: str, value: float, *, low: float | None = None, high: float | None = None, above: float | None = None
) -> None:
    """Refuse a value below `low`, beyond `high`, or not strictly above `above` (nan fails each); for ``__post_init__``.

    Raises:
        InputError: one line such as ``lr: 0 must be above 0``.
    """
    if not isinstance(value, (int, float)):
        raise _refusal(float, value, name)
    if above is not None and not value > above:
        raise InputError(f"{name}: {value} must be above {above}")
    if low is not None and not value >= low:
        raise InputError(f"{name}: {value} must be at least {low}")
    if high is not None and not value <= high:
        raise InputError(f"{name}: {value} must be at most {high}")


# Annotations and groups.


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _is_group(value: Any) -> bool:
    return is_dataclass(value) and not isinstance(value, type)


def _kinds(cls: Any) -> dict[str, Any]:
    """Settings of a dataclass with their annotations, which may be strings in the source."""
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in fields(cls) if field.init}


def _members(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _is_tuple(kind: Any) -> bool:
    return kind is tuple or get_origin(kind) is tuple


def _is_open(kind: Any) -> bool:
    """May it hold a group: a dataclass, or Any, a Protocol, a base class?"""
    return kind is Any or (isinstance(kind, type) and not get_origin(kind) and kind not in (*_EXPECTED, tuple))


def _item_kinds(kind: Any, count: int) -> list[Any]:
    """Annotations of the items of a tuple, `count` of them where its length is free."""
    items = get_args(kind) or (Any, ...)
    return [items[0]] * count if items[-1] is Ellipsis else list(items)


def _walk(config: Any, path: str) -> Iterator[tuple[str, Any, Any, str]]:
    """Dotted name, annotation, value and doc of every setting; a group comes before what is in it."""
    docs = {field.name: field.metadata.get("help", "") for field in fields(config)}
    for name, kind in _kinds(type(config)).items():
        value, dotted = getattr(config, name), _join(path, name)
        yield dotted, kind, value, docs[name]
        if _is_group(value):
            yield from _walk(value, dotted)


def _flat(config: Any) -> dict[str, Any]:
    """Dotted name -> value, for a group the full name of its class."""
    rows = {dotted: value for dotted, _, value, _ in _walk(config, "")}
    groups = {dotted: type(value) for dotted, value in rows.items() if _is_group(value)}
    return rows | {dotted: f"{cls.__module__}.{cls.__qualname__}" for dotted, cls in groups.items()}


def _construct(make: Callable[..., Any], values: dict[str, Any], names: Iterable[str], path: str) -> Any:
    """Call the constructor of a group with settings `names`; a refusal becomes one line that names the group."""
    try:
        return make(**values)
    except (InputError, ValueError, ArithmeticError) as error:  # arithmetic: dividing by a setting that is 0
        message = " ".join(str(error).split()) or type(error).__name__
        if path and not re.match(re.escape(path) + r"\b", message):
            about_setting = re.split(r"\W", message, maxsplit=1)[0] in names
            message = path + ("." if about_setting else ": ") + message
        raise InputError(message) from error


# Overrides: text to values.


def _assigned(config: Any, key: str, text: str, path: str) -> Any:
    """The value that one assignment gives, read by the annotation of the setting that `key` names."""
    value, kind, dotted = config, Any, path
    for name in key.split("."):
        if value is None and any(map(_is_open, _members(kind))):
            raise InputError(f"{_shown(_join(path, key))}: {dotted} is none here and has no settings")
        if not _is_group(value) or name not in _kinds(type(value)):
            raise _unknown(_join(path, key), (row[0] for row in fields_of(config, path)))
        kind, value, dotted = _kinds(type(value))[name], getattr(value, name), _join(dotted, name)
    if _is_group(value) and not (NoneType in _members(kind) and text.strip().lower() in _NONE):
        names = [row[0] for row in fields_of(value, dotted)]
        raise InputError(f"{dotted} is a group: set one of {', '.join(names[:8])}{', …' * (len(names) > 8)}")
    known = type(value) if _is_open(kind) and type(value) in (bool, int, float, str) else kind
    return _from_text(known, text, dotted)


def _apply(config: Any, changes: dict[tuple[str, ...], Any], path: str) -> Any:
    values = {names[0]: value for names, value in changes.items() if len(names) == 1}
    inner: dict[str, dict[tuple[str, ...], Any]] = {}
    for names, value in changes.items():
        if len(names) > 1:
            inner.setdefault(names[0], {})[names[1:]] = value
    for name, deeper in inner.items():
        if name in values:
            raise InputError(f"{_join(path, name)}: set to none and given settings at once; keep one of the two")
        values[name] = _apply(getattr(config, name), deeper, _join(path, name))
    return _construct(partial(replace, config), values, _kinds(type(config)), path)


def _from_text(kind: Any, text: str, path: str) -> Any:
    return _convert(kind, text, path, lambda member: _parse(member, text, path))


def _parse(kind: Any, text: str, path: str) -> Any:
    """Read text by an annotation that is no union."""
    word = text.strip()
    if kind in _PARSERS:
        return _PARSERS[kind](text if kind is str else word)
    if get_origin(kind) is Literal:
        return {to_text(choice): choice for choice in get_args(kind)}[word]
    if kind is Any or (_is_tuple(kind) and word.startswith("[")):
        return _read(kind, None if word.lower() in _NONE else json.loads(word), path, None)
    if not _is_tuple(kind):
        raise ValueError("no text stands for such a value")
    parts = [part.strip() for part in word.split(",")] if word else []
    return tuple(_from_text(item, part, path) for item, part in zip(_item_kinds(kind, len(parts)), parts, strict=True))


def _whole(word: str) -> int:
    match = _WHOLE.fullmatch(word)
    number = Fraction(f"{match[1]}e{int(match[2] or 0) + _POWER[match[3]]}") if match else Fraction(1, 2)
    if number.denominator != 1:
        raise ValueError("not whole")
    return int(number)


def _finite(number: float) -> float:
    if not math.isfinite(number):
        raise ValueError("not finite")
    return number


_PARSERS: dict[Any, Callable[[str], Any]] = {
    str: str,
    int: _whole,
    float: lambda word: _finite(float(word)),
    bool: lambda word: _SWITCH[word.lower()],
    NoneType: lambda word: _NONE[word.lower()],
}


# JSON to values and back.


def _plain(value: Any, path: str, tag: Tag | None) -> Any:
    if isinstance(value, tuple):
        return [_plain(item, f"{path}[{index}]", tag) for index, item in enumerate(value)]
    return to_json(value, tag, path) if _is_group(value) else value


def _read(kind: Any, value: Any, path: str, resolve: Resolve | None) -> Any:
    """Check a value by an annotation; lists become tuples, objects groups, subclasses of numbers plain numbers."""
    if isinstance(value, dict) and any(map(_is_open, _members(kind))):
        return _read_group(kind, value, path, resolve)
    return _convert(kind, value, path, lambda member: _read_one(member, value, path, resolve))


def _read_one(kind: Any, value: Any, path: str, resolve: Resolve | None) -> Any:
    own = next((plain for plain in (bool, int, float, str, NoneType) if isinstance(value, plain)), None)
    wanted = own if kind is Any else kind
    if isinstance(value, (list, tuple)) and (kind is Any or _is_tuple(kind)):
        pairs = zip(_item_kinds(kind, len(value)), value, strict=True)
        return tuple(_read(item, part, f"{path}[{index}]", resolve) for index, (item, part) in enumerate(pairs))
    fitting: Any = kind if is_dataclass(kind) else object
    if _is_group(value) and _is_open(kind) and isinstance(value, fitting):
        return value
    if get_origin(kind) is Literal and any(type(choice) is own and choice == value for choice in get_args(kind)):
        return value
    if own is None or (own is not wanted and (own, wanted) != (int, float)):
        raise ValueError("of another type")
    if wanted is float:
        return _finite(float(value))
    return int(value) if wanted is int else value


def _read_group(kind: Any, data: dict[str, Any], path: str, resolve: Resolve | None) -> Any:
    data = dict(data)
    cls: Any = resolve(path, data) if resolve else None
    allowed: list[Any] = [member for member in _members(kind) if is_dataclass(member)]
    if cls is None and len(allowed) != 1:
        raise InputError(f"{path or 'settings'}: nothing says which class of settings this is")
    if cls is not None and allowed and not issubclass(cls, tuple(allowed)):
        raise InputError(f"{path or 'settings'}: expected {_expected(kind)}, got {cls.__name__} settings")
    cls = cls or allowed[0]
    kinds, values = _kinds(cls), {}
    for key in data:
        if key not in kinds:
            raise _unknown(_join(path, str(key)), (_join(path, name) for name in kinds))
    for field in fields(cls):
        if field.name in data:
            values[field.name] = _read(kinds[field.name], data[field.name], _join(path, field.name), resolve)
        elif field.init and field.default is MISSING and field.default_factory is MISSING:
            raise InputError(f"{_join(path, field.name)}: missing, and it has no default")
    return _construct(cls, values, kinds, path)


def _convert(kind: Any, given: Any, path: str, convert: Callable[[Any], Any]) -> Any:
    """What the first member of a union that accepts the value makes of it; str takes any text, so it comes last."""
    members = sorted(_members(kind), key=lambda member: member is str)
    for member in members:
        try:
            return convert(member)
        except (ValueError, LookupError, OverflowError, RecursionError):
            continue
        except InputError:  # about an item of a list: more exact than what is said below
            if len(members) == 1:
                raise
    raise _refusal(kind, given, path)


# Words.


def _type_name(kind: Any) -> str:
    if len(_members(kind)) > 1:
        return " | ".join(map(_type_name, _members(kind)))
    if get_origin(kind) is Literal:
        return " | ".join(map(to_text, get_args(kind)))
    if _is_tuple(kind) and get_args(kind):
        return f"tuple[{', '.join('...' if item is Ellipsis else _type_name(item) for item in get_args(kind))}]"
    return "none" if kind is NoneType else getattr(kind, "__name__", str(kind))


def _expected(kind: Any) -> str:
    if len(_members(kind)) > 1:
        return " or ".join(map(_expected, _members(kind)))
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(to_text, get_args(kind)))
    if _is_tuple(kind):
        items = get_args(kind) or (Any, ...)
        return f"a list, each {_expected(items[0])}" if items[-1] is Ellipsis else f"a list of {len(items)} values"
    return _EXPECTED.get(kind) or ("a JSON value" if kind is Any else f"{_type_name(kind)} settings")


def _refusal(kind: Any, given: Any, path: str) -> InputError:
    choices = [to_text(c) for member in _members(kind) if get_origin(member) is Literal for c in get_args(member)]
    hint = _suggestion(given, choices) if isinstance(given, str) else ""
    return InputError(f"{path}: expected {_expected(kind)}, got {_shown(given, repr)}{hint}")


def _unknown(name: str, known: Iterable[str]) -> InputError:
    return InputError(f"{_shown(name)}: no such setting{_suggestion(name, known)} (homunculi list settings shows all)")


def _shown(given: Any, write: Callable[[Any], str] = str) -> str:
    """At most 80 printable characters on one line."""
    text = write(given)[:81]
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= 80 else text[:79] + "…"


def _suggestion(given: str, names: Iterable[str]) -> str:
    """`; did you mean …?` with the nearest names, compared whole and by their last part; empty if none is near."""

    def near(one: str, other: str) -> float:
        return difflib.SequenceMatcher(None, one, other).ratio()

    given = given[:80].casefold()
    tail = given.rpartition(".")[2]
    scores = {}
    for name in names:
        last = name.casefold().rpartition(".")[2]
        scores[name] = max(near(given, name.casefold()), near(given, last), 0.9 * near(tail, last))
    best = max(scores.values(), default=0.0)
    nearest = [name for name, score in scores.items() if score == best][:3]
    return f"; did you mean {' or '.join(nearest)}?" if best >= 0.55 else ""
