"""`homunculi taps`: the named points of an architecture where tensors can be read and replaced."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def add_to(app: typer.Typer) -> None:
    app.command("taps", help="Names and shapes of the points where a model can be read and changed.")(taps)


def taps(
    architecture: Annotated[str, typer.Argument()],
    assignments: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from homunculi.cli.architectures import default_model
    from homunculi.cli.terminal import print_result
    from homunculi.core.catalogue import catalogue
    from homunculi.core.schedule import show

    model = default_model(architecture, assignments or [])
    found = catalogue(model)
    if as_json:
        entries = [{"name": t.name, "shape": list(t.shape), "block": t.block, "repeat": t.repeat} for t in found]
        print_result(json.dumps({"architecture": architecture, "schedule": show(model.schedule), "taps": entries}))
        return
    table = Table("tap", "shape", "block", "repeat", box=None, title=f"blocks in order: {show(model.schedule)}")
    for t in found:
        block, repeat = ("" if n is None else str(n) for n in (t.block, t.repeat))
        table.add_row(escape(t.name), escape(f"({', '.join(map(str, t.shape))})"), block, repeat)
    Console(soft_wrap=True).print(table)
