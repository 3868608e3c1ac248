"""What the variants of slices, v12 to v16, have in common: settings, names, and buffers that follow from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import torch.nn.functional as F

from homunculi.errors import InputError
from homunculi.interop.published.reading import Given, Weights
from homunculi.interop.published.vocabulary_space import ACTIVATION_NAMES
from homunculi.parts.slices import Reach, Waves

MEMORY = {
    "memory.q.weight": "memory.q_proj.weight",
    "memory.k.weight": "memory.k_proj.weight",
    "memory.v.weight": "memory.v_proj.weight",
    "memory.o.weight": "memory.o_proj.weight",
    "memory.decay_logit": "memory.decay_logit",
    "memory.out_scale": "memory.out_scale",
    "memory.scale": "mem_scale",
}
STEP = MEMORY | {
    "down.weight": "down.weight",
    "bias_M": "mlp_bias",
    "up.weight": "up.weight",
    "write_scale": "write_scale",
}


def settings(given: Given, activations: Mapping[str, str] = ACTIVATION_NAMES) -> dict[str, Any]:
    """Fields of our configurations, without the number of steps."""
    size = given.get("k_active", int, 256)
    return {
        "vocab_size": given.get("vocab_size", int),
        "d_slice": size,
        "d_mlp": size * given.get("inner_mul", int, 2),
        "activation": given.choose("activation", activations, "gelu"),
        "softcap": given.get("logit_softcap", float, 30.0),
        "first_decay": given.get("decay_init", float, 3.0),
        "first_scale": 1.0,
    }


def waves(given: Given, found: Sequence[Reach]) -> Waves:
    """Whether steps of these reaches are done at once.

    Raises:
        InputError: the original would do a step before an earlier one that it depends on.
    """
    if not given.get("parallel_waves", bool, True):
        return "none"
    order = _original_order(found)
    for late, early in combinations(order, 2):
        if late > early and found[late].meets(found[early]):
            why = f"would do step {late} before step {early}, on which it depends; set it to false"
            raise InputError(f"{given.path}.parallel_waves: {why}")
    return "greedy"


def _original_order(found: Sequence[Reach]) -> list[int]:
    """The order of steps in which a step is compared with those of its wave alone, and not with those left behind."""
    left, order = list(range(len(found))), list[int]()
    while left:
        wave = list[int]()
        for i in left:
            if all(found[i].is_free_of(found[j]) for j in wave):
                wave.append(i)
        order += wave
        left = [i for i in left if i not in wave]
    return order


def confirm(weights: Weights, found: Sequence[Reach], steps: Sequence[str]) -> None:
    """Check the buffers of steps, by the prefixes of their names."""
    for reach, prefix in zip(found, steps, strict=True):
        places_K = reach.write.places()
        weights.confirm(f"{prefix}.read_indices", reach.read.places())
        weights.confirm(f"{prefix}.write_indices", places_K)
        weights.confirm(f"{prefix}.write_selector", F.one_hot(places_K, reach.write.n_words))
