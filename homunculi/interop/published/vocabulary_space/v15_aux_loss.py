"""v15: slices, few words kept, and a loss after every step."""

from __future__ import annotations

from homunculi.core.model import LanguageModel
from homunculi.interop.published.reading import Given, Weights
from homunculi.interop.published.vocabulary_space import FEWER_ACTIVATIONS, causality, names
from homunculi.interop.published.vocabulary_space.slices import STEP, confirm, settings
from homunculi.models.vocabulary.sparse_slices import Config, SparseSlices

__all__ = ["build", "causality"]


def build(given: Given, weights: Weights) -> LanguageModel:
    config = Config(
        n_steps=given.get("num_steps", int, 8),
        n_kept=given.get("sparsity_k", int, 128),
        unsure_of="state",
        step_loss=given.get("aux_loss_weight", float, 0.1),
        step_loss_decay=given.get("aux_loss_decay", float, 0.9),
        **settings(given, FEWER_ACTIVATIONS),
    )
    model = SparseSlices(config)
    weights.fill(model, names(model, STEP))
    confirm(weights, model.reaches, [f"steps.{i}" for i in range(config.n_steps)])
    return model
