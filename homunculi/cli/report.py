"""`homunculi report`: a page of one run, or of several on the same axes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def add_to(app: typer.Typer) -> None:
    app.command("report", help="Write a self-contained HTML page of one run, or of several on the same axes.")(report)


def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs; finished, running or crashed.")],
    out: Annotated[Path | None, typer.Option(help="File to write; default: report.html in the run, or here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    from homunculi.cli.terminal import print_result
    from homunculi.files import write_atomic
    from homunculi.report.page import render, write_report
    from homunculi.runs.directory import open_run

    opened = [open_run(path) for path in runs]
    if out is None and len(opened) == 1:
        path = write_report(opened[0])
    else:
        path = out or Path("report.html")
        write_atomic(path, render(opened, beside=path.parent))
    print_result(json.dumps({"report": str(path)}) if as_json else str(path))
