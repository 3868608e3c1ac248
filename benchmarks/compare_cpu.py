"""Our training step against the plain loop on a CPU, in turn, in one process.

Run from the repository's root: ``python -m benchmarks.compare_cpu``. Shape: that of the case ``train-cpu``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.plain_loop import PlainLoop, Shape
from homunculi.experiments.bench import CASES, Case, prepare_training
from homunculi.experiments.peak import describe_device
from homunculi.files import write_json

RESULTS = Path(__file__).parent / "results"
SIZES = ("vocab_size", "d_model", "n_blocks", "n_heads", "max_seq_len")


def compare(case: Case, rounds: int, steps: int, compilation: Literal["on", "off"], rotary: bool) -> dict[str, Any]:
    """Take steps of the two by turns, so that both meet the same machine; a round is `steps` of each.

    Returns:
        JSON values: for wall-clock and processor time the `speed_ratio` (the plain loop's time over ours, above 1 we
        are faster) of each round's medians, and milliseconds a step of both; parameters of both.
    """
    device = torch.device("cpu")
    updater, batches, _ = prepare_training(case, device, 100_000, compilation)
    torch.manual_seed(0)
    plain = PlainLoop(Shape(**{name: case.model[name] for name in SIZES}, rotary=rotary), device)
    done = 0

    def ours() -> None:
        nonlocal done
        done += 1
        updater.update(done, [batches[done % len(batches)]], stop=False).read()

    def theirs() -> None:
        plain.step(batches[done % len(batches)]).item()

    for call in (ours, theirs, ours, theirs):
        call()
    seen = [_round(ours, theirs, steps) for _ in range(rounds)]
    return {
        "wall": _related([r["wall"] for r in seen]),
        "processor": _related([r["processor"] for r in seen]),
        "parameters": {
            "ours": sum(p.numel() for p in updater.model.parameters()),
            "plain": sum(p.numel() for p in plain.model.parameters()),
        },
    }


def _round(ours: Callable[[], None], theirs: Callable[[], None], steps: int) -> dict[str, tuple[float, float]]:
    """Median milliseconds of (ours, theirs) by each clock."""
    clocks = {"wall": time.perf_counter, "processor": time.process_time}
    taken: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in clocks}
    for i in range(2 * steps):
        second = (i + i // 2) % 2  # a b b a a b …: neither always follows the other
        before = {name: clock() for name, clock in clocks.items()}
        (ours, theirs)[second]()
        for name, clock in clocks.items():
            taken[name][second].append(1e3 * (clock() - before[name]))
    return {name: (statistics.median(a), statistics.median(b)) for name, (a, b) in taken.items()}


def _related(rounds: list[tuple[float, float]]) -> dict[str, Any]:
    ratios = [theirs / ours for ours, theirs in rounds]
    return {
        "speed_ratio": {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios), "rounds": ratios},
        "ours_ms": [ours for ours, _ in rounds],
        "plain_ms": [theirs for _, theirs in rounds],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Our training step against a plain loop, on a CPU.")
    parser.add_argument("--rounds", type=int, default=5, help="how often both are measured")
    parser.add_argument("--steps", type=int, default=4, help="steps of one measurement")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--compile", choices=["on", "off"], default="off", help="compile our step; the plain loop is eager"
    )
    parser.add_argument("--rotary", action="store_true", help="the plain loop too has RMSNorm and rotary positions")
    parser.add_argument(
        "--write", action="store_true", help="write benchmarks/results/compare_cpu[_rotary][_compiled].json"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    case = CASES["train-cpu"]
    result = {
        **describe_device(torch.device("cpu")),
        "shape": {**case.model, "batch": case.batch},
        "steps_a_round": options.steps,
        "compile": options.compile,
        "plain_loop": "RMSNorm and rotary positions" if options.rotary else "LayerNorm and a table of positions",
        **compare(case, options.rounds, options.steps, options.compile, options.rotary),
    }
    for name in ("wall", "processor"):
        ours, plain = (statistics.median(result[name][key]) for key in ("ours_ms", "plain_ms"))
        ratio = result[name]["speed_ratio"]
        spread = f"{ratio['low']:.3f} – {ratio['high']:.3f}, {options.rounds} rounds"
        print(f"{name:9}  ours {ours:8.1f} ms  plain {plain:8.1f} ms  speed ratio {ratio['median']:.3f} ({spread})")
    if options.write:
        name = f"compare_cpu{'_rotary' * options.rotary}{'_compiled' * (options.compile == 'on')}.json"
        RESULTS.mkdir(exist_ok=True)
        write_json(RESULTS / name, result)


if __name__ == "__main__":
    main()
