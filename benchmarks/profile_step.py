"""Where the time of one case goes: kernels by device time, and the step with parts left out.

Run from the repository's root: ``python -m benchmarks.profile_step train-18m``.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from homunculi.core.model import LanguageModel
from homunculi.evals.generation import Sampling, generate
from homunculi.experiments.bench import CASES, Case, build_model, prepare_training
from homunculi.experiments.peak import Clock, describe_device, synchronize
from homunculi.train.loss import chunked_cross_entropy
from homunculi.train.precision import resolve_device
from homunculi.train.step import Updater

TOP = 25


class TrunkOnly(nn.Module):
    """The model without read-out and loss: the mean of its last state stands for the loss."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        return self.model.trunk(ids[:, :-1]).x_BTD.float().mean()


class ReadoutOnly(nn.Module):
    """Read-out and cross-entropy of a given state (B, T, D)."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, x_BTD: Tensor, targets_BT: Tensor) -> Tensor:
        return chunked_cross_entropy(self.model.readout, x_BTD, targets_BT, 1) / targets_BT.numel()


def profile_training(case: Case, device: torch.device, steps: int) -> None:
    updater, batches, _ = prepare_training(case, device, 1000)
    done = 0

    def whole() -> None:
        nonlocal done
        done += 1
        updater.update(done, [batches[done % len(batches)]], stop=False)

    rows = {"whole step": _time(whole, device, steps)}
    rows |= _variants(updater, batches[0], device, steps)
    _print_kernels(whole, device, steps, rows["whole step"])
    print()
    for name, ms in rows.items():
        print(f"{ms:9.3f} ms  {ms / rows['whole step']:6.1%}  {name}")


def _variants(updater: Updater, ids: Tensor, device: torch.device, steps: int) -> dict[str, float]:
    """Median milliseconds of parts of the step; each part is compiled if the step is."""

    def ready(module: nn.Module) -> Callable[..., Any]:
        return torch.compile(module, dynamic=False) if updater.compiled else module

    model = updater.model.train()
    trunk, readout = ready(TrunkOnly(model)), ready(ReadoutOnly(model))
    with torch.no_grad():
        state_BTD = model.trunk(ids[:, :-1]).x_BTD
    x_BTD = state_BTD.clone().requires_grad_()

    def backward_of(loss: Callable[[], Tensor]) -> None:
        model.zero_grad(set_to_none=True)
        loss().backward()

    def whole_loss() -> Tensor:
        return updater.loss(ids)[0]

    def optimise() -> None:
        torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        for optimizer in updater.optimizers:
            optimizer.step()

    times = {
        "forward": _time(whole_loss, device, steps),
        "forward and backward": _time(lambda: backward_of(whole_loss), device, steps),
        "forward and backward without read-out and loss": _time(lambda: backward_of(lambda: trunk(ids)), device, steps),
        "read-out and loss, forward and backward": _time(
            lambda: backward_of(lambda: readout(x_BTD, ids[:, 1:])), device, steps
        ),
    }
    backward_of(whole_loss)
    return times | {"gradient norm and optimiser": _time(optimise, device, steps)}


def profile_decoding(case: Case, device: torch.device) -> None:
    """One generation; a step is one token of every row."""
    model = build_model(case, device).eval()
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(case.model["vocab_size"], (case.batch, case.prompt), generator=generator).tolist()

    def whole() -> None:
        for _ in generate(model, prompts, case.new_tokens, Sampling(temperature=0)):
            pass

    ms = _time(whole, device, 3) / case.new_tokens
    _print_kernels(whole, device, 1, ms, case.new_tokens)


def _time(call: Callable[[], object], device: torch.device, steps: int) -> float:
    """Median milliseconds of a call, after a third as many that are not counted (at least three)."""
    for _ in range(max(3, steps // 3)):
        call()
    synchronize(device)
    clock = Clock(device)
    clock.mark()
    for _ in range(steps):
        call()
        clock.mark()
    return statistics.median(clock.intervals_ms())


def _print_kernels(
    call: Callable[[], object], device: torch.device, calls: int, step_ms: float, steps_a_call: int = 1
) -> None:
    """The kernels (operations on a CPU) that take most time of their own, per step, and the sum of all."""
    gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]) as record:
        for _ in range(calls):
            call()
        synchronize(device)
    steps = calls * steps_a_call
    wanted = torch.autograd.DeviceType.CUDA if gpu else torch.autograd.DeviceType.CPU
    rows = [
        ((e.self_device_time_total if gpu else e.self_cpu_time_total) / steps / 1e3, e.count / steps, e.key)
        for e in record.key_averages()
        if e.device_type == wanted and not getattr(e, "is_user_annotation", False)
    ]
    total = sum(ms for ms, _, _ in rows)
    print(f"{'ms':>9}  {'share':>6}  {'calls':>7}  name (per step, own time)")
    for ms, count, name in sorted(rows, reverse=True)[:TOP]:
        print(f"{ms:9.3f}  {ms / total:6.1%}  {count:7.1f}  {name[:110]}")
    count = sum(count for _, count, _ in rows)
    print(f"{total:9.3f}  {'':6}  {count:7.1f}  sum of all; a step takes {step_ms:.3f} ms without the profiler")


def main() -> None:
    parser = argparse.ArgumentParser(description="Kernels and parts of one benchmark case.")
    parser.add_argument("case", choices=list(CASES))
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parser.add_argument("--steps", type=int, default=20, help="steps of each measurement")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the case's sequences and new tokens")
    options = parser.parse_args()
    device = resolve_device(options.device)
    case = CASES[options.case].scaled(options.scale)
    print(options.case, f"{case.tokens_per_step} tokens a step", describe_device(device))
    if case.decodes:
        profile_decoding(case, device)
    else:
        profile_training(case, device, options.steps)


if __name__ == "__main__":
    main()
