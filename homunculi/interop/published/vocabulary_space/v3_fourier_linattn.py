"""v3: linear attention and channels with maps of waves."""

from __future__ import annotations

from homunculi.core.model import LanguageModel
from homunculi.interop.published.reading import Given, Weights
from homunculi.interop.published.vocabulary_space import FEWER_ACTIVATIONS, causality, names
from homunculi.models.vocabulary.fourier_memory import Config, FourierMemory

__all__ = ["build", "causality"]
STEP = {
    "memory.q_CW": "memory.query_proj.coeffs",
    "memory.k_CW": "memory.key_proj.coeffs",
    "memory.v_CW": "memory.value_proj.coeffs",
    "memory.o_CW": "memory.output_proj.coeffs",
    "memory.decay_logit": "memory.decay_logit",
    "memory.out_scale": "memory.out_scale",
    "memory.scale": "mem_scale",
    "op.read_CW": "register_op.read_coeffs",
    "op.mix_CC": "register_op.channel_mix",
    "op.bias_C": "register_op.bias",
    "op.write_CW": "register_op.write_coeffs",
    "op.out_scale": "register_op.out_scale",
    "op_scale": "op_scale",
}


def build(given: Given, weights: Weights) -> LanguageModel:
    config = Config(
        vocab_size=given.get("vocab_size", int),
        n_steps=given.get("num_steps", int, 8),
        n_waves=given.get("n_fourier_basis", int, 16),
        n_channels=given.get("n_channels", int, 128),
        activation=given.choose("activation", FEWER_ACTIVATIONS, "gelu"),
        softcap=given.get("logit_softcap", float, 30.0),
        first_decay=given.get("decay_init", float, 3.0),
        first_scale=1.0,
    )
    model = FourierMemory(config)
    weights.confirm("fourier_basis", model.basis_VW)
    weights.fill(model, names(model, STEP))
    return model
