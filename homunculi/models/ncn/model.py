"""The modulated transformer's loop.

Legend: B batch, T positions, S positions seen, D width, V vocabulary, L blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ...core.budget import Budget, count_parameters
from ...core.cache import Cache, KVSlot
from ...core.model import LanguageModel
from ...core.output import Hidden
from ...core.schedule import in_order
from ...core.taps import NO_TAPS, TapPoint
from ...errors import InputError
from ...parts.block import positions_and_mask
from ...parts.linear import Linear
from ...parts.norm import RMSNorm
from ...parts.rope import RotaryEmbedding
from ...parts.weights import init_maps, read_out
from ..registry import architecture
from .blocks import Film, ModulatedBlock
from .config import BARE, PARTS, VARIANTS, Config
from .controller import Controller
from .monitors import growth, refreshed, statistics_of
from .voice import Announced, Conversation, Silence


@architecture("ncn", Config, variants=VARIANTS, parts=PARTS)
class NCN(LanguageModel):
    """The modulated transformer. Built from one seed, it has the plain transformer's weights and, at first, its bits.

    Raises:
        InputError: `config.vocab_size` is 0.
    """

    mean_gain_L: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        if config.vocab_size < 1:
            raise InputError("model.vocab_size: a model needs a vocabulary; give its size")
        self.config = config
        self.schedule = in_order(range(config.n_blocks))
        self.embed = nn.Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(ModulatedBlock(config) for _ in range(config.n_blocks))
        self.norm = RMSNorm(config.d_model)
        self.untied = None if config.tied else Linear(config.d_model, config.vocab_size)
        self.rope = RotaryEmbedding(config.width_of_heads, config.max_seq_len, config.rope_base)
        init_maps(self)
        # Drawn last, so that the rest gets the random numbers that it gets without a controller.
        self.controller = Controller(config) if config.signals else None
        if "film" in config.signals:
            for block in self.blocks:
                block.film = Film(config.film_rank, config.d_model)
        if config.plasticity == "gain":
            self.register_buffer("mean_gain_L", torch.ones(config.n_blocks))

    def trunk(
        self, ids_BT: Tensor, taps: TapPoint = NO_TAPS, cache: Cache | None = None, documents_BT: Tensor | None = None
    ) -> Hidden:
        x_BTD = self.embed(ids_BT)
        x_BTD = taps("embed", x_BTD.to(self.compute_dtype or x_BTD.dtype))
        positions, mask_BTS = positions_and_mask(ids_BT, self.config.max_seq_len, cache, documents_BT)
        rotation = self.rope.at(positions, x_BTD.dtype)
        first_BTD = x_BTD
        voice, pool_BTD = self._voice(x_BTD, taps, documents_BT, cache)
        for i, step in enumerate(self.schedule):
            slot = None if cache is None else (cache.at(step.slot), positions)
            before_BTD, effects = x_BTD, voice.effects(i)
            x_BTD = self.blocks[step.block](x_BTD, rotation, voice.taps(i), mask_BTS, slot, effects)
            voice.hear(i, before_BTD, x_BTD)
        signals = voice.signals()
        if cache is not None or not signals:
            return Hidden(x_BTD)
        statistics = statistics_of(signals, self.config) | voice.heard()
        statistics["growth"] = growth(first_BTD, x_BTD, len(self.schedule))
        if pool_BTD is not None and self.config.pooling in ("refreshed", "adiabatic"):
            statistics["refreshed"] = refreshed(pool_BTD)
        return Hidden(x_BTD, self._loss_terms(signals), statistics=statistics)

    def _voice(
        self, x_BTD: Tensor, taps: TapPoint, documents_BT: Tensor | None, cache: Cache | None
    ) -> tuple[Silence, Tensor | None]:
        """What speaks to the blocks of this call, and the pool that it has read."""
        if self.controller is None:
            return Silence(taps), None
        heard_BTC, pool_BTD = self.controller(x_BTD, self.controller.read(x_BTD.shape[1], documents_BT, cache), taps)
        speaks = Conversation if self.config.statistics else Announced
        return speaks(self.controller, heard_BTC, self.config, taps), pool_BTD

    def _loss_terms(self, signals: dict[str, Tensor]) -> dict[str, Tensor]:
        """Homeostasis: signals that the loss does not move return to 1; closed gates open again through it."""
        apart = [(signal - 1).square().mean() for signal in signals.values()]
        return {"homeostasis": self.config.homeostasis * torch.stack(apart).sum()}

    def readout(self, x_BTD: Tensor, taps: TapPoint = NO_TAPS) -> Tensor:
        return read_out(self, x_BTD, taps)

    def new_cache(self, batch_size: int, capacity: int) -> Cache:
        """Keys and values of each step; in the last slot what the controller remembers."""
        device, dtype = self.embed.weight.device, self.compute_dtype or self.embed.weight.dtype
        if capacity > self.config.max_seq_len:
            raise InputError(f"a cache of {capacity} tokens is more than model.max_seq_len={self.config.max_seq_len}")
        shape = (batch_size, self.config.number_of_kv_heads, capacity, self.config.width_of_heads)
        slots: list[Any] = [KVSlot.empty(shape, dtype, device) for _ in self.schedule]
        if self.controller is not None:
            slots.append(self.controller.new_slot(batch_size))
        return Cache(slots, batch_size, capacity, device)

    def budget(self, context: int | None = None) -> Budget:
        """The controller's running sums multiply no matrices and their size does not grow with the context. Skipping is
        not counted: how much it saves depends on the text (statistics `skipped` and `depth`). The entropy of attention
        takes its scores once more, without a gradient."""
        n_heads, n_kv_heads, d_head = self.config.n_heads, self.config.number_of_kv_heads, self.config.width_of_heads
        table = self.embed.weight.numel()
        maps = [sum(p.numel() for p in block.parameters() if p.dim() == 2) for block in self.blocks]
        own = [] if self.controller is None else self.controller.named_parameters()
        times = {"from_controls.weight": 0, "from_statistics.weight": len(self.schedule) - 1}
        control = sum(p.numel() * times.get(name, 1) for name, p in own if p.dim() == 2)
        executed = sum(maps[step.block] for step in self.schedule) + table + control
        square = 4 * (context or self.config.max_seq_len) * n_heads * d_head
        watched = square // 2 * (len(self.schedule) - 1) if "entropy" in self.config.statistics else 0
        return Budget(
            parameters=count_parameters(self),
            embedding_parameters=table if self.untied is None else 2 * table,
            executed_parameters=executed,
            flops_per_token=2 * executed + square * len(self.schedule) + watched,
            forward_only_flops_per_token=watched,
            cache_bytes_per_token=2 * 2 * len(self.schedule) * n_kv_heads * d_head,
        )

    def neutral_twin(self) -> NCN:
        """A copy of the model without its controller: the plain transformer with the same weights."""
        bare = replace(self.config, **BARE)
        twin = type(self)(bare).to(self.embed.weight.device, self.embed.weight.dtype)
        own = self.state_dict()
        twin.load_state_dict({name: own[name] for name in twin.state_dict()})
        twin.compute_dtype = self.compute_dtype
        return twin.train(self.training)

    def set_controls(self, values: Sequence[float] | Sequence[Sequence[float]] | Tensor) -> None:
        """Set the external control vector, zero at first; it acts on all tokens read from now on.

        Args:
            values: numbers for all rows, which are kept with the weights; or as many for each row of the next calls,
                which are not, until numbers for all are set again. A task's number is a vector with a single 1.

        Raises:
            InputError: not `n_controls` numbers.
        """
        given, n = torch.as_tensor(values, dtype=torch.float32), self.config.n_controls
        if given.dim() not in (1, 2) or given.shape[-1] != n:
            raise InputError(f"controls: expected model.n_controls={n} numbers, or as many a row, got {values}")
        if self.controller is not None and n:
            self.n_changes += 1
            self.controller.controls_of_rows = given.to(self.controller.controls) if given.dim() == 2 else None
            if given.dim() == 1:
                self.controller.controls.copy_(given)

    def after_update(self, statistics: dict[str, Tensor]) -> None:
        if self.config.plasticity == "gain":
            self.mean_gain_L.lerp_(statistics["gain_of_blocks"].to(self.mean_gain_L.dtype), 0.01)

    def plasticity(self) -> dict[str, Tensor]:
        """Running mean gain of each block (over about 100 updates) by its prefix of parameter names; empty: no block
        learns faster than another."""
        if self.config.plasticity == "none":
            return {}
        return {f"blocks.{i}": gain for i, gain in enumerate(self.mean_gain_L.unbind())}
