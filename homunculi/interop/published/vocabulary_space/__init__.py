"""The vocabulary-space models (github.com/urmzd/exp-agi-models, f753659), one module a variant, by published name.

A module has `build(given, weights)`. All variants are causal at that commit; in fifteen of them the mask was reversed
until daaff06, so results from before it are of models that saw only the future.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from homunculi.core.model import LanguageModel
from homunculi.parts.readable import ACTIVATIONS

VARIANTS = (
    "v1_shared_attn",
    "v2_conv",
    "v3_fourier_linattn",
    "v4_weight_shared",
    "v5_fft_linattn",
    "v6_banded_fourier",
    "v7_soft_ops",
    "v8_lowrank_vv",
    "v9_linattn",
    "v10_state_cond_op",
    "v11a_mixed_ops",
    "v11b_hard_routing",
    "v12_vocab_slice",
    "v13_with_embedding",
    "v14_data_dependent",
    "v15_aux_loss",
    "v16_multi_branch",
)
ACTIVATION_NAMES = {name: name for name in ACTIVATIONS}
# Of variants that do not know "relu": there it means gelu without a word. v9, v12 and v13 do.
FEWER_ACTIVATIONS = {name: name for name in ACTIVATIONS if name != "relu"}


def names(
    model: LanguageModel,
    step: Mapping[str, str | Sequence[str]],
    whole: Mapping[str, str] | None = None,
    steps: str = "steps",
) -> dict[str, list[str]]:
    """Our name of each tensor → theirs.

    Args:
        model: its blocks are `steps`.
        step: inside one block, our names → theirs; where theirs are several, the tensor is tied.
        whole: likewise outside blocks, beside `logit_scale`.
        steps: what they call the blocks.
    """
    found = {ours: [theirs] for ours, theirs in ({"logit_scale": "logit_scale"} | dict(whole or {})).items()}
    for i in sorted({one.block for one in model.schedule}):
        for ours, theirs in step.items():
            given = [theirs] if isinstance(theirs, str) else theirs
            found[f"steps.{i}.{ours}"] = [f"{steps}.{i}.{name}" for name in given]
    return found


def causality(model: LanguageModel) -> tuple[bool, str]:
    return True, "every mixer reads the strict past"
