"""What instruments measured inside a model, kept with its run and readable without the laboratory.

    measures/<instrument>/step-00000500.safetensors   the arrays, by name
    measures/<instrument>/step-00000500.json          what they mean: view, axes, labels, units, notes; written last

A measurement is there once its JSON is: a crash between the two files leaves arrays that nobody reads.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from homunculi.errors import InputError
from homunculi.files import write_atomic, write_json

FORMAT = 1
FOLDER = "measures"
View = Literal["line", "heatmap", "table", "text"]
VIEWS = get_args(View)
COMPANIONS = ("low", "high", "null sd")  # of a number: its interval, and its spread where there is nothing to find
OWN_SCALE = "measure"  # an axis of rows of this name holds quantities that have nothing in common
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_FILE = re.compile(r"step-(\d{8,12})\.json")

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Measurement:
    """Arrays with the names of their axes: what an instrument found at one step of training.

    Attributes:
        values: name → array of numbers or truth values; NaN where there is nothing to say. A number alone (no axes) is
            drawn over the steps of training whatever the view. As lines, (series, x) or (x); as a heat-map,
            (rows, columns) or (panels, rows, columns); as a table, (rows, columns) or (rows). Numbers named `X low` and
            `X high` are the interval of the number X, `X null sd` its spread where there is nothing to find: they are
            drawn with it.
        axes: name → name of each of its axes.
        labels: axis → a label for each of its places; axes without labels are numbered. The view `text` shows them.
        units: name → unit, such as nats; absent: a plain number.
        notes: what a reader has to know, such as what was left out.

    Raises:
        ValueError: axes or labels that do not fit the arrays.
    """

    values: Mapping[str, Array]
    axes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, value in self.values.items():
            axes = self.axes.get(name, ())
            if value.dtype.kind not in "fiub":
                raise ValueError(f"{name}: holds no numbers but {value.dtype}")
            if len(axes) != value.ndim:
                raise ValueError(f"{name}: {value.ndim} axes, named {axes}")
            for axis, size in zip(axes, value.shape, strict=True):
                if axis in self.labels and len(self.labels[axis]) != size:
                    raise ValueError(f"{name}: axis {axis} has {size} places and {len(self.labels[axis])} labels")


@dataclass(frozen=True, slots=True)
class Stored:
    """A measurement as it lies in a run, and whose it is.

    Attributes:
        instrument, view, title: as declared when it was made.
        question: what the instrument answers, in one sentence.
        step: updates before it; tokens: read in them.
    """

    instrument: str
    view: str
    title: str
    question: str
    step: int
    tokens: int
    measurement: Measurement


def write_measurement(run: Path, stored: Stored) -> None:
    """Put a measurement into the folder of a run, over an earlier one of the same step.

    Raises:
        ValueError: a name that is no plain word, or a view that is none.
        OSError: it cannot be written.
    """
    if not _NAME.fullmatch(stored.instrument) or stored.view not in VIEWS:
        raise ValueError(f"no name and view of an instrument: {stored.instrument}, {stored.view}")
    folder = run / FOLDER / stored.instrument
    folder.mkdir(parents=True, exist_ok=True)
    found, stem = stored.measurement, f"step-{stored.step:08d}"
    arrays = {name: _plain(value) for name, value in found.values.items()}
    (folder / f"{stem}.json").unlink(missing_ok=True)  # no words of the old beside arrays of the new
    write_atomic(folder / f"{stem}.safetensors", save_arrays(arrays))
    about = {
        "format": FORMAT,
        "instrument": stored.instrument,
        "view": stored.view,
        "title": stored.title,
        "question": stored.question,
        "step": stored.step,
        "tokens": stored.tokens,
        "axes": {name: list(found.axes.get(name, ())) for name in arrays},
        "labels": {axis: list(labels) for axis, labels in found.labels.items()},
        "units": dict(found.units),
        "notes": list(found.notes),
        "scalars": {name: _number(value) for name, value in arrays.items() if value.ndim == 0},
    }
    write_json(folder / f"{stem}.json", about)


def _plain(value: Array) -> Array:
    """float32 and int64 at most: what any reader takes."""
    kind = {"f": np.float32, "i": np.int64, "u": np.int64, "b": np.bool_}[value.dtype.kind]
    return np.array(value, dtype=kind, order="C")


def _number(value: Array) -> float | None:
    number = float(value)
    return number if np.isfinite(number) else None


def companions(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Name of each number that stands for itself → its `low`, `high` and `null sd`, by name, where there are some."""
    known = list(names)
    found: dict[str, dict[str, str]] = {name: {} for name in known}
    for name in known:
        for what in COMPANIONS:
            if (whole := name.removesuffix(f" {what}")) != name and whole in known:
                found[whole][what] = name
                found.pop(name, None)
    return found


def measured_instruments(run: Path) -> list[str]:
    """Names of instruments with at least one measurement in a run, sorted."""
    try:
        found = sorted(path.name for path in (run / FOLDER).iterdir() if _NAME.fullmatch(path.name))
    except OSError:
        return []
    return [name for name in found if measured_steps(run, name)]


def measured_steps(run: Path, instrument: str) -> list[int]:
    """Steps with a whole measurement, ascending."""
    if not _NAME.fullmatch(instrument):
        return []
    try:
        names = [path.name for path in (run / FOLDER / instrument).iterdir()]
    except OSError:
        return []
    return sorted(int(match[1]) for name in names if (match := _FILE.fullmatch(name)))


def read_about(run: Path, instrument: str, step: int) -> dict[str, Any]:
    """What the JSON of a measurement says; its `scalars` need no arrays.

    Raises:
        InputError: there is none, or it is damaged.
    """
    if not _NAME.fullmatch(instrument):
        raise InputError(f"{instrument}: no name of an instrument")
    path = run / FOLDER / instrument / f"step-{step:08d}.json"
    try:
        about = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path}: no measurement of step {step}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read ({type(error).__name__}); measure again") from None
    if not isinstance(about, dict) or about.get("view") not in VIEWS:
        raise InputError(f"{path}: is no measurement; measure again")
    return about


def read_measurement(run: Path, instrument: str, step: int) -> Stored:
    """A measurement with its arrays.

    Raises:
        InputError: there is none, or it is damaged.
    """
    about = read_about(run, instrument, step)
    path = run / FOLDER / instrument / f"step-{step:08d}.safetensors"
    try:
        values = load_arrays(path.read_bytes())
        found = Measurement(
            values,
            {name: tuple(axes) for name, axes in about["axes"].items()},
            {axis: tuple(map(str, labels)) for axis, labels in about["labels"].items()},
            {name: str(unit) for name, unit in about["units"].items()},
            tuple(map(str, about["notes"])),
        )
        text = {name: str(about[name]) for name in ("instrument", "view", "title", "question")}
        return Stored(**text, step=int(about["step"]), tokens=int(about["tokens"]), measurement=found)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, SafetensorError) as error:
        raise InputError(f"{path}: cannot be read ({type(error).__name__}); measure again") from None


def labels_of(found: Measurement, axis: str, size: int, longest: int = 120) -> list[str]:
    """The labels of an axis, of at most so many characters, or numbers from 0."""
    return [label[:longest] for label in found.labels.get(axis, ())] or [str(i) for i in range(size)]


def places_of(found: Measurement, axis: str, size: int) -> list[float] | None:
    """The labels of an axis as places along it, where all are finite numbers; None where they are words."""
    try:
        places = [float(label) for label in labels_of(found, axis, size)]
    except ValueError:
        return None
    return places if all(map(math.isfinite, places)) else None


def figure_of(value: Any) -> str:
    """A number of an array as text; a dash where there is nothing to say."""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return f"{int(value):,}"
    return f"{float(value):.3g}" if math.isfinite(float(value)) else "–"
