"""Learning-rate schedules as pure functions of the step."""

from __future__ import annotations

import math

from homunculi.train.config import TrainConfig


def lr_factor(step: int, steps: int, config: TrainConfig) -> float:
    """Share of the peak learning rate at update `step` of `steps`, counted from 1.

    Warm-up is linear over the first `warmup_frac`. wsd then stays at 1 and falls linearly to `final_lr_frac` over the
    last `decay_frac`; cosine falls to it from the end of the warm-up.
    """
    warmup = max(1, round(config.warmup_frac * steps))
    if step < warmup:
        return step / warmup
    if config.schedule == "cosine":
        done = (step - warmup) / max(1, steps - warmup)
        return config.final_lr_frac + (1 - config.final_lr_frac) * 0.5 * (1 + math.cos(math.pi * done))
    decay = round(config.decay_frac * steps)
    left = (steps - step) / decay if decay else 1.0
    return config.final_lr_frac + (1 - config.final_lr_frac) * min(1.0, left)
