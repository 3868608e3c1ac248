"""`homunculi audit`: certificates for the causal language models of the installed transformers."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

SOURCE = "homunculi.interop.families"
AT_ONCE = min(4, os.cpu_count() or 1)


def add_to(app: typer.Typer) -> None:
    app.command("audit", help="Certify the causal language-model families of the installed transformers.")(audit)


def audit(
    families: Annotated[
        list[str] | None, typer.Argument(metavar="[FAMILY]...", help="Model types; default: all.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of results; what it holds is not asked again. [default: runs/audit]")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Ask also what the folder holds.")] = False,
    at_once: Annotated[int, typer.Option(help="Families at a time, each in its own process.", min=1)] = AT_ONCE,
    seconds: Annotated[float, typer.Option(help="What one family may take.", min=1)] = 120.0,
    memory: Annotated[float, typer.Option(help="GiB that one family may take.", min=0.5)] = 4.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    from homunculi.cli.terminal import print_result
    from homunculi.experiments.audit import COLUMNS, Limits
    from homunculi.experiments.audit import audit as ask_all
    from homunculi.runs.directory import runs_root

    def report(row: dict[str, Any], done: int, of: int) -> None:
        said = ", ".join(f"{column.replace('_', ' ')}: {_word(row[column])}" for column in COLUMNS)
        print(f"{done}/{of} {row['family']}  {said}  {row['seconds']} s", file=sys.stderr, flush=True)

    found = ask_all(
        SOURCE,
        families or [],
        out or runs_root() / "audit",
        at_once=at_once,
        limits=Limits(seconds, memory),
        again=again,
        report=report,
    )
    print_result(json.dumps(found) if as_json else "\n".join(_lines(found)))


def _word(value: bool | None) -> str:
    return {True: "yes", False: "NO", None: "–"}[value]


def _lines(found: dict[str, Any]) -> list[str]:
    """A table that keeps each family on one line, then the counts."""
    from homunculi.experiments.audit import COLUMNS
    from homunculi.report.markup import inert

    heads = ["family", *(column.replace("_", " ") for column in COLUMNS), "seconds", "note"]
    rows = [
        [inert(row["family"]), *(_word(row[column]) for column in COLUMNS), str(row["seconds"]), inert(row["note"])]
        for row in found["families"]
    ]
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)][:-1]
    lines = ["  ".join([*map(str.ljust, row, widths), row[-1]]).rstrip() for row in (heads, *rows)]
    versions = ", ".join(f"{name} {value}" for name, value in found.items() if isinstance(value, str))
    lines += ["", f"{len(rows)} families of {versions}"]
    for column, counts in found["counts"].items():
        words = ", ".join(f"{word} {count}" for word, count in counts.items())
        lines.append(f"{column.replace('_', ' ')}: {words}")
    return lines
