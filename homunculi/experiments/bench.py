"""Throughput, memory and share of the device's peak, in fixed cases: training steps and cached decoding.

A training case takes the training loop's own update (`homunculi.train.step.Updater`: forward, backward, clipping, fused
AdamW) on random tokens that already lie on the device; a decoding case takes `homunculi.evals.generation.generate` with
the likeliest token. Model FLOPs are those of `Budget.flops_per_token`, a training step counted as three forward passes.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from homunculi.core.budget import Budget
from homunculi.core.model import LanguageModel
from homunculi.errors import InputError
from homunculi.evals.generation import Sampling, generate
from homunculi.experiments.bench_cases import CASES, Case
from homunculi.experiments.peak import Clock, Peak, describe_device, measure_peak, synchronize
from homunculi.models import build
from homunculi.train.config import RunConfig
from homunculi.train.distributed import World
from homunculi.train.precision import set_compute_dtype, set_switches
from homunculi.train.step import PendingResult, Updater

if TYPE_CHECKING:
    from rich.table import Table

_N_BATCHES = 4  # different batches that a training case goes round
_N_GENERATIONS = 8


@dataclass(frozen=True, slots=True)
class Timing:
    """What was timed.

    Attributes:
        steps_ms: milliseconds of each step (training) or of a step, one value a generation (decoding).
        facts: further entries of the result.
    """

    steps_ms: list[float]
    facts: dict[str, Any]


def run(
    names: Sequence[str],
    device: torch.device,
    on_result: Callable[[dict[str, Any]], None],
    *,
    n: int = 30,
    warmup: int = 10,
    scale: float = 1.0,
) -> list[dict[str, Any]]:
    """Measure cases one after another; `on_result` hears each as it is done. Without names: those meant for `device`,
    and on a CPU the others too, as skipped. Further arguments and errors as `run_case`.
    """
    meant = [name for name, case in CASES.items() if case.on_gpu or device.type == "cpu"]
    results = []
    for name in names or meant:
        _case(name)
    for name in names or meant:
        result = run_case(name, device, n=n, warmup=warmup, scale=scale)
        on_result(result)
        results.append(result)
    return results


def run_case(
    name: str, device: torch.device, *, n: int = 30, warmup: int = 10, scale: float = 1.0, peak: bool = True
) -> dict[str, Any]:
    """Measure one case.

    Args:
        name: key of `CASES`.
        n: measured steps, or generations of a decoding case; `warmup`: those before.
        scale: share of the case's sequences and new tokens; below 1 a GPU's case also runs on a CPU.
        peak: measure what the device reaches, once a process, to state shares of it.

    Returns:
        JSON values: case, device and software; `ms_per_step` (median, with `ms_low` and `ms_high`, the 10th and 90th
        percentiles of `n`), `tokens_per_s` = `tokens_per_step` over the median, memory and FLOPs. A case that cannot
        run here has `skipped` with the reason instead.

    Raises:
        InputError: no such case, or `n`, `warmup` or `scale` out of range.
    """
    if n < 1 or warmup < 0 or not 0 < scale <= 1:
        raise InputError("bench: n must be at least 1, warmup 0 or more, scale above 0 and at most 1")
    case = _case(name).scaled(scale)
    if not case.on_gpu:
        device = torch.device("cpu")
    described = {"case": name} | describe_device(device)
    if case.on_gpu and device.type == "cpu" and scale == 1:
        return described | {"skipped": "needs a GPU, or a scale below 1"}
    try:
        return described | _measure(case, device, n, warmup, peak)
    except torch.OutOfMemoryError:
        return described | {"skipped": "the device's memory is too small"}
    finally:
        torch.compiler.reset()  # else compiled graphs keep this case's weights
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _case(name: str) -> Case:
    if name not in CASES:
        near = get_close_matches(name, CASES, n=1)
        raise InputError(
            f"{name}: no such case; {f'did you mean {near[0]}?' if near else 'there are ' + ', '.join(CASES)}"
        )
    return CASES[name]


def _measure(case: Case, device: torch.device, n: int, warmup: int, peak: bool) -> dict[str, Any]:
    ceiling = measure_peak(device, _dtype(case)) if peak else None
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with _switches_restored():
        time_it = _time_decoding if case.decodes else _time_training
        timing, budget = time_it(case, device, n, warmup)
    peak_bytes = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return _summarise(case, timing, budget, peak_bytes, ceiling)


def _time_training(case: Case, device: torch.device, n: int, warmup: int) -> tuple[Timing, Budget]:
    updater, batches, fallbacks = prepare_training(case, device, warmup + n)
    clock = Clock(device)
    late: PendingResult | None = None
    for i in range(warmup + n):
        if i >= warmup:
            clock.mark()
        pending = updater.update(i + 1, [batches[i % len(batches)]], stop=False)
        if late is not None:
            late.read()
        late = pending
        if not updater.reads_late:
            late.read()
    clock.mark()
    last = late.read() if late else None
    facts: dict[str, Any] = {"compile": updater.compiled, "last_loss": last.loss if last and last.finite else None}
    if fallbacks:
        facts["compile_failed"] = fallbacks[0]
    return Timing(clock.intervals_ms(), facts), updater.model.budget(case.model["max_seq_len"])


def prepare_training(
    case: Case, device: torch.device, steps: int, compilation: Literal["auto", "on", "off"] = "auto"
) -> tuple[Updater, list[Tensor], list[str]]:
    """The updater of a training case, batches (B, T + 1) of random tokens on the device, and a list that will hold the
    reason if compilation is given up."""
    model = build_model(case, device)
    context = case.model["max_seq_len"]
    config = RunConfig(
        model=model.config,
        steps=steps,
        batch_tokens=case.batch * context,
        precision=case.precision,
        device=str(device),
        compile=compilation,
    )
    set_switches(config)
    fallbacks: list[str] = []
    updater = Updater(model, config, None, World(), device, fallbacks.append)
    generator = torch.Generator().manual_seed(1)
    shape = (case.batch, context + 1)
    batches = [torch.randint(case.model["vocab_size"], shape, generator=generator) for _ in range(_N_BATCHES)]
    return updater, [ids.to(device) for ids in batches], fallbacks


def _time_decoding(case: Case, device: torch.device, n: int, warmup: int) -> tuple[Timing, Budget]:
    """A generation's time from its first to its last token, over its steps; reading the prompt is reported apart."""
    model = build_model(case, device).eval()
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(case.model["vocab_size"], (case.batch, case.prompt), generator=generator).tolist()
    steps_ms, reading_ms = [], []
    n, warmup = min(n, _N_GENERATIONS), min(warmup, 2)  # each is some hundred steps already
    for i in range(warmup + n):
        synchronize(device)
        marks = [time.perf_counter()]
        for next_B in generate(model, prompts, case.new_tokens, Sampling(temperature=0)):
            if len(marks) == 1:
                next_B.tolist()
                marks.append(time.perf_counter())
        synchronize(device)
        if i >= warmup:
            reading_ms.append(1e3 * (marks[1] - marks[0]))
            steps_ms.append(1e3 * (time.perf_counter() - marks[1]) / (case.new_tokens - 1))
    facts = {"compile": False, "prompt_ms": statistics.median(reading_ms)}
    return Timing(steps_ms, facts), model.budget(case.prompt + case.new_tokens // 2)


def build_model(case: Case, device: torch.device) -> LanguageModel:
    torch.manual_seed(0)
    model = build(case.architecture, **case.model).to(device)
    set_compute_dtype(model, case.precision)
    return model


def _summarise(
    case: Case, timing: Timing, budget: Budget, peak_bytes: int | None, ceiling: Peak | None
) -> dict[str, Any]:
    ms = statistics.median(timing.steps_ms)
    tokens_per_s = 1e3 * case.tokens_per_step / ms
    flops_per_s = tokens_per_s * budget.flops_per_token * (1 if case.decodes else 3)
    shape = dict(case.model) | {"batch": case.batch}
    result = timing.facts | {
        "architecture": case.architecture,
        "dtype": case.precision,
        "shape": shape | ({"prompt": case.prompt, "new_tokens": case.new_tokens} if case.decodes else {}),
        "parameters": budget.parameters,
        "tokens_per_step": case.tokens_per_step,
        "tokens_per_s": tokens_per_s,
        "ms_per_step": ms,
        "ms_low": _percentile(timing.steps_ms, 0.1),
        "ms_high": _percentile(timing.steps_ms, 0.9),
        "n": len(timing.steps_ms),
        "peak_memory_gib": None if peak_bytes is None else peak_bytes / 2**30,
        "flops_per_s": flops_per_s,
    }
    if ceiling is None:
        return result
    result |= {
        "share_of_peak": flops_per_s / ceiling.flops_per_s,
        "measured_peak_tflops": ceiling.flops_per_s / 1e12,
        "measured_bandwidth_tb_s": ceiling.bytes_per_s / 1e12,
    }
    if case.decodes:
        result["share_of_bandwidth"] = 1e3 * _bytes_per_decoding_step(case, budget) / ms / ceiling.bytes_per_s
    return result


def _bytes_per_decoding_step(case: Case, budget: Budget) -> float:
    """The fewest bytes that one step can move: each weight and the filled part of each row's cache, once."""
    width = _dtype(case).itemsize
    tokens = case.batch * (case.prompt + case.new_tokens / 2)
    return width * budget.parameters + tokens * budget.cache_bytes_per_token * width / 2


def _percentile(values: list[float], share: float) -> float:
    """Linear between neighbours."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def _dtype(case: Case) -> torch.dtype:
    return torch.bfloat16 if case.precision == "bf16" else torch.float32


@contextmanager
def _switches_restored() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def table(results: Sequence[dict[str, Any]]) -> Table:
    """Results for a terminal, one row a case; what was skipped stands below with its reason."""
    from rich.markup import escape
    from rich.table import Table

    skipped = [f"{r['case']} skipped: {r['skipped']}" for r in results if "skipped" in r]
    shown = Table(caption=escape("\n".join(skipped)) or None, caption_justify="left")
    for heading in ("case", "dtype", "tokens/s", "ms a step", "10 – 90 %", "GiB", "TFLOP/s", "of peak"):
        shown.add_column(heading, no_wrap=True, justify="left" if heading in ("case", "dtype") else "right")
    for r in results:
        if "skipped" in r:
            continue
        memory, share = r["peak_memory_gib"], r.get("share_of_peak")
        shown.add_row(
            r["case"],
            r["dtype"] + (" compiled" if r["compile"] else ""),
            f"{r['tokens_per_s']:,.0f}",
            f"{r['ms_per_step']:.2f}",
            f"{r['ms_low']:.2f} – {r['ms_high']:.2f}",
            "" if memory is None else f"{memory:.1f}",
            f"{r['flops_per_s'] / 1e12:.3g}",
            "" if share is None else f"{share:.1%}",
        )
    return shown
