"""`homunculi export`: a run in the form of another system."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def add_to(app: typer.Typer) -> None:
    app.command("export", help="Write a trained model as a folder that another system loads.")(export)


def export(
    run: Annotated[Path, typer.Argument(help="The run's folder.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.")],
    to: Annotated[str, typer.Option("--to", help="The system: hf for transformers.")],
    step: Annotated[int | None, typer.Option(help="Of which checkpoint; default: the latest.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    from homunculi.cli.terminal import print_result
    from homunculi.core.taps import NO_TAPS
    from homunculi.errors import InputError
    from homunculi.interop import hf
    from homunculi.text.tokenizers import load_tokenizer
    from homunculi.train.loading import load

    if to != "hf":
        raise InputError(f"--to {to}: no such system; there is hf")
    model = load(run, step)
    if model.always is not NO_TAPS:
        raise InputError(f"{run}: trained with train.interventions, which no other system would make; it stays here")
    names = hf.export(model, folder, load_tokenizer(run))
    print_result(json.dumps({"folder": str(folder), "to": to, "files": names}) if as_json else str(folder))
