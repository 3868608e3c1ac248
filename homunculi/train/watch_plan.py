"""When instruments measure while a model trains, and on what."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from homunculi.instruments.registry import Instrument
from homunculi.text.batches import validation_windows
from homunculi.text.shards import TokenisedText
from homunculi.train.config import RunConfig

_SHARE, _LEAST = 20, 100
_ROW = 256


def cadence(config: RunConfig) -> int:
    """Steps between measurements, beside the log-spaced ones."""
    return config.instruments.every or max(_LEAST, config.steps // _SHARE)


def is_watched(config: RunConfig, step: int) -> bool:
    """Whether instruments read the model as it is after `step`; it follows from the configuration alone."""
    if config.instruments.watch == "off":
        return False
    spaced = config.instruments.log_spaced and step & (step - 1) == 0
    return step in (0, config.steps) or spaced or step % cadence(config) == 0


def probe_of(text: TokenisedText, seq_len: int, n_tokens: int) -> Tensor:
    """The first rows of the validation text, (B, T) with T of at most 256; as many as hold `n_tokens`, at least one."""
    length = min(_ROW, seq_len, n_tokens)
    windows = validation_windows(text.val, length, max(length, n_tokens))
    rows = [window[:-1] for window in windows]
    whole = [row for row in rows if len(row) == length] or rows[:1]
    return torch.from_numpy(np.stack(whole))


def described(config: RunConfig, instruments: list[Instrument]) -> list[str]:
    """What is measured and when, as lines for a person."""
    spaced = ", after 1, 2, 4, 8, … steps" if config.instruments.log_spaced else ""
    names = [one.name for one in instruments]
    lines = [
        f"instruments  {', '.join(names)}",
        f"measured     untrained{spaced}, every {cadence(config):,} steps and at the end",
    ]
    absent = [name for name in config.instruments.names if name not in names]
    return [*lines, f"not measured {', '.join(absent)}: this model has nothing for it"] if absent else lines
