"""`homunculi sample`: text from a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def add_to(app: typer.Typer) -> None:
    app.command("sample", help="Let a trained model write.")(sample)


def sample(
    run: Annotated[Path, typer.Argument(help="The run's folder.")],
    prompt: Annotated[str, typer.Option(help="The text to continue; empty: a new text.")] = "",
    tokens: Annotated[int, typer.Option(min=1, help="How many tokens at most.")] = 200,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.8,
    top_k: Annotated[int, typer.Option(help="Draw from that many likeliest tokens; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest that reach this probability.")] = 1.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same text.")] = 0,
    carry: Annotated[bool, typer.Option("--carry", help="Keep a running memory beyond the longest sequence.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    from homunculi.cli.terminal import print_result
    from homunculi.evals.generation import Sampling, continue_text
    from homunculi.text.tokenizers import load_tokenizer
    from homunculi.train.loading import load

    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, carry=carry)
    model = load(run)
    continuation = continue_text(model, load_tokenizer(run), prompt, tokens, sampling)
    if as_json:
        found = {"text": prompt + continuation, "prompt": prompt, "continuation": continuation, "seed": seed}
        print_result(json.dumps(found))
    else:
        print_result(prompt + continuation)
