"""A scan: what a model did with one text, token by token. One JSON object, readable without the laboratory.

    {"format": 1, "run": name, "step": n, "text": str,
     "tokens":    [{"id": int, "text": str, "surprisal": nats or null}, …]                       T of them
     "panels":    [{"name", "title", "unit", "rows": [str], "values": [[number or null × T] × rows],
                    "low", "high", "neutral": number or null}]
     "attention": [{"name", "label", "values": [[[number] × T] × T] × heads}]  reader × read
     "lens":      [{"step": int, "label", "words": [[[str, probability] × k] × T], "rank": [int or null × T],
                    "up", "down": [[[str, change] × at most 3] × T]}]
     "changes":   [str], "notes": [str],
     "measures":  [{"instrument", "view", "title", "question", "units", "notes", "axes", "labels", "values"}]}

`measures` may be absent, and so may `up` and `down` of the lens: the words whose probability the step raised and
lowered most, and by how much, the largest first. A token's surprisal is that of the token itself, given those before
it; the rank of the lens is that of the token that comes next, 1 the likeliest. Null: nothing to say, as where a token
did not take part.

Legend: T tokens, R rows, H heads.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from homunculi.errors import InputError
from homunculi.files import write_atomic

FORMAT = 1
MOST_TOKENS = 65_536
_DIGITS = 5  # significant figures of panels; attention has four decimals

Array = NDArray[np.float64]
Json = dict[str, Any]
Words = tuple[tuple[str, float], ...]  # with a probability, or a change of one


@dataclass(frozen=True, slots=True)
class Token:
    """A token: its id, how it is shown, and its surprisal in nats (None: nothing was before it)."""

    id: int
    text: str
    surprisal: float | None


@dataclass(frozen=True, slots=True)
class Panel:
    """A signal by row (a layer, a pass, an expert) and token.

    Attributes:
        name: as other scans of it have it.
        values: (R, T), NaN where there is nothing to say.
        low, high: ends of the colour scale; neutral: where the signal does nothing, its middle.
    """

    name: str
    title: str
    unit: str
    rows: tuple[str, ...]
    values: Array
    low: float
    high: float
    neutral: float | None = None


@dataclass(frozen=True, slots=True)
class Attention:
    """Who reads whom in a step: values (H, T, T), the reader first, each row of a reader summing to at most 1."""

    name: str
    label: str
    values: Array


@dataclass(frozen=True, slots=True)
class Lens:
    """What the state after a step would say next, at each token: likeliest words, and the rank of what came.

    Attributes:
        up, down: words whose probability the step raised and lowered most, and its change; empty: nobody looked.
    """

    step: int
    label: str
    words: tuple[Words, ...]
    rank: tuple[int | None, ...]
    up: tuple[Words, ...] = ()
    down: tuple[Words, ...] = ()


@dataclass(frozen=True, slots=True)
class Scan:
    """See the top of this file."""

    run: str
    step: int
    text: str
    tokens: tuple[Token, ...]
    panels: tuple[Panel, ...] = ()
    attention: tuple[Attention, ...] = ()
    lens: tuple[Lens, ...] = ()
    changes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    measures: tuple[Json, ...] = field(default=())

    def panel(self, name: str) -> Panel | None:
        """The panel of that name, if there is one."""
        return next((panel for panel in self.panels if panel.name == name), None)


def with_panels(scan: Scan, names: Sequence[str]) -> Scan:
    """The scan with these panels alone, in this order; none named: as it is.

    Raises:
        InputError: it has no panel of that name; those that it has are listed.
    """
    missing = [name for name in names if scan.panel(name) is None]
    if missing:
        raise InputError(f"{missing[0]}: no such panel; there are {', '.join(panel.name for panel in scan.panels)}")
    chosen = tuple(panel for name in names for panel in scan.panels if panel.name == name)
    return replace(scan, panels=chosen) if names else scan


def scaled_to(scan: Scan, low: float | None, high: float | None) -> Scan:
    """The scan with these ends for the colours of every panel that has a neutral value; None: as it is.

    Raises:
        InputError: the ends are no scale.
    """
    panels = []
    for panel in scan.panels:
        ends = (panel.low if low is None else low, panel.high if high is None else high)
        if panel.neutral is not None and not ends[0] < ends[1]:
            raise InputError(f"{panel.name}: a scale from {ends[0]:g} to {ends[1]:g}; let --low be below --high")
        panels.append(panel if panel.neutral is None else replace(panel, low=ends[0], high=ends[1]))
    return replace(scan, panels=tuple(panels))


def scaled_like(scan: Scan, other: Scan) -> Scan:
    """The scan with the colour scales of another, for panels that both have: so pictures can be compared."""
    known = {panel.name: panel for panel in other.panels}
    panels = (
        replace(panel, low=known[panel.name].low, high=known[panel.name].high) if panel.name in known else panel
        for panel in scan.panels
    )
    return replace(scan, panels=tuple(panels))


def scan_to_json(scan: Scan) -> Json:
    """The scan as JSON has it; numbers are rounded."""
    return {
        "format": FORMAT,
        "run": scan.run,
        "step": scan.step,
        "text": scan.text,
        "tokens": [{"id": t.id, "text": t.text, "surprisal": _rounded(t.surprisal)} for t in scan.tokens],
        "panels": [
            {
                "name": panel.name,
                "title": panel.title,
                "unit": panel.unit,
                "rows": list(panel.rows),
                "values": numbers(panel.values),
                "low": float(panel.low),  # not rounded: ends that differ by little still differ
                "high": float(panel.high),
                "neutral": _rounded(panel.neutral),
            }
            for panel in scan.panels
        ],
        "attention": [
            {"name": a.name, "label": a.label, "values": np.round(np.nan_to_num(a.values), 4).tolist()}
            for a in scan.attention
        ],
        "lens": [
            {
                "step": lens.step,
                "label": lens.label,
                "words": _of_words(lens.words),
                "rank": list(lens.rank),
                **({"up": _of_words(lens.up), "down": _of_words(lens.down)} if lens.up or lens.down else {}),
            }
            for lens in scan.lens
        ],
        "changes": list(scan.changes),
        "notes": list(scan.notes),
        **({"measures": list(scan.measures)} if scan.measures else {}),
    }


def _of_words(rows: Sequence[Words]) -> list[list[list[Any]]]:
    return [[[word, round(p, 4)] for word, p in words] for words in rows]


def numbers(values: Any) -> Any:
    """An array as nested lists with a few significant figures; None where a value is not finite."""
    found = np.asarray(values, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        places = _DIGITS - 1 - np.floor(np.log10(np.abs(found)))
        scale = 10.0 ** np.clip(np.where(np.isfinite(places), places, 0), -300, 300)
        rounded = np.where(np.isfinite(found), np.round(found * scale) / scale, found)
    plain = rounded.astype(object)
    plain[~np.isfinite(found)] = None
    return plain.tolist()


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.{_DIGITS}g}")


def write_scan(path: Path, scan: Scan) -> None:
    """Write a scan as JSON, whole or not at all."""
    write_atomic(path, json.dumps(scan_to_json(scan), allow_nan=False, ensure_ascii=False) + "\n")


def read_scan(path: Path) -> Scan:
    """A scan out of a file.

    Raises:
        InputError: there is none, or it is damaged; the message names the field.
    """
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give the JSON of a scan") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read ({type(error).__name__}); scan again") from None
    return scan_from_json(value, str(path))


def scan_from_json(value: Any, source: str = "scan") -> Scan:
    """A scan out of what JSON had, checked.

    Raises:
        InputError: it is none, or of a later format; the message names `source` and the field.
    """
    if not isinstance(value, Mapping):
        raise InputError(f"{source}: is no scan: a JSON object is expected; scan again")
    if value.get("format") != FORMAT:
        raise InputError(f"{source}: format {value.get('format')!r}, this version reads {FORMAT}; scan again")
    try:
        tokens = tuple(Token(int(t["id"]), _text(t["text"]), _number(t["surprisal"])) for t in value["tokens"])
        n_tokens = len(tokens)
        if not 0 < n_tokens <= MOST_TOKENS:
            raise ValueError(f"{n_tokens} tokens")
        return Scan(
            run=_text(value["run"]),
            step=int(value["step"]),
            text=_text(value["text"]),
            tokens=tokens,
            panels=tuple(_panel(one, n_tokens) for one in value["panels"]),
            attention=tuple(_attention(one, n_tokens) for one in value["attention"]),
            lens=tuple(_lens(one, n_tokens) for one in value["lens"]),
            changes=tuple(map(_text, value["changes"])),
            notes=tuple(map(_text, value["notes"])),
            measures=tuple(dict(one) for one in value.get("measures", ())),
        )
    except KeyError as error:
        raise InputError(f"{source}: lacks {error.args[0]}; scan again") from None
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise InputError(f"{source}: is no whole scan ({' '.join(str(error).split())}); scan again") from None


def _panel(value: Mapping[str, Any], n_tokens: int) -> Panel:
    rows = tuple(map(_text, value["rows"]))
    found = np.array(value["values"], dtype=np.float64).reshape(len(rows), -1)  # None becomes NaN
    if found.shape != (len(rows), n_tokens):
        raise ValueError(f"panel {value['name']}: {found.shape[1]} values a row for {n_tokens} tokens")
    low, high = float(value["low"]), float(value["high"])
    if not low < high:
        raise ValueError(f"panel {value['name']}: a scale from {low} to {high}")
    name, title, unit = (_text(value[key]) for key in ("name", "title", "unit"))
    return Panel(name, title, unit, rows, found, low, high, _number(value["neutral"]))


def _attention(value: Mapping[str, Any], n_tokens: int) -> Attention:
    found = np.array(value["values"], dtype=np.float64)
    if found.ndim != 3 or found.shape[1:] != (n_tokens, n_tokens):
        raise ValueError(f"attention {value['name']}: shape {found.shape} for {n_tokens} tokens")
    return Attention(_text(value["name"]), _text(value["label"]), found)


def _lens(value: Mapping[str, Any], n_tokens: int) -> Lens:
    words = _words(value["words"])
    rank = tuple(None if one is None else int(one) for one in value["rank"])
    if len(words) != n_tokens or len(rank) != n_tokens:
        raise ValueError(f"lens {value['label']}: {len(words)} words and {len(rank)} ranks for {n_tokens} tokens")
    up, down = (_words(value.get(key, ())) for key in ("up", "down"))
    if {len(up), len(down)} not in ({n_tokens}, {0}):
        raise ValueError(f"lens {value['label']}: {len(up)} up and {len(down)} down for {n_tokens} tokens")
    return Lens(int(value["step"]), _text(value["label"]), words, rank, up, down)


def _words(rows: Any) -> tuple[Words, ...]:
    """Of each token, words with a number each."""
    return tuple(tuple((_text(word), _finite(p)) for word, p in row) for row in rows)


def _number(value: Any) -> float | None:
    return None if value is None else _finite(value)


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{number} is no finite number")
    return number


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{str(value)[:40]!r} is no text")
    return value
