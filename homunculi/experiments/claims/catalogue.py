"""All claims there are, in the order of the table."""

from __future__ import annotations

import importlib
from difflib import get_close_matches
from functools import cache

from homunculi.errors import InputError
from homunculi.experiments.claims.entry import FUNCTIONS, Claim

SYSTEMS = ("ncn", "homunculi", "mor", "vocabulary", "relayering", "others")  # a file each


@cache
def claims() -> tuple[Claim, ...]:
    """Every claim.

    Raises:
        ValueError: two have one id.
    """
    for name in SYSTEMS:
        importlib.import_module(f"{__package__}.{name}")
    order = {f"{__package__}.{name}": i for i, name in enumerate(SYSTEMS)}
    found = [function() for function in sorted(FUNCTIONS, key=lambda one: order.get(one.__module__, len(order)))]
    ids = [claim.id for claim in found]
    if twice := next((one for one in ids if ids.count(one) > 1), None):
        raise ValueError(f"two claims have the id {twice}")
    return tuple(found)


def find(claim_id: str) -> Claim:
    """The claim of that id.

    Raises:
        InputError: there is none; near ones are named.
    """
    known = {claim.id: claim for claim in claims()}
    if claim_id not in known:
        near = get_close_matches(claim_id, known, n=3, cutoff=0.5)
        near += [one for one in known if claim_id and claim_id.lower() in one and one not in near]
        hint = f"did you mean {' or '.join(near[:3])}?" if near else "homunculi claims lists all"
        raise InputError(f"{claim_id}: no such claim; {hint}")
    return known[claim_id]
