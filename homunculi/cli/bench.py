"""`homunculi bench`: throughput, memory and share of the device's peak."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer


def add_to(app: typer.Typer) -> None:
    app.command("bench", help="Measure throughput and memory: training and decoding cases.")(bench)


def bench(
    cases: Annotated[
        list[str] | None, typer.Argument(help="Names of cases; default: all that this device can run.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    from rich.console import Console

    from homunculi.cli.terminal import print_result
    from homunculi.experiments.bench import run, table
    from homunculi.train.precision import resolve_device

    results: list[dict[str, Any]] = []

    def on_result(result: dict[str, Any]) -> None:
        results.append(result)
        if not as_json:
            print_result(json.dumps(result))

    run(cases or [], resolve_device(device), on_result)
    if as_json:
        print_result(json.dumps({"results": results}))
    else:
        Console(soft_wrap=True).print(table(results))
