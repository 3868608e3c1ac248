"""v9: dense linear attention."""

from __future__ import annotations

from homunculi.core.model import LanguageModel
from homunculi.interop.published.reading import Given, Weights
from homunculi.interop.published.vocabulary_space import ACTIVATION_NAMES, causality, names
from homunculi.models.vocabulary.dense_memory import Config, DenseMemory

__all__ = ["build", "causality"]
STEP = {
    "q.weight": "attn.q_proj.weight",
    "k.weight": "attn.k_proj.weight",
    "v.weight": "attn.v_proj.weight",
    "o.weight": "attn.o_proj.weight",
    "decay_logit": "attn.decay_logit",
    "out_scale": "attn.out_scale",
    "scale": "attn_scale",
    "down.weight": "transform.down.weight",
    "bias_M": "transform.bias",
    "up.weight": "transform.up.weight",
    "mlp_out_scale": "transform.out_scale",
    "mlp_scale": "t_scale",
}


def build(given: Given, weights: Weights) -> LanguageModel:
    config = Config(
        vocab_size=given.get("vocab_size", int),
        n_steps=given.get("num_steps", int, 8),
        d_memory=given.get("state_dim", int, 64),
        d_mlp=given.get("inner_dim", int, 128),
        activation=given.choose("activation", ACTIVATION_NAMES, "gelu"),
        softcap=given.get("logit_softcap", float, 30.0),
        first_decay=given.get("decay_init", float, 3.0),
        first_scale=1.0,
    )
    model = DenseMemory(config)
    weights.fill(model, names(model, STEP))
    return model
