"""`homunculi resume`: go on exactly where a run stopped or crashed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def add_to(app: typer.Typer) -> None:
    app.command("resume", help="Go on exactly where a run was stopped or killed.")(resume)


def resume(
    run: Annotated[Path, typer.Argument(help="The run's folder.")],
    recipe: Annotated[
        str | None,
        typer.Option(
            help="The file.py:function that the run was started with, where that file brings its architecture."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    from homunculi.cli.recipes import load_recipe
    from homunculi.cli.terminal import Terminal
    from homunculi.cli.train import finish, go_on
    from homunculi.errors import InputError
    from homunculi.runs.directory import RunDirectory, open_run, reopen, state_of
    from homunculi.train.config import config_from_json
    from homunculi.train.distributed import world_of_environment
    from homunculi.train.loop import finished_summary

    if recipe is not None:  # never by what run.json names: loading a run runs no code
        load_recipe(recipe)
    directory = open_run(run)
    info = directory.info()
    if not isinstance(info.get("config"), dict):
        raise InputError(f"{run}/run.json: has no configuration; the file is damaged or of another program")
    config = config_from_json(info["config"])
    if state_of(directory) == "done":
        Terminal().message(f"{run}: finished already, nothing to do")
        finish(finished_summary(config, directory), as_json)
        return
    directory = reopen(run) if world_of_environment().writes else RunDirectory(run)
    finish(go_on(config, directory), as_json)
