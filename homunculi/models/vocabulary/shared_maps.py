"""A readable transformer: every step reads the words through one map, thinks in a narrow space, and says words.

y = attention(norm(R u)), h = feed-forward(norm(R u + y)), x ← κ x + W (y + h), with u = rms(x). The map R from words to
the narrow space and the map W back are shared by all steps, and W = Rᵀ where they are tied; κ is one number a step, so
that the token itself can fade. What a step says is all that it hands on: there is no other state between steps.

Trained with `step_loss`, each step is also asked what the next word is, so that every state is a forecast, not only the
last one.

Legend: B batch, T positions, V vocabulary, D narrow width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.budget import Budget
from ...core.cache import Cache, KVSlot
from ...core.output import Hidden
from ...core.taps import NO_TAPS, TapPoint
from ...errors import InputError
from ...parts.attention import CausalSelfAttention
from ...parts.block import positions_and_mask
from ...parts.linear import Linear
from ...parts.mlp import feed_forward
from ...parts.norm import RMSNorm
from ...parts.readable import ReadableConfig, ReadableModel, number, rms
from ...parts.rope import RotaryEmbedding
from ...settings import check_range
from ..registry import Part, architecture


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(ReadableConfig):
    """Shape of the model; a zero is derived.

    Attributes:
        d_model: D, the width in which a step thinks.
        d_mlp: hidden width; 0: 8/3 · D rounded up to a multiple of 8 for swiglu, else 4 · D.
        tied: one map serves for reading and for saying.
        step_loss: weight of the mean cross-entropy of the states before the last, in training.
    """

    n_steps: int = 5
    d_model: int = 128
    n_heads: int = 4
    d_mlp: int = 0
    activation: Literal["swiglu", "gelu", "relu2"] = "swiglu"
    qk_norm: bool = True
    tied: bool = True
    step_loss: float = 0.0
    rope_base: float = 10000.0

    def __post_init__(self) -> None:
        self.check()
        for name in ("d_model", "n_heads"):
            check_range(f"model.{name}", getattr(self, name), low=1)
        for name in ("d_mlp", "step_loss"):
            check_range(f"model.{name}", getattr(self, name), low=0)
        if self.d_model % (2 * self.n_heads):
            raise InputError(f"model.n_heads: {self.n_heads} heads of even width do not divide model.d_model")

    @property
    def hidden_width(self) -> int:
        wide = 8 * -(-self.d_model // 3) if self.activation == "swiglu" else 4 * self.d_model
        return self.d_mlp or wide


class Step(nn.Module):
    """What a step adds in the narrow space: attention, then the feed-forward part."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        d, n_heads = config.d_model, config.n_heads
        self.attn_norm, self.mlp_norm = RMSNorm(d), RMSNorm(d)
        self.attn = CausalSelfAttention(d, n_heads, n_heads, d // n_heads, qk_norm=config.qk_norm)
        self.mlp = feed_forward(d, config.hidden_width, config.activation)
        self.keep = number(1)

    def forward(
        self, z_BTD: Tensor, rotation: tuple[Tensor, Tensor], taps: TapPoint, mask_BTS: Tensor | None, slot: Any
    ) -> Tensor:
        y_BTD = self.attn(self.attn_norm(z_BTD), rotation, taps, mask_BTS, slot)
        return y_BTD + self.mlp(self.mlp_norm(z_BTD + y_BTD), taps)


VARIANTS: tuple[dict[str, Any], ...] = (
    {"n_steps": 3, "n_heads": 4},
    {"n_steps": 2, "n_heads": 2, "tied": False, "activation": "relu2", "step_loss": 0.3, "qk_norm": False},
)
PARTS = (
    Part("step_loss", removed={"step_loss": 0.0}),
    Part("qk_norm", removed={"qk_norm": False}),
)


@architecture("vocab_shared_maps", Config, variants=VARIANTS, parts=PARTS)
class SharedMaps(ReadableModel):
    """A readable transformer."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.read = Linear(config.vocab_size, config.d_model)
        self.say = None if config.tied else Linear(config.d_model, config.vocab_size)
        self.steps = nn.ModuleList(Step(config) for _ in self.schedule)
        self.rope = RotaryEmbedding(config.d_model // config.n_heads, config.max_seq_len, config.rope_base)
        for name, module in self.steps.named_modules():
            if isinstance(module, Linear):
                depth = 2 * config.n_steps if name.endswith(("attn.o", "mlp.out")) else 1
                nn.init.normal_(module.weight, std=(module.in_features * depth) ** -0.5)
        nn.init.normal_(self.read.weight, std=config.vocab_size**-0.5)
        if self.say is not None:
            nn.init.normal_(self.say.weight, std=config.vocab_size**-0.5)

    def trunk(
        self,
        ids_BT: Tensor,
        taps: TapPoint = NO_TAPS,
        cache: Cache | None = None,
        documents_BT: Tensor | None = None,
    ) -> Hidden:
        x_BTV, said = self.start(ids_BT, taps), []
        positions, mask_BTS = positions_and_mask(ids_BT, self.config.max_seq_len, cache, documents_BT)
        rotation = self.rope.at(positions, x_BTV.dtype)
        for i, step in enumerate(self.schedule):
            block: Any = self.steps[step.block]
            slot = None if cache is None else (cache.at(step.slot), positions)
            here = taps.at(i)
            x_BTV = here("resid_pre", x_BTV)
            update_BTD = block(self.read(rms(x_BTV)), rotation, here, mask_BTS, slot)
            x_BTV = here("resid_post", block.keep.to(x_BTV.dtype) * x_BTV + self._say(update_BTD))
            said.append(x_BTV)
        return Hidden(x_BTV, self._step_losses(said[:-1], ids_BT))

    def _say(self, update_BTD: Tensor) -> Tensor:
        if self.say is not None:
            return self.say(update_BTD)
        dtype = update_BTD.dtype
        return F.linear(update_BTD, self.once("say", dtype, lambda: self.read.weight.to(dtype).mT))

    def _step_losses(self, said: list[Tensor], ids_BT: Tensor) -> dict[str, Tensor]:
        """The next words are those of the row itself; its last position has none."""
        weight = self.config.step_loss
        if not (weight and said and self.training and ids_BT.shape[1] > 1):
            return {}
        targets_N = ids_BT[:, 1:].flatten()
        losses = [F.cross_entropy(self.readout(x_BTV[:, :-1]).flatten(0, 1), targets_N) for x_BTV in said]
        return {"steps": weight * torch.stack(losses).mean()}

    def new_cache(self, batch_size: int, capacity: int) -> Cache:
        device, dtype = self.logit_scale.device, self.compute_dtype or self.logit_scale.dtype
        if capacity > self.config.max_seq_len:
            raise InputError(f"a cache of {capacity} tokens is more than model.max_seq_len={self.config.max_seq_len}")
        n_heads = self.config.n_heads
        shape = (batch_size, n_heads, capacity, self.config.d_model // n_heads)
        return Cache([KVSlot.empty(shape, dtype, device) for _ in self.schedule], batch_size, capacity, device)

    def budget(self, context: int | None = None) -> Budget:
        c, n = self.config, len(self.schedule)
        maps = sum(p.numel() for p in self.steps.parameters() if p.dim() == 2)
        executed = maps + n * 2 * c.vocab_size * c.d_model
        return self.counted(executed, n * 4 * (context or c.max_seq_len) * c.d_model, 4 * n * c.d_model)
