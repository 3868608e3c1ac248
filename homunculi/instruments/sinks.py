"""Attention sinks: tokens that draw attention from everywhere although they say little.

A token draws attention in a step if the queries behind it, the nearest left out, give it many times an even share. The
primary sink is among the first tokens and takes what heads do not need (Xiao et al. 2024). Secondary sinks (2512.22213)
come later in depth and last for a part of it; their state has turned into the direction of the primary one's. Here a
token is a secondary sink where it draws attention and its state, less the mean of its row, has a cosine over 0.9 in
size with the primary sink's, if that begins at a later step than the primary sink does and holds for 10 to 60 % of the
steps. What attention finds at a step was written by the steps before.

Legend: B rows, T positions (queries, then keys: S), H heads, D width, L steps.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from homunculi.instruments.observation import Observation
from homunculi.instruments.registry import instrument
from homunculi.instruments.stream import takes_part
from homunculi.runs.measures import Array, Measurement

FIRST = 4  # tokens among which the primary sink is
NEAREST = 16  # tokens whose attention does not count: what is near is looked at anyway
TIMES = 4.0  # an even share
STRONG = 0.3  # of a head's attention (Gu et al. 2025)
ALIKE = 0.9  # cosine
LIFETIME = (0.1, 0.6)  # share of the steps
N_TOKENS = 12  # kinds of tokens that are listed
MEASURES = (
    "share of attention on the primary sink",
    "the same, times an even share",
    "share of heads that give it over 30 %",
    "rows with a primary sink",
    "secondary sinks in 100 tokens",
    "secondary sinks that arise here, in 100 tokens",
    "share of attention on secondary sinks",
    "others that draw attention, in 100 tokens",
)


class Drawn(NamedTuple):
    """What tokens draw in a step: their share of the attention of queries further on, a mean over heads and of each
    head, and an even share. NaN where hardly any query is far enough."""

    share_BS: Tensor
    share_BHS: Tensor
    even_BS: Tensor

    @property
    def times(self) -> Tensor:
        """What a token draws in even shares, (B, S)."""
        return self.share_BS / self.even_BS


@instrument(
    "sinks",
    view="heatmap",
    title="Attention sinks",
    question="Which tokens draw attention from everywhere, the first or later ones, and from which step on?",
    taps=("steps.*.resid_pre",),
    needs=("steps.*.attn.pattern",),
)
def measure(seen: Observation) -> Measurement | None:
    sites = seen.sites("attn.pattern")
    if not sites or seen.ids_BT.shape[1] < 2:
        return None
    if len({tuple(pattern.shape[-2:]) for pattern in sites.values()}) > 1:
        return None  # some steps show some tokens alone, and not at their places
    drawn = [drawn_by(pattern) for pattern in sites.values()]
    times_LBS = torch.stack([one.times for one in drawn])
    share_LBS = torch.stack([one.share_BS for one in drawn]).nan_to_num()
    primary_B = times_LBS[..., :FIRST].nanmean(0).nan_to_num().argmax(-1)
    states = {site.step: state for site, state in seen.sites("resid_pre").items()}
    alike_LBS = torch.stack(
        [_alike(states.get(site.step), primary_B, times_BS) for site, times_BS in zip(sites, times_LBS, strict=True)]
    )
    draws_LBS = times_LBS >= TIMES
    secondary_LBS, has_LB = _secondary(draws_LBS, alike_LBS, primary_B)
    of_primary = torch.arange(times_LBS.shape[-1], device=primary_B.device) == primary_B[:, None]
    others_LBS = draws_LBS & ~secondary_LBS & ~of_primary
    rows = [
        *_primary(drawn, share_LBS, times_LBS, primary_B, has_LB),
        100 * secondary_LBS.float().mean((1, 2)),
        100 * _arising(secondary_LBS).float().mean((1, 2)),
        (share_LBS * secondary_LBS).sum(-1).mean(1),
        100 * others_LBS.float().mean((1, 2)),
    ]
    values: dict[str, Array] = {
        "sinks": torch.stack(rows).cpu().numpy().astype(np.float32),
        "by_position": times_LBS.nanmean(1).cpu().numpy().astype(np.float32),
    }
    axes: dict[str, tuple[str, ...]] = {"sinks": ("measure", "step"), "by_position": ("step", "position")}
    labels = {"measure": MEASURES, "step": tuple(site.label for site in sites)}
    for name, of_LBS in (("by_token", times_LBS), ("secondary_by_token", secondary_LBS.float())):
        words, by_token = _by_token(seen, of_LBS)
        if words and not (name == "secondary_by_token" and not by_token.any()):
            axis = name.replace("by_", "")
            values[name], axes[name], labels[axis] = by_token, (axis, "step"), words
    return Measurement(values, axes, labels, notes=_notes(has_LB))


def _notes(has_LB: Tensor) -> tuple[str, ...]:
    with_primary, n_rows = int(has_LB.any(0).sum()), has_LB.shape[1]
    return (
        f"{with_primary} of {n_rows} rows have a primary sink; in a row without one there is no secondary sink",
        f"a token draws attention if queries over {NEAREST} tokens on (in short rows T / 8) give it {TIMES:g} times an "
        "even share, a mean over heads",
        "by_position and by_token: times an even share; secondary_by_token: share of its occurrences",
        "by token: those with the largest means; where a token occurs only once, that is what one place does",
        "tokens that a step skips neither draw nor give attention there",
    )


def drawn_by(pattern_BHTS: Tensor) -> Drawn:
    """What each token draws; queries at most as far behind as this step's attention reaches."""
    pattern_BHTS = torch.nan_to_num(pattern_BHTS.float())
    n_queries, n_keys = pattern_BHTS.shape[-2:]
    device = pattern_BHTS.device
    query_T1 = torch.arange(n_keys - n_queries, n_keys, device=device)[:, None]
    age_TS = query_T1 - torch.arange(n_keys, device=device)
    asks_BT = pattern_BHTS[:, 0].sum(-1) > 0.5
    seen_BTS = pattern_BHTS.amax(1) > 0
    reach = torch.where(seen_BTS.any(0), age_TS, 0).max()
    there_BS = seen_BTS.any(1)  # nobody sees a key that is skipped
    if n_queries == n_keys:
        there_BS = there_BS | asks_BT
    nearest = min(NEAREST, n_keys // 8)
    far_BTS = ((age_TS > nearest) & (age_TS <= reach)) & asks_BT[..., None]
    n_BS = far_BTS.sum(1)
    n_BS = torch.where(there_BS & (n_BS >= max(1, n_keys // 16)), n_BS, torch.nan)  # fewer say little
    share_BHS = torch.einsum("bhts,bts->bhs", pattern_BHTS, far_BTS.float()) / n_BS[:, None]
    visible_BTS = ((age_TS >= 0) & (age_TS <= reach)) & there_BS[:, None]
    even_BT1 = 1 / visible_BTS.sum(-1, keepdim=True).clamp(min=1)
    even_BS = (far_BTS * even_BT1).sum(1) / n_BS
    return Drawn(share_BHS.mean(1), share_BHS, even_BS)


def _alike(state_BTD: Tensor | None, primary_B: Tensor, times_BS: Tensor) -> Tensor:
    """Which states have the primary sink's direction, up to sign; the row's mean without that sink is taken off."""
    if state_BTD is None:
        return torch.zeros_like(times_BS, dtype=torch.bool)
    state_BTD = state_BTD.float().nan_to_num()
    present_BT = takes_part(state_BTD)
    position_T = torch.arange(state_BTD.shape[1], device=state_BTD.device)
    others_BT = present_BT & (position_T != primary_B[:, None])
    n_B = others_BT.sum(1).clamp(min=1)
    mean_BD = (state_BTD * others_BT[..., None]).sum(1) / n_B[:, None]
    centred_BTD = state_BTD - mean_BD[:, None]
    rows_B = torch.arange(len(primary_B), device=state_BTD.device)
    cosine_BT = torch.cosine_similarity(centred_BTD, centred_BTD[rows_B, primary_B][:, None], dim=-1)
    return (cosine_BT.abs() > ALIKE) & present_BT & present_BT[rows_B, primary_B][:, None]


def _secondary(draws_LBS: Tensor, alike_LBS: Tensor, primary_B: Tensor) -> tuple[Tensor, Tensor]:
    """Where which tokens are secondary sinks, (L, B, S), and where the primary one is a sink, (L, B)."""
    n_steps, n_rows = draws_LBS.shape[:2]
    rows_B = torch.arange(n_rows, device=draws_LBS.device)
    has_LB = draws_LBS[:, rows_B, primary_B]
    sink_LBS = draws_LBS & alike_LBS
    sink_LBS[:, rows_B, primary_B] = False
    begins_B = torch.where(has_LB.any(0), has_LB.float().argmax(0), n_steps)
    begins_BS = torch.where(sink_LBS.any(0), sink_LBS.float().argmax(0), -1)
    lasts_BS = sink_LBS.float().mean(0)
    late_BS = begins_BS > begins_B[:, None]
    return sink_LBS & (late_BS & (lasts_BS > LIFETIME[0] - 1e-6) & (lasts_BS < LIFETIME[1] + 1e-6)), has_LB


def _arising(sink_LBS: Tensor) -> Tensor:
    """True at the first step at which a token is a sink."""
    return sink_LBS & (sink_LBS.cumsum(0) == 1)


def _primary(
    drawn: list[Drawn], share_LBS: Tensor, times_LBS: Tensor, primary_B: Tensor, has_LB: Tensor
) -> list[Tensor]:
    """Measures of the primary sink, each (L)."""
    rows_B = torch.arange(len(primary_B), device=primary_B.device)
    strong_L = []
    for one in drawn:
        enough_B = (TIMES * one.even_BS[rows_B, primary_B]).clamp(min=STRONG)
        strong_L.append((one.share_BHS[rows_B, :, primary_B] > enough_B[:, None]).float().mean())
    return [
        share_LBS[:, rows_B, primary_B].mean(1),
        times_LBS[:, rows_B, primary_B].nanmean(1),
        torch.stack(strong_L),
        has_LB.float().mean(1),
    ]


def _by_token(seen: Observation, of_LBS: Tensor) -> tuple[tuple[str, ...], Array]:
    """The tokens with the largest means over their occurrences, and these by step, (token, step)."""
    ids, which, counts = seen.ids_BT.flatten().unique(return_inverse=True, return_counts=True)
    flat_LN = of_LBS.flatten(1).float()
    known_LN = flat_LN.isfinite().float()
    sums, known = (
        torch.zeros(len(flat_LN), len(ids), device=ids.device).index_add_(1, which, x)
        for x in (flat_LN.nan_to_num(), known_LN)
    )
    mean_LW = sums / torch.where(known > 0, known, torch.nan)
    often = (counts > 1) | (counts.max() == 1)
    best = (mean_LW.nanmean(0).nan_to_num(-1) - 1e6 * ~often).topk(min(N_TOKENS, len(ids))).indices
    words = [(int(ids[i]), int(counts[i])) for i in best.tolist()]
    labels = tuple(f"{seen.pieces[i] if i < len(seen.pieces) else i} ×{n}" for i, n in words)
    return labels, mean_LW[:, best].mT.cpu().numpy().astype(np.float32)
