"""The registry of tasks: a file in this folder, an entry point ``homunculi.tasks``, or a file named by path adds one.

A task is a seeded generator of rows without end: what is read, the right answer after each position, and which
positions count. Its dials set the difficulty; chance, the best possible score and the score of a reader of the last
two tokens are known for each setting. Shape letters: B rows, T positions, V ids.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import wraps
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal

import numpy as np

from homunculi.errors import InputError

Split = Literal["train", "valid", "test"]
Readout = Literal["tokens", "aggregate"]
Number = int | float
SPLITS: tuple[Split, ...] = ("train", "valid", "test")

_NOT_TASKS = {"registry", "splits", "draws", "described"}
_REGISTERED: dict[str, Task] = {}
_FILES: dict[Path, tuple[str, ...]] = {}


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Rows of a task.

    Attributes:
        ids_BT: int64, what a model reads.
        targets_BT: int64, the right answer after each position is read; at least 0, without meaning where not counted.
        counted_BT: bool, the positions that are trained on and scored.
        needed_BT: int64, sequential steps that a counted position needs (1: one look-up); None: not known.
        best_BTV: float64, the best possible distribution of the answer; None: the answer is certain.
    """

    ids_BT: np.ndarray
    targets_BT: np.ndarray
    counted_BT: np.ndarray
    needed_BT: np.ndarray | None = None
    best_BTV: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class Dial:
    """One difficulty setting of a task; a whole number where `default` is one.

    Attributes:
        default: its value where nothing is said.
        values: from easy to hard, for the difficulty curve.
        low, high: the range that is allowed, both inclusive.
        meaning: in a few words.
        quick: the values of the quick battery; not given: the first and the middle one of `values`.
    """

    default: Number
    values: tuple[Number, ...]
    low: Number
    high: Number
    meaning: str
    quick: tuple[Number, ...] = ()

    def __post_init__(self) -> None:
        if not self.quick:
            object.__setattr__(
                self, "quick", tuple(dict.fromkeys((self.values[0], self.values[len(self.values) // 2])))
            )
        for value in (self.default, *self.values, *self.quick):
            if not self.low <= value <= self.high:
                raise ValueError(f"{value} is outside {self.low}…{self.high}")


def no_check(**dials: Any) -> None:
    """For tasks all of whose dials go together."""


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """A registered task. All callables but `generate` take the dials as keywords and ignore those they do not need.

    Attributes:
        name: as users write it.
        title: for headings.
        question: what it asks of an architecture, in one sentence.
        source: where it comes from.
        dials: name → dial.
        swept: the dial of the difficulty curve.
        generate: ``generate(rng, n_rows, *, split, **dials) -> Examples``; dials left out have their default.
        vocabulary: number of ids.
        length: number of positions.
        chance: accuracy of a uniform guess among the ids that can be answers.
        ceiling: expected accuracy of the best reader.
        ngram: expected accuracy, on training rows, of the best reader of the last two tokens; None: it is counted.
        beyond: dial → values that are only tested, never trained; greater is harder.
        readout: tokens, an answer at each counted position; aggregate, a decoder is given the state at the last
            position and a counted position, and answers for that one.
        check: raises InputError where dials do not go together.
    """

    name: str
    title: str
    question: str
    source: str
    dials: Mapping[str, Dial]
    swept: str
    generate: Callable[..., Examples]
    vocabulary: Callable[..., int]
    length: Callable[..., int]
    chance: Callable[..., float]
    ceiling: Callable[..., float]
    ngram: Callable[..., float] | None = None
    beyond: Mapping[str, tuple[Number, ...]] = field(default_factory=dict)
    readout: Readout = "tokens"
    check: Callable[..., None] = no_check

    def __post_init__(self) -> None:
        if self.swept not in self.dials:
            raise ValueError(f"task {self.name!r}: swept is {self.swept!r}, which is no dial")
        for name, values in self.beyond.items():
            dial = self.dials.get(name)
            if dial is None or not all(dial.low <= value <= dial.high for value in values):
                raise ValueError(f"task {self.name!r}: beyond {name!r} is no dial or leaves its range")
            if set(values) & set(dial.values):
                raise ValueError(f"task {self.name!r}: a value of {name!r} is both trained and beyond")


def task(**about: Any) -> Callable[[Callable[..., Examples]], Callable[..., Examples]]:
    """Decorator that registers a generator as a task; keywords are the fields of `Task` but `generate`.

    The registered generator checks its dials and fills in defaults; the decorated function stays as it is.

    Raises:
        ValueError: another generator has the name already, or the dials contradict themselves.
    """

    def register(generate: Callable[..., Examples]) -> Callable[..., Examples]:
        @wraps(generate)
        def checked(rng: np.random.Generator, n_rows: int, *, split: Split, **dials: Any) -> Examples:
            if split not in SPLITS:
                raise InputError(f"{made.name}: split is {split!r}; write one of {', '.join(SPLITS)}")
            return generate(rng, n_rows, split=split, **settings(made, dials))

        made = Task(**about, generate=checked)
        known = _REGISTERED.get(made.name)
        if known is not None and known.generate.__module__ != generate.__module__:
            raise ValueError(
                f"task {made.name!r} is registered twice: {known.generate.__module__}, {generate.__module__}"
            )
        _REGISTERED[made.name] = made
        return generate

    return register


def names() -> list[str]:
    """Names of all tasks, sorted."""
    package = importlib.import_module(__package__ or "homunculi.tasks")
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        if module.name.rsplit(".", 1)[-1] not in _NOT_TASKS:
            importlib.import_module(module.name)
    for entry in entry_points(group="homunculi.tasks"):
        entry.load()
    return sorted(_REGISTERED)


def get(name_or_path: str) -> Task:
    """The task of that name, or of a file: ``path/file.py``, or ``path/file.py:NAME`` where the file has several.

    Raises:
        InputError: there is none (near names are listed), or the file cannot be imported.
    """
    path, _, chosen = name_or_path.partition(".py:")
    if chosen or name_or_path.endswith(".py"):
        return _from_file(Path(path + ".py" if chosen else path), chosen)
    if name_or_path not in _REGISTERED:
        known = names()
        if name_or_path not in known:
            near = get_close_matches(name_or_path, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}; or give path/file.py"
            raise InputError(f"{name_or_path}: no such task; {hint}")
    return _REGISTERED[name_or_path]


def settings(task: Task, overrides: Mapping[str, Any]) -> dict[str, Number]:
    """All dials of a task, with `overrides` (numbers, or their text) in place of defaults.

    Raises:
        InputError: one line that names the dial and the fix: unknown, no number, out of range, or at odds with others.
    """
    dials = {name: dial.default for name, dial in task.dials.items()}
    for name, value in overrides.items():
        if name not in dials:
            near = get_close_matches(name, dials, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(dials)}"
            raise InputError(f"{task.name}.{name}: no such dial; {hint}")
        dials[name] = _number(f"{task.name}.{name}", value, task.dials[name])
    task.check(**dials)
    return dials


def harder(task: Task, dials: Mapping[str, Any]) -> list[tuple[str, Number, dict[str, Number]]]:
    """What lies beyond training at these dials: a dial that is only tested, its value, and all dials then.

    Values that are no greater than the one trained at are left out, and those that do not go with the other dials.
    """
    found = []
    for name, values in task.beyond.items():
        for value in values:
            if value > dials[name]:
                with suppress(InputError):
                    found.append((name, value, settings(task, dict(dials) | {name: value})))
    return found


def ngram_ceiling(task: Task, dials: Mapping[str, Any]) -> float:
    """Accuracy of the best reader of the last two tokens: as the task states it, or else counted."""
    checked = settings(task, dials)
    return task.ngram(**checked) if task.ngram is not None else counted_ngram(task, checked)


def counted_ngram(task: Task, dials: Mapping[str, Any], n_answers: int = 100_000) -> float:
    """Accuracy, on fresh training rows, of the answer that was most frequent after the last two tokens.

    Pairs of tokens that the first half of the rows lacks are answered from the last token alone. Where a task is read
    from one state, the two tokens are the last of the row, and the position that is asked for is known too.

    Args:
        n_answers: counted positions to learn from, and about as many to score.
    """
    rng = np.random.default_rng(0)
    seen_N3, fresh_N3 = (_contexts(task, dials, rng, n_answers) for _ in range(2))
    by_two = _most_frequent(seen_N3[:, 0], seen_N3[:, 2])
    by_one = _most_frequent(seen_N3[:, 1], seen_N3[:, 2])
    answers_N = np.array(
        [by_two.get(two, by_one.get(one, -1)) for two, one in zip(*fresh_N3[:, :2].T.tolist(), strict=True)]
    )
    return float((answers_N == fresh_N3[:, 2]).mean())


def _contexts(task: Task, dials: Mapping[str, Any], rng: np.random.Generator, n_answers: int) -> np.ndarray:
    """Of counted positions: a code of the last two tokens, one of the last, and the right answer. [N, 3]."""
    found, n_found = [], 0
    n_ids, length = task.vocabulary(**dials) + 1, task.length(**dials)
    while n_found < n_answers:
        rows = task.generate(rng, max(16, 16_384 // length), split="train", **dials)
        last_BT = rows.ids_BT + 1
        before_BT = np.pad(last_BT, ((0, 0), (1, 0)))[:, :-1]  # 0: there is no token before the first
        if task.readout == "aggregate":
            where_T = np.arange(length) * n_ids
            last_BT, before_BT = last_BT[:, -1:] + where_T, np.repeat(before_BT[:, -1:], length, axis=1)
        columns = (before_BT + n_ids * last_BT, last_BT, rows.targets_BT)
        if not rows.counted_BT.any():
            raise InputError(f"{task.name}: counts no position of its training rows; set counted_BT where an answer is")
        found.append(np.stack([column_BT[rows.counted_BT] for column_BT in columns], axis=1))
        n_found += len(found[-1])
    return np.concatenate(found)


def _most_frequent(contexts_N: np.ndarray, answers_N: np.ndarray) -> dict[int, int]:
    pairs, counts = np.unique(np.stack([contexts_N, answers_N]), axis=1, return_counts=True)
    order = np.argsort(counts, kind="stable")  # of a context, the most frequent answer comes last and stays
    return dict(zip(pairs[0, order].tolist(), pairs[1, order].tolist(), strict=True))


def _number(name: str, value: Any, dial: Dial) -> Number:
    whole = isinstance(dial.default, int)
    try:
        number = float(value)
        if whole and number != int(number):
            raise ValueError("not whole")
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{name}: {value!r} is no {'whole ' * whole}number") from error
    if not dial.low <= number <= dial.high:
        raise InputError(f"{name}: {value} must lie in {dial.low}…{dial.high}")
    return int(number) if whole else number


def _from_file(path: Path, chosen: str) -> Task:
    if not path.is_file():
        raise InputError(f"{path}: no such task file")
    found = _FILES.get(path.resolve())
    if found is None:
        found = _FILES[path.resolve()] = _registered_by(path)
    if chosen in found or (len(found) == 1 and not chosen):
        return _REGISTERED[chosen or found[0]]
    if not found:
        raise InputError(f"{path}: registers no task; put @task(...) over its generator")
    raise InputError(f"{path}: has the tasks {', '.join(found)}; write {path}:{found[0]}")


def _registered_by(path: Path) -> tuple[str, ...]:
    """Import a file; the names of the tasks that it registers."""
    names()  # so that a name that exists already is seen as taken
    before = dict(_REGISTERED)
    spec = importlib.util.spec_from_file_location(f"task_file_{len(_FILES)}_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever a file of the user does wrong is told in one line
        _REGISTERED.clear()
        _REGISTERED.update(before)
        message = " ".join(str(error).split())
        raise InputError(f"{path}: cannot be imported: {type(error).__name__}: {message}") from error
    return tuple(name for name in _REGISTERED if name not in before)
