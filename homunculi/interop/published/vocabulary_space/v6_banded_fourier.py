"""v6: a slow memory of slow waves, a fast one of fast waves, and channels of three bands."""

from __future__ import annotations

from homunculi.core.model import LanguageModel
from homunculi.errors import InputError
from homunculi.interop.published.reading import Given, Weights
from homunculi.interop.published.vocabulary_space import FEWER_ACTIVATIONS, causality, names
from homunculi.models.vocabulary.bands import BandedFourier, Config

__all__ = ["build", "causality"]
STEP = {
    "memories.slow.q_CW": "slow_mem.query_proj.coeffs",
    "memories.slow.k_CW": "slow_mem.key_proj.coeffs",
    "memories.slow.v_CW": "slow_mem.value_proj.coeffs",
    "memories.slow.o_CW": "slow_mem.output_proj.coeffs",
    "memories.slow.decay_logit": "slow_mem.decay_logit",
    "memories.slow.out_scale": "slow_mem.out_scale",
    "memories.slow.scale": "mem_slow_scale",
    "memories.fast.q_CW": "fast_mem.query_proj.coeffs",
    "memories.fast.k_CW": "fast_mem.key_proj.coeffs",
    "memories.fast.v_CW": "fast_mem.value_proj.coeffs",
    "memories.fast.o_CW": "fast_mem.output_proj.coeffs",
    "memories.fast.decay_logit": "fast_mem.decay_logit",
    "memories.fast.out_scale": "fast_mem.out_scale",
    "memories.fast.scale": "mem_fast_scale",
    "memories.gate.mix_CC": "tg_gate_w",
    "memories.gate.bias_C": "tg_gate_b",
    "bands.slow.read_CW": "low_op.read_coeffs",
    "bands.slow.bias_C": "low_op.bias",
    "bands.slow.write_CW": "low_op.write_coeffs",
    "bands.slow.out_scale": "low_op.out_scale",
    "bands.slow.mix_CC": "low_op.channel_mix",
    "bands.scales.0": "op_low_scale",
    "bands.middle.read_CW": "mid_op.read_coeffs",
    "bands.middle.bias_C": "mid_op.bias",
    "bands.middle.write_CW": "mid_op.write_coeffs",
    "bands.middle.out_scale": "mid_op.out_scale",
    "bands.middle.mix_CC": "mid_op.channel_mix",
    "bands.scales.1": "op_mid_scale",
    "bands.fast.read_CW": "high_op.read_coeffs",
    "bands.fast.bias_C": "high_op.bias",
    "bands.fast.write_CW": "high_op.write_coeffs",
    "bands.fast.out_scale": "high_op.out_scale",
    "bands.fast.mix_CC": "high_op.channel_mix",
    "bands.scales.2": "op_high_scale",
    "bands.gate.mix_CC": "alpha_gate_w",
    "bands.gate.bias_C": "alpha_gate_b",
}


def build(given: Given, weights: Weights) -> LanguageModel:
    split = given.get("band_split", list, [4, 4, 8])
    if len(split) != 3 or not all(type(n) is int for n in split):
        raise InputError(f"{given.path}.band_split: expected three whole numbers")
    given.require("n_fourier_basis", sum(split))
    config = Config(
        vocab_size=given.get("vocab_size", int),
        n_steps=given.get("num_cycles", int, 8),
        n_slow=split[0],
        n_middle=split[1],
        n_fast=split[2],
        n_channels=given.get("n_channels", int, 128),
        activation=given.choose("activation", FEWER_ACTIVATIONS, "gelu"),
        softcap=given.get("logit_softcap", float, 30.0),
        first_slow_decay=given.get("slow_decay_init", float, 4.0),
        first_fast_decay=given.get("fast_decay_init", float, 2.0),
        first_scale=1.0,
    )
    model = BandedFourier(config)
    weights.confirm("fourier_basis", model.basis_VW)
    weights.fill(model, names(model, STEP, steps="cycles"))
    return model
