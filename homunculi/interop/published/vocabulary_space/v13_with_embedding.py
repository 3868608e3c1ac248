"""v13: slices after a token table."""

from __future__ import annotations

from homunculi.core.model import LanguageModel
from homunculi.interop.published.reading import Given, Weights
from homunculi.interop.published.vocabulary_space import causality, names
from homunculi.interop.published.vocabulary_space.slices import STEP, confirm, settings, waves
from homunculi.models.vocabulary.embedded_slices import Config, EmbeddedSlices
from homunculi.parts.slices import reaches

__all__ = ["build", "causality"]
WHOLE = {"embed.weight": "tok_embed.weight", "widen.weight": "embed_up.weight"}


def build(given: Given, weights: Weights) -> LanguageModel:
    n_steps, shape = given.get("num_steps", int, 8), settings(given)
    found = reaches(shape["vocab_size"], n_steps, shape["d_slice"])
    model = EmbeddedSlices(
        Config(n_steps=n_steps, d_embed=given.get("embed_dim", int, 128), waves=waves(given, found), **shape)
    )
    weights.fill(model, names(model, STEP, WHOLE))
    confirm(weights, found, [f"steps.{i}" for i in range(n_steps)])
    return model
