"""How spread and how local the attention of each head is, by step.

Legend: B rows, H heads, T queries, S keys, N queries that attend.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from homunculi.instruments.observation import Observation
from homunculi.instruments.registry import instrument
from homunculi.runs.measures import Measurement

NEAR = (8, 32)  # tokens, a query's own included
MEASURES = ("entropy", "distance", *(f"within_{n}" for n in NEAR))


@instrument(
    "attention",
    view="heatmap",
    title="Attention heads",
    question="How many tokens does each head look at, and how far back?",
    needs=("steps.*.attn.pattern",),
)
def measure(seen: Observation) -> Measurement | None:
    found = {site: _of_heads(pattern) for site, pattern in seen.sites("attn.pattern").items()}
    if not found:
        return None
    n_heads = max(of_MH.shape[1] for of_MH in found.values())
    values_MHL = np.full((len(MEASURES), n_heads, len(found)), np.nan, dtype=np.float32)
    for column, of_MH in enumerate(found.values()):
        values_MHL[:, : of_MH.shape[1], column] = of_MH.cpu().numpy()
    return Measurement(
        dict(zip(MEASURES, values_MHL, strict=True)),
        dict.fromkeys(MEASURES, ("head", "step")),
        {"head": tuple(map(str, range(n_heads))), "step": tuple(site.label for site in found)},
        {"entropy": "nats", "distance": "tokens"},
        notes=(
            "means over the queries that take part in the step; within_8: weight on the latest 8 tokens, its own too",
            _even(seen.ids_BT.shape[1]),
        ),
    )


def _of_heads(pattern_BHTS: Tensor) -> Tensor:
    """The measures of each head, (M, H): means over queries; NaN where nobody attends."""
    pattern_BHTS = torch.nan_to_num(pattern_BHTS.float())
    total_BHT = pattern_BHTS.sum(-1)
    attends_BHT = total_BHT > 0.5  # a query that is skipped shows zeros
    weights_BHTS = pattern_BHTS / total_BHT.clamp(min=1e-6)[..., None]
    distance_TS = _distances(pattern_BHTS)
    rows_MBHT = [
        torch.special.entr(weights_BHTS).sum(-1),
        *((weights_BHTS * by_TS).sum(-1) for by_TS in (distance_TS, *((distance_TS < n).float() for n in NEAR))),
    ]
    n_H = attends_BHT.sum((0, 2))
    sums_MH = torch.stack([torch.where(attends_BHT, row_BHT, 0).sum((0, 2)) for row_BHT in rows_MBHT])
    return sums_MH / torch.where(n_H > 0, n_H, torch.nan)


def _distances(pattern_BHTS: Tensor) -> Tensor:
    """How far back each key is, (T, S); 0 for the query's own, and for later ones, which nobody sees."""
    (n_queries, n_keys), device = pattern_BHTS.shape[-2:], pattern_BHTS.device
    query_T1 = torch.arange(n_keys - n_queries, n_keys, device=device)[:, None]
    return (query_T1 - torch.arange(n_keys, device=device)).clamp(min=0).float()


def _even(n_tokens: int) -> str:
    """What a head would have that looks at all tokens alike."""
    even_TS = torch.ones(n_tokens, n_tokens).tril() / torch.arange(1, n_tokens + 1)[:, None]
    entropy, distance, *near = _of_heads(even_TS[None, None])[:, 0].tolist()
    shares = ", ".join(f"{share:.2f} within {n}" for share, n in zip(near, NEAR, strict=True))
    return f"where none is skipped, a head that sees all alike has {entropy:.2f} nats, {distance:.1f} tokens, {shares}"
