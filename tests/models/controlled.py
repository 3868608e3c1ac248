"""Small modulated transformers that tests share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from homunculi.experiments.subject import add_noise
from homunculi.models import build
from homunculi.models.ncn import NCN

TINY: dict[str, Any] = {"vocab_size": 23, "d_model": 16, "n_blocks": 2, "n_heads": 4, "max_seq_len": 16, "d_control": 8}
POOLINGS: list[dict[str, Any]] = [
    {"pooling": "causal"},
    {"pooling": "decay"},
    {"pooling": "refreshed", "refresh_every": 3},
    {"pooling": "adiabatic", "refresh_above": 0.75},
    {"pooling": "last"},
]
# What a controller may hear and do beside that.
OPTIONS: list[dict[str, Any]] = [
    {"precision_per": "head", "skip_below": 0.9},
    {"signals": ("gain", "precision", "gate", "heads", "film", "beta"), "film_rank": 3},
    {"recurrence": "gated", "instruction_tokens": 3},
    {"n_blocks": 3, "statistics": ("entropy", "change"), "skip_block_below": 0.8, "signals": ("gain", "film", "gate")},
]


def fresh(**config: Any) -> NCN:
    torch.manual_seed(0)
    model = build("ncn", **(TINY | config))
    assert isinstance(model, NCN)
    return model.eval()


def moved(**config: Any) -> NCN:
    """In float64, with signals far from neutral."""
    model = fresh(**config).double()
    add_noise(model, seed=1)
    if model.controller is not None:
        torch.nn.init.normal_(model.controller.out.weight, std=0.5)
    return model


def ids(n_rows: int = 2, n_tokens: int = 16) -> Tensor:
    return torch.randint(23, (n_rows, n_tokens), generator=torch.Generator().manual_seed(1))


def set_to(value: float) -> Any:
    return lambda tensor, name: torch.full_like(tensor, value)
