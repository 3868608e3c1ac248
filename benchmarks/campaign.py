"""Train many recipes, each with several seeds, some at once on one device, and keep what is needed to judge them.

    python -m benchmarks.campaign gpt=library deep="homunculi:medium;model.n_shared=2" --out FILE.json -- steps=1720

A name's own overrides follow its recipe after semicolons; what follows the two dashes holds for all. A line is printed
as each run ends; the file holds curves, samples, statistics and the wall time of each.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from threading import Lock
from typing import Any

from homunculi.files import write_atomic
from homunculi.runs.directory import open_run

CURVE = ("step", "tokens", "train/loss", "val/loss", "val/bpb", "perf/tokens_per_s")


def run_one(name: str, words: list[str], seed: int, folder: Path, device: str) -> dict[str, Any]:
    """Train in a process of its own, which sees one device (empty: all); a run that fails says how."""
    run, started = folder / f"{name}-{seed}", time.monotonic()
    recipe, *own = words
    command = [sys.executable, "-m", "homunculi", "train", recipe, *own, f"seed={seed}", f"data_seed={seed}"]
    environment = os.environ | ({"CUDA_VISIBLE_DEVICES": device} if device else {})
    command += ["--run", str(run), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    found: dict[str, Any] = {"name": name, "recipe": words, "seed": seed, "seconds": time.monotonic() - started}
    if done.returncode:
        return found | {"failed": done.returncode, "said": done.stderr[-2000:]}
    kept = open_run(run)
    lines = kept.metrics()
    statistics = {key: value for key, value in lines[-1].items() if key.startswith(("model/", "aux/"))}
    speeds = sorted(line["perf/tokens_per_s"] for line in lines[1:] if "perf/tokens_per_s" in line)
    return found | {
        "result": json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{"))),
        "curve": [{key: line[key] for key in CURVE if key in line} for line in lines],
        "statistics": statistics,
        "median_tokens_per_s": speeds[len(speeds) // 2] if speeds else None,
        "budget": kept.info()["budget"],
        "samples": kept.samples()[-2:],
    }


def summary(found: dict[str, Any]) -> str:
    head = f"{found['name']:24} seed {found['seed']}  {found['seconds']:6.0f} s"
    if "failed" in found:
        return f"{head}  FAILED {found['failed']}: {found['said'][-400:]}"
    result, statistics = found["result"], found["statistics"]
    depth = statistics.get("model/mean_depth")
    told = f"  mean depth {depth:.2f}" if depth is not None else ""
    size = found["budget"]["non_embedding_parameters"] / 1e6
    speed = found["median_tokens_per_s"] or 0
    return f"{head}  {size:5.2f} M  {result['val_bpb']:.4f} bits/byte  {speed / 1e3:6.0f} k tokens/s{told}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sides", nargs="+", help="NAME=RECIPE[;key=value…]")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--at-once", type=int, default=3, help="runs on a device at the same time")
    parser.add_argument("--devices", default="", metavar="N,…", help="numbers of the GPUs to use; default: the first")
    parser.add_argument("--out", type=Path, required=True)
    known, common = (sys.argv[1:], []) if "--" not in sys.argv else _cut(sys.argv[1:])
    options = parser.parse_args(known)
    jobs = []
    for seed in range(options.seeds):
        for side in options.sides:
            name, _, words = side.partition("=")
            jobs.append((name, [*words.split(";"), *common], seed))
    results: list[dict[str, Any]] = []
    free: Queue[str] = Queue()
    lock = Lock()
    for device in options.devices.split(",") * options.at_once:
        free.put(device)

    def in_turn(job: tuple[str, list[str], int]) -> None:
        device = free.get()
        try:
            found = run_one(*job, Path(folder), device)
        finally:
            free.put(device)
        with lock:
            results.append(_told(found))
            write_atomic(options.out, json.dumps(results) + "\n")

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(free.qsize()) as pool:
        list(pool.map(in_turn, jobs))
    return 1 if any("failed" in found for found in results) else 0


def _told(found: dict[str, Any]) -> dict[str, Any]:
    print(summary(found), flush=True)
    return found


def _cut(words: list[str]) -> tuple[list[str], list[str]]:
    i = words.index("--")
    return words[:i], words[i + 1 :]


if __name__ == "__main__":
    sys.exit(main())
