"""Shape of the modulated transformer: what the controller sets, and what it reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

import torch
from torch import Tensor

from ...errors import InputError
from ...settings import check_range
from ..registry import Part, without

Signal = Literal["gain", "precision", "gate", "heads", "film", "beta", "dropout"]
Statistic = Literal["entropy", "change"]


def _around(z: Tensor) -> Tensor:
    """0 gives exactly 1; in (0, 2)."""
    return 2 * torch.sigmoid(z)


def _as_factor(z: Tensor) -> Tensor:
    """0 gives exactly 1; in (1/4, 4), z and −z give b and 1/b."""
    return torch.exp2(2 * torch.tanh(z / 2))


# From what the controller says to a signal.
MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "gain": _around,
    "precision": _as_factor,
    "gate": _around,
    "heads": _around,
    "film": _around,
    "beta": _as_factor,
    "dropout": _around,
}
FACTORS = {name for name, mapped in MAPS.items() if mapped is _as_factor}
# Without the controller: the plain transformer.
BARE: dict[str, Any] = {
    "signals": (),
    "n_controls": 0,
    "instruction_tokens": 0,
    "statistics": (),
    "recurrence": "none",
    "skip_below": 0.0,
    "skip_block_below": 0.0,
    "plasticity": "none",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Shape of a modulated transformer; a zero is derived. The first block of fields is the plain transformer's.

    Attributes:
        signals: what the controller sets in each block; without any the model is the plain transformer.
            gain: of both updates; precision: of attention; gate: of the feed-forward part; heads: of each head; film:
            scale and shift of what both norms give; beta: how sharply the activation bends; dropout: of its rate, in
            training.
        precision_per: one precision a block, or one for each of its heads.
        film_rank: learned directions of scale and shift a block, for the signal film.
        pooling: what of the past the controller sees: causal, all of it; decay, with weights that halve over learned
            half-lives; refreshed, all of it as it was at the latest multiple of `refresh_every`; adiabatic, as it was
            where the pool was last undecided; last, nothing.
        n_pool_heads: heads of the pool.
        refresh_above: share of the latest tokens that an undecided pool hears; see `homunculi.parts.pooling`.
        d_control: width of the controller's hidden layer.
        recurrence: gated, a linear recurrence over positions in the hidden layer.
        n_controls: length of the external control vector (`NCN.set_controls`); 0: none.
        instruction_tokens: the mean of so many first tokens is heard at every later one; 1: a task's token; 0: none.
        statistics: what a block's signals hear of the block before: entropy of its attention, change, the size of what
            it wrote.
        homeostasis: weight of the mean squared distance of each signal from 1.
        skip_below: a gate below it counts as 0, and evaluation leaves the feed-forward part out; 0: never.
        skip_block_below: a gain below it counts as 0: the block writes nothing to that token; 0: never.
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
    film_rank: int = 4
    pooling: Literal["causal", "decay", "refreshed", "adiabatic", "last"] = "causal"
    n_pool_heads: int = 4
    refresh_every: int = 16
    refresh_above: float = 0.65
    d_control: int = 64
    recurrence: Literal["none", "gated"] = "none"
    n_controls: int = 0
    instruction_tokens: int = 0
    statistics: tuple[Statistic, ...] = ()
    homeostasis: float = 0.01
    skip_below: float = 0.0
    skip_block_below: float = 0.0
    plasticity: Literal["none", "gain"] = "none"

    def __post_init__(self) -> None:
        positive = ("d_model", "n_blocks", "n_heads", "max_seq_len", "n_pool_heads", "refresh_every", "d_control")
        for name in (*positive, "film_rank"):
            check_range(f"model.{name}", getattr(self, name), low=1)
        for name in ("vocab_size", "n_kv_heads", "d_head", "d_mlp", "n_controls", "instruction_tokens", "homeostasis"):
            check_range(f"model.{name}", getattr(self, name), low=0)
        check_range("model.rope_base", self.rope_base, above=1)
        for found in (self._unknown(), self._faults(), self._faults_of_control()):
            for name, wrong, fix in found:
                if wrong:
                    raise InputError(f"model.{name}: {fix}")

    def _unknown(self) -> Iterator[tuple[str, object, str]]:
        """As `_faults`: of names to choose from, which Python code may give unchecked."""
        kinds = get_type_hints(type(self))
        for name in ("activation", "precision_per", "pooling", "recurrence", "plasticity"):
            given, known = getattr(self, name), get_args(kinds[name])
            more = (
                "; the form that sees the whole text is ncn_published" if (name, given) == ("pooling", "full") else ""
            )
            yield name, given not in known, f"{given} is none of {', '.join(known)}{more}"
        for name in ("signals", "statistics"):
            given, known = getattr(self, name), get_args(get_args(kinds[name])[0])
            unknown = [one for one in given if one not in known]
            yield name, unknown, f"{', '.join(map(str, unknown))}: no such one; choose from {', '.join(known)}"
            yield name, len(set(given)) < len(given), "one is named twice; name each once"

    def _faults(self) -> Iterator[tuple[str, object, str]]:
        """Field, whether it is wrong, and what to say then."""
        width = self.d_model
        for name, parts in (("n_heads", 0 if self.d_head else self.n_heads), ("n_pool_heads", self.n_pool_heads)):
            yield name, parts and width % parts, f"{parts} does not divide model.d_model={width}"
        yield "d_head", self.width_of_heads % 2, "rotary positions need an even head width; change d_model or n_heads"
        kv_heads = self.number_of_kv_heads
        yield "n_kv_heads", self.n_heads % kv_heads, f"{kv_heads} does not divide model.n_heads={self.n_heads}"
        yield "dropout", not 0 <= self.dropout < 1, f"{self.dropout} is outside [0, 1)"

    def _faults_of_control(self) -> Iterator[tuple[str, object, str]]:
        has = self.signals.__contains__
        for name, signal in (("skip_below", "gate"), ("skip_block_below", "gain")):
            least = getattr(self, name)
            yield name, not 0 <= least < 1, f"{least} is outside [0, 1); a neutral {signal} is 1"
            yield name, least and not has(signal), f"needs a {signal}: add it to model.signals, or set 0"
        yield "refresh_above", not 0 < self.refresh_above < 1, f"{self.refresh_above} is outside (0, 1)"
        yield "plasticity", self.plasticity == "gain" and not has("gain"), "needs a gain: add it to model.signals"
        for name in ("n_controls", "instruction_tokens", "statistics"):
            unset = "an empty list" if name == "statistics" else "0"
            wrong = getattr(self, name) and not self.signals
            yield name, wrong, f"needs a signal to act on: set model.signals, or {unset} here"
        wrong = self.recurrence != "none" and not self.signals
        yield "recurrence", wrong, "needs a signal to act on: set model.signals, or none here"
        few = f"{self.instruction_tokens} is no part of model.max_seq_len={self.max_seq_len}"
        yield "instruction_tokens", self.instruction_tokens > self.max_seq_len, few
        yield "statistics", self.statistics and self.n_blocks < 2, "need a block before: set model.n_blocks above 1"
        shapeless = has("beta") and self.activation == "relu2"
        yield "signals", shapeless, "beta only scales relu2; choose another model.activation, or leave beta out"
        wrong = has("dropout") and not 0 < self.dropout < 0.5
        yield "dropout", wrong, f"{self.dropout} cannot be changed by the signal dropout; set it between 0 and 0.5"

    @property
    def width_of_heads(self) -> int:
        return self.d_head or self.d_model // self.n_heads

    @property
    def number_of_kv_heads(self) -> int:
        return self.n_kv_heads or self.n_heads

    @property
    def widths(self) -> dict[str, int]:
        """Numbers a block of each signal."""
        wide = {"heads": self.n_heads, "film": self.film_rank}
        if self.precision_per == "head":
            wide["precision"] = self.n_heads
        return {name: wide.get(name, 1) for name in self.signals}


# Small configurations for the contract suite.
VARIANTS: tuple[dict[str, Any], ...] = (
    {"n_blocks": 3},
    {
        "n_blocks": 2,
        "pooling": "decay",
        "signals": ("gate", "gain"),
        "skip_below": 0.5,
        "recurrence": "gated",
        "n_kv_heads": 2,
        "tied": False,
    },
    {
        "n_blocks": 2,
        "signals": ("gain", "precision", "gate", "heads", "film"),
        "film_rank": 3,
        "pooling": "refreshed",
        "refresh_every": 3,
        "precision_per": "head",
        "instruction_tokens": 2,
        "plasticity": "gain",
    },
    {
        "n_blocks": 2,
        "pooling": "last",
        "signals": ("precision", "beta", "dropout"),
        "activation": "gelu",
        "dropout": 0.1,
    },
    {
        "n_blocks": 3,
        "pooling": "adiabatic",
        "signals": ("gain", "heads", "beta"),
        "statistics": ("entropy", "change"),
        "skip_block_below": 0.3,
        "recurrence": "gated",
    },
)


def _signal(name: str, **more: Any) -> Part:
    held = {} if name == "dropout" else {f"*control.{name}": 1.0}  # dropout's rate is a matter of training
    return Part(name, {"signals": without("signals", name), **more}, neutral=held)


def _controlled(config: Any) -> bool:
    return config.signals != ()


PARTS = (
    Part("controller", removed=BARE, neutral={f"*control.{name}": 1.0 for name in MAPS if name != "dropout"}),
    _signal("gain", plasticity="none", skip_block_below=0.0),
    _signal("precision"),
    _signal("gate", skip_below=0.0),
    *(_signal(name) for name in ("heads", "film", "beta", "dropout")),
    Part("pool", {"pooling": "last"}, neutral={"control.pool": 0.0}, when=_controlled),
    Part("recurrence", {"recurrence": "none"}, neutral={"control.state": 0.0}),
    Part("instruction", {"instruction_tokens": 0}, neutral={"control.instruction": 0.0}),
    Part("statistics", {"statistics": ()}, neutral={"*control.statistics": 0.0}),
    Part("homeostasis", {"homeostasis": 0.0}, when=_controlled),
    Part("plasticity", {"plasticity": "none"}, misdirected={"train.plasticity": "shuffled"}),
)
