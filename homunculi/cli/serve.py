"""`homunculi serve`: the local page over a folder of runs."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Annotated

import typer


def add_to(app: typer.Typer) -> None:
    app.command("serve", help="The local page: runs live, comparisons, scans, changes. On this machine only.")(serve)


def serve(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the address; 0 takes a free one.")] = 8421,
    runs: Annotated[Path | None, typer.Option(help="Folder of the runs; default: HOMUNCULI_RUNS, or runs.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object with the address.")] = False,
) -> None:
    from homunculi.cli.terminal import print_result
    from homunculi.errors import InputError, optional
    from homunculi.runs.directory import runs_root
    from homunculi.web.project import Project
    from homunculi.web.server import EXTRA, Page, listen
    from homunculi.web.server import serve as answer

    for package in ("starlette", "uvicorn"):
        optional(package, EXTRA)
    folder = runs or runs_root()
    if not folder.is_dir():
        raise InputError(f"{folder}: is no folder: train a run first, or give the folder of runs with --runs")
    opened = listen(port)
    page = Page(Project(folder), opened.getsockname()[1])
    if as_json:
        print_result(json.dumps({"url": page.address, "port": page.port, "token": page.token, "runs": str(folder)}))
    else:
        print_result(f"{page.address}\n  runs in {folder}; this machine only; Ctrl-C ends it")
    with contextlib.suppress(KeyboardInterrupt):
        answer(page, opened)
