"""The residual stream after each step, at all tokens: shared by instruments that compare steps.

Where a router lets tokens skip a pass, the taps of its steps show zeros at those that do not take part. In the stream
such a token keeps the state it had. A pass with a gate changes a token by gate · (what its steps made − what it was);
inside the pass its steps show what they hold, ungated.

Legend: B rows, T positions, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from homunculi.core.model import LanguageModel
from homunculi.core.schedule import Schedule, repeat_of
from homunculi.instruments.observation import Observation, Site

TAPS = ("embed", "steps.*.router.gate")  # read where a model has them, beside NEEDS
NEEDS = ("steps.*.resid_post",)
BEGIN = "steps.*.resid_pre"
START = "start"
MOST_LOGITS = 1 << 25  # numbers that a reading of several rows may hold at a time


class After(NamedTuple):
    """The stream after a step: float32 states, and which tokens the step computed."""

    state_BTD: Tensor
    present_BT: Tensor


def after_steps(seen: Observation) -> dict[Site, After]:
    """The stream after each step that ran, in order. Needs the taps `NEEDS`; `TAPS` where the model has them.

    Empty where a step shows some tokens alone, one after the other, so that nobody knows their places.
    """
    if not all(tensor.shape[:2] == seen.ids_BT.shape for tensor in seen.sites("resid_post").values()):
        return {}
    gates = {site.step: gate.float() for site, gate in seen.sites("router.gate").items()}
    schedule, gate = seen.model.schedule, None
    stream = entered = seen.taps["embed"].float() if "embed" in seen.taps else None
    found: dict[Site, After] = {}
    for site, post_BTD in seen.sites("resid_post").items():
        made_BTD = post_BTD.float()
        present_BT = takes_part(made_BTD)
        gate = gates.get(site.step, gate)  # a depth planned at once has one gate for all its passes
        if _begins(schedule, site.step):
            entered = stream
        if entered is None:
            entered = torch.zeros_like(made_BTD)
        if gate is not None and _ends_pass(schedule, site.step):
            made_BTD = entered + gate[..., None] * (made_BTD - entered)
        stream = torch.where(present_BT[..., None], made_BTD, entered)
        found[site] = After(stream, present_BT)
    return found


def states_of(seen: Observation) -> dict[str, Tensor]:
    """The stream as `START`, where a model shows it as wide as later, and after each step by the step's label.

    In the dtype that the read-out takes; empty where `after_steps` is.
    """
    after = after_steps(seen)
    if not after:
        return {}
    first = seen.sites("resid_post")[next(iter(after))]
    start = seen.taps.get("embed")
    whole = start is not None and start.shape == first.shape
    found = {START: start.to(first.dtype)} if start is not None and whole else {}
    return found | {site.label: one.state_BTD.to(first.dtype) for site, one in after.items()}


def before_steps(seen: Observation, states: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What each step begins with, by its label, out of `states` (`states_of`): what the one before left, or, where a
    model shows it (`BEGIN`), the start again, as in columns. A first step whose start nobody knows is absent.
    """
    shown = {site.label: x_BTD for site, x_BTD in seen.sites("resid_pre").items()}
    start = left = states.get(START)
    found: dict[str, Tensor] = {}
    for label, state_BTD in states.items():
        if label == START:
            continue
        anew = start is not None and label in shown and torch.equal(shown[label], start)
        if left is not None:
            found[label] = start if anew and start is not None and not torch.equal(left, start) else left
        left = state_BTD
    return found


def takes_part(x_BTD: Tensor) -> Tensor:
    """Which tokens a tap of a step shows, (B, T): those whose numbers are finite and not all zero."""
    return x_BTD.isfinite().all(-1) & (x_BTD != 0).any(-1)


def _pass_of(schedule: Schedule, i: int) -> int | None:
    """The number of the pass that step `i` belongs to; None: its block is applied once."""
    repeats = sum(step.block == schedule[i].block for step in schedule)
    return repeat_of(schedule, i) if repeats > 1 else None


def _begins(schedule: Schedule, i: int) -> bool:
    return i == 0 or _pass_of(schedule, i) is None or _pass_of(schedule, i) != _pass_of(schedule, i - 1)


def _ends_pass(schedule: Schedule, i: int) -> bool:
    return _pass_of(schedule, i) is not None and (i + 1 == len(schedule) or _begins(schedule, i + 1))


class Loop(NamedTuple):
    """Blocks that are applied again: the step with which the first pass begins, and the last step of each pass."""

    first: int
    ends: tuple[int, ...]


def loops(schedule: Schedule) -> list[Loop]:
    """The loops of a schedule, in order.

    Blocks whose applications alternate are one loop, 0 1 0 1; a block that is repeated by itself is one of its own.
    """
    steps_of: dict[int, list[int]] = {}
    for i, step in enumerate(schedule):
        steps_of.setdefault(step.block, []).append(i)
    found: list[list[list[int]]] = []  # of each loop the steps of each of its blocks
    for steps in (steps for steps in steps_of.values() if len(steps) > 1):
        if found and steps[0] < found[-1][0][1]:
            found[-1].append(steps)
        else:
            found.append([steps])
    return [
        Loop(blocks[0][0], tuple(max(s[r] for s in blocks if r < len(s)) for r in range(max(map(len, blocks)))))
        for blocks in found
    ]


def row_slices(n_rows: int, n_tokens: int, n_vocab: int) -> Iterator[slice]:
    """Some rows at a time, as many as a reading of `MOST_LOGITS` numbers holds."""
    at_once = max(1, MOST_LOGITS // (n_tokens * n_vocab))
    for first in range(0, n_rows, at_once):
        yield slice(first, min(first + at_once, n_rows))


def read_rows(model: LanguageModel, x_BTD: Tensor, n_vocab: int) -> Iterator[tuple[slice, Tensor]]:
    """What the read-out makes of a state: some rows at a time, with their logits in float32."""
    n_rows, n_tokens = x_BTD.shape[:2]
    for rows in row_slices(n_rows, n_tokens, n_vocab):
        with torch.no_grad():
            yield rows, model.readout(x_BTD[rows]).float()
