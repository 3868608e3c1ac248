"""Small language models with caches and controllers, honest ones and ones with a known fault.

Legend: B batch, T positions, D width, L steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from homunculi.core.cache import Cache
from homunculi.core.output import Hidden
from homunculi.core.taps import NO_TAPS, TapPoint
from homunculi.models.gpt import GPT, Config

CONTEXT = 24


def config(**more: Any) -> Config:
    fields: dict[str, Any] = {"vocab_size": 19, "d_model": 32, "n_blocks": 2, "n_heads": 4, "max_seq_len": CONTEXT}
    return Config(**(fields | more))


class Controlled(GPT):
    """One number a token and block: the gain of what the block adds, by the token and a summary of its past."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.controller = nn.Sequential(nn.Linear(config.d_model, 16), nn.Tanh(), nn.Linear(16, config.n_blocks))

    def pooled(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.cumsum(1) / torch.arange(1, x_BTD.shape[1] + 1)[:, None]

    def trunk(
        self, ids_BT: Tensor, taps: TapPoint = NO_TAPS, cache: Cache | None = None, documents_BT: Tensor | None = None
    ) -> Hidden:
        x_BTD = self.embed(ids_BT)
        gains_BTL = 2 * self.controller(self.norm(x_BTD + self.pooled(x_BTD))).sigmoid()
        rotation = self.rope.at(slice(0, ids_BT.shape[1]), x_BTD.dtype)
        for block, gain_BT in zip(self.blocks, gains_BTL.unbind(-1), strict=True):
            x_BTD = x_BTD + gain_BT[..., None] * (block(x_BTD, rotation, taps, None, None) - x_BTD)
        return Hidden(x_BTD, statistics={"gain": gains_BTL.mean()})


class ControlledByAll(Controlled):
    """The summary is of the whole row: a leak of one number a block, and no other."""

    def pooled(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.mean(1, keepdim=True)


class Adapting(Controlled):
    """Keeps what its hooks are told."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.told: list[Any] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> Adapting:
        twin = Adapting(self.config)
        twin.told = self.told
        return twin

    def before_update(self, step: int, steps: int) -> None:
        self.told.append((step, steps))

    def after_update(self, statistics: dict[str, Tensor]) -> None:
        self.told.append({name: value.requires_grad for name, value in statistics.items()})


@dataclass(slots=True)
class SumSlot:
    """The running sum and how many it is of."""

    sum_BD: Tensor
    count_B1: Tensor


class RunningMean(GPT):
    """Adds the mean of the tokens so far."""

    def valid(self, ids_BT: Tensor, cache: Cache | None) -> Tensor:
        told = None if cache is None else cache.valid(ids_BT.shape[1])
        return torch.ones_like(ids_BT) if told is None else told.long()

    def trunk(
        self, ids_BT: Tensor, taps: TapPoint = NO_TAPS, cache: Cache | None = None, documents_BT: Tensor | None = None
    ) -> Hidden:
        x_BTD = self.embed(ids_BT)
        valid_BT1 = self.valid(ids_BT, cache)[..., None]
        sum_BTD, count_BT1 = (x_BTD * valid_BT1).cumsum(1), valid_BT1.cumsum(1)
        if cache is not None:
            slot = cache.at(0)
            sum_BTD, count_BT1 = sum_BTD + slot.sum_BD[:, None], count_BT1 + slot.count_B1[:, None]
            slot.sum_BD, slot.count_B1 = sum_BTD[:, -1], count_BT1[:, -1]
        return Hidden(x_BTD + sum_BTD / count_BT1)

    def new_cache(self, batch_size: int, capacity: int) -> Cache:
        weight = self.embed.weight
        slot = SumSlot(weight.new_zeros(batch_size, weight.shape[1]), torch.zeros(batch_size, 1, dtype=torch.long))
        return Cache([slot], batch_size, capacity, weight.device)


class CountsPadding(RunningMean):
    def valid(self, ids_BT: Tensor, cache: Cache | None) -> Tensor:
        return torch.ones_like(ids_BT)


class Forgetful(GPT):
    """Takes a cache and does not look into it."""

    def trunk(
        self, ids_BT: Tensor, taps: TapPoint = NO_TAPS, cache: Cache | None = None, documents_BT: Tensor | None = None
    ) -> Hidden:
        return super().trunk(ids_BT, taps)
