"""`homunculi certify`: is a model causal, and does it decode as it was trained?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer


def add_to(app: typer.Typer) -> None:
    app.command("certify", help="Prove that a model cannot look ahead, and that decoding equals the full forward.")(
        certify
    )


def certify(
    subject: Annotated[str, typer.Argument(metavar="ARCHITECTURE-or-RUN")],
    assignments: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", show_default=False)] = None,
    trial_seconds: Annotated[
        float | None, typer.Option(help="Longest training in the random-token trial; 0 leaves it out.", min=0)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    from homunculi.cli.terminal import print_result
    from homunculi.errors import CheckFailed
    from homunculi.experiments.certify import certify as certify_model

    model, run = _subject(subject, assignments or [])
    more: dict[str, Any] = {} if trial_seconds is None else {"trial_seconds": trial_seconds}
    certificate = certify_model(model, model.config.vocab_size, model.config.max_seq_len, **more)
    if run is not None:
        run.write_info({"certificate": certificate.to_json()})
    if as_json:
        print_result(json.dumps(certificate.to_json()))
    else:
        print_result(_lines(certificate))
    if not certificate.causal:
        raise CheckFailed(f"{subject}: not causal; it sees tokens that it should predict")
    failed = [check.name for check in certificate.checks if not check.passed]
    if failed:
        raise CheckFailed(f"{subject}: {', '.join(failed)} failed")


def _subject(subject: str, assignments: list[str]) -> tuple[Any, Any]:
    """A model with random weights of an architecture, a run's trained one and its folder, or one in a folder."""
    from homunculi.cli.architectures import default_model
    from homunculi.errors import InputError
    from homunculi.models import names
    from homunculi.models.files import load_model
    from homunculi.runs.directory import open_run
    from homunculi.train.loading import load

    if subject in names() and not (Path(subject) / "run.json").exists():
        return default_model(subject, assignments, vocab_size=256), None
    if not Path(subject).exists():
        raise InputError(f"{subject}: neither an architecture ({', '.join(names())}) nor the folder of a run")
    if (Path(subject) / "config.json").exists() and not (Path(subject) / "run.json").exists() and not assignments:
        return load_model(Path(subject)), None
    if assignments:
        raise InputError(f"{assignments[0]}: a run's settings cannot be changed; leave the assignments out")
    return load(subject), open_run(subject)


def _lines(certificate: Any) -> str:
    lines = []
    for check in certificate.checks:
        mark = "ok  " if check.passed else "FAIL"
        note = f"  {check.note}" if check.note else ""
        lines.append(f"{mark} {check.name:<28} {check.value:.2e}  (limit {check.limit:.0e}){note}")
    lines += [f"note {note}" for note in certificate.notes]
    if certificate.budget is not None:
        costs = certificate.budget.to_json()
        lines.append("  ".join(f"{name.replace('_', ' ')}: {value:,}" for name, value in costs.items()))
    lines.append(f"causal: {'yes' if certificate.causal else 'NO'}")
    lines.append(f"causal in training: {'yes' if certificate.causal_in_training else 'NO'}")
    shown = ""
    for leaks in certificate.leaks:
        again = leaks.summary == shown
        lines += ["", f"leaks in {leaks.mode}: the same"] if again else ["", *_map_lines(leaks)]
        shown = leaks.summary
    return "\n".join(lines)


def _map_lines(leaks: Any) -> list[str]:
    """Who sees what: a caption that says how to read the map, the map, the worst pairs."""
    lines = [f"leaks in {leaks.mode}, in rows of {leaks.context} tokens: {leaks.summary}"]
    if not leaks.pairs:
        return lines
    stands = "one position" if leaks.cell == 1 else f"{leaks.cell} positions"
    lines += [
        f"a line is who reads, a column what is seen, a mark {stands}; a line begins with its first, counted from 0",
        "# logits move by 1 % or more, + by less, - by less than a millionth, . not at all, ? nobody asked",
    ]
    for reader, row in enumerate(leaks.cells):
        marks = [_mark(value) for value in row]
        past = reader + (leaks.cell == 1)  # what stands left of it cannot leak
        lines.append(f"{reader * leaks.cell:>7} {' '.join([' '] * past + marks[past:])}".rstrip())
    more = f"; {leaks.n_pairs} in all" if leaks.n_pairs > len(leaks.pairs) else ""
    return [*lines, f"most: {', '.join(map(str, leaks.pairs))}{more}"]


def _mark(value: float | None) -> str:
    if value is None:
        return "?"
    return "#" if value >= 1e-2 else "+" if value >= 1e-6 else "-" if value else "."
