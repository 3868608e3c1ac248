"""Neuromodulatory control networks (Morgan 2025): the released configuration and weights."""

from __future__ import annotations

from homunculi.core.model import LanguageModel
from homunculi.errors import InputError
from homunculi.interop.published.reading import Given, Weights
from homunculi.models.ncn_published import Config, NCNPublished

SIGNALS = {"gain": "gain", "precision": "precision", "ffn_gate": "gate"}
# Parts of the model under our names and theirs.
WHOLE = {
    "positions.weight": "position_embeddings.weight",
    "norm.weight": "final_norm.weight",
    "controller.pool.query_11D": "ncn.control_query",
    "controller.pool.qkv_weight": "ncn.pooling_attn.in_proj_weight",
    "controller.pool.qkv_bias": "ncn.pooling_attn.in_proj_bias",
    "controller.pool.out.weight": "ncn.pooling_attn.out_proj.weight",
    "controller.pool.out.bias": "ncn.pooling_attn.out_proj.bias",
    "controller.norm.weight": "ncn.ncn_norm.weight",
    "controller.hidden.weight": "ncn.layer1.weight",
    "controller.hidden.bias": "ncn.layer1.bias",
    "controller.raw.weight": "ncn.layer2.weight",
    "controller.raw.bias": "ncn.layer2.bias",
}
BLOCK = {
    "attn_norm.weight": "norm1.weight",
    "mlp_norm.weight": "norm2.weight",
    "attn.q.weight": "self_attn.q_proj.weight",
    "attn.k.weight": "self_attn.k_proj.weight",
    "attn.v.weight": "self_attn.v_proj.weight",
    "attn.o.weight": "self_attn.out_proj.weight",
    "mlp.in.weight": "feed_forward.linear1.weight",
    "mlp.in.bias": "feed_forward.linear1.bias",
    "mlp.out.weight": "feed_forward.linear2.weight",
    "mlp.out.bias": "feed_forward.linear2.bias",
}


def build(given: Given, weights: Weights) -> LanguageModel:
    """The model of a configuration by the original's names; what is left out has the original's default."""
    model = NCNPublished(configuration(given))
    weights.fill(model, names(model))
    return model


def configuration(given: Given) -> Config:
    """Our configuration. The original checks the activation of its controller and then always takes tanh; so here."""
    d_model = given.get("d_model", int, 768)
    signals = given.get("modulation_signal_names", list, list(SIGNALS))
    unknown = [name for name in signals if name not in SIGNALS]
    if unknown:
        raise InputError(f"config.modulation_signal_names: {unknown[0]!r} is not among {', '.join(SIGNALS)}")
    given.require("num_mod_signals", len(signals))
    given.require("ncn_input_dim", d_model)
    return Config(
        vocab_size=given.get("vocab_size", int, 50257),
        d_model=d_model,
        n_blocks=given.get("num_layers", int, 12),
        n_heads=given.get("nhead", int, 12),
        d_mlp=given.get("dim_feedforward", int, 4 * d_model),
        max_seq_len=given.get("max_position_embeddings", int, 2048),
        tied=given.get("tie_weights", bool, True),
        norm_eps=given.get("layer_norm_eps", float, 1e-5),
        d_controller=given.get("ncn_hidden_dim", int, 128),
        n_controller_heads=given.get("ncn_heads", int, 4),
        signals=tuple(SIGNALS[name] for name in signals),  # type: ignore[misc]
        homeostasis=given.get("homeostatic_lambda", float, 0.01),
        dropout=given.get("dropout", float, 0.1),
    )


def names(model: NCNPublished) -> dict[str, list[str]]:
    """Our name of each tensor → theirs."""
    found = {ours: [theirs] for ours, theirs in WHOLE.items()}
    found["embed.weight"] = ["token_embeddings.weight"]
    if model.untied is None:
        found["embed.weight"].append("output_head.weight")
    else:
        found["untied.weight"] = ["output_head.weight"]
    for i in range(len(model.blocks)):
        found |= {f"blocks.{i}.{ours}": [f"transformer_layers.{i}.{theirs}"] for ours, theirs in BLOCK.items()}
    return found


def causality(model: LanguageModel) -> tuple[bool, str]:
    return False, "the controller pools over the whole row, later tokens included"
