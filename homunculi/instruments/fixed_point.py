"""Whether a block that is applied again and again settles: how much each pass changes the state.

x_0 is the state that a loop is given and x_r the state after its pass r. Of the changes Δ_r = x_r − x_(r−1) this reads
|Δ_r| / |x_(r−1)|, the cosine of Δ_r with Δ_(r−1), and |Δ_r| / |Δ_(r−1)|. A map that shrinks distances by a factor c has
that ratio at most c; under 1 throughout, the passes approach a fixed point.

Legend: B rows, T positions, D width, N tokens, M measures.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from homunculi.instruments.observation import Observation
from homunculi.instruments.registry import instrument
from homunculi.instruments.stream import NEEDS, TAPS, After, Loop, after_steps, loops
from homunculi.runs.measures import Array, Measurement

MEASURES = ("change", "cosine", "ratio", "shrinking")


@instrument(
    "fixed_point",
    view="line",
    title="Approach to a fixed point",
    question="Do repeated applications of a block change the state less and less?",
    taps=TAPS,
    needs=NEEDS,
)
def measure(seen: Observation) -> Measurement | None:
    repeated = loops(seen.model.schedule)
    if not repeated:
        return None
    after = {site.step: found for site, found in after_steps(seen).items()}
    series = [_of_loop(seen, after, loop) for loop in repeated]
    n_passes = max(found_MR.shape[1] for found_MR in series)
    if not n_passes:
        return None
    values = {
        name: np.stack([np.pad(s[m], (0, n_passes - s.shape[1]), constant_values=np.nan) for s in series])
        for m, name in enumerate(MEASURES)
    }
    schedule = seen.model.schedule
    return Measurement(
        values,
        dict.fromkeys(MEASURES, ("loop", "pass")),
        {
            "loop": tuple(f"block {schedule[loop.ends[0]].block}" for loop in repeated),
            "pass": tuple(str(r + 1) for r in range(n_passes)),
        },
        notes=(
            "a loop is named after its last block; before pass 1 stands the state that the loop is given",
            "of the tokens that take the pass, and for cosine and ratio the one before too; ratio: geometric mean",
            "shrinking: share of the tokens that a pass changes less than the one before did",
        ),
    )


def _of_loop(seen: Observation, after: dict[int, After], loop: Loop) -> Array:
    """The measures of each pass that ran, (M, R)."""
    given = seen.taps["embed"].float() if "embed" in seen.taps else None
    last_BTD = after[loop.first - 1].state_BTD if loop.first - 1 in after else given
    rows, change_BTD = [], None
    for state_BTD, present_BT in (after[i] for i in loop.ends if i in after):
        delta_BTD = None if last_BTD is None else state_BTD - last_BTD
        rows.append(_of_pass(last_BTD, delta_BTD, change_BTD, present_BT))
        last_BTD, change_BTD = state_BTD, delta_BTD
    return torch.stack(rows, 1).cpu().numpy() if rows else np.zeros((len(MEASURES), 0), dtype=np.float32)


def _of_pass(before: Tensor | None, delta: Tensor | None, earlier: Tensor | None, took_BT: Tensor) -> Tensor:
    """The measures of one pass, (M); NaN where there is nothing to compare with."""
    nothing = torch.full((), torch.nan, device=took_BT.device)
    if before is None or delta is None:
        return nothing.expand(len(MEASURES))
    size_BT, change_BT = before.norm(dim=-1), delta.norm(dim=-1)
    change = (change_BT / size_BT)[took_BT & (size_BT > 0)].mean()
    if earlier is None:
        return torch.stack([change, nothing, nothing, nothing])
    earlier_BT = earlier.norm(dim=-1)
    both_BT = took_BT & (change_BT > 0) & (earlier_BT > 0)  # who skipped the pass before did not change
    cosine_BT = (delta * earlier).sum(-1) / (change_BT * earlier_BT)
    ratio_N = (change_BT / earlier_BT)[both_BT]
    return torch.stack([change, cosine_BT[both_BT].mean(), ratio_N.log().mean().exp(), (ratio_N < 1).float().mean()])
