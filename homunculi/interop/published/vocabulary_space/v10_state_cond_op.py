"""v10: operations chosen by the state."""

from __future__ import annotations

from homunculi.core.model import LanguageModel
from homunculi.interop.published.reading import Given, Weights
from homunculi.interop.published.vocabulary_space import causality, names
from homunculi.models.vocabulary.policy import Config, Policy

__all__ = ["build", "causality"]
STEP = {
    "compress.weight": "compress.weight",
    "expand.weight": "expand.weight",
    "q.weight": "mem_q.weight",
    "k.weight": "mem_k.weight",
    "v.weight": "mem_v.weight",
    "decay_logit": "decay_logit",
    "scale": "mem_scale",
    "out_scale": "act_scale",
    "policy_hidden.weight": "policy.net.0.weight",
    "policy_hidden.bias": "policy.net.0.bias",
    "policy.weight": "policy.net.2.weight",
    "policy.bias": "policy.net.2.bias",
}


def build(given: Given, weights: Weights) -> LanguageModel:
    config = Config(
        vocab_size=given.get("vocab_size", int),
        n_steps=given.get("num_steps", int, 8),
        d_state=given.get("state_dim", int, 64),
        n_operations=given.get("n_ops", int, 8),
        softcap=given.get("logit_softcap", float, 30.0),
        first_decay=given.get("decay_init", float, 3.0),
        first_scale=1.0,
    )
    model = Policy(config)
    found = names(model, STEP)
    for j in range(config.n_operations):
        theirs = f"op_bank.op_transforms.{j}.weight"
        found[f"operations.maps.{j}.weight"] = [theirs, *(f"steps.{i}.{theirs}" for i in range(config.n_steps))]
    weights.fill(model, found)
    return model
