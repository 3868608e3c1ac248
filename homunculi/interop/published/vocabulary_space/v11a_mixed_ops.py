"""v11a: a moving sum, two memories with shared maps, a gate on the stream, an MLP."""

from __future__ import annotations

from homunculi.core.model import LanguageModel
from homunculi.interop.published.reading import Given, Weights
from homunculi.interop.published.vocabulary_space import causality, names
from homunculi.models.vocabulary.mixed_ops import Config, MixedOps

__all__ = ["build", "causality"]
STEP = {
    "average.decay_logit_V": "long_ema.decay_logits",
    "average.scale": "long_ema.scale",
    "long.decay_logit": "long_decay",
    "long.scale": "long_scale",
    "short.decay_logit": "short_decay",
    "short.scale": "short_scale",
    "gate_down.weight": "gate.down.weight",
    "gate_up.weight": "gate.up.weight",
    "gate_up.bias": "gate.up.bias",
    "down.weight": "transform.down.weight",
    "bias_M": "transform.bias",
    "up.weight": "transform.up.weight",
    "mlp_scale": "transform.scale",
}


def build(given: Given, weights: Weights) -> LanguageModel:
    config = Config(
        vocab_size=given.get("vocab_size", int),
        n_steps=given.get("num_steps", int, 8),
        d_memory=given.get("state_dim", int, 64),
        d_mlp=given.get("inner_dim", int, 128),
        d_gate=given.get("gate_dim", int, 64),
        softcap=given.get("logit_softcap", float, 30.0),
        first_scale=1.0,
    )
    model = MixedOps(config)
    found = names(model, STEP)
    for name in "qkvo":
        theirs = f"memory.{name}.weight"
        found[theirs] = [theirs, *(f"steps.{i}.{theirs}" for i in range(config.n_steps))]
    weights.fill(model, found)
    return model
