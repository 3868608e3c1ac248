"""v16: columns that vote. Settings of waves over the vocabulary are given with it and do nothing."""

from __future__ import annotations

from homunculi.core.model import LanguageModel
from homunculi.interop.published.reading import Given, Weights
from homunculi.interop.published.vocabulary_space import FEWER_ACTIVATIONS, causality
from homunculi.interop.published.vocabulary_space.slices import MEMORY, confirm, settings
from homunculi.models.vocabulary.columns import Columns, Config
from homunculi.parts.slices import reaches

__all__ = ["build", "causality"]
STEP = MEMORY | {
    "gate.weight": "mlp.gate_proj.weight",
    "gate_bias_R": "mlp.gate_proj.bias",
    "bias_M": "mlp.bias",
    "write_scale": "write_scale",
}


def build(given: Given, weights: Weights) -> LanguageModel:
    config = Config(
        n_steps=given.get("steps_per_column", int, 3),
        n_columns=given.get("num_columns", int, 4),
        n_branches=given.get("n_branches", int, 4),
        **settings(given, FEWER_ACTIVATIONS),
    )
    model = Columns(config)
    theirs = [f"columns.{c}.steps.{i}" for c in range(config.n_columns) for i in range(config.n_steps)]
    weights.fill(model, _names(config, theirs))
    found = reaches(config.vocab_size, len(theirs), config.slice_size)
    confirm(weights, [reach for c in range(config.n_columns) for reach in found[c :: config.n_columns]], theirs)
    return model


def _names(config: Config, theirs: list[str]) -> dict[str, list[str]]:
    """Our name of each tensor → theirs; `theirs` are the prefixes of steps."""
    found = {"logit_scale": ["logit_scale"], "inhibition_CC": ["inhibition"]}
    found |= {f"confidences.{c}": [f"columns.{c}.confidence"] for c in range(config.n_columns)}
    ways = [(way, r) for way in ("down", "up") for r in range(config.n_branches)]
    step = STEP | {f"{way}.{r}.weight": f"mlp.branch_{way}.{r}.weight" for way, r in ways}
    for i, prefix in enumerate(theirs):
        found |= {f"steps.{i}.{own}": [f"{prefix}.{name}"] for own, name in step.items()}
    return found
