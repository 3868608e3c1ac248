"""Shape of the modulated transformer: what the controller sets, and what it reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ...errors import InputError
from ...settings import check_range
from ..registry import Part, without

Signal = Literal["gain", "precision", "gate"]
# From what the controller says to a signal: 0 gives exactly 1; gain and gate lie in (0, 2), precision in (1/4, 4).
MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "gain": lambda z: 2 * torch.sigmoid(z),
    "precision": lambda z: torch.exp2(2 * torch.tanh(z / 2)),
    "gate": lambda z: 2 * torch.sigmoid(z),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Shape of a modulated transformer; a zero is derived. The first block of fields is the plain transformer's.

    Attributes:
        signals: what the controller sets; without any the model is the plain transformer.
        precision_per: one precision a block, or one for each of its heads.
        pooling: what of the past the controller sees: causal, all of it; decay, with weights that halve over learned
            half-lives; refreshed, all of it as it was at the latest multiple of `refresh_every`; last, nothing.
        n_pool_heads: heads of the pool.
        d_control: width of the controller's hidden layer.
        n_controls: length of the external control vector (`NCN.set_controls`); 0: none.
        homeostasis: weight of the mean squared distance of each signal from 1.
        skip_below: a gate below it counts as 0, and evaluation leaves the feed-forward part out; 0: never.
        plasticity: gain scales a block's updates by the running mean of its gain.
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

    signals: tuple[Signal, ...] = ("gain", "precision", "gate")
    precision_per: Literal["block", "head"] = "block"
    pooling: Literal["causal", "decay", "refreshed", "last"] = "causal"
    n_pool_heads: int = 4
    refresh_every: int = 16
    d_control: int = 64
    n_controls: int = 0
    homeostasis: float = 0.01
    skip_below: float = 0.0
    plasticity: Literal["none", "gain"] = "none"

    def __post_init__(self) -> None:
        for name in ("d_model", "n_blocks", "n_heads", "max_seq_len", "n_pool_heads", "refresh_every", "d_control"):
            check_range(f"model.{name}", getattr(self, name), low=1)
        for name in ("vocab_size", "n_kv_heads", "d_head", "d_mlp", "n_controls", "homeostasis"):
            check_range(f"model.{name}", getattr(self, name), low=0)
        check_range("model.rope_base", self.rope_base, above=1)
        for name, wrong, fix in self._faults():
            if wrong:
                raise InputError(f"model.{name}: {fix}")

    def _faults(self) -> Iterator[tuple[str, object, str]]:
        """Field, whether it is wrong, and what to say then."""
        width, has = self.d_model, self.signals.__contains__
        unknown = [name for name in self.signals if name not in MAPS]
        yield "signals", unknown, f"{', '.join(unknown)} is no signal; choose from {', '.join(MAPS)}"
        yield "signals", len(set(self.signals)) < len(self.signals), "a signal is named twice; name each once"
        for name, parts in (("n_heads", 0 if self.d_head else self.n_heads), ("n_pool_heads", self.n_pool_heads)):
            yield name, parts and width % parts, f"{parts} does not divide model.d_model={width}"
        yield "d_head", self.width_of_heads % 2, "rotary positions need an even head width; change d_model or n_heads"
        kv_heads = self.number_of_kv_heads
        yield "n_kv_heads", self.n_heads % kv_heads, f"{kv_heads} does not divide model.n_heads={self.n_heads}"
        yield "dropout", not 0 <= self.dropout < 1, f"{self.dropout} is outside [0, 1)"
        yield "skip_below", not 0 <= self.skip_below < 1, f"{self.skip_below} is outside [0, 1); a neutral gate is 1"
        yield "skip_below", self.skip_below and not has("gate"), "needs a gate: add it to model.signals, or set 0"
        yield "plasticity", self.plasticity == "gain" and not has("gain"), "needs a gain: add it to model.signals"
        yield "n_controls", self.n_controls and not self.signals, "needs a signal to act on: set model.signals, or 0"

    @property
    def width_of_heads(self) -> int:
        return self.d_head or self.d_model // self.n_heads

    @property
    def number_of_kv_heads(self) -> int:
        return self.n_kv_heads or self.n_heads


VARIANTS: tuple[dict[str, Any], ...] = (
    {"n_blocks": 3},
    {"n_blocks": 2, "pooling": "decay", "signals": ("gate", "gain"), "skip_below": 0.5, "n_kv_heads": 2, "tied": False},
    {"n_blocks": 2, "pooling": "refreshed", "refresh_every": 3, "precision_per": "head", "plasticity": "gain"},
    {"n_blocks": 2, "pooling": "last", "signals": ("precision",), "activation": "gelu", "dropout": 0.1},
)


PARTS = (
    Part(
        "controller",
        removed={"signals": (), "n_controls": 0, "skip_below": 0.0, "plasticity": "none"},
        neutral={f"control.{name}": 1.0 for name in MAPS},
    ),
    Part("gain", {"signals": without("signals", "gain"), "plasticity": "none"}, neutral={"control.gain": 1.0}),
    Part("precision", {"signals": without("signals", "precision")}, neutral={"control.precision": 1.0}),
    Part("gate", {"signals": without("signals", "gate"), "skip_below": 0.0}, neutral={"control.gate": 1.0}),
    Part("pool", {"pooling": "last"}, neutral={"control.pool": 0.0}, when=lambda config: config.signals != ()),
    Part("homeostasis", {"homeostasis": 0.0}, when=lambda config: config.signals != ()),
    Part("plasticity", {"plasticity": "none"}, misdirected={"train.plasticity": "shuffled"}),
)
