"""`homunculi list`: what there is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

Rows = list[dict[str, Any]]


def add_to(app: typer.Typer) -> None:
    app.command("list", help="What there is: architectures, instruments, tasks, recipes, runs, corpora, settings.")(
        list_things
    )


def list_things(
    what: Annotated[
        str, typer.Argument(help="architectures, instruments, tasks, recipes, runs, corpora, settings.")
    ] = "",
    name: Annotated[str, typer.Argument(help="For settings: of which recipe; for runs: under which folder.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    from homunculi.cli.terminal import print_result
    from homunculi.errors import InputError

    if not what:
        print_result(json.dumps({"list": sorted(LISTS)}) if as_json else "\n".join(sorted(LISTS)))
        return
    if what not in LISTS:
        raise InputError(f"{what}: cannot be listed; there are {', '.join(sorted(LISTS))}")
    rows = LISTS[what](name)
    if as_json:
        print_result(json.dumps({what: rows}))
    else:
        _print_table(rows)


def _print_table(rows: Rows) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    if not rows:
        Console().print("none")
        return
    table = Table(*rows[0], box=None)
    for row in rows:
        table.add_row(*(escape("" if value is None else str(value)) for value in row.values()))
    Console(soft_wrap=True).print(table)


def _architectures(name: str) -> Rows:
    from homunculi.models import get, names

    rows = []
    for known in names():
        described = (get(known).model_type.__doc__ or "").strip().splitlines()
        rows.append({"name": known, "what": described[0] if described else ""})
    return rows


def _instruments(name: str) -> Rows:
    from homunculi.instruments.registry import get, names

    found = [get(known) for known in names()]
    return [
        {"name": one.name, "view": one.view, "reads": one.reads, "title": one.title, "question": one.question}
        for one in found
    ]


def _tasks(name: str) -> Rows:
    from homunculi.tasks.described import defaults
    from homunculi.tasks.registry import get, names

    found = [get(known) for known in names()]
    return [{"name": one.name, "question": one.question, "dials": defaults(one)} for one in found]


def _recipes(name: str) -> Rows:
    import importlib
    import inspect

    from homunculi.cli.recipes import recipe_names

    rows = []
    for known in recipe_names():
        module = importlib.import_module(f"homunculi_recipes.{known}")
        for function in vars(module).values():
            is_own = inspect.isfunction(function) and function.__module__ == module.__name__
            if is_own and not function.__name__.startswith("_"):
                name = known if function.__name__ == known else f"{known}:{function.__name__}"
                described = (function.__doc__ or "").strip().splitlines()
                rows.append({"name": name, "what": described[0] if described else ""})
    return rows


def _runs(name: str) -> Rows:
    from homunculi.runs.index import find_runs

    rows = []
    for run in find_runs(Path(name) if name else None):
        rows.append(
            {
                "run": str(run.path),
                "architecture": run.architecture,
                "state": run.state,
                "step": run.step,
                "steps": run.steps,
                "val_loss": None if run.val_loss is None else round(run.val_loss, 4),
                "val_bpb": None if run.val_bpb is None else round(run.val_bpb, 4),
            }
        )
    return rows


def _corpora(name: str) -> Rows:
    import os

    from homunculi.text.generated import WORLDS

    rows = [{"corpus": known, "what": "a generated world"} for known in sorted(WORLDS)]
    data = os.environ.get("HOMUNCULI_DATA")
    if data and Path(data).is_dir():
        folders = sorted(path.name for path in Path(data).iterdir() if path.is_dir())
        rows += [{"corpus": known, "what": "a folder of HOMUNCULI_DATA"} for known in folders]
    rows.append({"corpus": "PATH", "what": "a file or folder of .txt, .jsonl, .parquet, also .gz and .xz"})
    rows.append({"corpus": "hf:NAME[:CONFIG]", "what": "a Hugging Face data set, with the extra `data`"})
    rows.append({"corpus": "A@0.7,B@0.3", "what": "a mixture of any of these by weight"})
    return rows


def _settings(name: str) -> Rows:
    from homunculi.cli.recipes import load_recipe
    from homunculi.settings import fields_of, to_text

    config = load_recipe(name or "quickstart")
    return [{"setting": key, "type": kind, "value": to_text(value)} for key, kind, value, _ in fields_of(config)]


LISTS: dict[str, Callable[[str], Rows]] = {
    "architectures": _architectures,
    "corpora": _corpora,
    "instruments": _instruments,
    "recipes": _recipes,
    "runs": _runs,
    "settings": _settings,
    "tasks": _tasks,
}
