"""v2: a convolution over positions."""

from __future__ import annotations

from homunculi.core.model import LanguageModel
from homunculi.interop.published.reading import Given, Weights
from homunculi.interop.published.vocabulary_space import FEWER_ACTIVATIONS, causality, names
from homunculi.models.vocabulary.convolution import Config, Convolution

__all__ = ["build", "causality"]
STEP = {
    "conv.weight_V1K": "conv.weight",
    "conv.bias_V": "conv.bias",
    "conv_scale_V": "conv_scale",
    "op.read_CW": "register_op.read_coeffs",
    "op.write_CW": "register_op.write_coeffs",
    "op.mix_CC": "register_op.channel_mix",
    "op.bias_C": "register_op.bias",
    "op.out_scale": "register_op.out_scale",
    "op_scale_V": "op_scale",
}


def build(given: Given, weights: Weights) -> LanguageModel:
    config = Config(
        vocab_size=given.get("vocab_size", int),
        n_steps=given.get("num_steps", int, 8),
        kernel_size=given.get("kernel_size", int, 16),
        n_waves=given.get("n_fourier_basis", int, 16),
        n_channels=given.get("n_channels", int, 128),
        activation=given.choose("activation", FEWER_ACTIVATIONS, "gelu"),
        softcap=given.get("logit_softcap", float, 30.0),
        first_scale=1.0,
    )
    model = Convolution(config)
    weights.confirm("fourier_basis", model.basis_VW)
    weights.fill(model, names(model, STEP))
    return model
