"""v7: maps of waves, and steps that blend the functions of one bank."""

from __future__ import annotations

from homunculi.core.model import LanguageModel
from homunculi.interop.published.reading import Given, Weights
from homunculi.interop.published.vocabulary_space import causality, names
from homunculi.models.vocabulary.soft_ops import Config, SoftOps

__all__ = ["build", "causality"]
BANK = {"bank.mix_JCC": "op_bank.op_weights", "bank.bias_JC": "op_bank.op_biases"}  # of all steps
STEP = {
    "memory.q_CW": "memory.q_coeffs",
    "memory.k_CW": "memory.k_coeffs",
    "memory.v_CW": "memory.v_coeffs",
    "memory.o_CW": "memory.o_coeffs",
    "memory.decay_logit": "memory.decay_logit",
    "memory.out_scale": "memory.out_scale",
    "memory.scale": "mem_scale",
    "instruction.read_CW": "instruction.read_coeffs",
    "instruction.write_CW": "instruction.write_coeffs",
    "instruction.op_logits_J": "instruction.op_logits",
    "instruction.out_scale": "instruction.out_scale",
    "instruction.scale": "op_scale",
}


def build(given: Given, weights: Weights) -> LanguageModel:
    config = Config(
        vocab_size=given.get("vocab_size", int),
        n_steps=given.get("num_instructions", int, 8),
        n_ops=given.get("n_ops", int, 8),
        n_waves=given.get("n_fourier_basis", int, 16),
        n_channels=given.get("n_channels", int, 128),
        softcap=given.get("logit_softcap", float, 30.0),
        first_decay=given.get("decay_init", float, 3.0),
        first_scale=1.0,
    )
    model = SoftOps(config)
    weights.confirm("fourier_basis", model.basis_VW)
    found = names(model, STEP, steps="program")
    for ours, theirs in BANK.items():
        found[ours] = [theirs, *(f"program.{i}.instruction.{theirs}" for i in range(config.n_steps))]
    weights.fill(model, found)
    return model
