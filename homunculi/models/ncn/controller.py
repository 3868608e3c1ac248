"""What a controller reads and says.

Legend: B batch, T positions, D width, L blocks, H heads, C controller, I statistics, K numbers of a signal.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.cache import Cache
from ...core.taps import TapPoint
from ...parts.linear import Linear
from ...parts.norm import RMSNorm
from ...parts.pooling import CausalPooling, PoolingSlot, prefix_sum, starts_of
from .config import MAPS, Config


@dataclass(slots=True)
class ControlSlot:
    """What a controller remembers of the tokens it has read; its size does not grow with them.

    Attributes:
        pool: of the pool; None without one.
        first_BD: sum of the instruction's tokens; without columns where there is none.
        state_BC: of the recurrence; without columns where there is none.
    """

    pool: PoolingSlot | None
    first_BD: Tensor
    state_BC: Tensor


@dataclass(frozen=True, slots=True)
class Read:
    """Where a call's tokens stand.

    Attributes:
        documents_BT: document of each token; None: one.
        slot: what was read before; None: nothing, or the first call.
        positions_BT: with a slot.
        valid_BT: with a slot: which tokens are no padding; None: all.
    """

    documents_BT: Tensor | None
    slot: ControlSlot | None = None
    positions_BT: Tensor | None = None
    valid_BT: Tensor | None = None

    def last(self, series: Tensor) -> Tensor:
        """Of a state before each token and after the last one, (B, T + 1, …), that after each row's last token."""
        n_rows, n_states = series.shape[:2]
        if self.valid_BT is None:
            return series[:, n_states - 1].detach()
        return series[torch.arange(n_rows, device=series.device), self.valid_BT.sum(1)].detach()


class Instruction(nn.Module):
    """The mean of the first tokens of a document, so many as there are up to `n_tokens`."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.n_tokens = config.instruction_tokens
        self.to_hidden = Linear(config.d_model, config.d_control)

    def forward(self, own_BTD: Tensor, read: Read, taps: TapPoint) -> Tensor:
        """Its share of the hidden layer's input, (B, T, C)."""
        mean_BTD = self._mean(own_BTD, read).to(own_BTD.dtype)
        return self.to_hidden(taps("control.instruction", mean_BTD))

    def _mean(self, own_BTD: Tensor, read: Read) -> Tensor:
        places_BT = read.positions_BT
        if places_BT is None:
            places_BT = torch.arange(own_BTD.shape[1], device=own_BTD.device)[None]
            if read.documents_BT is not None:
                places_BT = places_BT - starts_of(read.documents_BT)
        x_BTD = own_BTD.to(torch.promote_types(own_BTD.dtype, torch.float32))
        x_BTD = torch.where(places_BT[..., None] < self.n_tokens, x_BTD, 0)
        if read.slot is not None:
            x_BTD = torch.cat([read.slot.first_BD[:, None], x_BTD], 1)
        sum_BTD = prefix_sum(x_BTD[:, :, None], None, read.documents_BT)[:, :, 0]
        if read.slot is not None:
            read.slot.first_BD.copy_(read.last(sum_BTD))
            sum_BTD = sum_BTD[:, 1:]
        return sum_BTD / (places_BT + 1).clamp(max=self.n_tokens)[..., None]


class Recurrence(nn.Module):
    """A minimal gated recurrence (Feng et al. 2024): s_t = (1 − f_t) s_{t−1} + f_t W_c h_t with f_t = σ(W_f h_t + b).

    What it keeps and takes in depends on the token alone and not on the state, so all positions are computed at once,
    in log T rounds; a recurrence through a nonlinearity would take T steps one after the other. Read token by token it
    is the same function, with one state of width C.
    """

    def __init__(self, d_control: int) -> None:
        super().__init__()
        self.take = Linear(d_control, d_control)
        self.bring = Linear(d_control, d_control)
        # What is taken in lasts 2 to about 50 tokens at first.
        self.take_bias_C = nn.Parameter(torch.linspace(0.0, -4.0, d_control))

    def forward(self, h_BTC: Tensor, read: Read) -> Tensor:
        """The state at each position, (B, T, C)."""
        wide = torch.promote_types(h_BTC.dtype, torch.float32)
        takes_BTC = (self.take(h_BTC).to(wide) + self.take_bias_C).sigmoid()
        brought_BTC = takes_BTC * self.bring(h_BTC).to(wide)
        keep_BTC = 1 - takes_BTC
        if read.documents_BT is not None:  # nothing is kept from the document before
            same_BT = F.pad(read.documents_BT[:, 1:] == read.documents_BT[:, :-1], (1, 0))
            keep_BTC = keep_BTC * same_BT[..., None]
        if read.slot is None:
            return recur(keep_BTC, brought_BTC).to(h_BTC.dtype)
        keep_BTC = F.pad(keep_BTC, (0, 0, 1, 0))
        state_BTC = recur(keep_BTC, torch.cat([read.slot.state_BC[:, None], brought_BTC], 1))
        read.slot.state_BC.copy_(read.last(state_BTC))
        return state_BTC[:, 1:].to(h_BTC.dtype)


def recur(keep_BTC: Tensor, x_BTC: Tensor) -> Tensor:
    """s_t = keep_t · s_{t−1} + x_t along T, by doubling (Hillis and Steele 1986): nothing is divided.

    Args:
        keep_BTC: in [0, 1].
    """
    shift = 1
    while shift < x_BTC.shape[1]:
        before = (0, 0, shift, 0)
        x_BTC = x_BTC + keep_BTC * F.pad(x_BTC[:, :-shift], before)
        keep_BTC = keep_BTC * F.pad(keep_BTC[:, :-shift], before)
        shift *= 2
    return x_BTC


class Controller(nn.Module):
    """Signals from the token table's rows: u = norm(pool + own), h = tanh(W1 u + b1 + …), signal = map(W2 h + b2).

    W2 and b2 are zero at the start, so all signals are 1. What else h may hear: an external vector, an instruction, and
    in each block statistics of the block before; a recurrence adds its state to h.
    """

    controls: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.widths, self.n_blocks, self.d_control = config.widths, config.n_blocks, config.d_control
        self.own_norm = RMSNorm(config.d_model)
        self.pooling = _pooling(config)
        self.norm = RMSNorm(config.d_model)
        self.hidden = Linear(config.d_model, config.d_control)
        self.hidden_bias_C = nn.Parameter(torch.zeros(config.d_control))
        self.from_controls = Linear(config.n_controls, config.d_control) if config.n_controls else None
        self.controls_of_rows: Tensor | None = None
        if config.n_controls:
            self.register_buffer("controls", torch.zeros(config.n_controls))
        self.instruction = Instruction(config) if config.instruction_tokens else None
        self.recurrence = Recurrence(config.d_control) if config.recurrence == "gated" else None
        self.from_statistics = Linear(len(config.statistics), config.d_control) if config.statistics else None
        self.out = Linear(config.d_control, config.n_blocks * sum(self.widths.values()))
        self.out_bias = nn.Parameter(torch.zeros(self.out.out_features))
        for module in self.modules():
            if isinstance(module, Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
        nn.init.zeros_(self.out.weight)

    def forward(self, x_BTD: Tensor, read: Read, taps: TapPoint) -> tuple[Tensor, Tensor | None]:
        """What is heard of the tokens, (B, T, C), the hidden layer or, where blocks add statistics to it, its input;
        and the pool (B, T, D), if there is one."""
        pool_BTD = None
        own_BTD = seen_BTD = self.own_norm(x_BTD)
        if self.pooling is not None:
            slot = None if read.slot is None else read.slot.pool
            cache = None if slot is None or read.positions_BT is None else (slot, read.positions_BT, read.valid_BT)
            pool_BTD = taps("control.pool", self.pooling(own_BTD, read.documents_BT, cache))
            seen_BTD = own_BTD + pool_BTD
        a_BTC = self.hidden(self.norm(seen_BTD)) + self.hidden_bias_C.to(x_BTD.dtype)
        if self.from_controls is not None:
            a_BTC = a_BTC + self._controlled(a_BTC)
        if self.instruction is not None:
            a_BTC = a_BTC + self.instruction(own_BTD, read, taps)
        if self.recurrence is not None:
            a_BTC = a_BTC + taps("control.state", self.recurrence(torch.tanh(a_BTC), read))
        if self.from_statistics is None:
            a_BTC = taps("control.hidden", torch.tanh(a_BTC))
        return a_BTC, pool_BTD

    def _controlled(self, a_BTC: Tensor) -> Tensor:
        """The external vector's share: one for all rows, or one a row."""
        assert self.from_controls is not None
        given = self.controls if self.controls_of_rows is None else self.controls_of_rows[:, None]
        return self.from_controls(given.to(self.from_controls.weight.dtype)).to(a_BTC.dtype)

    def say(self, h_BTC: Tensor, taps: TapPoint) -> dict[str, Tensor]:
        """Signals of all blocks by name, (B, T, L), or (B, T, K, L) where they are several a block; in float32 at
        least: near 1 a bfloat16 moves in steps of 1/128."""
        return self._mapped(h_BTC, self.out.weight, self.out_bias, taps)

    def say_in(self, block: int, a_BTC: Tensor, statistics_BTI: Tensor | None, taps: TapPoint) -> dict[str, Tensor]:
        """As `say`, of one block, which has heard the statistics of the one before (None: there is none)."""
        assert self.from_statistics is not None
        if statistics_BTI is not None:
            a_BTC = a_BTC + self.from_statistics(taps("control.statistics", statistics_BTI.to(a_BTC.dtype)))
        n = sum(self.widths.values())
        rows = slice(block * n, (block + 1) * n)
        h_BTC = taps("control.hidden", torch.tanh(a_BTC))
        return self._mapped(h_BTC, self.out.weight[rows], self.out_bias[rows], taps)

    def _mapped(self, h_BTC: Tensor, weight: Tensor, bias: Tensor, taps: TapPoint) -> dict[str, Tensor]:
        wide = torch.promote_types(h_BTC.dtype, torch.float32)
        said = (F.linear(h_BTC.to(wide), weight.to(wide)) + bias).unflatten(-1, (-1, sum(self.widths.values())))
        parts = zip(self.widths, said.split(list(self.widths.values()), dim=-1), strict=True)
        return {
            name: taps(f"control.{name}", MAPS[name](z.mT if z.shape[-1] > 1 else z.squeeze(-1)))
            for name, z in parts
            if self.training or name != "dropout"
        }

    def read(self, n_tokens: int, documents_BT: Tensor | None, cache: Cache | None) -> Read:
        """Where the next `n_tokens` tokens stand; a cache has the controller's slot last."""
        if cache is None:
            return Read(documents_BT)
        return Read(None, cache.at(-1), cache.positions(n_tokens), cache.valid(n_tokens))

    def new_slot(self, batch_size: int) -> ControlSlot:
        """An empty slot on the module's device."""
        weight = self.hidden.weight
        wide = torch.promote_types(weight.dtype, torch.float32)
        empty = torch.zeros(batch_size, 0, dtype=wide, device=weight.device)
        return ControlSlot(
            None if self.pooling is None else self.pooling.new_slot(batch_size),
            empty if self.instruction is None else empty.new_zeros(batch_size, weight.shape[1]),
            empty if self.recurrence is None else empty.new_zeros(batch_size, self.d_control),
        )


def _pooling(config: Config) -> CausalPooling | None:
    if config.pooling == "last":
        return None
    half_lives = [8.0 * 4**i for i in range(config.n_pool_heads)] if config.pooling == "decay" else []
    every = config.refresh_every if config.pooling == "refreshed" else 1
    above = config.refresh_above if config.pooling == "adiabatic" else 0.0
    return CausalPooling(config.d_model, config.n_pool_heads, half_lives, every, above)
