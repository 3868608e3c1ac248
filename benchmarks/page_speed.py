"""How long a person waits for a scan, and for the page over many runs, and the limits of both.

    python -m benchmarks.page_speed --write
    python -m benchmarks.page_speed --runs 20 --lines 1000 --rounds 3

The scan is of 256 tokens, the start among them, by the quickstart's model before training; limit 2 s. The page is
`homunculi serve` over runs with the quickstart's settings and metrics, written into a temporary folder (2.4 GB), in a
Chromium without a window. Each round has a server and a browser of its own, and files that the operating system was
told to forget: *first* is the first look at anything, *again* the second in the same browser. Then the same once more
while one of the runs is written, 20 lines a second; that run, with instruments beside its metrics, is the one opened.

Seconds are the browser's own, from the beginning of the navigation to the frame after the one that has every run in
the list (limit 1 s), or every line in the run's figures. `asked` and `answered` say when the browser asked for what is
drawn last and when it had all of it: before that the page loads, between them the server reads, afterwards it is drawn.
What server and browser do at their start does not count. On a machine that others use, all of it measures the others
too: the result has the processor's time beside the scan's and, after each look, `core_share`: what a loop got of the
one core that it could use. Exit code 1 if a median exceeds its limit.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from homunculi.cli.recipes import configured
from homunculi.errors import BAD_INPUT, DONE, FAILURE, HomunculiError, InputError, optional
from homunculi.experiments.peak import describe_device
from homunculi.experiments.scan import scan
from homunculi.files import write_atomic, write_json
from homunculi.instruments.observing import suitable
from homunculi.report.scan import render
from homunculi.runs.directory import METRICS, RunDirectory
from homunculi.runs.measures import Measurement, Stored, write_measurement
from homunculi.runs.scans import write_scan
from homunculi.text.batches import validation_windows
from homunculi.text.shards import prepare
from homunculi.text.tokenizers import Tokenizer
from homunculi.train.config import RunConfig, config_to_json
from homunculi.train.provenance import provenance
from homunculi.train.record import HEARTBEAT_SECONDS
from homunculi.train.session import build_model, with_vocabulary

RESULT = Path(__file__).parent / "results" / "page_speed.json"
RECIPE = "quickstart"
LIMITS = {"scan": 2.0, "list": 1.0}  # seconds; opening one of the long runs is measured beside
SCANNED = 256  # tokens, the start among them
SEEDS = 10  # of one experiment; runs of one seed have the same curves, which spares most of the writing
TOKENS_A_STEP = 2048
LINES_A_SECOND = 20  # of the run that is being written
MEASURED = 17  # steps at which the quickstart's instruments measure
FEWEST_LINES = 20  # so that the losses of evaluations make a line
LINES_DRAWN = 6  # two losses, bits per byte, gradient norm, learning rate, speed
SETTLES_S = 2.0  # what a browser does after its start is not waited for by the page
LONGEST_S = 120.0
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# What the quickstart logs beside what every run logs.
_SIGNALS = ("dopamine", "acetylcholine", "noradrenaline", "serotonin")
_INSIDE = (
    *("aux/forecast", "aux/homeostasis", "model/taking_pass_2", "model/taking_pass_3", "model/mean_depth"),
    *("model/refused", "model/forecast_mean", "model/forecast_target"),
    *(f"model/{name}_{of}" for name in _SIGNALS for of in ("mean", "std")),
    *("model/gain_temporal", "model/gain_prefrontal", "model/gain_neocortex", "model/busiest_expert_0"),
    *("plasticity/temporal", "plasticity/prefrontal", "plasticity/neocortex"),
)
# Tells when a condition holds in a frame that has been shown.
_WATCH = """const look = () => requestAnimationFrame((CONDITION) ? () => { window.drawnAt = performance.now() } : look);
requestAnimationFrame(look);"""
_ALL_LISTED = "document.querySelectorAll('.runs tbody tr a').length >= "
_ALL_DRAWN = f"document.querySelectorAll('#curves .scatterlayer .js-line[d^=M]').length >= {LINES_DRAWN}"
_ANSWERS = """() => performance.getEntriesByType("resource").filter((one) => one.name.includes("/api/"))
  .map((one) => [new URL(one.name).pathname, one.startTime, one.responseEnd])"""


def metric_lines(seed: int, first: int = 1) -> Iterator[dict[str, Any]]:
    """The lines of a run from its `first` on, without an end; a line every 10 steps."""
    draw = random.Random(1_000_003 * seed + first)
    for step in itertools.count(10 * first, 10):
        loss = 1.0 + 5.0 * math.exp(-step / 4000) + draw.gauss(0, 0.06)
        line = {"step": step, "tokens": step * TOKENS_A_STEP, "flops": step * 17_209_270_272, "train/loss": loss}
        line |= {"train/grad_norm": 0.3 + abs(draw.gauss(0, 0.1)), "lr": 0.01 / (1 + step / 20_000)}
        line |= {name: draw.gauss(1, 0.05) for name in _INSIDE}
        line |= {"perf/tokens_per_s": draw.gauss(7000, 200), "perf/data_wait_frac": abs(draw.gauss(0, 3e-4))}
        line["seconds"] = round(step * 0.29, 3)
        if step % 90 == 0:
            line |= {"val/loss": loss + 0.04, "val/bpb": (loss + 0.04) / 2.7, "val/tokens": 16_384}
        yield line


def plant(root: Path, runs: int, lines: int) -> list[Path]:
    """A project of `runs` finished runs with `lines` metric lines each; experiments of ten seeds each.

    Raises:
        InputError: there is too little room.
    """
    texts: list[str] = []
    facts = {"recipe": RECIPE, "architecture": "homunculi", "budget": {"parameters": 1_210_550}}
    facts |= {"data": {"spec": "stories", "data_hash": "0" * 64}, "provenance": provenance(torch.device("cpu"))}
    paths = []
    for i in range(runs):
        seed, path = i % SEEDS, root / f"{RECIPE}-{i:06x}"
        if seed == len(texts):
            texts.append("".join(map(_line, itertools.islice(metric_lines(seed), lines))))
            _check_room(root.parent, runs * len(texts[0]))
        words = [f"seed={seed}", f"data_seed={seed}", f"lr={0.01 / (1 + i // SEEDS)}", f"steps={10 * lines}"]
        path.mkdir(parents=True)
        run = RunDirectory(path)
        command = " ".join(["homunculi", "train", RECIPE, *words])
        run.write_info(facts | {"command": command, "config": config_to_json(configured(RECIPE, words)[0])})
        (path / METRICS).write_text(texts[seed], encoding="ascii")
        _end(run, 10 * lines)
        paths.append(path)
    add_measurements(RunDirectory(paths[0]), 10 * lines)
    return paths


def _line(values: dict[str, Any]) -> str:
    """As a run writes it, without a call of the operating system for each."""
    return json.dumps(values, allow_nan=False, separators=(",", ":")) + "\n"


def _end(run: RunDirectory, steps: int) -> None:
    run.log_event("started", step=0)
    for step in range(steps // 6, steps + 1, steps // 6):
        run.log_event("checkpoint", step=step, path=f"checkpoints/step-{step:08d}")
        run.log_sample({"step": step, "prompt": "One morning", "text": " the cat sat. " * 40, "temperature": 0.8})
    run.write_status(state="done", step=steps, steps=steps, tokens=steps * TOKENS_A_STEP)
    run.close()


def add_measurements(run: RunDirectory, steps: int) -> None:
    """What the quickstart's instruments leave in a run, in size: a heat-map and a number each."""
    config = configured(RECIPE, ["model.vocab_size=1024"])[0]
    grid = np.random.default_rng(0).normal(size=(12, 64)).astype(np.float32)
    axes = {"size": ("step", "place"), "mean": ()}
    for one in suitable(build_model(config, torch.device("cpu")), config.instruments.names):
        for place in range(MEASURED):
            at = steps * place // (MEASURED - 1)
            found = Measurement({"size": grid + place, "mean": np.array(float(place))}, axes)
            write_measurement(run.path, Stored(one.name, "heatmap", one.title, "", at, at * TOKENS_A_STEP, found))


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < 1.2 * needed:
        sizes = f"the runs take {needed / 1e9:.1f} GB and the temporary folder has {free / 1e9:.1f}"
        raise InputError(f"{sizes}: name another with TMPDIR, or ask for less with --runs and --lines")


def forget(root: Path) -> bool:
    """Ask the operating system to drop the files of the runs from memory; whether it can be asked."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for path in filter(Path.is_file, root.rglob("*")):
        with open(path, "rb") as file:
            os.fsync(file.fileno())  # what is not on disk yet is not dropped
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


class Writing:
    """A run that goes on for as long as this is entered: lines and heartbeats as training writes them.

    Attributes:
        n_lines: in the file by now.
    """

    def __init__(self, path: Path, n_lines: int) -> None:
        self.run, self.n_lines = RunDirectory(path), n_lines
        self._stop, self._thread = threading.Event(), threading.Thread()

    def __enter__(self) -> None:
        self._beat("running")
        self._stop.clear()
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._beat("done")
        self.run.close()

    def _write(self) -> None:
        beaten = time.monotonic()
        for line in metric_lines(0, self.n_lines + 1):
            if self._stop.wait(1 / LINES_A_SECOND):
                return
            self.run.log_metrics(line)
            self.n_lines += 1
            if time.monotonic() - beaten > HEARTBEAT_SECONDS:
                beaten = time.monotonic()
                self._beat("running")

    def _beat(self, state: str) -> None:
        self.run.write_status(state=state, step=10 * self.n_lines, steps=20 * self.n_lines)


def text_of(tokenizer: Tokenizer, ids: Sequence[int], n_tokens: int) -> str:
    """The shortest beginning of a text that has so many tokens; StopIteration where none has."""
    text = tokenizer.decode(list(ids))
    beginnings = (text[:end] for end in range(len(text) + 1))
    return next(one for one in beginnings if len(tokenizer.encode(one)) == n_tokens)


def scan_seconds(config: RunConfig, rounds: int, n_tokens: int = SCANNED) -> dict[str, Any]:
    """Seconds of scans by the clock and of the processor, and of the clock with both files written."""
    data = prepare(config.corpus, config.text)
    tokenizer = data.tokenizer
    model = build_model(with_vocabulary(config, tokenizer.vocab_size), torch.device("cpu"))
    text = text_of(tokenizer, next(validation_windows(data.val, 2 * n_tokens)).tolist(), n_tokens - 1)
    taken: dict[str, list[float]] = {name: [] for name in ("seconds", "processor_s", "with_files_s")}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds + 1):
            wall, processor = time.perf_counter(), time.process_time()
            found = scan(model, tokenizer, text)
            taken["seconds"].append(time.perf_counter() - wall)
            taken["processor_s"].append(time.process_time() - processor)
            write_scan(Path(folder) / "scan.json", found)
            write_atomic(Path(folder) / "scan.html", render(found))
            taken["with_files_s"].append(time.perf_counter() - wall)
    first = round(taken["seconds"][0], 3)
    return {"tokens": len(found.tokens), "first_s": first} | {name: spread(all_[1:]) for name, all_ in taken.items()}


def browser_path() -> str:
    """Chromium's path, once all that the page and the browser need is there.

    Raises:
        InputError: something is not.
    """
    for module, extra in (("starlette", "web"), ("uvicorn", "web"), ("playwright.sync_api", "dev")):
        optional(module, extra)
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        raise InputError("no chromium on the path: install one (apt-get install chromium)")
    return found


@contextlib.contextmanager
def serving(root: Path) -> Iterator[str]:
    """`homunculi serve` over a folder; its address, once it has answered a question that reads no run."""
    command = [sys.executable, "-m", "homunculi", "serve", "--port", "0", "--json", "--runs", str(root)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = str(json.loads(process.stdout.readline())["url"])
        with urllib.request.urlopen(address.partition("#")[0] + "api/page", timeout=LONGEST_S) as answer:
            answer.read()
        yield address
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


@contextlib.contextmanager
def browsing(playwright: Any, path: str, n_runs: int) -> Iterator[Any]:
    """A tab of a browser that has seen nothing. Its own start is over: with a window it loads hundreds of scripts."""
    browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
    try:
        tab = browser.new_page(viewport={"width": 1280, "height": 900})
        tab.add_init_script(_WATCH.replace("CONDITION", f"{_ALL_LISTED}{n_runs} || {_ALL_DRAWN}"))
        time.sleep(SETTLES_S)
        yield tab
    finally:
        browser.close()


def opened(tab: Any, address: str, answer: str) -> dict[str, float]:
    """Open an address anew: seconds until all of it was shown, and of the answer that was drawn last."""
    tab.goto("about:blank")
    tab.goto(address, wait_until="commit")
    tab.wait_for_function("() => window.drawnAt", timeout=1000 * LONGEST_S)
    drawn = float(tab.evaluate("window.drawnAt"))
    times = [(asked, answered) for name, asked, answered in tab.evaluate(_ANSWERS) if name == answer]
    asked, answered = max(one for one in times if one[1] <= drawn)  # the page may have asked again meanwhile
    return {"seconds": drawn / 1000, "asked_s": asked / 1000, "answered_s": answered / 1000}


def looks(tab: Any, address: str, key: str) -> Iterator[tuple[str, dict[str, float]]]:
    """The list, then a run, each twice."""
    run = f"{address.partition('#')[0]}#/run?run={key}"
    for name, where, answer in (("list", address, "/api/runs"), ("run", run, "/api/curves")):
        for turn in ("first", "again"):
            yield f"{name}, {turn}", opened(tab, where, answer)


def page_seconds(path: str, runs: int, lines: int, rounds: int) -> dict[str, Any]:
    """Plant the project, look at it, and say how long everything took."""
    taken: dict[str, dict[str, list[float]]] = {}
    started, starting = time.perf_counter(), optional("playwright.sync_api", "dev").sync_playwright()
    with tempfile.TemporaryDirectory() as folder, starting as playwright:
        root = Path(folder) / "runs"
        planted = plant(root, runs, lines)
        writing, size = Writing(planted[0], lines), (planted[-1] / METRICS).stat().st_size
        print(f"{runs} runs planted in {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
        situations: dict[str, Any] = {"": contextlib.nullcontext(), ", written to": writing}
        for _ in range(rounds):
            for words, situation in situations.items():
                forgotten = forget(root)
                with situation, serving(root) as address, browsing(playwright, path, runs) as tab:
                    for name, found in looks(tab, address, planted[0].name):
                        print(f"{name + words:24} {found['seconds']:.2f} s", file=sys.stderr, flush=True)
                        for part, value in (found | {"core_share": core_share()}).items():
                            taken.setdefault(name + words, {}).setdefault(part, []).append(value)
    return {
        "runs": runs,
        "lines": lines,
        "mb_a_run": round(size / 1e6, 1),
        "files_forgotten": forgotten,
        "lines_a_second_written": LINES_A_SECOND,
        "looks": {name: {part: spread(all_) for part, all_ in parts.items()} for name, parts in taken.items()},
    }


def core_share(seconds: float = 0.2) -> float:
    """Processor time over the clock's of a loop that never waits; 1 where nobody else computes."""
    wall, processor = time.perf_counter(), time.process_time()
    while time.perf_counter() - wall < seconds:
        pass
    return (time.process_time() - processor) / (time.perf_counter() - wall)


def spread(values: Sequence[float]) -> dict[str, Any]:
    rounds = [round(one, 4) for one in values]
    return {"median": round(median(rounds), 4), "low": min(rounds), "high": max(rounds), "rounds": rounds}


def judged(result: dict[str, Any]) -> list[tuple[str, dict[str, Any], float]]:
    """What has a limit: its words, its seconds, the limit."""
    scanned, looked = result["scan"], result["page"]["looks"]
    rows = [(name, one["seconds"], LIMITS["list"]) for name, one in looked.items() if name.startswith("list")]
    return [(f"scan of {scanned['tokens']} tokens", scanned["seconds"], LIMITS["scan"]), *rows]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200, help="of the project that the page shows")
    parser.add_argument("--lines", type=int, default=10_000, help="of metrics in each")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of the scan")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/page_speed.json")
    options = parser.parse_args()
    if min(options.runs, options.rounds, options.threads) < 1 or options.lines < FEWEST_LINES:
        print(f"page_speed: at least one run, round and thread, and {FEWEST_LINES} lines are needed", file=sys.stderr)
        return BAD_INPUT
    torch.set_num_threads(options.threads)
    try:
        path = browser_path()
        found = {"scan": scan_seconds(configured(RECIPE, [])[0], options.rounds)}
        found["page"] = page_seconds(path, options.runs, options.lines, options.rounds)
    except HomunculiError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    result = _about(options, path) | found
    rows = judged(result)
    result["within_limits"] = {words: seconds["median"] <= limit for words, seconds, limit in rows}
    for words, seconds, limit in rows:
        low_high = f"({seconds['low']:.2f} – {seconds['high']:.2f}, {options.rounds} rounds)"
        print(f"{words:24} {seconds['median']:.2f} s {low_high}, limit {limit:g} s")
    if options.write:
        write_json(RESULT, result)
    return DONE if all(result["within_limits"].values()) else FAILURE


def _about(options: argparse.Namespace, path: str) -> dict[str, Any]:
    """Command, machine and versions."""
    words = [f"--{name} {getattr(options, name)}" for name in ("runs", "lines", "rounds", "threads")]
    found = describe_device(torch.device("cpu"))
    browser = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout.split()
    found["versions"] |= {name: version(name) for name in ("starlette", "uvicorn", "playwright")}
    found["versions"]["chromium"] = next((word for word in browser if word[0].isdigit()), "")
    command, date = " ".join(["python -m benchmarks.page_speed", *words]), datetime.now(UTC).date().isoformat()
    return {"command": command, "date": date, **found, "processors": os.cpu_count(), "limits_s": LIMITS}


if __name__ == "__main__":
    sys.exit(main())
