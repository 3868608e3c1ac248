"""A pre-norm transformer block. Legend: B batch, T positions, S positions attended to, D width."""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from ..core.cache import Cache, KVSlot
from ..core.taps import TapPoint
from ..errors import InputError
from .attention import CausalSelfAttention
from .mlp import feed_forward
from .norm import RMSNorm


class BlockShape(Protocol):
    """What a configuration says of its blocks: a zero of `d_mlp` is derived."""

    @property
    def d_model(self) -> int: ...
    @property
    def n_heads(self) -> int: ...
    @property
    def number_of_kv_heads(self) -> int: ...
    @property
    def width_of_heads(self) -> int: ...
    @property
    def d_mlp(self) -> int: ...
    @property
    def activation(self) -> Literal["swiglu", "gelu", "relu2"]: ...
    @property
    def qk_norm(self) -> bool: ...
    @property
    def dropout(self) -> float: ...


def hidden_width(shape: BlockShape) -> int:
    """`d_mlp`, or 4 · d_model, or for swiglu 8/3 · d_model rounded up to a multiple of 8 (equal parameters)."""
    wide = 8 * -(-shape.d_model // 3) if shape.activation == "swiglu" else 4 * shape.d_model
    return shape.d_mlp or wide


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(shape.d_model)
        self.attn = CausalSelfAttention(
            shape.d_model,
            shape.n_heads,
            shape.number_of_kv_heads,
            shape.width_of_heads,
            qk_norm=shape.qk_norm,
            dropout=shape.dropout,
        )
        self.mlp_norm = RMSNorm(shape.d_model)
        self.mlp = feed_forward(shape.d_model, hidden_width(shape), shape.activation)
        self.dropout = nn.Dropout(shape.dropout) if shape.dropout else nn.Identity()

    def forward(
        self,
        x_BTD: Tensor,
        rotation: tuple[Tensor, Tensor],
        taps: TapPoint,
        mask_BTS: Tensor | None = None,
        cache: tuple[KVSlot, Tensor] | None = None,
    ) -> Tensor:
        """Arguments as those of `CausalSelfAttention.forward`."""
        x_BTD = taps("resid_pre", x_BTD)
        x_BTD = x_BTD + self.dropout(self.attn(self.attn_norm(x_BTD), rotation, taps, mask_BTS, cache))
        x_BTD = taps("resid_mid", x_BTD)
        x_BTD = x_BTD + self.dropout(self.mlp(self.mlp_norm(x_BTD), taps))
        return taps("resid_post", x_BTD)


def positions_and_mask(
    ids_BT: Tensor, max_seq_len: int, cache: Cache | None, documents_BT: Tensor | None
) -> tuple[Tensor | slice, Tensor | None]:
    """Positions for the rotation, and what each position may see (None: everything up to itself).

    Raises:
        InputError: more tokens than `max_seq_len`, or than the cache has room for.
    """
    n_tokens = ids_BT.shape[1]
    if cache is not None:
        positions_BT = cache.positions(n_tokens)
        return positions_BT, torch.arange(cache.capacity, device=ids_BT.device) <= positions_BT[..., None]
    if n_tokens > max_seq_len:
        raise InputError(f"{n_tokens} tokens are more than model.max_seq_len={max_seq_len}")
    if documents_BT is None:
        return slice(0, n_tokens), None
    same_BTS = documents_BT[:, :, None] == documents_BT[:, None, :]
    return slice(0, n_tokens), same_BTS.tril()
