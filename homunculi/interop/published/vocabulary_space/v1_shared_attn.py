"""v1: one softmax attention shared by all steps."""

from __future__ import annotations

from homunculi.core.model import LanguageModel
from homunculi.errors import InputError
from homunculi.interop.published.reading import Given, Weights
from homunculi.interop.published.vocabulary_space import FEWER_ACTIVATIONS, causality, names
from homunculi.models.vocabulary.shared_attention import Config, ReadableAttention

__all__ = ["build", "causality"]
WHOLE = {
    "attn.q.weight": "attn.q_proj.weight",
    "attn.k.weight": "attn.k_proj.weight",
    "attn.v.weight": "attn.v_proj.weight",
    "attn.o.weight": "attn.out_proj.weight",
    "attn.gain_H": "attn.q_gain",
    "attn_scale_NV": "attn_scales",
    "op_scale_NV": "op_scales",
}
STEP = {
    "read_CW": "read_coeffs",
    "write_CW": "write_coeffs",
    "mix_CC": "channel_mix",
    "bias_C": "bias",
    "out_scale": "out_scale",
}


def build(given: Given, weights: Weights) -> LanguageModel:
    n_words, n_heads = given.get("vocab_size", int), given.get("num_heads", int, 8)
    if n_heads < 1 or n_words % (2 * n_heads):
        raise InputError(f"config.num_heads: vocab_size={n_words} does not give {n_heads} heads an even width each")
    config = Config(
        vocab_size=n_words,
        n_steps=given.get("num_steps", int, 8),
        n_heads=n_heads,
        n_kv_heads=given.get("num_kv_heads", int, 4),
        rope_base=given.get("rope_base", float, 10000.0),
        first_gain=given.get("qk_gain_init", float, 1.5),
        n_waves=given.get("n_fourier_basis", int, 16),
        n_channels=given.get("n_channels", int, 128),
        activation=given.choose("activation", FEWER_ACTIVATIONS, "gelu"),
        max_seq_len=1024,
        softcap=given.get("logit_softcap", float, 30.0),
        first_scale=1.0,
    )
    model = ReadableAttention(config)
    weights.confirm("fourier_basis", model.basis_VW)
    weights.fill(model, names(model, STEP, WHOLE, steps="ops"))
    return model
