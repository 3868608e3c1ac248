"""v14: a gated convolution, and memories that decay at rates of their own."""

from __future__ import annotations

from homunculi.core.model import LanguageModel
from homunculi.interop.published.reading import Given, Weights
from homunculi.interop.published.vocabulary_space import FEWER_ACTIVATIONS, causality, names
from homunculi.interop.published.vocabulary_space.slices import MEMORY, confirm
from homunculi.models.vocabulary.adaptive import Adaptive, Config

__all__ = ["build", "causality"]
STEP = {ours: theirs for ours, theirs in MEMORY.items() if ours != "memory.decay_logit"} | {
    "memory.decay.weight": "memory.decay_proj.weight",
    "memory.decay_bias": "memory.decay_proj.bias",
    "conv.weight_V1K": "conv.weight",
    "conv.bias_V": "conv.bias",
    "conv_scale_V": "conv_scale",
    "gate.weight": "conv.gate_weight",
    "op.read_CW": "register_op.read_coeffs",
    "op.write_CW": "register_op.write_coeffs",
    "op.mix_CC": "register_op.channel_mix",
    "op.bias_C": "register_op.bias",
    "op.out_scale": "register_op.out_scale",
    "write_scale": "write_scale",
}


def build(given: Given, weights: Weights) -> LanguageModel:
    config = Config(
        vocab_size=given.get("vocab_size", int),
        n_steps=given.get("num_steps", int, 8),
        kernel_size=given.get("kernel_size", int, 16),
        d_slice=given.get("k_active", int, 256),
        n_waves=given.get("n_fourier_basis", int, 16),
        n_channels=given.get("n_channels", int, 128),
        activation=given.choose("activation", FEWER_ACTIVATIONS, "gelu"),
        softcap=given.get("logit_softcap", float, 30.0),
        first_decay=given.get("decay_init", float, 3.0),
        first_scale=1.0,
    )
    model = Adaptive(config)
    weights.confirm("dct_basis", model.basis_VK)
    confirm(weights, model.reaches, [f"steps.{i}" for i in range(config.n_steps)])
    weights.fill(model, names(model, STEP))
    return model
