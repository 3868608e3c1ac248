"""Names of taps as TransformerLens (Nanda and Bloom 2022) writes them, and back.

The names agree number for number where each block is applied once, in order; otherwise a name's index counts steps, not
blocks. Queries and keys are those before rotation. ``readout.norm`` has the norm's weight applied, while
``ln_final.hook_normalized`` does not: the two tensors are equal only where that weight is 1.
"""

from __future__ import annotations

import re
from difflib import get_close_matches

from homunculi.errors import InputError

_OUTSIDE = {"embed": "hook_embed", "readout.norm": "ln_final.hook_normalized"}
_SITES = {
    "resid_pre": "hook_resid_pre",
    "attn.q": "attn.hook_q",
    "attn.k": "attn.hook_k",
    "attn.v": "attn.hook_v",
    "attn.scores": "attn.hook_attn_scores",
    "attn.pattern": "attn.hook_pattern",
    "attn.z": "attn.hook_z",
    "attn.out": "hook_attn_out",
    "resid_mid": "hook_resid_mid",
    "mlp.pre": "mlp.hook_pre",
    "mlp.post": "mlp.hook_post",
    "mlp.out": "hook_mlp_out",
    "resid_post": "hook_resid_post",
}
_OURS = re.compile(r"steps\.(\d+|\*)\.(.+)")
_THEIRS = re.compile(r"blocks\.(\d+|\*)\.(.+)")


def alias(name: str) -> str:
    """The other name of a tap: ``blocks.3.hook_resid_pre`` for ``steps.3.resid_pre``, and the reverse.

    An index may be ``*``.

    Raises:
        InputError: a name that neither side has; near ones are listed.
    """
    for pattern, sites, outside, form in (
        (_OURS, _SITES, _OUTSIDE, "blocks.{}.{}"),
        (_THEIRS, _reversed(_SITES), _reversed(_OUTSIDE), "steps.{}.{}"),
    ):
        inside = pattern.fullmatch(name)
        if inside is not None and inside[2] in sites:
            return form.format(inside[1], sites[inside[2]])
        if name in outside:
            return outside[name]
    raise InputError(f"tap {name}: has no other name; near: {', '.join(_near(name))}")


def _reversed(names: dict[str, str]) -> dict[str, str]:
    return {theirs: ours for ours, theirs in names.items()}


def _near(name: str) -> list[str]:
    index = (re.search(r"\.(\d+|\*)\.", name) or ["", "0"])[1]
    ours = [*_OUTSIDE, *(f"steps.{index}.{site}" for site in _SITES)]
    theirs = [*_OUTSIDE.values(), *(f"blocks.{index}.{site}" for site in _SITES.values())]
    known = ours + theirs
    return get_close_matches(name, known, n=3, cutoff=0.5) or known[:3]
