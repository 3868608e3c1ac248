"""What count models reach on the tokens that a run reads, over the windows that it is validated on.

    python -m benchmarks.ngram_baselines library steps=1720 --write

A recipe and its overrides say which text, how many updates and which order of batches; the count models learn from
those very windows, each once. Prints a table; --write keeps it in benchmarks/results/ngrams.json.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import sys
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from homunculi import __version__
from homunculi.cli.recipes import configured
from homunculi.errors import InputError
from homunculi.evals.ngrams import baselines, distinct_rows
from homunculi.files import write_json
from homunculi.text.batches import Batches, validation_windows
from homunculi.text.shards import prepare
from homunculi.text.tokenizers import byte_lengths

RESULTS = Path(__file__).parent / "results"


def measure(recipe: str, assignments: Sequence[str]) -> dict[str, Any]:
    """JSON values: what was read, what was predicted, and each model's loss.

    Raises:
        InputError: the recipe, an override or the text cannot be used.
    """
    started = time.monotonic()
    config, _ = configured(recipe, assignments)
    text = prepare(config.corpus, config.text)
    seq_len = config.model.max_seq_len
    n_sequences = max(1, config.batch_tokens // seq_len)
    batches = Batches(text, seq_len=seq_len, n_sequences=n_sequences, seed=config.data_seed)
    rows = distinct_rows(batches, config.steps)
    windows = list(validation_windows(text.val, seq_len, config.train.eval_tokens or None))
    found = baselines(text, windows, byte_lengths(text.tokenizer), rows=rows)
    return {
        "recipe": recipe,
        "overrides": list(assignments),
        "data_hash": text.facts["data_hash"],
        "vocab_size": text.tokenizer.vocab_size,
        "steps": config.steps,
        "tokens_read": config.steps * n_sequences * seq_len,
        "tokens_counted": int(rows[:, 1:].size),
        "tokens_predicted": sum(len(window) - 1 for window in windows),
        "baselines": found,
        "seconds": round(time.monotonic() - started, 1),
        "peak_memory_gib": round(_peak_bytes() / 2**30, 2),
    }


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("assignments", nargs="*", metavar="key=value")
    parser.add_argument("--write", action="store_true", help="keep the result in benchmarks/results")
    options = parser.parse_args()
    try:
        found = measure(options.recipe, options.assignments)
    except InputError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    for line in found["baselines"]:
        print(f"{line['name']:16} {line['val_loss']:.4f} nats a token  {line['val_bpb']:.4f} bits/byte")
    print(f"{found['tokens_counted']:,} tokens counted, {found['seconds']} s, {found['peak_memory_gib']} GiB")
    if options.write:
        words = " ".join(["python -m benchmarks.ngram_baselines", options.recipe, *options.assignments, "--write"])
        versions = {"homunculi": __version__, "numpy": np.__version__, "python": platform.python_version()}
        device = f"one process on {os.cpu_count()} CPU cores ({platform.machine()}), shared with other work"
        head = {"command": words, "date": date.today().isoformat(), "device": device, "versions": versions}
        write_json(RESULTS / "ngrams.json", head | found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
