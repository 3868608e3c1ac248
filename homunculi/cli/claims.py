"""`homunculi claims`: what the field says about itself, each with the verdict that its runs give."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from homunculi.experiments.claims.entry import Claim
    from homunculi.experiments.claims.keeping import Ran
    from homunculi.experiments.claims.table import Row

INDENT = "    "


def add_to(app: typer.Typer) -> None:
    app.command("claims", help="The claims of the field with their verdicts; with IDs: run those first.")(claims)


def claims(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]... [size=SIZE] [KEY=VALUE]...", show_default=False)
    ] = None,
    seeds: Annotated[int, typer.Option(help="Runs of each side.")] = 5,
    first_seed: Annotated[int, typer.Option(help="Seed of the first of them.")] = 0,
    sides: Annotated[str, typer.Option(help="Names of the sides to run, a,b; default: all.")] = "",
    tune: Annotated[str, typer.Option(help="Factors of learning rates that each side tries; default 0.5,1,2.")] = "",
    no_tune: Annotated[bool, typer.Option("--no-tune", help="Every side keeps its recipe's learning rate.")] = False,
    at_once: Annotated[int, typer.Option(help="Runs at once on each device; 0: automatic.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda (all of them), cuda:1, mps.")] = "auto",
    baselines: Annotated[
        bool | None, typer.Option(help="Count models of the same text; default: up to 30 M tokens.")
    ] = None,
    folder: Annotated[Path | None, typer.Option(help="Of the runs; default: one under runs/.")] = None,
    results: Annotated[
        Path | None, typer.Option(help="Of stored results; default: benchmarks/claims here, else runs/claims.")
    ] = None,
    export: Annotated[
        Path | None, typer.Option(help="Store a comparison that exists as the result of ID, and run nothing.")
    ] = None,
    certify_only: Annotated[
        bool, typer.Option("--certify-only", help="Make the certificates of all sides, keep them, and train nothing.")
    ] = False,
    show: Annotated[bool, typer.Option("--show", help="All about each ID; run nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    from homunculi.errors import InputError
    from homunculi.experiments.claims.catalogue import claims as all_claims
    from homunculi.experiments.claims.catalogue import find
    from homunculi.experiments.claims.table import results_folder, rows

    ids = [word for word in words or [] if "=" not in word]
    common = [word for word in words or [] if "=" in word]
    chosen = [find(one) for one in dict.fromkeys(ids)] or list(all_claims())
    where = results_folder(results)
    if tune and no_tune:
        raise InputError("--tune and --no-tune exclude each other; leave one of them out")
    if not ids and (common or folder or export or sides):
        raise InputError("claims: name the claim that this is about; homunculi claims lists all")
    if len(chosen) > 1 and ids and (folder or export or sides):
        raise InputError("claims: --folder, --export and --sides go with one ID")
    ran: list[Ran] = []
    if export is not None:
        _store(chosen[0], export, where)
    elif ids and not show:
        factors = () if no_tune else _factors(tune)
        size, rest = _size(common)
        options = {"results": where, "size": size, "common": tuple(rest), "sides": _names(sides), "factors": factors}
        options |= {"seeds": seeds, "first_seed": first_seed, "at_once": at_once, "device": device}
        options |= {"folder": folder, "baselines": baselines}
        if certify_only:
            return _certify([{"claim": one} | options for one in chosen], as_json)
        ran = _run([{"claim": one} | options for one in chosen])
    _print(rows(chosen, where), as_json, details=show)
    _complain(ran)


def _factors(tune: str) -> tuple[float, ...] | None:
    from homunculi.errors import InputError

    try:
        return tuple(float(word) for word in tune.split(",")) if tune else None
    except ValueError:
        raise InputError(f"--tune: {tune} is no list of factors; write such as 0.5,1,2") from None


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _size(common: Sequence[str]) -> tuple[str, list[str]]:
    """The size that is asked for, and the other assignments."""
    sizes = [word.partition("=")[2].strip() for word in common if word.partition("=")[0].strip() == "size"]
    return (sizes or [""])[-1], [word for word in common if word.partition("=")[0].strip() != "size"]


def _store(claim: Claim, folder: Path, results: Path) -> None:
    from homunculi.experiments.claims.running import keep_folder

    keep_folder(claim, folder, results)


def _run(asked: Sequence[dict[str, Any]]) -> list[Ran]:
    """Run claims side by side, with progress on stderr."""
    from homunculi.cli.compare import open_board, wanted_sides
    from homunculi.experiments.claims import running

    wishes = [running.Asked(**fields) for fields in asked]
    with open_board() as board:
        return running.run_together(wishes, lambda words: wanted_sides(words, None), board)


def _certify(asked: Sequence[dict[str, Any]], as_json: bool) -> None:
    """The certificates of all sides of some claims."""
    from homunculi.cli.compare import open_board, tell_certificates, wanted_sides
    from homunculi.experiments.claims import running

    sides = []
    with open_board() as board:
        for fields in asked:
            found = running.certify(running.Asked(**fields), lambda words: wanted_sides(words, None), board)
            sides += [(f"{fields['claim'].id} {name}", side) for name, side in found]
    tell_certificates(sides, as_json)


def _print(rows: Sequence[Row], as_json: bool, *, details: bool) -> None:
    from homunculi.cli.terminal import print_result

    if as_json:
        print_result(json.dumps({"claims": [row.to_json() for row in rows]}))
        return
    for line in table(rows) if not details else [line for row in rows for line in shown(row)]:
        print_result(line)


def table(rows: Sequence[Row]) -> list[str]:
    """Two lines a claim: id, verdict, difference, n and what is said; then what decided it, with figures."""
    from homunculi.report.markup import inert

    heads = ("id", "verdict", "difference", "n", "claim")
    cells = [(row.claim.id, row.finding.verdict, spread(row), _count(row), row.claim.claim) for row in rows]
    widths = [max(len(one[i]) for one in (heads, *cells)) for i in range(len(heads) - 1)]
    lines = []
    for i, one in enumerate((heads, *cells)):
        start = "  ".join(cell.ljust(width) for cell, width in zip(one, widths, strict=False))
        lines.append(f"{start}  {one[-1]}")
        lines += [INDENT + inert(line) for line in _below(rows[i - 1])] if i else []
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.finding.verdict] = counts.get(row.finding.verdict, 0) + 1
    return [*lines, f"{len(rows)} claims: " + ", ".join(f"{count} {word}" for word, count in counts.items())]


def shown(row: Row) -> list[str]:
    """All about one claim."""
    from homunculi.report.markup import inert

    claim, seeds = row.claim, f", n = {_count(row)}" if _count(row) else ""
    facts = [("system", claim.system), ("claim", claim.claim), ("claimed", claim.figure), ("check", claim.check)]
    facts += [("control", claim.control), ("left open", claim.beyond), ("verdict", row.finding.verdict)]
    facts += [
        ("difference", f"{spread(row)}{seeds}" if spread(row) else ""),
        ("because", row.finding.reason),
    ]
    facts += [("", line) for line in _figures(row)]
    facts += [("was run", f"{_at(row)} on {', '.join(row.devices)}" if row.devices else "")]
    facts += [("note", note) for note in row.notes]
    for size, plans in claim.sizes.items():
        facts.append((f"size={size}", str(claim.cost(size))))
        facts += [("", " ".join([*plan.sides, *plan.common, *plan.options])) for plan in plans]
    said = [f"{INDENT}{label:<12}{inert(text)}" for label, text in facts if text]
    return [claim.id, *said]


def spread(row: Row) -> str:
    """The difference that decided, with its interval where it has one."""
    found = row.finding
    if found.difference is None:
        return ""
    if found.low == found.high or found.low is None or found.high is None:
        return f"{found.difference:.4g} {found.unit}"
    return f"{found.difference:+.4f} ({found.low:+.4f} … {found.high:+.4f}) {found.unit}"


def _count(row: Row) -> str:
    return "" if row.finding.n is None else str(row.finding.n)


def _at(row: Row) -> str:
    return " ".join([row.size, *row.common])


def _below(row: Row) -> list[str]:
    """What decided, with the figures; and where it was run."""
    at = [f"at {_at(row)}"] if row.size else []
    return ["; ".join([row.finding.reason, *at, *row.notes]), *_figures(row)]


def _figures(row: Row) -> list[str]:
    words = [f"{name} {_number(value)}" for name, value in row.finding.figures.items() if value is not None]
    return ["; ".join(words)] if words else []


def _number(value: Any) -> str:
    """A figure as it is written: a number, a pair, or a number with its interval."""
    if isinstance(value, (list, tuple)):
        first, *ends = [_number(one) for one in value]
        return f"{first} ({' … '.join(ends)})" if len(ends) == 2 else " … ".join([first, *ends])
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _complain(ran: Sequence[Ran]) -> None:
    """The exit code that goes with what was refused or failed; results are stored and printed by now."""
    from homunculi.errors import CheckFailed, HomunculiError

    for comparison in [one for outcome in ran for one in outcome.comparisons]:
        if comparison.refused:
            first = comparison.refused[0]
            raise CheckFailed(f"{first['run']}: {first['reason']}")
        crashed = [run for run in comparison.failed if run["state"] == "failed"]
        if crashed:
            raise HomunculiError(
                f"{len(crashed)} runs failed, the first {comparison.folder / crashed[0]['run']}: "
                f"{crashed[0]['reason']}; the same command tries them again"
            )
