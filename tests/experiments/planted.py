"""Stored results of claims that nobody ran, with effects planted in them."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from homunculi.experiments.claims.evidence import Evidence, Part

Json = dict[str, Any]
STEPS, BATCH, CONTEXT = 100, 1000, 64
CURVE = (1.5, 1.2, 1.0)  # times the end


def side(name: str, **changes: Any) -> Json:
    """A certified side of a million parameters; `changes` replace what it holds."""
    config = {"steps": STEPS, "batch_tokens": BATCH, "model": {"architecture": "toy", "max_seq_len": CONTEXT}}
    budget = {"parameters": 1_100_000, "embedding_parameters": 100_000, "non_embedding_parameters": 1_000_000}
    certificate = {"causal": True, "causal_in_training": True, "failed": []}
    whole: Json = {"name": name, "recipe": f"{name}:small", "assignments": [], "changes": {}, "seed_offset": 0}
    whole |= {"config": config, "budget": budget | {"flops_per_token": 10}, "lr": 0.01, "certificate": certificate}
    return whole | {"ratios": {"parameters": 1.0, "flops": 1.0, "tokens": 1.0}} | changes


def run(name: str, seed: int, end: float, **changes: Any) -> Json:
    """A finished run that ends at that many bits per byte."""
    tokens = [STEPS * BATCH * share // len(CURVE) for share in range(1, len(CURVE) + 1)]
    losses = [end * height for height in CURVE]
    whole: Json = {"side": name, "seed": seed, "tokens": tokens, "val_loss": losses, "val_bpb": losses}
    whole |= {"stream": f"batches {seed}", "data_hash": "text", "tokens_per_s": 1000.0, "seconds": 9.0}
    return whole | {"statistics": {}} | changes


def part(ends: Mapping[str, Sequence[float]], match: Sequence[str] = ("parameters", "tokens"), **changes: Any) -> Json:
    """A comparison whose runs end at the given bits per byte, seed by seed; the first side is the baseline."""
    runs = [run(name, seed, end) for name, values in ends.items() for seed, end in enumerate(values)]
    whole: Json = {"match": list(match), "metric": "val/bpb", "data": {"spec": "toys", "data_hash": "text"}}
    whole |= {"factors": [0.5, 1.0, 2.0], "sides": [side(name) for name in ends], "runs": runs}
    return whole | {"failed": [], "refused": [], "tuning": [], "baselines": []} | changes


def stored(claim_id: str, parts: Mapping[str, Json], size: str = "small", **changes: Any) -> Json:
    """A stored result of one call."""
    whole: Json = {"format": 1, "id": claim_id, "size": size, "common": [], "parts": dict(parts), "measured": {}}
    return whole | {"provenance": [{"device": "cpu: toy", "date": "", "command": "", "runs": []}]} | changes


def evidence(ends: Mapping[str, Sequence[float]], size: str = "small", **changes: Any) -> Evidence:
    """What a rule sees of one comparison."""
    return Evidence({"main": Part(part(ends, **changes))}, {}, size)


def around(mean: float, n: int = 5, spread: float = 0.002, seed: int = 0) -> list[float]:
    """Ends of n runs; the same for the same seed, so that two sides differ by little more than their means."""
    chance = random.Random(f"{seed}")
    return [mean + chance.gauss(0, 0.02) + random.Random(f"{mean} {i}").gauss(0, spread) for i in range(n)]


def skill(name: str, task: str, scores: Sequence[float]) -> Json:
    """A score of a battery of skills, seed by seed; what else its row has says nothing of them."""
    whole: Json = {"architecture": name, "task": task, "score": 0.5, "low": 0.4, "high": 0.6, "n": 9}
    return whole | {"chance": 0.0, "ceiling": 1.0, "seeds": {str(seed): score for seed, score in enumerate(scores)}}


def depth(name: str, task: str, needed: Sequence[int], forced: Mapping[int, float], **changes: Any) -> Json:
    """A row of depths of a battery of skills: 5 seeds, half of the answers right at the model's own depths."""
    by_needed = [0.5] * len(needed)
    rows = [{"passes": n, "accuracy": accuracy, "by_needed": by_needed} for n, accuracy in forced.items()]
    whole: Json = {"architecture": name, "task": task, "value": 4, "n": 5, "needed": list(needed)}
    whole |= {"own": {"accuracy": 0.5, "by_needed": by_needed}, "forced": rows}
    chosen: Json = {"mean": 1.5, "by_needed": by_needed, "deepest": 3, "rho": 0.25, "low": 0.125, "high": 0.375, "n": 5}
    return whole | {"chosen": chosen} | changes


def put_record(results: Path, name: str, record: Any) -> Path:
    """A record beside the folder of stored results; text is written as it is."""
    path = results.parent / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(record if isinstance(record, str) else json.dumps(record), encoding="utf-8")
    return path
