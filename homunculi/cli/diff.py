"""`homunculi diff`: what differs between two runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def add_to(app: typer.Typer) -> None:
    app.command("diff", help="What differs between two runs: settings, data, code, device.")(diff)


def diff(
    first: Annotated[Path, typer.Argument(metavar="RUN")],
    second: Annotated[Path, typer.Argument(metavar="RUN")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from homunculi.cli.terminal import print_result
    from homunculi.runs.difference import differences
    from homunculi.runs.directory import open_run

    found = differences(open_run(first).info(), open_run(second).info())
    if as_json:
        print_result(json.dumps({"differences": [{"key": key, "a": a, "b": b} for key, a, b in found]}))
        return
    if not found:
        print_result("no difference in settings, data, code or device")
        return
    table = Table("setting", escape(str(first)), escape(str(second)), box=None)
    for key, a, b in found:
        table.add_row(escape(key), escape(str(a)), escape(str(b)))
    Console(soft_wrap=True).print(table)
