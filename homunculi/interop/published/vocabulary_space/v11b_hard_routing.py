"""v11b: memories of three time scales, chosen activations, halting."""

from __future__ import annotations

from homunculi.core.model import LanguageModel
from homunculi.interop.published.reading import Given, Weights
from homunculi.interop.published.vocabulary_space import causality, names
from homunculi.models.vocabulary.hard_routing import FIRST_DECAYS, Config, HardRouting

__all__ = ["build", "causality"]
STEP = {
    "memories.q.weight": "attn.q_proj.weight",
    "memories.gate.weight": "attn.scale_gate.weight",
    "memories.o.weight": "attn.o_proj.weight",
    "memories.out_scale": "attn.out_scale",
    "memories.scale": "attn_scale",
    "transform.down.weight": "transform.down.weight",
    "transform.up.weight": "transform.up.weight",
    "transform.select.weight": "transform.act_selector.weight",
    "transform.bias_M": "transform.bias",
    "transform.out_scale": "transform.out_scale",
    "transform.scale": "t_scale",
}
SCALE = {
    "memories.ks.{}.weight": "attn.k_projs.{}.weight",
    "memories.vs.{}.weight": "attn.v_projs.{}.weight",
    "memories.decay_logits.{}": "attn.decay_logits.{}",
}
WHOLE = {"halt.weight": "halting.halt_proj.weight", "halt.bias": "halting.halt_proj.bias"}


def build(given: Given, weights: Weights) -> LanguageModel:
    config = Config(
        vocab_size=given.get("vocab_size", int),
        n_steps=given.get("num_steps", int, 8),
        d_memory=given.get("state_dim", int, 64),
        d_mlp=given.get("inner_dim", int, 128),
        temperature=given.get("tau", float, 1.0),
        halt_above=given.get("halt_threshold", float, 0.5),
        ponder_weight=given.get("ponder_lambda", float, 0.01),
        softcap=given.get("logit_softcap", float, 30.0),
        first_scale=1.0,
    )
    model = HardRouting(config)
    scales = range(len(FIRST_DECAYS))
    step = STEP | {ours.format(j): theirs.format(j) for j in scales for ours, theirs in SCALE.items()}
    weights.fill(model, names(model, step, WHOLE))
    return model
