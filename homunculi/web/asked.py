"""What a browser may ask of the desk, checked: a run below the folder, texts and numbers within stated limits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from homunculi.errors import InputError
from homunculi.runs.directory import CHECKPOINTS
from homunculi.web.guard import TEXT_LIMIT
from homunculi.web.project import Project, Refused

MOST_TOKENS, MOST_CHANGES, LONGEST_CHANGE, HOTTEST = 1000, 64, 300, 5.0


def question(project: Project, do: str, body: bytes) -> dict[str, Any]:
    """The question to the desk that a request's body makes: `scan`, `sample` or `signals`.

    Raises:
        InputError: a field is missing, of another kind or beyond its limit; names the field.
    """
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        raise InputError("the request's body is no JSON") from None
    if not isinstance(asked, dict):
        raise InputError("the request's body is no JSON object")
    run = project.open(_text(asked, "run", 1000))
    if not all(map(project.is_inside, _loaded_of(run.path))):
        raise Refused("a checkpoint or the tokenizer leads out of the folder of runs")
    words: dict[str, Any] = {"do": do, "run": str(run.path)}
    if do == "signals":
        return words
    words |= {"step": _whole(asked, "step", 0, 10**12, None), "changes": _changes(asked.get("changes"))}
    words["text"] = _text(asked, "text", TEXT_LIMIT)
    if do == "scan":
        words["patch_text"] = None if asked.get("patch_text") is None else _text(asked, "patch_text", TEXT_LIMIT)
    if do == "sample":
        words["tokens"] = _whole(asked, "tokens", 1, MOST_TOKENS, 60)
        words["seed"] = _whole(asked, "seed", 0, 2**31 - 1, 0)
        words["temperature"] = _temperature(asked.get("temperature", 0.8))
    return words


def _loaded_of(path: Path) -> Iterator[Path]:
    """What the desk reads of a run to load its model."""
    yield path / "tokenizer.json"
    for pattern in (CHECKPOINTS, f"{CHECKPOINTS}/*", f"{CHECKPOINTS}/*/*"):
        yield from path.glob(pattern)


def _text(asked: dict[str, Any], name: str, limit: int) -> str:
    value = asked.get(name)
    if not isinstance(value, str):
        raise InputError(f"{name}: is needed, and it is a text")
    if len(value) > limit:
        raise InputError(f"{name}: {len(value):,} characters, at most {limit:,} are taken")
    return value


def _whole(asked: dict[str, Any], name: str, low: int, high: int, absent: int | None) -> int | None:
    value = asked.get(name)
    if value is None:
        return absent
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InputError(f"{name}: a whole number from {low} to {high} is needed")
    return value


def _temperature(value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= HOTTEST:
        raise InputError(f"temperature: a number from 0 to {HOTTEST:g} is needed")
    return float(value)


def _changes(value: Any) -> list[str]:
    if value is None:
        return []
    fitting = isinstance(value, list) and len(value) <= MOST_CHANGES
    if not fitting or not all(isinstance(one, str) and len(one) <= LONGEST_CHANGE for one in value):
        raise InputError(f"changes: at most {MOST_CHANGES} texts of at most {LONGEST_CHANGE} characters are taken")
    return list(value)
