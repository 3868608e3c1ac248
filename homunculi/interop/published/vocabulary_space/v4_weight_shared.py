"""v4: maps of waves, blocks applied twice in a row with scales of each use."""

from __future__ import annotations

from homunculi.core.model import LanguageModel
from homunculi.interop.published.reading import Given, Weights
from homunculi.interop.published.vocabulary_space import FEWER_ACTIVATIONS, causality, names
from homunculi.models.vocabulary.tied_fourier import Config, TiedFourier

__all__ = ["build", "causality"]
WHOLE = {
    "q_CW": "shared_query_proj.coeffs",
    "k_CW": "shared_key_proj.coeffs",
    "memory_scale_N": "inv_mem_scale_override",
    "op_scale_N": "inv_op_scale_override",
    "end_scale_N": "inv_out_scale_override",
}
STEP = {
    "v_CW": "memory.value_proj.coeffs",
    "o_CW": "memory.output_proj.coeffs",
    "decay_logit_H": "memory.decay_logits",
    "out_scale": "memory.out_scale",
    "scale": "mem_scale",
    "op.read_CW": "register_op.read_coeffs",
    "op.bias_C": "register_op.bias",
    "op.write_CW": "register_op.write_coeffs",
    "op.out_scale": "register_op.out_scale",
    "op.diagonal_C": "register_op.diag",
    "op.down_CR": "register_op.mix_down",
    "op.up_RC": "register_op.mix_up",
    "op_scale": "op_scale",
}


def build(given: Given, weights: Weights) -> LanguageModel:
    """`decay_init` of the configuration has no effect in the original either."""
    n_uses = given.get("invocations_per_step", int, 2)
    config = Config(
        vocab_size=given.get("vocab_size", int),
        n_steps=given.get("unique_steps", int, 5) * n_uses,
        n_uses=n_uses,
        n_waves=given.get("n_fourier_basis", int, 16),
        n_channels=given.get("n_channels", int, 128),
        n_heads=given.get("n_heads", int, 4),
        rank=given.get("transform_rank", int, 8),
        activation=given.choose("activation", FEWER_ACTIVATIONS, "gelu"),
        softcap=given.get("logit_softcap", float, 30.0),
        first_scale=1.0,
    )
    model = TiedFourier(config)
    weights.confirm("fourier_basis", model.basis_VW)
    shifts = {f"decay_shifts.{n}": f"inv_decay_overrides.{n}" for n in range(config.n_steps)}
    weights.fill(model, names(model, STEP, WHOLE | shifts))
    return model
