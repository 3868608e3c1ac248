"""Shape of the flagship: which regions and signals take part, and how large they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from ...errors import InputError
from ...parts.expert_choice import ExpertChoiceRouter
from ...parts.routers import Router, RoutingOptions, ThresholdRouter, TokenChoiceRouter, check_capacities
from ...settings import check_range
from ..registry import Part, including, without

REGIONS = ("temporal", "amygdala", "prefrontal", "neocortex")
SIGNALS = ("dopamine", "acetylcholine", "noradrenaline", "serotonin")
# What each signal influences, and the bound of its influence: θ · (1 ± KAPPA) at most.
EFFECTS = {
    "gain_temporal": "dopamine",
    "gain_prefrontal": "dopamine",
    "gain_neocortex": "dopamine",
    "precision": "acetylcholine",
    "router_temperature": "noradrenaline",
    "patience": "serotonin",
}
KAPPA = 0.5
# What a token may go past in a pass, and the region it belongs to.
PATHS = {"memory": "temporal", "experts": "neocortex"}
# Regions whose output dopamine scales, and with it how fast they learn.
GAINED = ("temporal", "prefrontal", "neocortex")
ROUTERS: dict[str, Callable[..., Router]] = {
    "threshold": ThresholdRouter,
    "token_choice": TokenChoiceRouter,
    "expert_choice": ExpertChoiceRouter,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Shape of the model; a zero or an empty tuple is derived.

    Attributes:
        vocab_size: 0 stands for the tokenizer's size when a run is planned.
        n_passes: how often the shared block may be applied.
        n_shared: layers of the shared block.
        capacities: share of the tokens that each pass may take, from the first on; not increasing, the first 1.
            Empty: (R − r) / R for r = 0 … R − 1.
        burst: tokens that a pass may take beyond its share.
        router, routing: who takes another pass; see `homunculi.parts.routers`.
        window: how far back the temporal lobe's attention sees among what it attends to; 0: to the beginning.
        kv: each pass attends to its own keys and values, of the tokens that take it, or all attend to those that the
            first pass left, of all tokens.
        d_mlp: hidden width of the first and last block; 0: 8/3 · d_model rounded up to a multiple of 8.
        n_experts, n_active, d_expert: of the neocortex; d_expert 0: d_mlp / n_active, rounded up to a
            multiple of 8 (which grouped products of a GPU need).
        plan_width: of the prefrontal state; packet_width: of the packet's summary.
        regions: those that take part; without one the plain part of a recursive transformer stands in its place (the
            temporal lobe's attention then sees to the beginning and has no memory, the neocortex is one feed-forward
            part of width d_mlp).
        signals: of the packet; empty: no packet.
        paths: what a token may go past in a pass, "memory" and "experts"; path_share: of the tokens of a pass, those
            that go through each of them.
        filled: regions left out, or "packet", whose parameters a plain feed-forward part makes up for.
        token_plasticity: each token's dopamine scales what the shared block learns from it; see `learning.paced`.
        forecast: what the amygdala learns to foresee: a token's loss, how much of it later passes remove, or nothing.
        forecast_weight, homeostasis: factors of the two losses.
        balance_rate: how fast the biases of experts follow their load, an update.
    """

    vocab_size: int = 0
    d_model: int = 256
    n_heads: int = 8
    n_passes: int = 3
    n_shared: int = 1
    max_seq_len: int = 512
    capacities: tuple[float, ...] = ()
    burst: int = 4
    router: Literal["threshold", "token_choice", "expert_choice"] = "threshold"
    routing: RoutingOptions = field(default_factory=RoutingOptions)
    window: int = 64
    kv: Literal["per_pass", "shared"] = "per_pass"
    d_mlp: int = 0
    n_experts: int = 8
    n_active: int = 2
    d_expert: int = 0
    plan_width: int = 32
    packet_width: int = 32
    regions: tuple[str, ...] = REGIONS
    signals: tuple[str, ...] = SIGNALS
    paths: tuple[str, ...] = ()
    path_share: float = 0.75
    filled: tuple[str, ...] = ()
    token_plasticity: bool = False
    forecast: Literal["surprise", "reducible", "none"] = "surprise"
    forecast_weight: float = 0.1
    homeostasis: float = 0.01
    balance_rate: float = 1e-2
    qk_norm: bool = True
    tied: bool = True
    rope_base: float = 10000.0

    def __post_init__(self) -> None:
        positive = ("d_model", "n_heads", "n_passes", "n_shared", "max_seq_len", "n_experts", "n_active")
        for name in (*positive, "plan_width", "packet_width"):
            check_range(f"model.{name}", getattr(self, name), low=1)
        for name in ("vocab_size", "burst", "window", "d_mlp", "d_expert", "forecast_weight", "homeostasis"):
            check_range(f"model.{name}", getattr(self, name), low=0)
        check_range("model.balance_rate", self.balance_rate, low=0, high=1)
        check_range("model.rope_base", self.rope_base, above=1)
        if self.d_model % (2 * self.n_heads):
            raise InputError(f"model.n_heads: {self.n_heads} heads of even width do not divide d_model={self.d_model}")
        check_range("model.n_active", self.n_active, high=self.n_experts)
        _check_names("regions", self.regions, REGIONS)
        _check_names("signals", self.signals, SIGNALS)
        _check_names("paths", self.paths, tuple(PATHS))
        for name in self.paths:
            if not self.has(PATHS[name]):
                raise InputError(f"model.paths: {name} belongs to {PATHS[name]}, which model.regions leaves out")
        check_range("model.path_share", self.path_share, above=0)
        if not self.path_share < 1:
            raise InputError(
                f"model.path_share: {self.path_share} lets nobody past; set it below 1 or empty model.paths"
            )
        _check_names("filled", self.filled, (*REGIONS, "packet"))
        for name in self.filled:
            if name in self.regions or (name == "packet" and self.signals):
                raise InputError(f"model.filled: {name} takes part itself; leave it out of regions or signals first")
        check_capacities(self.shares, self.n_passes)
        if self.shares[0] != 1:
            raise InputError(f"model.capacities: the first pass takes every token, so it is 1 and not {self.shares[0]}")
        for name, known in (("router", tuple(ROUTERS)), ("kv", ("per_pass", "shared"))):
            if getattr(self, name) not in known:
                raise InputError(f"model.{name}: {getattr(self, name)!r} is none of {', '.join(known)}")

    @property
    def shares(self) -> tuple[float, ...]:
        n = self.n_passes
        return self.capacities or tuple((n - r) / n for r in range(n))

    @property
    def hidden(self) -> int:
        return self.d_mlp or 8 * -(-self.d_model // 3)

    @property
    def expert_width(self) -> int:
        return self.d_expert or 8 * -(-self.hidden // (8 * self.n_active))

    # What the first and the last block are built from.
    activation: ClassVar[Literal["swiglu"]] = "swiglu"
    dropout: ClassVar[float] = 0.0

    @property
    def number_of_kv_heads(self) -> int:
        return self.n_heads

    @property
    def width_of_heads(self) -> int:
        return self.d_model // self.n_heads

    def has(self, region: str) -> bool:
        return region in self.regions


def _check_names(field: str, given: tuple[str, ...], known: tuple[str, ...]) -> None:
    unknown = [name for name in given if name not in known]
    if unknown or len(set(given)) < len(given):
        raise InputError(f"model.{field}: {', '.join(unknown or given)}: give each of {', '.join(known)} at most once")


# Small configurations for the contract suite.
VARIANTS: tuple[dict[str, Any], ...] = (
    {"n_heads": 2, "n_passes": 2, "window": 6, "n_experts": 4, "n_active": 2, "plan_width": 6, "packet_width": 5},
    {"n_heads": 2, "n_passes": 2, "n_shared": 2, "regions": ("temporal", "neocortex"), "n_experts": 3, "n_active": 1},
    {"n_heads": 2, "n_passes": 2, "regions": (), "signals": (), "filled": REGIONS, "tied": False},
    {
        "n_heads": 2,
        "n_passes": 2,
        "n_shared": 2,
        "kv": "shared",
        "window": 4,
        "burst": 1,
        "n_experts": 3,
        "n_active": 1,
    },
    {
        "n_heads": 2,
        "n_passes": 2,
        "paths": ("memory", "experts"),
        "path_share": 0.5,
        "burst": 1,
        "n_experts": 4,
        "token_plasticity": True,
    },
)


def _region(name: str, neutral: dict[str, float], shuffled: tuple[str, ...] | None = None, note: str = "") -> Part:
    left: dict[str, Any] = {"regions": without("regions", name)}
    if name in PATHS.values():
        left["paths"] = without("paths", *(path for path, region in PATHS.items() if region == name))
    return Part(name, left, left | {"filled": including("filled", name)}, neutral, shuffled, note=note)


_GATES = {"plan": 0.0, "halt": 0.0, "open_heads": 1.0, "open_experts": 1.0}

# What an ablation takes out.
PARTS = (
    _region("temporal", {"steps.*.memory.out": 0.0}, note="held and shuffled: its memory; its attention stays"),
    _region("amygdala", {"*amygdala.salience": 0.5}),
    _region("prefrontal", {f"steps.*.prefrontal.{name}": value for name, value in _GATES.items()}),
    _region("neocortex", {}, ("steps.*.experts.logits",), "shuffled: which experts answer"),
    Part(
        "packet", {"signals": ()}, {"signals": (), "filled": including("filled", "packet")}, {"steps.*.packet.*": 1.0}
    ),
    *(Part(name, {"signals": without("signals", name)}, {}, {f"steps.*.packet.{name}": 1.0}) for name in SIGNALS),
    Part(
        "plasticity",
        {"train.plasticity": "off"},
        misdirected={"train.plasticity": "shuffled"},
        when=lambda config: "dopamine" in config.signals,
    ),
    Part(
        "token_plasticity",
        {"token_plasticity": False},
        when=lambda config: "dopamine" in config.signals,
    ),
    Part(
        "forecast",
        {"forecast": "none"},
        neutral={"*amygdala.forecast": 0.0},
        when=lambda config: config.has("amygdala") and config.forecast != "none",
    ),
    Part("shared_keys", {"kv": "per_pass"}),
    Part(
        "paths",
        {"paths": ()},
        neutral={"steps.*.paths.*.gate": 1.0},
        shuffled=("steps.*.paths.*.score",),
        note="without it every token of a pass goes through memory and experts, which costs more FLOPs",
    ),
    Part(
        "router",
        {"capacities": lambda config: (1.0,) * config.n_passes},
        shuffled=("steps.*.router.score",),
        note="without it every token takes every pass, which costs more FLOPs",
        when=lambda config: min(config.shares) < 1,
    ),
)
