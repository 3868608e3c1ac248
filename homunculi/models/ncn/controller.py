"""What a controller reads and says.

Legend: B batch, T positions, D width, L blocks, H heads, C controller.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...core.cache import Cache
from ...core.taps import TapPoint
from ...parts.linear import Linear
from ...parts.norm import RMSNorm
from ...parts.pooling import CausalPooling
from .config import MAPS, Config


class Controller(nn.Module):
    """Signals from the token table's rows: u = norm(pool + own), h = tanh(W1 u + b1), signal = map(W2 h + b2).

    W2 and b2 are zero at the start, so all signals are 1.
    """

    controls: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        n_heads = config.n_heads if config.precision_per == "head" else 1
        self.widths = {name: n_heads if name == "precision" else 1 for name in config.signals}
        self.n_blocks = config.n_blocks
        self.own_norm = RMSNorm(config.d_model)
        half_lives = [8.0 * 4**i for i in range(config.n_pool_heads)] if config.pooling == "decay" else []
        every = config.refresh_every if config.pooling == "refreshed" else 1
        pooling = CausalPooling(config.d_model, config.n_pool_heads, half_lives, every)
        self.pooling = None if config.pooling == "last" else pooling
        self.norm = RMSNorm(config.d_model)
        self.hidden = Linear(config.d_model, config.d_control)
        self.hidden_bias_C = nn.Parameter(torch.zeros(config.d_control))
        self.from_controls = Linear(config.n_controls, config.d_control) if config.n_controls else None
        if config.n_controls:
            self.register_buffer("controls", torch.zeros(config.n_controls))
        self.out = Linear(config.d_control, config.n_blocks * sum(self.widths.values()))
        self.out_bias = nn.Parameter(torch.zeros(self.out.out_features))
        for module in self.modules():
            if isinstance(module, Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
        nn.init.zeros_(self.out.weight)

    def forward(
        self, x_BTD: Tensor, taps: TapPoint, documents_BT: Tensor | None, cache: Cache | None
    ) -> dict[str, Tensor]:
        """Signals (B, T, L) by name, precision of heads (B, T, H, L); in float32 at least: near 1 a bfloat16 moves in
        steps of 1/128."""
        own_BTD = seen_BTD = self.own_norm(x_BTD)
        if self.pooling is not None:
            n = x_BTD.shape[1]
            read = None if cache is None else (cache.at(-1), cache.positions(n), cache.valid(n))
            seen_BTD = own_BTD + taps("control.pool", self.pooling(own_BTD, documents_BT, read))
        h_BTC = self.hidden(self.norm(seen_BTD)) + self.hidden_bias_C.to(x_BTD.dtype)
        if self.from_controls is not None:
            h_BTC = h_BTC + self.from_controls(self.controls).to(h_BTC.dtype)
        h_BTC = taps("control.hidden", torch.tanh(h_BTC))
        wide = torch.promote_types(h_BTC.dtype, torch.float32)
        said = (self.out(h_BTC.to(wide)) + self.out_bias).unflatten(-1, (self.n_blocks, -1))
        parts = said.split(list(self.widths.values()), dim=-1)
        return {
            name: taps(f"control.{name}", MAPS[name](z.mT if z.shape[-1] > 1 else z.squeeze(-1)))
            for name, z in zip(self.widths, parts, strict=True)
        }
