"""`homunculi ablate`: what is each part of a model worth?"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from homunculi.experiments.comparison import Comparison


def add_to(app: typer.Typer) -> None:
    app.command("ablate", help="Take one part of a model out at a time, at equal budgets, and say what it was worth.")(
        ablate
    )


def ablate(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, module:function, or file.py:function.")],
    words: Annotated[list[str] | None, typer.Argument(metavar="[PART]... [KEY=VALUE]...", show_default=False)] = None,
    seeds: Annotated[int | None, typer.Option(help="Runs of each side; default 5.", show_default=False)] = None,
    how: Annotated[
        str, typer.Option(help="How a part is missing: any of removed,replaced,neutral,shuffled; default all.")
    ] = "",
    match: Annotated[
        str, typer.Option(help="What is made equal: any of parameters,flops,tokens.")
    ] = "parameters,tokens",
    at_once: Annotated[int, typer.Option(help="Runs at once on each device; 0: automatic.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda (all of them), cuda:1, mps.")] = "auto",
    tune: Annotated[str, typer.Option(help="Factors of the recipe's learning rate that each side tries.")] = "0.5,1,2",
    no_tune: Annotated[bool, typer.Option("--no-tune", help="Every side keeps the recipe's learning rate.")] = False,
    folder: Annotated[Path | None, typer.Option(help="Of the comparison; default: follows from the recipe.")] = None,
    certify_only: Annotated[
        bool, typer.Option("--certify-only", help="Make the certificates of all sides, keep them, and train nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    from homunculi.cli.recipes import configured
    from homunculi.experiments import ablate as ablations
    from homunculi.experiments.compare import Request

    given = [word for word in words or [] if "=" in word]
    parts = [word for word in words or [] if "=" not in word]
    config, _ = configured(recipe, given)
    matching, factors = listed(match), () if no_tune else numbers("--tune", tune)
    made, left_out = ablations.variants(config, parts, listed(how) or ablations.HOW, matching)
    place = folder or ablations.default_folder(recipe, config, matching, factors)
    request = Request(
        sides=ablations.sides_of(recipe, given, config, made, place),
        seeds=seeds,
        match=matching,
        factors=factors,
        at_once=at_once,
        device=device,
        baselines=False,
        folder=place,
        command=shlex.join(["homunculi", *sys.argv[1:]]),
    )
    if certify_only:
        certified([request], as_json)
        return
    comparison = _carried_out(request, left_out)
    _show(comparison, left_out, as_json)
    refuse_failures(comparison)


def certified(requests: Sequence[Any], as_json: bool) -> None:
    """Certify the sides of comparisons, and train nothing.

    Raises:
        CheckFailed: one is not causal.
    """
    from homunculi.cli.compare import open_board, tell_certificates
    from homunculi.experiments.compare import certify_sides

    with open_board() as board:
        found = [(request, side) for request in requests for side in certify_sides(request, board)]
    within = {id(request): f"{request.folder.name} " if len(requests) > 1 else "" for request in requests}
    tell_certificates([(f"{within[id(request)]}{side.name}", side) for request, side in found], as_json)


def listed(text: str) -> tuple[str, ...]:
    """Words between commas."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def numbers(option: str, text: str) -> tuple[float, ...]:
    """Numbers between commas.

    Raises:
        InputError: one is no number.
    """
    from homunculi.errors import InputError

    try:
        return tuple(float(word) for word in listed(text))
    except ValueError:
        raise InputError(f"{option}: {text} is no list of numbers; write such as 0.5,1,2") from None


def _carried_out(request: Any, left_out: dict[str, str]) -> Comparison:
    from homunculi.cli.compare import Board
    from homunculi.errors import Stopped
    from homunculi.experiments import compare as comparing

    board = Board()
    try:
        for name, reason in left_out.items():
            board.message(f"{name} is left out: {reason}")
        return comparing.compare(request, board)
    except Stopped as stopped:
        raise Stopped(f"{str(stopped).partition(';')[0]}; the same command goes on", stopped.exit_code) from stopped
    finally:
        board.close()


def _show(comparison: Comparison, left_out: dict[str, str], as_json: bool) -> None:
    from homunculi.cli.compare import result_of
    from homunculi.cli.terminal import print_result
    from homunculi.experiments.ablate import findings, written

    if as_json:
        head = {"parts": findings(comparison), "left_out": left_out}
        print_result(json.dumps(head | result_of(comparison) | {"verdicts": list(written(comparison))}))
        return
    for line in written(comparison):
        print_result(line)
    print_result(f"report {comparison.folder / 'report.html'}")
    print_result(str(comparison.folder))


def refuse_failures(comparison: Comparison) -> None:
    """End with the exit code of what went wrong, if something did.

    Raises:
        CheckFailed: a side or run is not ranked.
        HomunculiError: a run failed.
        Diverged: too many diverged for a verdict.
    """
    from homunculi.errors import CheckFailed, Diverged, HomunculiError
    from homunculi.experiments.comparison import pairs

    if comparison.refused:
        raise CheckFailed(f"{comparison.refused[0]['run']}: {comparison.refused[0]['reason']}")
    crashed = [run for run in comparison.failed if run["state"] == "failed"]
    if crashed:
        first = comparison.folder / crashed[0]["run"]
        raise HomunculiError(
            f"{len(crashed)} runs failed, the first {first}: {crashed[0]['reason']}; the same command tries them again"
        )
    without = [pair for pair in pairs(comparison) if pair["verdict"] is None]
    if without:
        raise Diverged(f"{without[0]['b']} against {without[0]['a']}: no verdict, too many runs diverged")
