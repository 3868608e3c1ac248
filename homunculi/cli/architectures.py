"""A model of an architecture's name and `key=value` assignments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch

from homunculi.core.model import LanguageModel
from homunculi.models import get
from homunculi.settings import override


def default_config(architecture: str, assignments: Sequence[str], vocab_size: int = 1024) -> Any:
    """The architecture's configuration with a vocabulary and the assignments; ``model.`` before a key is optional."""
    config_type = get(architecture).config_type
    takes_vocabulary = any(field.name == "vocab_size" for field in fields(config_type))
    config = config_type(vocab_size=vocab_size) if takes_vocabulary else config_type()
    return override(config, [word.removeprefix("model.") for word in assignments], "model")


def default_model(architecture: str, assignments: Sequence[str], vocab_size: int = 1024) -> LanguageModel:
    """A model with random weights, seeded."""
    torch.manual_seed(0)
    return get(architecture).model_type(default_config(architecture, assignments, vocab_size))
