"""`homunculi skills`: what small models of each architecture can learn to do, task by task."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from homunculi.errors import InputError

_WIDTH = 240  # of a table that goes into a file

if TYPE_CHECKING:
    from homunculi.experiments.skills.plan import Settings
    from homunculi.experiments.skills.pool import Progress
    from homunculi.experiments.skills.sizing import Side


def add_to(app: typer.Typer) -> None:
    app.command("skills", help="Small models on generated tasks with known answers, at equal size, with intervals.")(
        skills
    )


def skills(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME=]ARCHITECTURE|RECIPE[;model.KEY=VALUE]... [task=A,B] [[TASK.]DIAL=VALUE]...",
            show_default=False,
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="One value of each dial, one setting of the optimiser, 2 seeds: minutes.")
    ] = False,
    match: Annotated[str, typer.Option(help="What is made equal: parameters, state (and parameters), none.")] = (
        "parameters"
    ),
    at_once: Annotated[int, typer.Option(min=0, help="Processes on each device; 0: automatic.")] = 0,
    devices: Annotated[str, typer.Option(help="auto, cpu, cuda (all of them), or numbers of GPUs: 0,1,2,3.")] = "auto",
    results: Annotated[
        Path | None, typer.Option(help="Folder of results; default: skills, under the root of runs.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    from homunculi.cli.terminal import print_result
    from homunculi.errors import CheckFailed
    from homunculi.experiments.skills.battery import Battery
    from homunculi.experiments.skills.plan import ask
    from homunculi.runs.directory import runs_root

    given, assigned = _split(words or [])
    settings = _settings(assigned, quick, match)
    tasks = ask(_listed(assigned.pop("task", "")), assigned)
    sides = _sides(given, settings)
    places, number = _places(devices, at_once)
    with _Board() as board:
        battery = Battery(
            sides=sides,
            tasks=tasks,
            settings=settings,
            folder=results or runs_root() / "skills",
            reporter=board,
            devices=places,
            at_once=number,
            command=shlex.join(["homunculi", *sys.argv[1:]]),
        )
        record = battery.carry_out()
    if as_json:
        print_result(json.dumps(record))
    else:
        _print_scores(record)
    if battery.refused:
        name, reason = next(iter(battery.refused.items()))
        raise CheckFailed(f"{name}: {reason}")


def _split(words: list[str]) -> tuple[list[tuple[str, str, list[str]]], dict[str, str]]:
    """Sides as (name, recipe or architecture, own assignments), and assignments of the whole battery.

    An assignment to the model holds for all sides.
    """
    from homunculi.cli.compare import split_words
    from homunculi.models import names

    sides: list[tuple[str, str, list[str]]] = []
    common: list[str] = []
    for word in words:
        head, *own = [part.strip() for part in word.split(";")]
        name, equals, recipe = head.partition("=")
        if name == "task":
            common.append(word)
        elif equals and recipe in names():
            sides.append((name, recipe, [part for part in own if part]))
        else:
            found, rest = split_words([word])
            sides, common = sides + found, common + rest
    assigned: dict[str, str] = {}
    for word in common:
        key, _, value = word.partition("=")
        if key in assigned:
            raise InputError(f"{key}: is given twice, {assigned[key]} and {value}; give it once")
        assigned[key] = value
    shared = [f"{key}={assigned.pop(key)}" for key in list(assigned) if key.startswith("model.")]
    return [(name, recipe, [*shared, *own]) for name, recipe, own in sides], assigned


def _listed(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _settings(assigned: dict[str, str], quick: bool, match: str) -> Settings:
    """The battery's settings, taken out of what was assigned; what stays are the tasks and their dials."""
    from homunculi.experiments.skills.plan import QUICK, Settings, setting_names
    from homunculi.experiments.skills.sizing import Frame

    frame = {name: _number(name, assigned.pop(name)) for name in ("width", "blocks") if name in assigned}
    base = replace(QUICK if quick else Settings(), frame=Frame(match=match, **frame))
    own: dict[str, Any] = {}
    for name in setting_names() & assigned.keys() - {"task"}:
        text = assigned.pop(name)
        own[name] = _floats(name, text) if name in ("lrs", "wds") else _number(name, text)
    return replace(base, **own)


def _number(name: str, text: str) -> int:
    try:
        return int(text.replace("_", ""))
    except ValueError:
        raise InputError(f"{name}: {text} is no whole number; write such as {name}=2") from None


def _floats(name: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in _listed(text))
    except ValueError:
        raise InputError(f"{name}: {text} is no list of numbers; write such as {name}=1e-4,1e-3") from None


def _sides(given: list[tuple[str, str, list[str]]], settings: Settings) -> list[Side]:
    """The architectures, each at its small shape with its own settings on top.

    Raises:
        InputError: nothing is named, no such recipe or architecture, or two sides of one name.
    """
    if not given:
        raise InputError("skills: name at least one architecture or recipe, such as gpt or homunculi:small")
    sides: list[Side] = []
    for name, recipe, own in given:
        side = _side(name or recipe.replace(":", "-").replace("/", "-"), recipe, own, settings)
        if any(other.name == side.name for other in sides):
            raise InputError(f"{side.name}: two sides have this name; write NAME={recipe} with a name of its own")
        sides.append(side)
    return sides


def _side(name: str, recipe: str, own: list[str], settings: Settings) -> Side:
    from homunculi.experiments.skills.sizing import Side, small
    from homunculi.settings import override
    from homunculi.train.config import RunConfig

    if stray := next((word for word in own if not word.startswith("model.")), None):
        raise InputError(f"{name};{stray}: only settings of the model may be a side's own, such as model.n_heads=2")
    config, files = _model_of(recipe)
    shape = small(config, settings.frame)
    fixed = frozenset(word.partition("=")[0].removeprefix("model.") for word in own)
    return Side(name, override(RunConfig(model=shape), own).model, fixed, files)


def _model_of(recipe: str) -> tuple[Any, tuple[str, ...]]:
    """The model configuration of an architecture by its defaults, or of a recipe; and the file that brings it."""
    from homunculi.cli.recipes import load_recipe, recipe_names
    from homunculi.models import get, names

    if ":" in recipe or recipe.endswith(".py"):
        path = recipe.rpartition(":")[0] if ":" in recipe else recipe
        files = (str(Path(path).resolve()),) if path.endswith(".py") else ()
        return load_recipe(recipe).model, files
    if recipe in names():
        return get(recipe).config_type(), ()
    if recipe in recipe_names():
        return load_recipe(recipe).model, ()
    from difflib import get_close_matches

    known = [*names(), *recipe_names()]
    near = get_close_matches(recipe, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(dict.fromkeys(known))}; or file.py:function"
    raise InputError(f"{recipe}: no such architecture or recipe; {hint}")


def _places(devices: str, at_once: int) -> tuple[list[str], int]:
    """Devices, and how many processes each has."""
    from homunculi.experiments.slots import devices_for, n_cores
    from homunculi.train.precision import resolve_device

    numbers = _listed(devices)
    if numbers and all(word.isdecimal() for word in numbers):
        places = [str(resolve_device(f"cuda:{word}")) for word in dict.fromkeys(numbers)]
    else:
        places = devices_for(devices)
    few = n_cores() if places[0] == "cpu" else min(8, max(1, n_cores() // len(places)))
    return places, at_once or few


def _print_scores(record: dict[str, Any]) -> None:
    """Architecture × task on the standard output: the score, its interval, chance and the best possible."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    sides = [one["name"] for one in record["architectures"] if one["name"] not in record["refused"]]
    table = Table("task", *map(escape, sides), "chance", "best possible", box=None)
    for task in record["tasks"]:
        found = {one["architecture"]: one for one in record["scores"] if one["task"] == task["name"]}
        if not found:
            continue
        first = next(iter(found.values()))
        cells = [_cell(found.get(side)) for side in sides]
        table.add_row(escape(task["name"]), *cells, f"{first['chance']:.3f}", f"{first['ceiling']:.3f}")
    console = Console(soft_wrap=True, width=None if sys.stdout.isatty() else _WIDTH)
    console.print(table)
    grid = len(set(record["settings"]["lrs"])) * len(set(record["settings"]["wds"]))
    few = "one setting of the optimiser, nothing selected" if grid == 1 else f"best of {grid} settings by validation"
    seeds = record["settings"]["seeds"]
    over = f"95 % interval over {seeds} seeds" if seeds > 1 else "one seed, so no interval"
    console.print(f"mean accuracy over the swept dial, {over}; {few}")
    console.print(f"report {Path(record['folder']) / 'report.html'}", highlight=False)


def _cell(one: dict[str, Any] | None) -> str:
    if one is None or one["score"] is None:
        return "–"
    return f"{one['score']:.3f}" + (f" ({one['low']:.2f} … {one['high']:.2f})" if one["low"] is not None else "")


class _Board:
    """A `homunculi.experiments.skills.battery.Reporter`: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        from homunculi.cli.terminal import Terminal

        self.terminal = Terminal()
        self.bar: Any = _bar(self.terminal.console) if self.terminal.bar else None
        self.task: Any = None
        self.told = -1

    def __enter__(self) -> _Board:
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.stop()
        self.terminal.close()

    def plan(self, lines: list[str]) -> None:
        self.terminal.plan(lines)

    def message(self, text: str) -> None:
        self.terminal.message(text)

    def progress(self, progress: Progress) -> None:
        if self.bar is not None:
            self._move(progress)
        elif progress.done * 20 // max(1, progress.total) != self.told:
            self.told = progress.done * 20 // max(1, progress.total)
            failed = f", {progress.failed} failed" if progress.failed else ""
            self.message(f"{progress.done} of {progress.total} cells done{failed}")

    def _move(self, progress: Progress) -> None:
        if self.task is None:
            self.task = self.bar.add_task("cells", total=progress.total, at="")
            self.bar.start()
        at = progress.running[0] if progress.running else ""
        self.bar.update(self.task, completed=progress.done, total=progress.total, at=at)


def _bar(console: Any) -> Any:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    left = (
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[at]}", markup=False),
    )
    return Progress(BarColumn(bar_width=30), MofNCompleteColumn(), *left, console=console, transient=True)
