"""What every state of a model says when it is read out directly: loss after each step, and whether the top word stays.

    python -m benchmarks.readings --steps 1000 --device cuda --write benchmarks/results/readings.json
    python -m benchmarks.readings vocabulary:shared_maps asked="vocabulary:shared_maps;model.step_loss=0.3" --seeds 2

Trains each side with several seeds, compiled on a GPU, and reads it with the plain model in float32, over held-out
text. The control is a plain transformer, whose states are no distributions over words: for it this is a logit lens.
Beside all stands the best reading without context, the frequencies of the very tokens that are predicted: no training
gives a better one. Prints JSON; the claim `vocab-readable` is judged by the file that is written.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from homunculi.cli.recipes import configured
from homunculi.cli.terminal import Quiet
from homunculi.core.model import LanguageModel
from homunculi.errors import Diverged, HomunculiError, InputError
from homunculi.experiments.peak import describe_device
from homunculi.experiments.readability import read_steps
from homunculi.files import write_atomic
from homunculi.runs.directory import claim
from homunculi.text.batches import validation_windows
from homunculi.text.shards import prepare
from homunculi.text.tokenizers import byte_lengths
from homunculi.train.config import RunConfig, config_to_json
from homunculi.train.loading import load
from homunculi.train.loop import train
from homunculi.train.precision import resolve_device

READABLE = ("vocabulary:shared_maps", "vocabulary:dense_memory", "vocabulary:low_rank")
CONTROL = "vocabulary:gpt"
AT_ONCE = 8192  # tokens: the states of all steps are held together


def side_of(word: str) -> tuple[str, str, list[str]]:
    """Name, recipe and own assignments of ``[NAME=]RECIPE[;key=value…]``."""
    head, *own = word.split(";")
    name, _, recipe = head.rpartition("=")
    return name or recipe.rpartition(":")[2], recipe, own


def batches(windows: Iterable[np.ndarray]) -> list[np.ndarray]:
    """Windows of one length together, (B, T) each."""
    found = []
    for length, group in groupby(windows, key=len):
        rows, most = list(group), max(1, AT_ONCE // length)
        found += [np.stack(rows[i : i + most]) for i in range(0, len(rows), most)] if length > 1 else []
    return found


def read(
    model: LanguageModel, rows: Sequence[np.ndarray], bytes_V: np.ndarray, separator: int | None
) -> dict[str, list[float]]:
    """Of the state at the start and after each step: nats a token, bits per byte, share of top words that are final."""
    sums_S2: np.ndarray | float = 0.0
    for ids_BT in rows:
        states = read_steps(model, torch.from_numpy(ids_BT), separator=separator)
        sums_S2 = sums_S2 + ids_BT[:, 1:].size * np.array([(one.loss, one.kept) for one in states])
    n_tokens, n_bytes = sum(ids[:, 1:].size for ids in rows), sum(int(bytes_V[ids[:, 1:]].sum()) for ids in rows)
    nats_S, kept_S = (np.asarray(sums_S2) / n_tokens).T
    bpb_S = nats_S * n_tokens / math.log(2) / n_bytes
    return {name: [round(float(x), 5) for x in of] for name, of in (("nats", nats_S), ("bpb", bpb_S), ("kept", kept_S))}


def without_context(rows: Sequence[np.ndarray], bytes_V: np.ndarray) -> dict[str, float]:
    """The loss of the frequencies of the tokens that are predicted."""
    said = np.concatenate([ids[:, 1:].ravel() for ids in rows])
    p = np.bincount(said) / len(said)
    nats = float(-(p[p > 0] * np.log(p[p > 0])).sum())
    return {"nats": round(nats, 5), "bpb": round(nats * len(said) / math.log(2) / int(bytes_V[said].sum()), 5)}


def plain(config: RunConfig) -> RunConfig:
    """The run without what only a person looks at, and without all evaluation that can be left out."""
    own = {
        "output": replace(config.output, prompts=()),
        "instruments": replace(config.instruments, watch="off"),
        "train": replace(config.train, eval_tokens=config.model.max_seq_len),
    }
    return replace(config, **own, eval_every=0, sample_every=0, checkpoint_every=0)


def held_out(config: RunConfig, n_tokens: int) -> tuple[list[np.ndarray], np.ndarray, int | None, dict[str, Any]]:
    """Batches of the held-out text, bytes of each token, the separator where documents are apart, facts of the text."""
    text = prepare(config.corpus, config.text)
    rows = batches(validation_windows(text.val, config.model.max_seq_len - 1, n_tokens or None))
    separator = text.tokenizer.eot_id if config.text.document_mask else None
    return rows, byte_lengths(text.tokenizer), separator, dict(text.facts)


def one_run(config: RunConfig, n_tokens: int) -> dict[str, Any]:
    """Train and read."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run = claim(Path(folder) / "run")
        run.write_info({"config": config_to_json(config)})
        try:
            train(config, run, Quiet())
        except Diverged as error:
            return {"seed": config.seed, "diverged": str(error)}
        model = load(run.path).to(resolve_device(config.device))
    rows, bytes_V, separator, _ = held_out(config, n_tokens)
    found = read(model, rows, bytes_V, separator)
    return {"seed": config.seed, **found, "seconds": round(time.perf_counter() - started, 1)}


def one_side(word: str, common: Sequence[str], seeds: int, n_tokens: int) -> tuple[dict[str, Any], RunConfig]:
    """All runs of a side, and the configuration of its last one."""
    torch.compiler.reset()  # else the code compiled for the sides before counts against the limit of this one
    name, recipe, own = side_of(word)
    side: dict[str, Any] = {"name": name, "recipe": recipe, "own": own, "runs": []}
    for seed in range(seeds):
        words = [*common, *own, f"seed={seed}", f"data_seed={seed}"]
        config = plain(configured(recipe, words)[0])
        run = one_run(config, n_tokens)
        side["runs"].append(run)
        print(f"{name} seed {seed}: {run.get('bpb', run.get('diverged'))}", file=sys.stderr, flush=True)
    return side, config


def measure(sides: Sequence[str], control: str, common: Sequence[str], seeds: int, n_tokens: int) -> dict[str, Any]:
    """All sides, the control last, and the reading without context.

    Raises:
        InputError: a recipe, an assignment or the text cannot be used, or two sides have one name.
    """
    words = [*sides, control]
    names = [side_of(word)[0] for word in words]
    if len(set(names)) < len(names) or seeds < 1:
        raise InputError(f"readings: {', '.join(names)} need names of their own, NAME=RECIPE, and at least one seed")
    found = [one_side(word, common, seeds, n_tokens) for word in words]
    config = found[0][1]
    rows, bytes_V, _, facts = held_out(config, n_tokens)
    return {
        "control": names[-1],
        "settings": list(common),
        "steps": config.steps,
        "batch_tokens": config.batch_tokens,
        "data_hash": facts["data_hash"],
        "tokens_predicted": sum(ids[:, 1:].size for ids in rows),
        "without_context": without_context(rows, bytes_V),
        "sides": [side for side, _ in found],
    } | describe_device(resolve_device(config.device))


def spread(found: dict[str, Any]) -> str:
    """JSON with a line for each run."""
    runs = [json.dumps(run) for side in found["sides"] for run in side["runs"]]
    marked = [side | {"runs": [f"run {i}" for i in range(len(side["runs"]))]} for side in found["sides"]]
    text = json.dumps(found | {"sides": marked}, indent=1)
    lines = iter(runs)
    return re.sub(r'"run \d+"', lambda _: next(lines), text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sides", nargs="*", default=list(READABLE), metavar="[NAME=]RECIPE[;key=value…]")
    parser.add_argument("--control", default=CONTROL, metavar="[NAME=]RECIPE[;key=value…]")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--corpus")
    parser.add_argument("--val-corpus")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--set", action="append", default=[], metavar="key=value", help="for all sides")
    parser.add_argument("--tokens", type=int, default=65_536, help="of held-out text that are read; 0: all")
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    named = {"corpus": given.corpus, "text.val_corpus": given.val_corpus, "steps": given.steps, "device": given.device}
    common = [*(f"{key}={value}" for key, value in named.items() if value is not None), *given.set]
    try:
        found = measure(given.sides, given.control, common, given.seeds, given.tokens)
    except HomunculiError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    # a corpus may be a folder of this machine, and the file is kept with the code: its hash says which text it was
    found["settings"] = [word for word in common if "/" not in word and not word.startswith("device=")]
    command = ["python", "-m", "benchmarks.readings", *given.sides, "--control", given.control]
    command += ["--seeds", str(given.seeds), "--tokens", str(given.tokens)]
    command += [part for word in found["settings"] for part in ("--set", word)]
    text = spread({"command": shlex.join(command)} | found)
    print(text)
    if given.write is not None:
        write_atomic(given.write, text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
