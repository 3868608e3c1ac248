"""What the regions of a trained flagship do on held-out text.

    python -m benchmarks.regions RUN --tokens 16384

Prints JSON: rank correlation of salience and of the amygdala's forecast with a token's own loss and with what later
passes removed of it; depth against loss; how much the chosen expert says about the token (mutual information, and
with tokens shuffled); load of the experts; loss with each region silenced. Intervals are bootstraps over sequences.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from homunculi.core.taps import NO_TAPS, Recording
from homunculi.runs.directory import open_run
from homunculi.text.batches import validation_windows
from homunculi.text.shards import prepare
from homunculi.train.config import config_from_json
from homunculi.train.loading import load

SILENCED: dict[str, dict[str, Callable[[Tensor, str], Tensor]]] = {
    "memory": {"steps.*.memory.out": lambda t, name: torch.zeros_like(t)},
    "salience at one half": {"*amygdala.salience": lambda t, name: torch.full_like(t, 0.5)},
    "plan": {"steps.*.prefrontal.plan": lambda t, name: torch.zeros_like(t)},
    "inhibition open": {"steps.*.prefrontal.open_*": lambda t, name: torch.ones_like(t)},
    "no wish to halt": {"steps.*.prefrontal.halt": lambda t, name: torch.zeros_like(t)},
    "experts": {"steps.*.experts.out": lambda t, name: torch.zeros_like(t)},
    "packet at one": {"steps.*.packet.*": lambda t, name: torch.ones_like(t)},
    "no later pass": {"steps.*.router.taking": lambda t, name: torch.zeros_like(t)},
}


def ranks(x: np.ndarray) -> np.ndarray:
    return np.argsort(np.argsort(x, kind="stable"), kind="stable").astype(float)


def correlation(a: Tensor, b: Tensor) -> dict[str, float]:
    """Spearman's, over tokens, with a 95 % bootstrap interval over sequences."""
    a_ST, b_ST = a.double().numpy(), b.double().numpy()
    draw = np.random.default_rng(0)

    def spearman(rows: np.ndarray) -> float:
        return float(np.corrcoef(ranks(a_ST[rows].ravel()), ranks(b_ST[rows].ravel()))[0, 1])

    drawn = [spearman(draw.integers(len(a_ST), size=len(a_ST))) for _ in range(200)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"rho": spearman(np.arange(len(a_ST))), "low": float(low), "high": float(high), "sequences": len(a_ST)}


def mutual_information(expert: np.ndarray, token: np.ndarray) -> float:
    """I(expert; token) in nats from counts; biased upwards, so compare with shuffled tokens."""
    joint = np.zeros((expert.max() + 1, token.max() + 1))
    np.add.at(joint, (expert, token), 1)
    joint /= joint.sum()
    outer = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    seen = joint > 0
    return float((joint[seen] * np.log(joint[seen] / outer[seen])).sum())


def losses(model: Any, ids_ST: Tensor, taps: Recording | None = None) -> Tensor:
    logits = model(ids_ST[:, :-1], taps).logits if taps is not None else model(ids_ST[:, :-1]).logits
    return F.cross_entropy(logits.transpose(1, 2), ids_ST[:, 1:], reduction="none")


@torch.no_grad()
def look(model: Any, ids_ST: Tensor) -> dict[str, Any]:
    seen = Recording("*")
    loss_ST = losses(model, ids_ST, seen)
    first, *later = model.first_steps
    shallow_ST = losses(model, ids_ST, Recording(others=SILENCED["no later pass"]))
    salience, forecast = (seen[f"steps.{first}.amygdala.{name}"][..., 0] for name in ("salience", "forecast"))
    depth_ST = 1.0 + sum(seen[f"steps.{i}.router.taking"].double() for i in later)
    chosen = model.neocortex[0].experts.choose(seen[f"steps.{first}.experts.logits"], NO_TAPS)
    expert = chosen.indices_BCA[..., 0].flatten().numpy()
    token = ids_ST[:, :-1].flatten().numpy()
    load = np.bincount(expert, minlength=model.config.n_experts) / len(expert)
    whole = float(loss_ST.mean())
    return {
        "loss": whole,
        "salience_with_loss": correlation(salience, loss_ST),
        "forecast_with_loss": correlation(forecast, loss_ST),
        "forecast_with_what_later_passes_removed": correlation(forecast, shallow_ST - loss_ST),
        "depth_with_loss": correlation(depth_ST, loss_ST),
        "mean_depth": float(depth_ST.mean()),
        "expert_token_information_nats": mutual_information(expert, token),
        "expert_token_information_shuffled": mutual_information(expert, np.random.default_rng(0).permutation(token)),
        "most_possible_nats": math.log(model.config.n_experts),
        "expert_load": [round(float(share), 4) for share in load],
        "loss_added_by_silencing": {
            name: float(losses(model, ids_ST, Recording(others=hooks)).mean()) - whole
            for name, hooks in SILENCED.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    config = config_from_json(open_run(options.run).info()["config"])
    text = prepare(config.corpus, config.text)
    length = config.model.max_seq_len
    windows = [w for w in validation_windows(text.val, length, options.tokens) if len(w) == length + 1]
    found = look(load(options.run), torch.from_numpy(np.stack(windows)))
    print(json.dumps(found, indent=1))
    if options.write is not None:
        options.write.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
