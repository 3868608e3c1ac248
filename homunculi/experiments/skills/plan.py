"""What a battery trains: architecture × task × dial × learning rate × weight decay × seed, each size made equal.

Of every point of a difficulty curve (a side, a task, a value of its swept dial) the whole grid of learning rates and
weight decays is trained with the first seed; the other seeds are trained at the setting that validates best.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from homunculi.errors import InputError
from homunculi.experiments.skills.cells import Cell, Json, described
from homunculi.experiments.skills.feed import vocabulary_of
from homunculi.experiments.skills.sizing import Frame, Side, fitted
from homunculi.settings import check_range
from homunculi.tasks import registry
from homunculi.tasks.registry import Task

FIRST_SEED = 0
_MOST_SEEDS = 100
_MOST_OF_A_RATE = 1e3  # infinity is no setting, and no JSON


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Alike for all architectures.

    Attributes:
        seeds: how many. steps, rows: updates at most, and rows of each.
        eval_rows: of validation and of test.
        lrs, wds: the grid.
        frame: whose size all take.
        quick: one value of each swept dial instead of all.
    """

    seeds: int = 3
    steps: int = 2000
    rows: int = 64
    eval_rows: int = 512
    lrs: tuple[float, ...] = (1e-4, 5e-4, 1e-3)
    wds: tuple[float, ...] = (0.0, 0.1)
    frame: Frame = field(default_factory=Frame)
    quick: bool = False

    def __post_init__(self) -> None:
        check_range("seeds", self.seeds, low=1, high=_MOST_SEEDS)
        for name in ("steps", "rows", "eval_rows"):
            check_range(name, getattr(self, name), low=1)
        if not self.lrs or not self.wds:
            raise InputError("lrs, wds: name at least one of each")
        for lr in self.lrs:
            check_range("lrs", lr, above=0, high=_MOST_OF_A_RATE)
        for wd in self.wds:
            check_range("wds", wd, low=0, high=_MOST_OF_A_RATE)

    @property
    def grid(self) -> list[tuple[float, float]]:
        return [(lr, wd) for lr in sorted(set(self.lrs)) for wd in sorted(set(self.wds))]

    def to_json(self) -> Json:
        return asdict(self) | {"lrs": list(self.lrs), "wds": list(self.wds)}


# One setting of the optimiser, so nothing is selected: what ends in minutes on two cores.
QUICK = Settings(seeds=2, steps=250, rows=32, eval_rows=128, lrs=(3e-3,), wds=(0.1,), quick=True)


@dataclass(frozen=True, slots=True)
class Asked:
    """A task with dials that the user set; the swept one may have several values.

    Attributes:
        name: as it was asked for, perhaps a path.
    """

    name: str
    task: Task
    dials: Mapping[str, Any] = field(default_factory=dict)
    sweep: tuple[Any, ...] = ()

    def values(self, quick: bool) -> tuple[Any, ...]:
        """Of the swept dial, easy to hard."""
        dial = self.task.dials[self.task.swept]
        return self.sweep or tuple(dial.quick[:1] if quick else dial.values)

    def settled(self, value: Any) -> dict[str, Any]:
        """All dials at a value of the swept one, checked.

        Raises:
            InputError: they are impossible.
        """
        return dict(registry.settings(self.task, dict(self.dials) | {self.task.swept: value}))


@dataclass(frozen=True, slots=True)
class Point:
    """A point of a difficulty curve, with the cells of its grid, all of the first seed."""

    side: str
    task: str
    value: Any
    grid: tuple[Cell, ...]

    def other_seeds(self, chosen: Cell, n: int) -> list[Cell]:
        """The cells of the other seeds at a setting."""
        return [replace(chosen, seed=FIRST_SEED + i) for i in range(1, n)]


def ask(words: Sequence[str], dials: Mapping[str, str]) -> list[Asked]:
    """Tasks of these names or paths (all, where none is named) with dials as they were typed.

    Args:
        dials: ``task.dial`` or ``dial`` → text. A dial without a task's name is set in every task that has it.

    Raises:
        InputError: no such task or dial, a text that is no number, or impossible dials.
    """
    tasks = {name: registry.get(name) for name in dict.fromkeys(words or registry.names())}
    known = {task.name: task for task in tasks.values()}
    for name in dials:
        head, _, dial = name.rpartition(".")
        if head and head not in known:
            raise InputError(f"{name}: {head} is none of the tasks {', '.join(known)}; write TASK.DIAL=VALUE")
        there = [task for task in known.values() if dial in task.dials and head in ("", task.name)]
        if not there:
            has = sorted({one for task in known.values() if head in ("", task.name) for one in task.dials})
            raise InputError(f"{name}: no such dial; there are {', '.join(has)}")
    found = []
    for name, task in tasks.items():
        own = {key: text for key, text in dials.items() if "." not in key and key in task.dials}
        own |= {key.rpartition(".")[2]: text for key, text in dials.items() if key.rpartition(".")[0] == task.name}
        read = {key: _numbers(f"{task.name}.{key}", text, task.dials[key].default) for key, text in own.items()}
        if many := next((key for key, values in read.items() if len(values) > 1 and key != task.swept), None):
            raise InputError(f"{task.name}.{many}: several values, but the swept dial is {task.swept}; give one value")
        sweep = read.pop(task.swept, ())
        found.append(Asked(name, task, {key: values[0] for key, values in read.items()}, sweep))
    return found


def _numbers(name: str, text: str, default: float) -> tuple[Any, ...]:
    try:
        read = [float(word) for word in text.split(",")]
    except ValueError:
        raise InputError(f"{name}: {text} is no number; write such as {name}={default}") from None
    if isinstance(default, int):
        if broken := next((value for value in read if value != value // 1), None):
            raise InputError(f"{name}: {broken} is no whole number; write such as {name}={default}")
        return tuple(int(value) for value in read)
    return tuple(read)


def points(sides: Sequence[Side], tasks: Sequence[Asked], settings: Settings) -> list[Point]:
    """All points, tasks first, so that early results are comparisons.

    Raises:
        InputError: impossible dials, or a side that cannot be made equal.
    """
    return [
        Point(side.name, asked.task.name, value, tuple(_grid(side, asked, value, settings)))
        for asked in tasks
        for value in asked.values(settings.quick)
        for side in sides
    ]


def _grid(side: Side, asked: Asked, value: Any, settings: Settings) -> list[Cell]:
    dials = asked.settled(value)
    model = described(sized(side, asked.task, dials, settings.frame))
    return [
        Cell(
            side=side.name,
            model=model,
            task=asked.name,
            dials=dials,
            lr=lr,
            weight_decay=wd,
            seed=FIRST_SEED,
            steps=settings.steps,
            rows=settings.rows,
            eval_rows=settings.eval_rows,
            files=side.files,
        )
        for lr, wd in settings.grid
    ]


def sized(side: Side, task: Task, dials: Mapping[str, Any], frame: Frame) -> Any:
    """The configuration of a side for a task at some dials: room for the examples, those beyond training included."""
    harder = [then for _, _, then in registry.harder(task, dials)]
    lengths = [task.length(**one) for one in (dials, *harder)]
    return fitted(side, frame, vocabulary_of(task, dials), (lengths[0], max(lengths)))


def setting_names() -> set[str]:
    """Settings that a user may assign beside dials."""
    return {one.name for one in fields(Settings)} - {"frame", "quick"} | {"width", "blocks", "task"}
