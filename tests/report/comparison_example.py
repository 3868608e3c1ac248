"""A finished comparison as comparison.json holds it, made from seeded noise; no fixture, no test."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np

# Half width of a 95 % t interval in standard errors, by the number of pairs.
T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
SIDES = {"gpt": 0.0, "recursive": -0.024, "mor": 0.003, "homunculi": 0.041}
STORY = "Once upon a time there was a little owl who could not sleep. She asked the moon why the night was so long. "


def example(sides: dict[str, float] | None = None, n_seeds: int = 5, n_points: int = 24) -> dict[str, Any]:
    """A finished comparison: sides that differ by so many bits per byte from the first at the end of training."""
    rng = np.random.default_rng(7)
    effects = sides or SIDES
    runs = [run_of(name, effect, seed, n_points) for name, effect in effects.items() for seed in range(n_seeds)]
    tuning = [
        {"side": name, "lr": lr, "val_bpb": 2.1 + effect + 0.05 * abs(np.log(lr / 0.008)), "tokens": 2_000_000}
        for name, effect in effects.items()
        for lr in (0.002, 0.004, 0.008, 0.016)
    ]
    return {
        "format": 1,
        "created": "2026-03-04T05:06:07Z",
        "provenance": {"git_commit": "3f2a9c1d", "git_dirty": False, "versions": {"torch": "2.13.0"}, "device": "cpu"},
        "match": ["parameters", "tokens"],
        "seeds": list(range(n_seeds)),
        "metric": "val/bpb",
        "sides": [side_of(name, place, rng) for place, name in enumerate(effects)],
        "tuning": tuning,
        "runs": runs,
        "baselines": [
            {"name": "unigram cache", "val_loss": 5.9, "val_bpb": 4.31},
            {"name": "bigram", "val_loss": 4.4, "val_bpb": 2.62},
            {"name": "kneser-ney 3", "val_loss": 3.9, "val_bpb": 2.25},
        ],
        "pairs": [pair_of(a, b, runs) for a, b in combinations(effects, 2)],
        "refused": [],
    }


def side_of(name: str, place: int, rng: np.random.Generator) -> dict[str, Any]:
    parameters = 1_600_000 + int(rng.integers(0, 9000))
    return {
        "name": name,
        "recipe": f"homunculi_recipes.{name}:{name}",
        "assignments": ["steps=2400", "batch_tokens=4096"],
        "changes": {"model.d_mlp": 520 + 8 * place} if place else {},
        "config": {"architecture": name, "steps": 2400, "model": {"n_blocks": 6 - place, "d_model": 160}},
        "budget": {
            "parameters": parameters + 655_360,
            "embedding_parameters": 655_360,
            "non_embedding_parameters": parameters,
            "executed_parameters": parameters * (1 + place),
            "flops_per_token": 2 * parameters * (1 + place),
            "cache_bytes_per_token": 7680 * (1 + place),
        },
        "ratios": {"parameters": parameters / 1_604_000, "flops": 1.0 + place},
        "lr": 0.016 if name == "mor" else 0.008,
        "certificate": {
            "causal": True,
            "causal_in_training": True,
            "checks": [
                {"name": "token edits", "passed": True, "value": 0.0, "limit": 1e-5},
                {"name": "cached decoding", "passed": True, "value": 3.1e-6, "limit": 1e-4},
            ],
        },
    }


def run_of(name: str, effect: float, seed: int, n_points: int) -> dict[str, Any]:
    rng = np.random.default_rng([seed, *name.encode()])
    tokens = np.linspace(0, 9_830_400, n_points + 1)
    shared = np.random.default_rng(seed).normal(0, 0.012)
    share = tokens / tokens[-1]
    bpb = 1.86 + 6.1 * np.exp(-28 * share) + 0.9 * np.exp(-4.5 * share) + (shared + effect) * np.minimum(1, 4 * share)
    bpb = bpb + rng.normal(0, 0.006, len(tokens)) * np.minimum(1, 4 * share)
    return {
        "side": name,
        "seed": seed,
        "run": f"runs/{name}-s{seed}",
        "tokens": [int(x) for x in tokens],
        "val_loss": [float(x) for x in bpb * 1.35],
        "val_bpb": [float(x) for x in bpb],
        "stream": f"{seed:02x}9d0b8f2c66a1feedbeef",
        "tokens_per_s": 31_000.0 - 900 * seed,
        "parameters": 1_604_000,
        "seconds": 320.0,
        "sample": STORY * (1 + seed % 2) + f"The end, said {name}.",
    }


def interval(values: np.ndarray) -> dict[str, float]:
    middle, n = float(values.mean()), len(values)
    half = T95.get(n, 2.0) * float(values.std(ddof=1)) / n**0.5 if n > 1 else 0.0
    return {"difference": middle, "low": middle - half, "high": middle + half}


def pair_of(a: str, b: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    of = {name: np.array([run["val_bpb"] for run in runs if run["side"] == name]) for name in (a, b)}
    apart = of[b] - of[a]
    end = interval(apart[:, -1])
    verdict = "better" if end["high"] < 0 else "worse" if end["low"] > 0 else "no difference shown"
    tokens = runs[0]["tokens"]
    p = 0.0004 if verdict != "no difference shown" else 0.31
    return {
        "a": a,
        "b": b,
        "metric": "val/bpb",
        **end,
        "n": len(apart),
        "p": p,
        "adjusted_p": min(1.0, 6 * p),
        "verdict": verdict,
        "differences": apart[:, -1].tolist(),
        "points": [{"tokens": x, **interval(apart[:, i])} for i, x in enumerate(tokens)],
        "area": {**interval(apart.mean(axis=1)), "verdict": verdict},
        "tokens_to_reach": {"loss": 2.6, "a": 6_100_000, "b": 5_200_000 if end["difference"] < 0 else None},
    }
