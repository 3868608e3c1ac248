"""`homunculi import`: weights that authors published, as a model folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def add_to(app: typer.Typer) -> None:
    app.command("import", help="Read weights that authors published, and write them as a model folder.")(import_)


def import_(
    system: Annotated[str, typer.Argument(help="Whose weights; an unknown name lists all.")],
    weights: Annotated[Path, typer.Argument(help="A .safetensors file, or a .pt or .pth file of tensors alone.")],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="A new or empty folder.")],
    config: Annotated[
        Path | None, typer.Option(help="The authors' configuration, JSON; default: what lies in the file of weights.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    from homunculi.cli.terminal import print_result
    from homunculi.core.budget import count_parameters
    from homunculi.interop.published import causality, module_of
    from homunculi.interop.published.files import import_model
    from homunculi.models import name_of

    module_of(system)
    model = import_model(system, weights, to, config)
    architecture, n_parameters = name_of(model.config), count_parameters(model)
    causal, note = causality(system, model)
    if as_json:
        found = {"folder": str(to), "system": system, "architecture": architecture, "parameters": n_parameters}
        print_result(json.dumps(found | {"causal": causal, "note": note}))
    else:
        print_result(f"{architecture}, {n_parameters:,} parameters, {'' if causal else 'NOT '}causal: {note}\n{to}")
