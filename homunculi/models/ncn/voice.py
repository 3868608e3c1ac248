"""How the controller speaks to the blocks: to all of them before the first, or to each after the one before.

Legend: B batch, T positions, C controller, D width, I statistics, H heads, S positions seen; a trailing 1 is an axis of
size one.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ...core.taps import TapPoint
from .blocks import NONE, Effects
from .config import Config
from .controller import Controller


class Silence:
    """No controller: blocks are those of the plain transformer."""

    def __init__(self, taps: TapPoint) -> None:
        self.taps_of_call = taps

    def effects(self, block: int) -> Effects:
        return NONE

    def taps(self, block: int) -> TapPoint:
        """What a block gets for its taps."""
        return self.taps_of_call.at(block)

    def hear(self, block: int, before_BTD: Tensor, after_BTD: Tensor) -> None:
        """What a block made of the stream."""

    def signals(self) -> dict[str, Tensor]:
        """All that was said, (B, T, L) or (B, T, K, L) by name."""
        return {}

    def heard(self) -> dict[str, Tensor]:
        """Means of what was heard of blocks, by name."""
        return {}


class Announced(Silence):
    """What is said before the first block."""

    def __init__(self, controller: Controller, h_BTC: Tensor, config: Config, taps: TapPoint) -> None:
        super().__init__(taps)
        self.said = controller.say(h_BTC, taps)
        self.all = closed(self.said, config)

    def effects(self, block: int) -> Effects:
        return self.all.at(block)

    def signals(self) -> dict[str, Tensor]:
        return self.said


class Conversation(Silence):
    """Each block's signals hear statistics of the block before. No gradient goes through what is heard."""

    def __init__(self, controller: Controller, a_BTC: Tensor, config: Config, taps: TapPoint) -> None:
        super().__init__(taps)
        self.controller, self.a_BTC, self.config = controller, a_BTC, config
        self.said: list[dict[str, Tensor]] = []
        self.heard_BTI: list[Tensor] = []
        self.watching: Watching | None = None

    def effects(self, block: int) -> Effects:
        heard_BTI = self.heard_BTI[block - 1] if block else None
        self.said.append(self.controller.say_in(block, self.a_BTC, heard_BTI, self.taps_of_call.at(block)))
        return closed(self.said[block], self.config).at(0)

    def taps(self, block: int) -> TapPoint:
        taps, last = self.taps_of_call.at(block), block + 1 == self.config.n_blocks
        self.watching = None if last or "entropy" not in self.config.statistics else Watching(taps)
        return taps if self.watching is None else self.watching

    def hear(self, block: int, before_BTD: Tensor, after_BTD: Tensor) -> None:
        if block + 1 == self.config.n_blocks:
            return
        found: dict[str, Tensor] = {"change": _change(before_BTD.detach(), after_BTD.detach())}
        if self.watching is not None:
            assert self.watching.entropy_BT1 is not None
            found["entropy"] = self.watching.entropy_BT1 / math.log(self.config.max_seq_len)
        self.heard_BTI.append(torch.cat([found[name] for name in self.config.statistics], -1))

    def signals(self) -> dict[str, Tensor]:
        return {name: torch.cat([said[name] for said in self.said], -1) for name in self.said[0]}

    def heard(self) -> dict[str, Tensor]:
        mean_I = torch.stack([heard_BTI.mean((0, 1)) for heard_BTI in self.heard_BTI]).mean(0)
        return {f"heard/{name}": mean_I[i] for i, name in enumerate(self.config.statistics)}


class Watching:
    """A step's taps that also take the entropy of its attention, in nats, a mean over heads."""

    def __init__(self, taps: TapPoint) -> None:
        self.taps_of_step = taps
        self.entropy_BT1: Tensor | None = None

    def __call__(self, site: str, tensor: Tensor) -> Tensor:
        tensor = self.taps_of_step(site, tensor)
        if site == "attn.pattern":
            pattern_BHTS = tensor.detach()
            pattern_BHTS = pattern_BHTS.to(torch.promote_types(pattern_BHTS.dtype, torch.float32))
            self.entropy_BT1 = torch.special.entr(pattern_BHTS).sum(-1).mean(1)[..., None]
        return tensor

    def at(self, step: int) -> TapPoint:
        return self.taps_of_step.at(step)

    def wants(self, site: str) -> bool:
        return site == "attn.pattern" or self.taps_of_step.wants(site)


def _change(before_BTD: Tensor, after_BTD: Tensor) -> Tensor:
    """Size of what was written, as a share of it and the stream together, (B, T, 1)."""
    wide = torch.promote_types(before_BTD.dtype, torch.float32)
    before, wrote = before_BTD.to(wide), after_BTD.to(wide) - before_BTD.to(wide)
    sizes = [torch.linalg.vector_norm(x, dim=-1, keepdim=True) for x in (before, wrote)]
    return sizes[1] / (sizes[0] + sizes[1]).clamp(min=1e-12)


def closed(said: dict[str, Tensor], config: Config) -> Effects:
    """What was said, with gains and gates under their thresholds closed."""
    effects = Effects(**said)
    if config.skip_below:
        effects = replace(effects, gate=torch.where(said["gate"] < config.skip_below, 0.0, said["gate"]))
    if config.skip_block_below:
        effects = replace(effects, gain=torch.where(said["gain"] < config.skip_block_below, 0.0, said["gain"]))
    return effects
