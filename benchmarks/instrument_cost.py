"""What instruments cost a run: time of the processor and of the clock, with and without them, by turns.

    python -m benchmarks.instrument_cost quickstart steps=60
    python -m benchmarks.instrument_cost gpt:small steps=2000 device=cuda --rounds 2
    python -m benchmarks.instrument_cost gpt:small steps=2000 output.log_every=20 device=cuda --rounds 0

Prints JSON, medians over rounds. `share` is the processor time of the worker, and the time in which training waited or
copied, over the processor time of a run without: what a CPU loses. `clock_share` is how much longer the run took by the
clock, which on a machine that others use measures the others; on a GPU it is the one that counts. `training_share` and
`worker_share` are the clock's seconds in the training thread and in the worker over those of updates. `each` has the
milliseconds of each instrument alone on the untrained model, and of the forward pass that they share.

With --rounds 0 there is one run, with instruments, and no other beside it: `lost_s` are the seconds of training that a
measurement took after step 100, the stretch between two log lines that holds one less the median of those that hold
none; `begins_s` what the updates up to step 100 took beyond as many plain ones, by the clock of updates (compiling is
no part of it), waiting for the first measurements included.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from homunculi.cli.recipes import configured
from homunculi.cli.terminal import Quiet
from homunculi.instruments.observing import measure, observe, suitable
from homunculi.runs.directory import claim
from homunculi.text.shards import prepare
from homunculi.train.config import RunConfig, config_to_json
from homunculi.train.loop import finished_summary, train
from homunculi.train.precision import resolve_device
from homunculi.train.session import build_model, with_vocabulary
from homunculi.train.watch_plan import is_watched, probe_of

SETTLED = 100  # compiled, and the first measurements done


def run_once(config: RunConfig, watch: Any, folder: Path) -> dict[str, Any]:
    """Train; seconds of the processor and of the clock, and what the run says of itself."""
    config = replace(config, instruments=replace(config.instruments, watch=watch))
    run = claim(folder)
    run.write_info({"config": config_to_json(config)})
    clock, processor = time.perf_counter(), time.process_time()
    train(config, run, Quiet())
    spent: dict[str, Any] = {"processor": time.process_time() - processor, "clock": time.perf_counter() - clock}
    summary = finished_summary(config, run)
    counted = {key: summary[key] or 0.0 for key in ("seconds", "instruments_s", "instruments_worker_s")}
    told = [event["processor_s"] for event in run.events() if event["kind"] == "instruments"]
    lines = [(line["step"], line["seconds"], line.get("perf/instruments_s", 0.0)) for line in run.metrics()]
    return spent | counted | {"worker_processor_s": told[-1] if told else 0.0, "lines": lines}


def within(config: RunConfig, lines: list[tuple[int, float, float]]) -> dict[str, Any]:
    """What measurements take from training, by the lines of one run."""
    stretches: dict[bool, list[float]] = {True: [], False: []}
    n = config.output.log_every
    for (before, began, _), (step, ended, _) in itertools.pairwise(lines):
        if before >= SETTLED and step - before == n:
            stretches[any(is_watched(config, one) for one in range(before, step))].append((ended - began) / n)
    plain = median(stretches[False])
    lost = [(one - plain) * n for one in stretches[True]]
    began = max((step, seconds - plain * step) for step, seconds, _ in lines if step <= SETTLED)[1]
    return {
        "ms_per_step": round(1000 * plain, 3),
        "lost_s": [round(one, 4) for one in lost],
        "begins_s": round(began, 4),
        "share": round((began + sum(lost) / len(lost) * measurements(config, SETTLED)) / lines[-1][1], 4),
    }


def measurements(config: RunConfig, after: int = -1) -> int:
    """How many there are in a run, after a step."""
    return sum(is_watched(config, step) for step in range(after + 1, config.steps + 1))


def each(config: RunConfig) -> dict[str, float]:
    """Milliseconds of each instrument that reads a forward pass; the second of two calls counts."""
    text = prepare(config.corpus, config.text)
    device = resolve_device(config.device)
    model = build_model(with_vocabulary(config, text.tokenizer.vocab_size), device)
    ids_BT = probe_of(text, config.model.max_seq_len, config.instruments.probe_tokens).to(device)
    first = {name: p.detach().cpu() for name, p in model.named_parameters()}
    found = [one for one in suitable(model, config.instruments.names) if one.reads == "forward"]
    patterns = [pattern for one in found for pattern in one.taps]
    took: dict[str, float] = {}

    def timed(name: str, work: Any) -> Any:
        for _ in range(2):
            started = time.perf_counter()
            result = work()
            if device.type == "cuda":
                torch.cuda.synchronize()
            took[name] = round(1000 * (time.perf_counter() - started), 2)
        return result

    with torch.no_grad():
        seen = timed("forward pass", lambda: observe(model, ids_BT, patterns, first=first))
        for one in found:
            timed(one.name, lambda one=one: measure([one], seen))
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("assignments", nargs="*")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    config, _ = configured(options.recipe, options.assignments)
    pairs: list[tuple[dict[str, Any], dict[str, Any]]] = []
    with tempfile.TemporaryDirectory() as folder:
        run_once(replace(config, steps=2), "off", Path(folder) / "warm")
        for i in range(options.rounds):
            without = run_once(config, "off", Path(folder) / f"without-{i}")
            pairs.append((run_once(config, "on", Path(folder) / f"with-{i}"), without))
        alone = run_once(config, "on", Path(folder) / "alone") if not pairs else {}
    about = {
        "measurements": measurements(config),
        "each": each(config),
        "recipe": " ".join([options.recipe, *options.assignments]),
        "device": str(resolve_device(config.device)),
        "threads": torch.get_num_threads(),
    }
    found = compared(pairs) if pairs else within(config, alone["lines"]) | {"run": alone}
    print(json.dumps(found | about, indent=1))
    if options.write is not None:
        options.write.write_text(json.dumps(found | about, indent=1) + "\n")


def compared(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    """Shares of runs with instruments over those without."""
    lost = [(on["worker_processor_s"] + on["instruments_s"]) / off["processor"] for on, off in pairs]
    later = [on["clock"] / off["clock"] - 1 for on, off in pairs]
    found: dict[str, Any] = {"share": round(median(lost), 4), "clock_share": round(median(later), 4)}
    found["training_share"] = round(median(on["instruments_s"] / on["seconds"] for on, _ in pairs), 4)
    found["worker_share"] = round(median(on["instruments_worker_s"] / on["seconds"] for on, _ in pairs), 4)
    return found | {"rounds": [{"with": on, "without": off} for on, off in pairs]}


if __name__ == "__main__":
    main()
