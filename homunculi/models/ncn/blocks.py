"""A block under modulation. Legend: B batch, T positions, N = B · T, S positions seen, D width."""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.cache import KVSlot
from ...core.modulation import NEUTRAL, Modulation
from ...core.taps import NO_TAPS, TapPoint
from ...parts.block import Block
from .config import Config


def _times(factor: Tensor | None, update: Tensor) -> Tensor:
    return update if factor is None else (factor * update).to(update.dtype)


class ModulatedBlock(Block):
    """x + gain · attention(norm(x)), then x + gain · gate · mlp(norm(x))."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.skips = config.skip_below > 0

    def forward(
        self,
        x_BTD: Tensor,
        rotation: tuple[Tensor, Tensor],
        taps: TapPoint,
        mask_BTS: Tensor | None = None,
        cache: tuple[KVSlot, Tensor] | None = None,
        signals: Modulation = NEUTRAL,
    ) -> Tensor:
        x_BTD = taps("resid_pre", x_BTD)
        precision = signals.precision
        if precision is not None and precision.dim() == 4:
            precision = precision.squeeze(-1)
        update = self.dropout(self.attn(self.attn_norm(x_BTD), rotation, taps, mask_BTS, cache, precision))
        x_BTD = taps("resid_mid", x_BTD + _times(signals.gain, update))
        factor = signals.gate if signals.gain is None else _times(signals.gate, signals.gain)
        return taps("resid_post", self._feed_forward(x_BTD, factor, taps))

    def _feed_forward(self, x_BTD: Tensor, factor_BT1: Tensor | None, taps: TapPoint) -> Tensor:
        """x + factor · mlp(norm(x)). Evaluation computes it where the factor is not 0, unless somebody looks inside."""
        looked_at = any(taps.wants(f"mlp.{site}") for site in ("pre", "post", "out"))
        if factor_BT1 is not None and self.skips and not (self.training or looked_at or torch.compiler.is_compiling()):
            x_ND, factor_N1 = x_BTD.flatten(0, 1), factor_BT1.flatten(0, 1)
            index_N = factor_N1.squeeze(1).nonzero().squeeze(1)
            if len(index_N) < len(factor_N1):
                update_ND = self.mlp(self.mlp_norm(x_ND[index_N]), NO_TAPS)
                return x_ND.index_add(0, index_N, _times(factor_N1[index_N], update_ND)).view_as(x_BTD)
        return x_BTD + _times(factor_BT1, self.dropout(self.mlp(self.mlp_norm(x_BTD), taps)))
