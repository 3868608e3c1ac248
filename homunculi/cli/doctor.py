"""`homunculi doctor`: does this machine compute what it should?"""

from __future__ import annotations

import json
from typing import Annotated

import typer


def add_to(app: typer.Typer) -> None:
    app.command("doctor", help="Test this machine: arithmetic, gradients, repeatability, compilation, disk.")(doctor)


def doctor(
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    from homunculi.cli.terminal import print_result
    from homunculi.errors import CheckFailed
    from homunculi.experiments.doctor import examine, to_json
    from homunculi.runs.directory import runs_root
    from homunculi.train.precision import resolve_device

    findings = []
    for finding in examine(resolve_device(device), runs_root()):
        findings.append(finding)
        if not as_json:
            mark = "ok  " if finding.passed else "FAIL"
            print_result(f"{mark} {finding.name:<10} {finding.value}" + (f" — {finding.fix}" if finding.fix else ""))
    if as_json:
        print_result(json.dumps(to_json(findings)))
    failed = [finding.name for finding in findings if not finding.passed]
    if failed:
        raise CheckFailed(f"{', '.join(failed)} failed")
