"""v8: states as keys and values, a map of low rank between words."""

from __future__ import annotations

from homunculi.core.model import LanguageModel
from homunculi.interop.published.reading import Given, Weights
from homunculi.interop.published.vocabulary_space import FEWER_ACTIVATIONS, causality, names
from homunculi.models.vocabulary.low_rank import Config, LowRank

__all__ = ["build", "causality"]
STEP = {
    "q_V": "propagation.q_scale",
    "k_V": "propagation.k_scale",
    "decay_logit": "propagation.decay_logit",
    "out_scale": "propagation.out_scale",
    "scale": "prop_scale",
    "read_VR": "interaction.U",
    "write_VR": "interaction.V",
    "own_V": "interaction.diag",
    "bias_V": "interaction.bias",
    "mlp_out_scale": "interaction.out_scale",
    "mlp_scale": "interact_scale",
}


def build(given: Given, weights: Weights) -> LanguageModel:
    config = Config(
        vocab_size=given.get("vocab_size", int),
        n_steps=given.get("num_hops", int, 8),
        rank=given.get("interaction_rank", int, 64),
        activation=given.choose("activation", FEWER_ACTIVATIONS, "gelu"),
        softcap=given.get("logit_softcap", float, 30.0),
        first_decay=given.get("decay_init", float, 3.0),
        first_scale=1.0,
    )
    model = LowRank(config)
    weights.fill(model, names(model, STEP, steps="hops"))
    return model
