"""Initial weights and the read-out of models whose read-out may be tied to their token table.

Legend: B batch, T positions, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..core.taps import TapPoint
from .linear import Linear

TABLE_STD = 0.02


def init_maps(model: nn.Module, writes: tuple[str, ...] = ("attn.o", "mlp.out")) -> None:
    """Normal weights: token table and untied read-out 0.02; maps 1/√inputs; maps that write to the residual stream
    smaller by √(2 · steps) of the unrolled schedule, so that its variance does not grow with depth.

    Args:
        model: with `embed`, `schedule` and, unless it is tied, a map `untied`.
        writes: ends of the names of maps that write to the stream.
    """
    parts: Any = model
    nn.init.normal_(parts.embed.weight, std=TABLE_STD)
    for name, module in model.named_modules():
        if isinstance(module, Linear):
            depth = 2 * len(parts.schedule) if name.endswith(writes) else 1
            std = TABLE_STD if name == "untied" else (module.in_features * depth) ** -0.5
            nn.init.normal_(module.weight, std=std)


def read_out(model: nn.Module, x_BTD: Tensor, taps: TapPoint) -> Tensor:
    """Logits (B, T, V) from a state: the model's last norm, then its untied map or its token table."""
    parts: Any = model
    weight_VD = parts.embed.weight if parts.untied is None else parts.untied.weight
    x_BTD = taps("readout.norm", parts.norm(x_BTD))
    cast_VD = parts.once("readout", x_BTD.dtype, lambda: weight_VD.to(x_BTD.dtype))
    return taps("readout.logits", F.linear(x_BTD, cast_VD))
