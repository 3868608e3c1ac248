"""A block under modulation.

Legend: B batch, T positions, N = B · T, S positions seen, D width, R directions, H heads, K numbers of an effect, L
blocks; a trailing 1 is an axis of size one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from ...core.cache import KVSlot
from ...core.modulation import Modulation
from ...core.taps import NO_TAPS, TapPoint
from ...parts.block import Block
from ...parts.linear import Linear
from .config import Config

TEMPERATURE = 0.1  # of the soft mask through which a dropout rate gets its gradient


@dataclass(frozen=True, slots=True)
class Effects(Modulation):
    """What the controller sets in a block beside gain, precision and gate; None: nothing.

    Attributes:
        heads: factor of what each head of attention found, (B, T, H, L).
        film: 1 + weights of the learned directions that scale and shift both norms, (B, T, R, L).
        beta: how sharply the activation bends, (B, T, L).
        dropout: factor of the dropout rate of both updates, (B, T, L).
    """

    heads: Tensor | None = None
    film: Tensor | None = None
    beta: Tensor | None = None
    dropout: Tensor | None = None

    def at(self, step: int) -> Effects:
        """The effects of one step, each (B, T, K), where K is 1 but for what is set head by head or by directions."""
        return self._mapped(lambda s: s[..., step] if s.dim() == 4 else s[..., step : step + 1])

    def of_tokens(self, index_N: Tensor) -> Effects:
        """The effects of one block on some of its tokens, counted over rows."""
        return self._mapped(lambda s: s.flatten(0, 1)[index_N])

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> Effects:
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: change(signal) for name, signal in given.items() if signal is not None})


NONE = Effects()


class GatedHeads:
    """A step's taps inside attention that multiply what each head found by its gate, before anybody looks at it."""

    def __init__(self, taps: TapPoint, gate_BTH: Tensor) -> None:
        self.taps, self.gate_BTH = taps, gate_BTH

    def __call__(self, site: str, tensor: Tensor) -> Tensor:
        if site == "attn.z":
            tensor = (tensor * self.gate_BTH[..., None]).to(tensor.dtype)
        return self.taps(site, tensor)

    def at(self, step: int) -> TapPoint:
        return self.taps.at(step)

    def wants(self, site: str) -> bool:
        return self.taps.wants(site)


class Film(nn.Module):
    """Scale and shift of the inputs of attention and of the feed-forward part (Perez et al. 2018), at low rank.

    With weights c of the token, the same for both, and learned directions a and b, n becomes
    n · (1 + Σ c_r a_r) + Σ c_r b_r.
    """

    def __init__(self, rank: int, d_model: int) -> None:
        super().__init__()
        self.attn = Linear(rank, 2 * d_model)
        self.mlp = Linear(rank, 2 * d_model)
        for module in (self.attn, self.mlp):
            nn.init.normal_(module.weight, std=rank**-0.5)

    def forward(self, n: Tensor, film: Tensor, site: str) -> Tensor:
        """Args: `n` (…, D) normalised, `film` (…, R) around 1, `site` attn or mlp."""
        scale, shift = getattr(self, site)((film - 1).to(n.dtype)).chunk(2, -1)
        return n * (1 + scale) + shift


class ModulatedBlock(Block):
    """x + gain · attention(norm(x)), then x + gain · gate · mlp(norm(x)).

    Attributes:
        film: set by the model once the plain part has drawn its random numbers; None: no such effect.
    """

    film: Film | None

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.film = None
        self.skips = config.skip_below > 0 or config.skip_block_below > 0
        self.rate = config.dropout

    def forward(
        self,
        x_BTD: Tensor,
        rotation: tuple[Tensor, Tensor],
        taps: TapPoint,
        mask_BTS: Tensor | None = None,
        cache: tuple[KVSlot, Tensor] | None = None,
        effects: Effects = NONE,
    ) -> Tensor:
        x_BTD = taps("resid_pre", x_BTD)
        n_BTD = self._normed(x_BTD, effects, "attn")
        inside: TapPoint = taps if effects.heads is None else GatedHeads(taps, effects.heads)
        update = self.attn(n_BTD, rotation, inside, mask_BTS, cache, effects.precision)
        update = self._dropped(update, effects.dropout)
        x_BTD = taps("resid_mid", x_BTD + _times(effects.gain, update))
        return taps("resid_post", self._feed_forward(x_BTD, effects, taps))

    def _normed(self, x: Tensor, effects: Effects, site: str) -> Tensor:
        n = self.attn_norm(x) if site == "attn" else self.mlp_norm(x)
        return n if self.film is None or effects.film is None else self.film(n, effects.film, site)

    def _feed_forward(self, x_BTD: Tensor, effects: Effects, taps: TapPoint) -> Tensor:
        """x + factor · mlp(norm(x)). Evaluation computes it where the factor is not 0, unless somebody looks inside."""
        factor_BT1 = effects.gate if effects.gain is None else _times(effects.gate, effects.gain)
        looked_at = any(taps.wants(f"mlp.{site}") for site in ("pre", "post", "out"))
        if factor_BT1 is not None and self.skips and not (self.training or looked_at or torch.compiler.is_compiling()):
            x_ND, factor_N1 = x_BTD.flatten(0, 1), factor_BT1.flatten(0, 1)
            index_N = factor_N1.squeeze(1).nonzero().squeeze(1)
            if len(index_N) < len(factor_N1):
                own = effects.of_tokens(index_N)
                update_ND = self.mlp(self._normed(x_ND[index_N], own, "mlp"), NO_TAPS, own.beta)
                return x_ND.index_add(0, index_N, _times(factor_N1[index_N], update_ND)).view_as(x_BTD)
        update_BTD = self.mlp(self._normed(x_BTD, effects, "mlp"), taps, effects.beta)
        return x_BTD + _times(factor_BT1, self._dropped(update_BTD, effects.dropout))

    def _dropped(self, update_BTD: Tensor, factor_BT1: Tensor | None) -> Tensor:
        """The update after dropout, at the rate times the controller's factor.

        What is kept is drawn, 0 or 1; the rate's gradient is that of a soft mask at the same draw (Maddison et al.
        2017; Gal et al. 2017), so that a rate learns although a draw has no gradient.
        """
        if factor_BT1 is None or not self.training:
            return self.dropout(update_BTD)
        rate_BT1 = self.rate * factor_BT1
        drawn_BTD = torch.rand_like(update_BTD, dtype=rate_BT1.dtype).clamp(1e-6, 1 - 1e-6)
        score_BTD = torch.logit(drawn_BTD) - torch.logit(rate_BT1, eps=1e-6)
        soft_BTD = torch.sigmoid(score_BTD / TEMPERATURE)
        kept_BTD = (score_BTD > 0).to(soft_BTD.dtype) + (soft_BTD - soft_BTD.detach())
        return (update_BTD * kept_BTD / (1 - rate_BT1)).to(update_BTD.dtype)


def _times(factor: Tensor | None, update: Tensor) -> Tensor:
    return update if factor is None else (factor * update).to(update.dtype)
