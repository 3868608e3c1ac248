"""What is watched while a controlled model trains: one number for each way in which control is known to fail.

Legend: B batch, T positions, D width, N sampled tokens, J all signals of all blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .config import FACTORS, Config

SAMPLED = 64  # tokens of which directions are counted


@torch.no_grad()
def statistics_of(signals: dict[str, Tensor], config: Config) -> dict[str, Tensor]:
    """Of each signal, averaged over blocks: mean, variance over tokens, variance between the means of sequences, half
    the mean squared step from a token to the next, and the share within a tenth of the way to a bound. Of all signals
    together, in how many directions they move. Shares of tokens and blocks that are left out."""
    found: dict[str, Tensor] = {}
    for name, signal in signals.items():
        s = signal.detach().flatten(2)
        apart = s.log2() / 2 if name in FACTORS else s - 1
        found[f"signal/{name}/mean"] = s.mean()
        found[f"signal/{name}/variance"] = s.var((0, 1), correction=0).mean()
        found[f"signal/{name}/between"] = s.mean(1).var(0, correction=0).mean()
        found[f"signal/{name}/phasic"] = (s[:, 1:] - s[:, :-1]).square().sum() / (2 * s[:, 1:].numel() or 1)
        found[f"signal/{name}/saturated"] = (apart.abs() > 0.9).to(s.dtype).mean()
    found["signal/directions"] = directions([signal.detach().flatten(2) for signal in signals.values()])
    if config.skip_below:
        found["skipped"] = (signals["gate"] < config.skip_below).float().mean()
    if config.skip_block_below:
        found["depth"] = config.n_blocks * (signals["gain"] >= config.skip_block_below).float().mean()
    if config.plasticity == "gain":
        found["gain_of_blocks"] = signals["gain"].mean((0, 1))
    return found


def directions(signals: list[Tensor]) -> Tensor:
    """In how many directions signals move: the participation ratio (Σ λ)² / Σ λ² of their covariance over some tokens,
    each divided by its own spread; 0 where none moves.

    With G the products of tokens by tokens, Σ λ² is the mean square of G: no covariance of J × J is built.
    """
    s_NJ = torch.cat(signals, -1).flatten(0, 1)
    s_NJ = s_NJ[:: max(1, len(s_NJ) // SAMPLED)][:SAMPLED]
    apart_NJ = s_NJ - s_NJ.mean(0)
    spread_J = apart_NJ.square().mean(0).sqrt()
    apart_NJ = torch.where(spread_J > 1e-6, apart_NJ / spread_J.clamp(min=1e-6), 0)
    products_NN = (apart_NJ[:, None] * apart_NJ).sum(-1)
    return products_NN.diagonal().sum().square() / products_NN.square().sum().clamp(min=1e-12)


@torch.no_grad()
def growth(first_BTD: Tensor, last_BTD: Tensor, n_blocks: int) -> Tensor:
    """How often a block doubles the stream's size, a mean over tokens and blocks."""
    sizes = [x.detach().float().square().mean(-1).clamp(min=1e-30).log2() / 2 for x in (first_BTD, last_BTD)]
    return (sizes[1] - sizes[0]).mean() / n_blocks


@torch.no_grad()
def refreshed(pool_BTD: Tensor) -> Tensor:
    """Share of tokens, the first ones left out, whose pool is not that of the token before."""
    return (pool_BTD[:, 1:] != pool_BTD[:, :-1]).any(-1).float().sum() / (pool_BTD[:, 1:, 0].numel() or 1)
