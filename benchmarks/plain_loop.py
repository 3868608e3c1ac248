"""A plain GPT-2-shaped model and training step in bare PyTorch: the reference that our own loop must at least equal.

It has what a small well-known trainer has and nothing else: learned positions, LayerNorm, GELU, a fused product for
queries, keys and values, a four times wider feed-forward part, a tied read-out, the loss inside the module, autocast,
gradient clipping and fused AdamW. The shape follows Radford et al. 2019. With `rotary` it has RMSNorm and
rotary positions instead, each written in a line, and so computes the function of our plain transformer.

Legend: B batch, T positions, D width, H heads, K head width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of the plain model.

    Attributes:
        bias: adds one to every linear map and norm.
        rotary: RMSNorm and rotary positions instead of LayerNorm and a table of positions.
    """

    vocab_size: int
    d_model: int
    n_blocks: int
    n_heads: int
    max_seq_len: int
    bias: bool = False
    rotary: bool = False

    def count_parameters(self) -> int:
        """Stored parameters by formula, the tied read-out once."""
        d, per_bias = self.d_model, int(self.bias)
        block = 12 * d * d + 2 * d + per_bias * (9 * d + 2 * d)
        places = 0 if self.rotary else self.max_seq_len
        return (self.vocab_size + places) * d + self.n_blocks * block + d * (1 + per_bias)


def make_norm(shape: Shape) -> nn.Module:
    return nn.RMSNorm(shape.d_model) if shape.rotary else nn.LayerNorm(shape.d_model, bias=shape.bias)


def rotate(x_BHTK: Tensor, angles_TK: Tensor) -> Tensor:
    a, b = x_BHTK.chunk(2, -1)
    return x_BHTK * angles_TK.cos() + torch.cat([-b, a], -1) * angles_TK.sin()


class PlainBlock(nn.Module):
    """Pre-norm attention and feed-forward part."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        d = shape.d_model
        self.n_heads = shape.n_heads
        self.norm1 = make_norm(shape)
        self.qkv = nn.Linear(d, 3 * d, bias=shape.bias)
        self.join = nn.Linear(d, d, bias=shape.bias)
        self.norm2 = make_norm(shape)
        self.up = nn.Linear(d, 4 * d, bias=shape.bias)
        self.down = nn.Linear(4 * d, d, bias=shape.bias)

    def forward(self, x_BTD: Tensor, angles_TK: Tensor | None) -> Tensor:
        qkv_BTD = self.qkv(self.norm1(x_BTD)).chunk(3, dim=-1)
        q_BHTK, k_BHTK, v_BHTK = (t.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for t in qkv_BTD)
        if angles_TK is not None:
            q_BHTK, k_BHTK = rotate(q_BHTK, angles_TK), rotate(k_BHTK, angles_TK)
        z_BHTK = F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=True)
        x_BTD = x_BTD + self.join(z_BHTK.transpose(1, 2).flatten(2))
        return x_BTD + self.down(F.gelu(self.up(self.norm2(x_BTD))))


class PlainGPT(nn.Module):
    """Ids (B, T) and targets (B, T) → mean cross-entropy."""

    rates_K: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.tokens = nn.Embedding(shape.vocab_size, shape.d_model)
        self.places = None if shape.rotary else nn.Embedding(shape.max_seq_len, shape.d_model)
        d_head = shape.d_model // shape.n_heads
        self.register_buffer("rates_K", (10000.0 ** (-torch.arange(0, d_head, 2) / d_head)).repeat(2), persistent=False)
        self.blocks = nn.ModuleList(PlainBlock(shape) for _ in range(shape.n_blocks))
        self.norm = make_norm(shape)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                depth = 2 * shape.n_blocks if name.endswith(("join.weight", "down.weight")) else 1
                nn.init.normal_(parameter, std=0.02 * depth**-0.5)

    def forward(self, ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        positions_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
        x_BTD, angles_TK = self.tokens(ids_BT), None
        if self.places is None:
            angles_TK = torch.outer(positions_T, self.rates_K)
        else:
            x_BTD = x_BTD + self.places(positions_T)
        for block in self.blocks:
            x_BTD = block(x_BTD, angles_TK)
        logits_BTV = F.linear(self.norm(x_BTD), self.tokens.weight)
        return F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())


class PlainLoop:
    """One training step after another: forward, backward, clipping to norm 1, fused AdamW.

    Args:
        shape: of the model.
        device: where it trains.
        precision: bf16 runs the forward pass under autocast; float32 does not.
        compiled: put the module under `torch.compile`.
    """

    def __init__(
        self,
        shape: Shape,
        device: torch.device,
        *,
        precision: str = "float32",
        compiled: bool = False,
        lr: float = 1e-3,
    ) -> None:
        self.model = PlainGPT(shape).to(device)
        self.call = torch.compile(self.model) if compiled else self.model
        matrices = [p for p in self.model.parameters() if p.dim() == 2]
        vectors = [p for p in self.model.parameters() if p.dim() < 2]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=True)
        self.cast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")

    def step(self, ids: Tensor) -> Tensor:
        """Train on ids (B, T + 1), each predicting the next; returns the loss of before the update."""
        with self.cast:
            loss = self.call(ids[:, :-1], ids[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()
