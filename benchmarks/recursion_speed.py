"""Does skipping tokens save time, and how much of the FLOPs that it saves? A model against itself with everybody in
every pass (or against any other setting), in training steps and in decoding.

Run from the repository's root::

    python -m benchmarks.recursion_speed --d-model 512 --context 1024 --batch 16 capacities=1,0.5,0.25
    python -m benchmarks.recursion_speed --architecture mor kv=shared --against capacities=1,1,1 --against kv=shared

A training step is forward and backward of the training loss, compiled on a GPU. Both models are timed in turns.
Decoding is greedy generation from random prompts, eager, its FLOPs counted as they run; thresholds are first adapted on
random tokens, so that as many take part as the capacities say. One JSON object is printed, and a table on the error
stream.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from homunculi.core.model import LanguageModel
from homunculi.core.pieces import Pieces
from homunculi.evals.generation import Sampling, generate
from homunculi.experiments.peak import Clock, describe_device
from homunculi.models import get
from homunculi.parts import one_token
from homunculi.settings import fields_of, override
from homunculi.train.loss import TrainingLoss
from homunculi.train.precision import resolve_device, set_compute_dtype

ADAPTATIONS = 40


def main() -> None:
    args = parse_arguments()
    torch.set_float32_matmul_precision("high")
    device = resolve_device(args.device)
    given = {"vocab_size": args.vocab_size, "d_model": args.d_model, "n_slots": args.n_slots, "n_passes": args.passes}
    given |= {"max_seq_len": args.context, "n_heads": args.n_heads or max(1, args.d_model // 64)}
    config_type = get(args.architecture).config_type
    known = {name for name, *_ in fields_of(config_type())}
    config = override(config_type(**{n: v for n, v in given.items() if n in known}), args.assignments, "model")
    against = args.against or ["capacities=" + ",".join(["1"] * args.passes)]
    models = [build(args.architecture, c, args, device) for c in (config, override(config, against, "model"))]
    found: dict[str, Any] = {
        "architecture": args.architecture,
        "shape": given | {"batch": args.batch},
        "assignments": args.assignments,
        "against": against,
        "precision": args.precision,
        "training": compare_training(models, args, device),
        "decoding": compare_decoding(models, args, device) if args.tokens else None,
    } | describe_device(device)
    show(found)
    print(json.dumps(found))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("assignments", nargs="*", metavar="KEY=VALUE", help="settings of the model")
    parser.add_argument("--against", action="append", metavar="KEY=VALUE", help="what differs in the other model")
    parser.add_argument("--architecture", default="mor")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=("float32", "bf16"), default=None, help="bf16 on a GPU")
    sizes = {"d-model": 512, "n-slots": 8, "passes": 3, "n-heads": 0, "context": 1024, "batch": 16}
    sizes |= {"vocab-size": 16_384, "steps": 20, "warmup": 5, "rows": 1, "prompt": 64, "tokens": 128}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    args = parser.parse_intermixed_args()
    if args.precision is None:
        args.precision = "bf16" if resolve_device(args.device).type == "cuda" else "float32"
    return args


def build(architecture: str, config: Any, args: argparse.Namespace, device: torch.device) -> LanguageModel:
    torch.manual_seed(0)
    model = get(architecture).model_type(config).to(device)
    set_compute_dtype(model, args.precision)
    ids_BT = torch.randint(args.vocab_size, (args.batch, args.context), device=device)
    with torch.no_grad():
        for _ in range(ADAPTATIONS):
            measured = model.eval()(ids_BT).statistics
            if not measured:
                break
            model.after_update(measured)
    return model


def compare_training(models: list[LanguageModel], args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Median milliseconds of forward and backward of both models, in turns."""
    ids = torch.randint(args.vocab_size, (args.batch, args.context + 1), device=device)
    steps = [training_step(model, ids, device) for model in models]
    for _ in range(args.warmup):
        for step in steps:
            step()
    times: list[list[float]] = [[], []]
    for _ in range(args.steps):
        for step, found in zip(steps, times, strict=True):
            clock = Clock(device)
            clock.mark()
            step()
            clock.mark()
            found += clock.intervals_ms()
    flops = [3.0 * model.budget(args.context).flops_per_token * args.batch * args.context for model in models]
    return savings(flops, [statistics.median(found) for found in times])


def training_step(model: LanguageModel, ids: Tensor, device: torch.device) -> Callable[[], None]:
    loss_of: Any = TrainingLoss(model.train())
    if device.type == "cuda":
        loss_of = torch.compile(loss_of, dynamic=False)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        loss, terms, _ = loss_of(ids)
        torch.stack([loss, *terms.values()]).sum().backward()

    return step


def compare_decoding(models: list[LanguageModel], args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Milliseconds of a decoding step of `rows` rows, after the prompt, in turns."""
    prompts = torch.randint(args.vocab_size, (args.rows, args.prompt)).tolist()
    decode_ms(models[0], prompts, 8, device)
    decode_ms(models[1], prompts, 8, device)
    times = [[decode_ms(model, prompts, args.tokens, device) for model in models] for _ in range(3)]
    flops = []
    for model in models:
        with FlopCounterMode(display=False) as counter, counted_kernels() as in_kernels:
            decode_ms(model, prompts, args.tokens, device)
        flops.append((counter.get_total_flops() + sum(in_kernels)) / args.tokens)
    return savings(flops, [statistics.median(column) for column in zip(*times, strict=True)]) | {"rows": args.rows}


@contextmanager
def counted_kernels() -> Iterator[list[int]]:
    """The FLOPs of decoding's own kernels, which torch's counter does not see: a number a call. Nothing is recorded:
    replays are not seen either."""
    attend, remember, record, found = one_token.attend, one_token.remember, Pieces.record, list[int]()

    def attend_counted(q_AHK: Tensor, k_BGLK: Tensor, v_BGLK: Tensor, last_A: Tensor, *rest: Any) -> Tensor:
        seen_A = last_A + 1 if len(rest) < 2 or not rest[1] else (last_A + 1).clamp(max=rest[1])
        found.append(4 * q_AHK[0].numel() * int(seen_A.sum()))
        return attend(q_AHK, k_BGLK, v_BGLK, last_A, *rest)

    def remember_counted(qkv_AHK: tuple[Tensor, ...], *rest: Any, **options: Any) -> Tensor:
        found.append(4 * qkv_AHK[0].numel() * qkv_AHK[0].shape[-1])
        return remember(qkv_AHK, *rest, **options)

    one_token.attend, one_token.remember = attend_counted, remember_counted
    Pieces.record = lambda *_: None  # type: ignore[method-assign, assignment]
    try:
        yield found
    finally:
        one_token.attend, one_token.remember = attend, remember
        Pieces.record = record  # type: ignore[method-assign]


def decode_ms(model: LanguageModel, prompts: list[list[int]], n_tokens: int, device: torch.device) -> float:
    """Median milliseconds of a step: the first ones are recorded, which takes longer."""
    marks = []
    for next_B in generate(model.eval(), prompts, n_tokens, Sampling(temperature=0)):
        next_B.tolist()
        marks.append(time.perf_counter())
    return 1e3 * statistics.median(b - a for a, b in itertools.pairwise(marks))


def savings(flops: list[float], ms: list[float]) -> dict[str, Any]:
    """What the first of two models saves, as shares of the second's FLOPs and time, and the ratio of these shares."""
    saved = [1 - a / b for a, b in (flops, ms)]
    return {
        "gflops": [round(f / 1e9, 3) for f in flops],
        "ms": [round(t, 3) for t in ms],
        "flops_saved": round(saved[0], 4),
        "time_saved": round(saved[1], 4),
        "time_by_flops": round(saved[1] / saved[0], 3) if saved[0] else None,
    }


def show(found: dict[str, Any]) -> None:
    print(f"{found['architecture']} {found['shape']} on {found['device_name']}, {found['precision']}", file=sys.stderr)
    for name in ("training", "decoding"):
        case = found[name]
        if case:
            times = f"{case['ms'][0]:9.2f} ms against {case['ms'][1]:9.2f} ms"
            saved = f"FLOPs saved {case['flops_saved']:.1%}, time saved {case['time_saved']:.1%}"
            print(f"{name:9} {times}; {saved}, ratio {case['time_by_flops']}", file=sys.stderr)


if __name__ == "__main__":
    main()
