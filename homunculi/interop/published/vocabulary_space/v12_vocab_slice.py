"""v12: slices of the vocabulary."""

from __future__ import annotations

from homunculi.core.model import LanguageModel
from homunculi.interop.published.reading import Given, Weights
from homunculi.interop.published.vocabulary_space import causality, names
from homunculi.interop.published.vocabulary_space.slices import STEP, confirm, settings, waves
from homunculi.models.vocabulary.slices import Config, Slices
from homunculi.parts.slices import reaches

__all__ = ["build", "causality"]


def build(given: Given, weights: Weights) -> LanguageModel:
    n_steps, shape = given.get("num_steps", int, 8), settings(given)
    found = reaches(shape["vocab_size"], n_steps, shape["d_slice"])
    model = Slices(Config(n_steps=n_steps, waves=waves(given, found), **shape))
    weights.fill(model, names(model, STEP))
    confirm(weights, found, [f"steps.{i}" for i in range(n_steps)])
    return model
