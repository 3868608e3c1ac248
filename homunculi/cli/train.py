"""`homunculi train`: a recipe, a run."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer


def add_to(app: typer.Typer) -> None:
    app.command("train", help="Train a model: plan first, then progress, samples, a report. Leaves a run directory.")(
        train
    )


def train(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, module:function, or file.py:function.")],
    assignments: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", show_default=False)] = None,
    run: Annotated[Path | None, typer.Option(help="Folder of the run; default: a new one under runs/.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    from homunculi.cli.recipes import configured
    from homunculi.runs.directory import RunDirectory, claim, new_run_path
    from homunculi.settings import changed
    from homunculi.train.config import config_to_json
    from homunculi.train.distributed import world_of_environment

    config, base = configured(recipe, assignments or [])
    if not config.corpus:
        from homunculi.errors import InputError

        raise InputError("corpus: this recipe needs a text; add corpus=PATH")
    directory = RunDirectory(run or ".")
    if world_of_environment().writes:
        directory = claim(run or new_run_path(recipe.rpartition(":")[2] or recipe))
        directory.write_info(
            {
                "recipe": recipe,
                "command": shlex.join(["homunculi", "train", recipe, *(assignments or [])]),
                "overrides": {key: new for key, (_, new) in changed(config, base).items()},
                "config": config_to_json(config),
            }
        )
    finish(go_on(config, directory), as_json)


def go_on(config: Any, directory: Any) -> dict[str, Any]:
    """Train what is left of a run, and write its report however it ends."""
    from homunculi.cli.terminal import Quiet, Terminal
    from homunculi.errors import Stopped
    from homunculi.report.page import write_report
    from homunculi.train.distributed import world_of_environment
    from homunculi.train.loop import train as train_run

    writes = world_of_environment().writes
    reporter = Terminal() if writes else Quiet()
    try:
        return train_run(config, directory, reporter)
    except Stopped as stopped:
        raise Stopped(f"{stopped}; homunculi resume {directory.path} goes on", stopped.exit_code) from stopped
    finally:
        reporter.close()
        if writes:
            try:
                write_report(directory)
            except OSError as error:
                reporter.message(f"no report was written: {error}")


def finish(summary: dict[str, Any], as_json: bool) -> None:
    """The last lines: what came out, the report, and last of all the run's path."""
    from homunculi.cli.terminal import print_result
    from homunculi.train.distributed import world_of_environment

    if not world_of_environment().writes:
        return
    if as_json:
        print_result(json.dumps(summary))
        return
    loss, bpb = summary["val_loss"], summary["val_bpb"]
    if loss is not None:
        print_result(f"validation loss {loss:.4f}, {bpb:.4f} bits per byte after {summary['tokens']:,} tokens")
    print_result(f"report {Path(summary['run']) / 'report.html'}")
    print_result(summary["run"])
