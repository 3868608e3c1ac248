"""The plain transformer: the baseline that every idea has to beat.

Pre-norm decoder with rotary positions, RMSNorm, grouped-query attention and a gated or plain feed-forward part.
Legend: B batch, T positions, S positions attended to, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from ..core.budget import Budget, count_parameters
from ..core.cache import Cache, KVSlot
from ..core.model import LanguageModel
from ..core.output import Hidden
from ..core.schedule import in_order
from ..core.taps import NO_TAPS, TapPoint
from ..errors import InputError
from ..parts.block import Block, positions_and_mask
from ..parts.linear import Linear
from ..parts.norm import RMSNorm
from ..parts.rope import RotaryEmbedding
from ..parts.weights import init_maps, read_out
from .registry import Part, architecture


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Shape of a plain transformer; a zero is derived.

    Attributes:
        vocab_size: 0 stands for the tokenizer's size when a run is planned.
        d_mlp: 0: 4 · d_model, or 8/3 · d_model rounded up to a multiple of 8 for swiglu (equal parameters).
        n_kv_heads: 0: as many as n_heads.
        d_head: 0: d_model / n_heads.
        tied: the read-out uses the token table.
    """

    vocab_size: int = 0
    d_model: int = 256
    n_blocks: int = 6
    n_heads: int = 8
    n_kv_heads: int = 0
    d_head: int = 0
    d_mlp: int = 0
    max_seq_len: int = 512
    activation: Literal["swiglu", "gelu", "relu2"] = "swiglu"
    qk_norm: bool = False
    tied: bool = True
    rope_base: float = 10000.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("d_model", "n_blocks", "n_heads", "max_seq_len"):
            if getattr(self, name) < 1:
                raise InputError(f"model.{name}: {getattr(self, name)} is not positive")
        for name in ("vocab_size", "n_kv_heads", "d_head", "d_mlp"):
            if getattr(self, name) < 0:
                raise InputError(f"model.{name}: {getattr(self, name)} is negative; 0 derives it")
        if not self.d_head and self.d_model % self.n_heads:
            raise InputError(
                f"model.n_heads: {self.n_heads} does not divide model.d_model={self.d_model}; or set d_head"
            )
        if (self.d_head or self.d_model // self.n_heads) % 2:
            raise InputError(
                "model.d_head: rotary positions need an even head width; change d_model, n_heads or d_head"
            )
        if self.n_kv_heads and self.n_heads % self.n_kv_heads:
            raise InputError(f"model.n_kv_heads: {self.n_kv_heads} does not divide model.n_heads={self.n_heads}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"model.dropout: {self.dropout} is outside [0, 1)")
        if self.rope_base <= 1:
            raise InputError(f"model.rope_base: {self.rope_base} must be above 1")

    @property
    def width_of_heads(self) -> int:
        return self.d_head or self.d_model // self.n_heads

    @property
    def number_of_kv_heads(self) -> int:
        return self.n_kv_heads or self.n_heads


CONTRACT_CONFIGS: tuple[dict[str, Any], ...] = (
    {"n_blocks": 3},
    {"n_blocks": 2, "activation": "gelu", "n_kv_heads": 2, "tied": False},
    {"n_blocks": 2, "activation": "relu2", "qk_norm": True, "d_head": 6},
    {"n_blocks": 2, "n_heads": 4, "n_kv_heads": 1, "d_mlp": 40, "dropout": 0.1},
)


PARTS = (
    Part("qk_norm", removed={"qk_norm": False}),
    Part("gating", removed={"activation": "gelu"}, when=lambda config: config.activation == "swiglu"),
)


@architecture("gpt", Config, variants=CONTRACT_CONFIGS, parts=PARTS)
class GPT(LanguageModel):
    """The plain transformer.

    Raises:
        InputError: `config.vocab_size` is 0.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        if config.vocab_size < 1:
            raise InputError("model.vocab_size: a model needs a vocabulary; give its size")
        self.config = config
        self.schedule = in_order(range(config.n_blocks))
        self.embed = nn.Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_blocks))
        self.norm = RMSNorm(config.d_model)
        self.untied = None if config.tied else Linear(config.d_model, config.vocab_size)
        self.rope = RotaryEmbedding(config.width_of_heads, config.max_seq_len, config.rope_base)
        init_maps(self)

    def trunk(
        self,
        ids_BT: Tensor,
        taps: TapPoint = NO_TAPS,
        cache: Cache | None = None,
        documents_BT: Tensor | None = None,
    ) -> Hidden:
        x_BTD = self.embed(ids_BT)
        x_BTD = taps("embed", x_BTD.to(self.compute_dtype or x_BTD.dtype))
        positions, mask_BTS = positions_and_mask(ids_BT, self.config.max_seq_len, cache, documents_BT)
        rotation = self.rope.at(positions, x_BTD.dtype)
        for i, step in enumerate(self.schedule):
            slot = None if cache is None else (cache.at(step.slot), positions)
            x_BTD = self.blocks[step.block](x_BTD, rotation, taps.at(i), mask_BTS, slot)
        return Hidden(x_BTD)

    def readout(self, x_BTD: Tensor, taps: TapPoint = NO_TAPS) -> Tensor:
        return read_out(self, x_BTD, taps)

    def new_cache(self, batch_size: int, capacity: int) -> Cache:
        device, dtype = self.embed.weight.device, self.compute_dtype or self.embed.weight.dtype
        if capacity > self.config.max_seq_len:
            raise InputError(f"a cache of {capacity} tokens is more than model.max_seq_len={self.config.max_seq_len}")
        shape = (batch_size, self.config.number_of_kv_heads, capacity, self.config.width_of_heads)
        return Cache([KVSlot.empty(shape, dtype, device) for _ in self.schedule], batch_size, capacity, device)

    def budget(self, context: int | None = None) -> Budget:
        n_heads, n_kv_heads, d_head = self.config.n_heads, self.config.number_of_kv_heads, self.config.width_of_heads
        table = self.embed.weight.numel()
        maps = [sum(p.numel() for p in block.parameters() if p.dim() == 2) for block in self.blocks]
        executed = sum(maps[step.block] for step in self.schedule) + table
        square = 4 * (context or self.config.max_seq_len) * n_heads * d_head
        return Budget(
            parameters=count_parameters(self),
            embedding_parameters=table if self.untied is None else 2 * table,
            executed_parameters=executed,
            flops_per_token=2 * executed + square * len(self.schedule),
            cache_bytes_per_token=2 * 2 * len(self.schedule) * n_kv_heads * d_head,
        )
