"""How many passes tokens take, and whether the hard ones take more.

The depth of the token at position t stands beside the surprisal of the token at t + 1: what the model finds hard to
predict from there, which it had to think about at t.

Legend: B rows, T positions.
"""

from __future__ import annotations

import numpy as np

from homunculi.core.schedule import repeat_of
from homunculi.instruments.observation import Observation
from homunculi.instruments.registry import instrument
from homunculi.instruments.tokenwise import Numbers, correlate, equal_mass_bins, mean_by, numbers
from homunculi.runs.measures import Measurement


@instrument(
    "depth",
    view="line",
    title="Depth",
    question="How many passes do tokens take, and do those before a surprising token take more?",
    needs=("steps.*.router.taking",),
)
def measure(seen: Observation) -> Measurement | None:
    found = depths(seen)
    if found is None:
        return None
    depth_BT, deepest = found
    counts = np.bincount(depth_BT.astype(np.int64).ravel(), minlength=deepest + 1)
    surprisal_BT = numbers(seen.surprisals)
    before_BT = depth_BT[:, :-1]
    bins, n_bins = equal_mass_bins(surprisal_BT.ravel())
    return Measurement(
        {
            "share of tokens": counts / max(1, depth_BT.size),
            "depth by surprisal": mean_by(bins, before_BT.ravel(), n_bins),
            "surprisal": mean_by(bins, surprisal_BT.ravel(), n_bins),
            "mean depth": np.array(depth_BT.mean()),
            **correlate(before_BT, surprisal_BT).scalars("rho"),
        },
        {"share of tokens": ("passes",), "depth by surprisal": ("decile",), "surprisal": ("decile",)},
        {"passes": tuple(map(str, range(len(counts)))), "decile": tuple(str(i + 1) for i in range(n_bins))},
        {"surprisal": "nats", "mean depth": "passes", "depth by surprisal": "passes"},
        (
            "deciles of the surprisal of the token that follows, lowest first",
            "rho: rank correlation of depth and the surprisal of the token that follows; interval: a bootstrap over "
            f"{len(depth_BT)} rows; null sd from depths shifted along their rows. Both may follow the position alone: "
            "quotas let the first tokens of a row deeper, and little is known of them",
        ),
    )


def depths(seen: Observation) -> tuple[Numbers, int] | None:
    """Passes that each token takes, (B, T), those that all take included, and the most that there are; None: no
    router spoke."""
    taken = seen.sites("router.taking")
    if not taken:
        return None
    schedule = seen.model.schedule
    passes = {repeat_of(schedule, i) for i in range(len(schedule))}
    free = len(passes) - len({site.repeat for site in taken})
    depth_BT = free + sum(numbers(taking_BT) for taking_BT in taken.values())
    return np.asarray(depth_BT, dtype=np.float64), len(passes)
