"""`homunculi report`: a page of one run, or of several on the same axes; and its figures for a paper."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from homunculi.errors import InputError

if TYPE_CHECKING:
    from homunculi.runs.chronology import HalfTime
    from homunculi.runs.directory import RunDirectory


def add_to(app: typer.Typer) -> None:
    app.command("report", help="Write a self-contained HTML page of one run, or of several on the same axes.")(report)


def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, in any state; or one of skills.")],
    out: Annotated[Path | None, typer.Option(help="File to write; default: report.html in the run, or here.")] = None,
    figures: Annotated[
        Path | None, typer.Option(help="Also write every figure as PNG and SVG into this folder.", metavar="FOLDER")
    ] = None,
    step: Annotated[
        int | None, typer.Option(min=0, help="Of --figures: measurements of this step; default: the latest of each.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    from homunculi.cli.terminal import print_result
    from homunculi.files import write_atomic
    from homunculi.report.page import render, write_report
    from homunculi.report.skills import is_battery
    from homunculi.runs.directory import open_run

    if step is not None and figures is None:
        raise InputError("report: --step chooses what --figures draws; give --figures FOLDER, or leave it out")
    if len(runs) == 1 and is_battery(runs[0]):
        _report_skills(runs[0], out, figures, as_json)
        return
    opened = [open_run(path) for path in runs]
    drawn = _figures(opened, figures, step) if figures is not None else []
    if out is None and len(opened) == 1:
        path = write_report(opened[0])
    else:
        path = out or Path("report.html")
        write_atomic(path, render(opened, beside=path.parent))
    if as_json:
        print_result(json.dumps({"report": str(path), "chronology": _chronology(opened)} | _listed(drawn, figures)))
    else:
        print_result("\n".join([str(path), *([f"{figures}: {len(drawn)} files"] if figures is not None else [])]))


def _report_skills(folder: Path, out: Path | None, figures: Path | None, as_json: bool) -> None:
    """Of the folder of a battery of skills."""
    from homunculi.cli.terminal import print_result
    from homunculi.report.skills import write_skills_report

    if figures is not None:
        raise InputError(f"report: --figures draws runs, and {folder} is a battery of skills; leave it out")
    path = str(write_skills_report(folder, out))
    print_result(json.dumps({"report": path}) if as_json else path)


def _figures(opened: list[RunDirectory], folder: Path, step: int | None) -> list[Path]:
    from homunculi.cli.figures import write_figures

    return write_figures(opened, folder, step)


def _listed(drawn: list[Path], folder: Path | None) -> dict[str, Any]:
    return {} if folder is None else {"figures": [str(path) for path in drawn]}


def _chronology(opened: list[RunDirectory]) -> list[dict[str, Any]]:
    """What came when, for each run, or for all seeds of a recipe together; empty where nothing was followed."""
    from homunculi.report.snapshot import take_all
    from homunculi.runs.chronology import chronology
    from homunculi.runs.seeds import seed_groups

    taken = take_all(opened)
    found = []
    for group in seed_groups([run.info for run in taken], [run.label for run in taken]):
        members = [taken[place] for place in group.places]
        try:
            order = [_plain(one) for one in chronology([run.path for run in members])]
        except InputError:
            order = []
        found.append({"runs": [run.label for run in members], "order": order})
    return found


def _plain(one: HalfTime) -> dict[str, Any]:
    """A half-time as JSON, which has no NaN."""
    from dataclasses import asdict

    return {
        key: None if isinstance(value, float) and math.isnan(value) else value for key, value in asdict(one).items()
    }
