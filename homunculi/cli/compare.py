"""`homunculi compare`: does an idea help, at equal budgets, on the same batches, over several seeds?"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from homunculi.experiments.compare import Wanted
    from homunculi.experiments.comparison import Comparison, Side
    from homunculi.experiments.fleet import JobState


def add_to(app: typer.Typer) -> None:
    app.command("compare", help="Compare recipes at equal budgets on the same batches, with an interval over seeds.")(
        compare
    )


def compare(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME=]RECIPE[;KEY=VALUE]... [KEY=VALUE]...", show_default=False)
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Runs of each side; default 5.", show_default=False)] = None,
    match: Annotated[
        str, typer.Option(help="What is made equal: any of parameters,flops,tokens; default parameters,tokens.")
    ] = "",
    at_once: Annotated[int, typer.Option(help="Runs at once on each device; 0: automatic.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda (all of them), cuda:1, mps.")] = "auto",
    tune: Annotated[
        str, typer.Option(help="Factors of the recipe's learning rate that each side tries; default 0.5,1,2.")
    ] = "",
    no_tune: Annotated[bool, typer.Option("--no-tune", help="Every side keeps its recipe's learning rate.")] = False,
    baselines: Annotated[
        bool | None, typer.Option(help="Count models of the same text; default: up to 30 M tokens.")
    ] = None,
    skills: Annotated[
        str, typer.Option(help="Tasks that small models of all sides are scored at too, as recall,copy.")
    ] = "",
    folder: Annotated[Path | None, typer.Option(help="Of the comparison; alone, it goes on.")] = None,
    on: Annotated[str, typer.Option(help="Where runs go: local; ray.")] = "local",
    certify_only: Annotated[
        bool, typer.Option("--certify-only", help="Make the certificates of all sides, keep them, and train nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    from homunculi.errors import InputError
    from homunculi.experiments.compare import Request, certify_sides
    from homunculi.experiments.compare import compare as carry_out

    _check_place(on)
    if tune and no_tune:
        raise InputError("--tune and --no-tune exclude each other; leave one of them out")
    request = Request(
        sides=wanted_sides(words or [], folder),
        seeds=seeds,
        match=tuple(part.strip() for part in match.split(",")) if match else None,
        factors=() if no_tune else _factors(tune),
        at_once=at_once,
        device=device,
        baselines=baselines,
        skills=_tasks(skills),
        folder=folder,
        command=_command(words),
    )
    with open_board() as board:
        if certify_only:
            sides = certify_sides(request, board)
        else:
            comparison = carry_out(request, board)
    if certify_only:
        tell_certificates([(side.name, side) for side in sides], as_json)
    else:
        _finish(comparison, as_json)


@contextmanager
def open_board() -> Iterator[Board]:
    """A board that is closed afterwards."""
    board = Board()
    try:
        yield board
    finally:
        board.close()


def tell_certificates(sides: Sequence[tuple[str, Side]], as_json: bool) -> None:
    """Print which sides are certified, and where that is kept.

    Raises:
        CheckFailed: one is not causal.
    """
    from homunculi.cli.terminal import print_result
    from homunculi.errors import CheckFailed
    from homunculi.experiments.certifying import path_of

    kept = {name: path_of((side.certificate or {})["key"]) for name, side in sides}
    if as_json:
        rows = [
            {"side": name, "causal": side.ranked, "reason": side.refusal, "certificate": str(kept[name])}
            for name, side in sides
        ]
        print_result(json.dumps({"certificates": rows}))
    else:
        for name, side in sides:
            print_result(f"{name}: {side.refusal or 'causal'} ({kept[name]})")
    if refused := next((f"{name}: {side.refusal}" for name, side in sides if side.refusal), None):
        raise CheckFailed(refused)


def _check_place(on: str) -> None:
    """Another place than this machine would be another `launch`."""
    from homunculi.errors import InputError

    if on == "ray":
        raise InputError("--on ray: not available yet; leave it out, and runs go side by side on this machine")
    if on != "local":
        raise InputError(f"--on {on}: no such place; use local")


def _command(words: list[str] | None) -> str:
    """The command line, for the record; empty where no sides are named, since the record has them already."""
    return shlex.join(["homunculi", *sys.argv[1:]]) if words else ""


def _factors(tune: str) -> tuple[float, ...] | None:
    from homunculi.errors import InputError

    try:
        return tuple(float(word) for word in tune.split(",")) if tune else None
    except ValueError:
        raise InputError(f"--tune: {tune} is no list of factors; write such as 0.5,1,2") from None


def _tasks(skills: str) -> tuple[str, ...]:
    """Names of tasks, which all exist."""
    from homunculi.tasks import registry

    names = tuple(word.strip() for word in skills.split(",") if word.strip())
    for name in names:
        registry.get(name)
    return names


def wanted_sides(words: list[str], folder: Path | None) -> list[Wanted]:
    """The sides of a folder, if it has some, and those that the words name; of one name the words count.

    Raises:
        InputError: a recipe or setting does not exist.
    """
    from homunculi.cli.recipes import configured
    from homunculi.experiments.compare import Wanted
    from homunculi.experiments.comparison import RECORD, read

    def wanted(name: str, recipe: str, assignments: list[str]) -> Wanted:
        return Wanted(name, recipe, tuple(assignments), configured(recipe, assignments)[0])

    given, common = split_words(words)
    asked: dict[str, Wanted] = {}
    for name, recipe, own in given:
        name = name or _free_name(recipe, asked)
        if name in asked:
            from homunculi.errors import InputError

            raise InputError(f"{name}: two sides have this name; give each a name of its own")
        asked[name] = wanted(name, recipe, [*common, *own])
    known: dict[str, Wanted] = {}
    if folder is not None and (folder / RECORD).exists():
        for side in read(folder).sides:
            known[side.name] = asked.get(side.name) or wanted(side.name, side.recipe, side.assignments)
    return list((asked if known.keys() <= asked.keys() else known | asked).values())


def split_words(words: list[str]) -> tuple[list[tuple[str, str, list[str]]], list[str]]:
    """What is typed as (name or nothing, recipe, own assignments) of each side, and the assignments of all sides."""
    sides: list[tuple[str, str, list[str]]] = []
    common: list[str] = []
    for word in words:
        head, *own = [part.strip() for part in word.split(";")]
        name, equals, recipe = head.partition("=")
        if not equals:
            sides.append(("", head, [part for part in own if part]))
        elif _names_a_side(name, recipe, own):
            sides.append((name, recipe, [part for part in own if part]))
        else:
            common.append(word)
    return sides, common


def _names_a_side(name: str, recipe: str, own: list[str]) -> bool:
    """Whether ``name=recipe`` is a side and no setting."""
    from homunculi.cli.recipes import recipe_names
    from homunculi.experiments.comparison import NAME
    from homunculi.train.config import RunConfig

    settings = {field.name for field in fields(RunConfig)}
    if "." in name or name in settings or not NAME.fullmatch(name):
        return False
    module = recipe.rpartition(":")[0] if ":" in recipe else recipe
    return bool(own) or ":" in recipe or module.endswith(".py") or module.split(".")[0] in recipe_names()


def _free_name(recipe: str, taken: dict[str, Any]) -> str:
    """A short name that no side before has: of the recipe's module, then with its function, then numbered."""
    module, _, function = recipe.rpartition(":") if ":" in recipe else (recipe, "", "")
    is_file = module.endswith(".py")
    short = re.sub(r"[^A-Za-z0-9_-]+", "-", (function or Path(module).stem) if is_file else module).strip("-") or "side"
    if short not in taken:
        return short
    if not is_file and function and f"{short}-{function}" not in taken:
        return f"{short}-{function}"
    number = 2
    while f"{short}-{number}" in taken:
        number += 1
    return f"{short}-{number}"


class Board:
    """A `homunculi.experiments.execution.Reporter`: a line as a run begins or ends, bars on a terminal."""

    def __init__(self) -> None:
        from homunculi.cli.terminal import Terminal

        self.terminal = Terminal()
        self.told: dict[Path, str] = {}
        self.bars = _bars(self.terminal.console) if self.terminal.bar else None
        self.tasks: dict[Path, Any] = {}

    def plan(self, lines: list[str]) -> None:
        self.terminal.plan(lines)

    def message(self, text: str) -> None:
        self.terminal.message(text)

    def progress(self, states: list[JobState]) -> None:
        over = sum(state.over for state in states)
        for state in states:
            self._move_bar(state)
            before = self.told.get(state.job.folder, "waiting")
            if state.state == before:
                continue
            self.told[state.job.folder] = state.state
            if state.state != "done" or state.exit_code is not None:  # else finished by an earlier call
                self.message(self._line(state, over, len(states)))

    def _move_bar(self, state: JobState) -> None:
        if self.bars is None:
            return
        self.bars.start()
        folder = state.job.folder
        if state.state == "running":
            if folder not in self.tasks:
                self.tasks[folder] = self.bars.add_task(state.job.name, total=None)
            self.bars.update(self.tasks[folder], completed=state.step, total=state.steps or None)
        elif folder in self.tasks:
            self.bars.remove_task(self.tasks.pop(folder))

    def _line(self, state: JobState, over: int, n: int) -> str:
        if not state.over:
            return f"{state.job.name} begins on {state.device}"
        took = f" after {state.seconds:,.0f} s" if state.seconds else ""
        said = f": {state.message}" if state.message else ""
        return f"{state.job.name} {state.state}{took} ({over} of {n}){said}"

    def close(self) -> None:
        if self.bars is not None:
            self.bars.stop()
        self.terminal.close()


def _bars(console: Any) -> Any:
    """A bar for each run that goes."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    left = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=30), MofNCompleteColumn(), *left)
    return Progress(*columns, console=console, refresh_per_second=2, transient=True)


def _finish(comparison: Comparison, as_json: bool) -> None:
    """The conclusions, and the exit code that goes with them."""
    from homunculi.cli.terminal import print_result
    from homunculi.errors import CheckFailed, Diverged, HomunculiError
    from homunculi.experiments.comparison import METRIC, pairs, written

    if as_json:
        print_result(json.dumps(result_of(comparison)))
    else:
        for line in written(comparison):
            print_result(line)
        print_result(f"report {comparison.folder / 'report.html'}")
        print_result(str(comparison.folder))
    if comparison.refused:
        first = comparison.refused[0]
        raise CheckFailed(f"{first['run']}: {first['reason']}")
    crashed = [run for run in comparison.failed if run["state"] == "failed"]
    if crashed:
        raise HomunculiError(
            f"{len(crashed)} runs failed, the first {comparison.folder / crashed[0]['run']}: {crashed[0]['reason']}; "
            f"homunculi compare --folder {comparison.folder} tries them again"
        )
    without = [pair for pair in pairs(comparison) if pair["verdict"] is None and pair["metric"] == METRIC]
    if without:
        raise Diverged(f"{without[0]['b']} against {without[0]['a']}: no verdict, too many runs diverged")


def result_of(comparison: Comparison) -> dict[str, Any]:
    """The object that ``--json`` prints: that of comparison.json, what was matched, and paths that lead to the runs."""
    from homunculi.experiments.comparison import written

    whole = comparison.to_json()
    budgets = ("name", "changes", "budget", "ratios", "lr")
    matched = {
        "match": whole["match"],
        "sides": [{key: side[key] for key in budgets} for side in whole["sides"]],
    }
    runs = [run | {"run": str(comparison.folder / run["run"])} for run in whole["runs"]]
    failed = [run | {"run": str(comparison.folder / run["run"])} for run in whole["failed"]]
    head = {"matched": matched, "runs": runs, "pairs": whole["pairs"], "refused": whole["refused"]}
    rest = {"failed": failed, "verdicts": written(comparison), "folder": str(comparison.folder)}
    return head | rest | {key: value for key, value in whole.items() if key not in head | rest}
