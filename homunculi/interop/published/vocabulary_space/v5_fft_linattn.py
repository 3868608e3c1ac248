"""v5: linear attention and channels on the harmonics of a transform over the vocabulary."""

from __future__ import annotations

from homunculi.core.model import LanguageModel
from homunculi.interop.published.reading import Given, Weights
from homunculi.interop.published.vocabulary_space import FEWER_ACTIVATIONS, causality, names
from homunculi.models.vocabulary.fft_memory import Config, TransformMemory

__all__ = ["build", "causality"]
STEP = {
    "memory.q_CW": "memory.q_proj.weight",
    "memory.k_CW": "memory.k_proj.weight",
    "memory.v_CW": "memory.v_proj.weight",
    "memory.o_CW": "memory.o_proj.weight",
    "memory.decay_logit": "memory.decay_logit",
    "memory.out_scale": "memory.out_scale",
    "memory.scale": "mem_scale",
    "op.read_CW": "register_op.freq_to_ch",
    "op.mix_CC": "register_op.channel_mix",
    "op.bias_C": "register_op.bias",
    "op.write_WC": "register_op.ch_to_freq",
    "op.out_scale": "register_op.out_scale",
    "op.scale": "op_scale",
}


def build(given: Given, weights: Weights) -> LanguageModel:
    config = Config(
        vocab_size=given.get("vocab_size", int),
        n_steps=given.get("num_steps", int, 8),
        n_waves=given.get("n_freq", int, 64),
        n_channels=given.get("n_channels", int, 128),
        activation=given.choose("activation", FEWER_ACTIVATIONS, "gelu"),
        softcap=given.get("logit_softcap", float, 30.0),
        first_decay=given.get("decay_init", float, 3.0),
        first_scale=1.0,
    )
    model = TransformMemory(config)
    weights.fill(model, names(model, STEP))
    return model
