"""Known outcomes of the skills at full size: whether the harness reproduces them.

    python -m benchmarks.known_skills                 # all, minutes to an hour on a GPU
    python -m benchmarks.known_skills recall depth --device cuda --write

Each case says what is expected, trains what it takes, and says whether it was so. Exit code 1 if any was not.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from homunculi.experiments.skills.cells import Json, Store
from homunculi.experiments.skills.learning import learn
from homunculi.experiments.skills.plan import Settings, ask, points
from homunculi.experiments.skills.sizing import Frame, Side, small
from homunculi.models import get
from homunculi.train.precision import resolve_device

OUT = Path(__file__).parent / "results" / "known_skills.json"


@dataclass(frozen=True, slots=True)
class Model:
    """One model of a case: its number of blocks, its task with dials, and how long it learns at which rates."""

    task: str
    dials: dict[str, str]
    steps: int
    blocks: int = 2
    rows: int = 64
    lrs: tuple[float, ...] = (1e-3, 3e-3)
    architecture: str = "gpt"


@dataclass(frozen=True, slots=True)
class Case:
    """What is known, and the rule by which accuracies (with those beyond training) tell whether it is so."""

    known: str
    models: dict[str, Model]
    holds: Callable[[dict[str, Json]], bool]


def _test(found: Json) -> float:
    return float(found["test"]["accuracy"])


CASES = {
    "recall": Case(
        "two layers of softmax attention recall 64 pairs among 512 tokens at width 64",
        {"two layers": Model("recall", {"pairs": "64", "length": "512", "vocabulary": "512"}, 8000)},
        lambda found: _test(found["two layers"]) > 0.95,
    ),
    "hops": Case(
        "one layer of attention cannot recall a value's value; one hop is no trouble for two layers",
        {
            "one layer, two hops": Model("compositional_recall", {"hops": "2", "pairs": "8"}, 4000, blocks=1),
            "two layers, one hop": Model("compositional_recall", {"hops": "1", "pairs": "8"}, 4000),
        },
        lambda found: _test(found["one layer, two hops"]) < 0.4 and _test(found["two layers, one hop"]) > 0.95,
    ),
    "parity": Case(
        "a plain transformer learns parity of short rows and fails on rows two and four times as long",
        {"two layers": Model("parity", {"length": "32"}, 8000)},
        lambda found: (
            _test(found["two layers"]) > 0.8
            and all(abs(one["accuracy"] - 0.5) < 0.05 for one in found["two layers"]["beyond"])
        ),
    ),
    "copy": Case(
        "a plain transformer copies among noise, in order",
        {"two layers": Model("selective_copy", {"tokens": "16"}, 3000)},
        lambda found: _test(found["two layers"]) > 0.98,
    ),
    "depth": Case(
        "a loop answers questions of several steps better the more passes it is given, up to those it was trained with",
        {"loop": Model("pointer_chasing", {"steps": "2", "arrows": "9"}, 8000, architecture="recursive")},
        lambda found: found["loop"]["depth"]["forced"][2]["accuracy"] > found["loop"]["depth"]["forced"][0]["accuracy"],
    ),
}


def measure(model: Model, device: torch.device, store: Store) -> Json:
    """The best of the learning rates, by validation."""
    frame = Frame(blocks=model.blocks)
    settings = Settings(seeds=1, steps=model.steps, rows=model.rows, lrs=model.lrs, wds=(0.1,), frame=frame)
    side = Side(model.architecture, small(get(model.architecture).config_type(), frame))
    point = points([side], ask([model.task], model.dials), settings)[0]
    found = [store.find(cell) or store.keep(cell, learn(cell, device)) for cell in point.grid]
    return max(found, key=lambda one: one["valid"]["accuracy"])


def run(names: Sequence[str], device: torch.device, folder: Path) -> dict[str, Any]:
    """Every case's accuracies and whether it came out as known."""
    results: dict[str, Any] = {}
    for name in names:
        case = CASES[name]
        found = {title: measure(model, device, Store(folder)) for title, model in case.models.items()}
        shown = {
            title: {key: one[key] for key in ("test", "beyond", "depth", "steps_taken", "seconds", "parameters")}
            for title, one in found.items()
        }
        results[name] = {"known": case.known, "holds": case.holds(found), "models": shown}
        words = ", ".join(f"{title} {_test(one):.3f}" for title, one in found.items())
        print(
            f"{name}: {'so it is' if results[name]['holds'] else 'NOT reproduced'} ({words}): {case.known}", flush=True
        )
    return results


def main() -> None:
    """Read the words of the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=[], help=f"any of {', '.join(CASES)}; default: all")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--results", type=Path, default=Path("runs/known_skills"), help="folder of finished cells")
    parser.add_argument("--write", action="store_true", help=f"write {OUT.name} beside the other results")
    given = parser.parse_args()
    if unknown := [name for name in given.cases if name not in CASES]:
        parser.error(f"{unknown[0]}: no such case; there are {', '.join(CASES)}")
    device = resolve_device(given.device)
    results = run(given.cases or list(CASES), device, given.results)
    if given.write:
        OUT.write_text(
            json.dumps({"device": str(device), "torch": torch.__version__, "cases": results}, indent=1) + "\n"
        )
    sys.exit(0 if all(one["holds"] for one in results.values()) else 1)


if __name__ == "__main__":
    main()
