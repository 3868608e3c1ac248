"""`homunculi scale`: what law does a model follow as it grows, and does its gap to a baseline stay?"""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from homunculi.experiments.compare import Wanted
    from homunculi.experiments.scale import Ladder

BASELINE = "gpt"


def add_to(app: typer.Typer) -> None:
    app.command("scale", help="Train a recipe and its baseline at several sizes, and fit a law to each.")(scale)


def scale(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, module:function, or file.py:function.")],
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[against=RECIPE] [KEY=VALUE]...", show_default=False)
    ] = None,
    against: Annotated[str, typer.Option(help="The baseline's recipe; default: the plain transformer's.")] = "",
    sizes: Annotated[str, typer.Option(help="Factors of the recipe's own size, at least four.")] = "0.25,0.5,1,2",
    tokens_per_parameter: Annotated[
        float, typer.Option(help="Training tokens of each parameter; 0: the recipe's steps at every size.", min=0)
    ] = 0.0,
    seeds: Annotated[int | None, typer.Option(help="Runs of each side at each size; default 5.")] = None,
    at_once: Annotated[int, typer.Option(help="Runs at once on each device; 0: automatic.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda (all of them), cuda:1, mps.")] = "auto",
    tune: Annotated[
        str, typer.Option(help="Factors of the recipe's learning rate that each side tries at each size.")
    ] = "0.5,1,2",
    no_tune: Annotated[bool, typer.Option("--no-tune", help="Every side keeps its recipe's learning rate.")] = False,
    folder: Annotated[Path | None, typer.Option(help="Of the ladder; default: follows from the recipes.")] = None,
    certify_only: Annotated[
        bool, typer.Option("--certify-only", help="Make the certificates of all sides, keep them, and train nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    from homunculi.cli.ablate import certified, numbers
    from homunculi.experiments import scale as ladders

    given = [word for word in words or [] if not word.startswith("against=")]
    named = [word.removeprefix("against=") for word in words or [] if word.startswith("against=")]
    factors = () if no_tune else numbers("--tune", tune)
    side, baseline = wanted_pair(recipe, against or "".join(named[-1:]), given)
    rungs = ladders.make_rungs(side, baseline, numbers("--sizes", sizes), tokens_per_parameter)
    options = {"seeds": seeds, "factors": factors, "at_once": at_once, "device": device, "baselines": False}
    options["command"] = shlex.join(["homunculi", *sys.argv[1:]])
    place = folder or ladders.default_folder(side, baseline, tokens_per_parameter, factors)
    ladder = ladders.Ladder(place, rungs, options)
    if certify_only:
        certified(ladders.requests(ladder), as_json)
    else:
        _climb(ladder, as_json)


def wanted_pair(recipe: str, against: str, given: list[str]) -> tuple[Wanted, Wanted]:
    """The recipe and its baseline, with names of their own. Against itself a recipe starts from other weights.

    Raises:
        InputError: there is no such recipe, or no plain transformer's of the recipe's name.
    """
    from homunculi.cli.recipes import configured
    from homunculi.errors import InputError
    from homunculi.experiments.compare import Wanted

    if stray := next((word for word in given if "=" not in word), None):
        raise InputError(f"{stray}: expected key=value, or against=RECIPE")
    config = configured(recipe, given)[0]
    other = against or _plain_recipe(recipe)
    try:
        second = configured(other, given)[0]
    except InputError as error:
        hint = "" if against else f"; the default baseline of {recipe} is {other}, name another with --against RECIPE"
        raise InputError(f"{error}{hint}") from None
    if recipe == other:  # the null
        again = [*given, f"seed={config.seed + 100}"]
        side = Wanted(f"{_short(recipe)}-again", recipe, tuple(again), configured(recipe, again)[0])
        return side, Wanted(_short(recipe), recipe, tuple(given), config)
    names = [name_of(each) for name_of in (_short, _long) for each in (recipe, other)]
    first, baseline = names[:2] if names[0] != names[1] else names[2:]
    return Wanted(first, recipe, tuple(given), config), Wanted(baseline, other, tuple(given), second)


def _plain_recipe(recipe: str) -> str:
    """The plain transformer's recipe of the same name."""
    module, _, function = recipe.rpartition(":") if ":" in recipe else (recipe, "", "")
    return f"{BASELINE}:{function or Path(module).stem.rpartition('.')[2]}"


def _short(recipe: str) -> str:
    """A name by the module of a recipe, or by the function of a file."""
    module, _, function = recipe.rpartition(":") if ":" in recipe else (recipe, "", "")
    word = (function or Path(module).stem) if module.endswith(".py") else module
    return re.sub(r"[^A-Za-z0-9_-]+", "-", word).strip("-") or "side"


def _long(recipe: str) -> str:
    """A name by module and function."""
    module, _, function = recipe.rpartition(":") if ":" in recipe else (recipe, "", "")
    words = [Path(module).stem if module.endswith(".py") else module, function]
    return re.sub(r"[^A-Za-z0-9_-]+", "-", "-".join(filter(None, words))).strip("-") or "side"


def _climb(ladder: Ladder, as_json: bool) -> None:
    from homunculi.cli.ablate import refuse_failures
    from homunculi.cli.compare import Board
    from homunculi.cli.terminal import print_result
    from homunculi.errors import Stopped
    from homunculi.experiments import scale as ladders
    from homunculi.experiments.ladder import written

    boards: list[Any] = []

    def board() -> Any:
        if boards:
            boards[-1].close()
        boards.append(Board())
        return boards[-1]

    try:
        board().plan(ladders.describe(ladder))
        result, found = ladders.climb(ladder, board)
    except Stopped as stopped:
        raise Stopped(f"{str(stopped).partition(';')[0]}; the same command goes on", stopped.exit_code) from stopped
    finally:
        for one in boards:
            one.close()
    if as_json:
        print_result(json.dumps(result | {"verdicts": written(result), "folder": str(ladder.folder)}))
    else:
        for line in written(result):
            print_result(line)
        print_result(f"report {ladder.folder / 'report.html'}")
        print_result(str(ladder.folder))
    for comparison in found:
        refuse_failures(comparison)
