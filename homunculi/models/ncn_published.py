"""Neuromodulatory control networks as their author released them (Morgan 2025), for parity and as a control.

A small controller reads the input embeddings and modulates every layer of a plain decoder. Its pooling attends to the
whole row, later tokens included: **this model is not causal**, and its losses are no likelihoods of the next token.

Legend: B batch, T positions, S positions attended to, D width, H heads, K head width, L steps, N signals, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.budget import Budget, count_parameters
from ..core.cache import Cache, KVSlot
from ..core.model import LanguageModel
from ..core.modulation import Modulation
from ..core.output import Hidden
from ..core.schedule import in_order
from ..core.taps import NO_TAPS, TapPoint
from ..errors import InputError
from ..parts.linear import Linear
from ..parts.norm import RMSNorm
from ..settings import check_range
from .registry import architecture

Signal = Literal["gain", "precision", "gate"]
# Queries are multiplied by the precision, at most by this; the penalty sees the precision before it is cut.
LARGEST_PRECISION = 4.0
# Biases of the signals with which the paper means a model to begin: gain 1, precision 1, gate 0.95.
INTENDED_BIAS = {"gain": 0.0, "precision": 0.525, "gate": 3.0}


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Shape of the model; a zero is derived. The defaults are the published run's.

    Attributes:
        vocab_size: 0 stands for the tokenizer's size when a run is planned.
        d_mlp: 0: 4 · d_model.
        d_controller: hidden width of the controller; n_controller_heads: heads of its pooling.
        signals: which ones the controller gives, in the order of its outputs; those left out are 1.
        homeostasis: weight λ of the penalty that pulls the signals to 1.
        init: `as_released` starts all biases at 0 (precision 0.70, gate 0.50), `intended` at the paper's values.
        dropout: of embeddings, hidden feed-forward units and branches; attn_dropout: of attention weights, which the
            original has at 0.1 whatever the other one is.
    """

    vocab_size: int = 0
    d_model: int = 256
    n_blocks: int = 6
    n_heads: int = 8
    d_mlp: int = 0
    max_seq_len: int = 512
    tied: bool = True
    norm_eps: float = 1e-5
    d_controller: int = 64
    n_controller_heads: int = 2
    signals: tuple[Signal, ...] = ("gain", "precision", "gate")
    homeostasis: float = 0.01
    init: Literal["as_released", "intended"] = "as_released"
    dropout: float = 0.1
    attn_dropout: float = 0.1

    def __post_init__(self) -> None:
        for name in ("d_model", "n_blocks", "n_heads", "max_seq_len", "d_controller", "n_controller_heads"):
            check_range(f"model.{name}", getattr(self, name), low=1)
        for name in ("vocab_size", "d_mlp", "homeostasis", "norm_eps"):
            check_range(f"model.{name}", getattr(self, name), low=0)
        for name in ("n_heads", "n_controller_heads"):
            if self.d_model % getattr(self, name):
                raise InputError(f"model.{name}: {getattr(self, name)} does not divide model.d_model={self.d_model}")
        if not self.signals or len(set(self.signals)) < len(self.signals):
            raise InputError(f"model.signals: {', '.join(self.signals) or 'none'}; name at least one, each once")
        for name in ("dropout", "attn_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"model.{name}: {getattr(self, name)} is outside [0, 1)")


class Biased(nn.Linear):
    """`nn.Linear` whose weight and bias are cast to the type of the activations at each use."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


class Pooling(nn.Module):
    """Attention of one learned query to a row of embeddings, without norm, positions or order of time."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.query_11D = nn.Parameter(torch.randn(1, 1, d_model))
        self.qkv_weight = nn.Parameter(torch.empty(3 * d_model, d_model))
        self.qkv_bias = nn.Parameter(torch.zeros(3 * d_model))
        self.out = Biased(d_model, d_model)

    def forward(self, e_BTD: Tensor, mask_BTS: Tensor | None) -> Tensor:
        """The pooled row, (B, 1, D); (B, T, D) where `mask_BTS` says for each token what is pooled for it."""
        d_model = e_BTD.shape[-1]
        weight, bias = self.qkv_weight.to(e_BTD.dtype), self.qkv_bias.to(e_BTD.dtype)
        q_11D = F.linear(self.query_11D.to(e_BTD.dtype), weight[:d_model], bias[:d_model])
        kv_BTE = F.linear(e_BTD, weight[d_model:], bias[d_model:])
        k_BHSK, v_BHSK = (self._heads(t) for t in kv_BTE.chunk(2, -1))
        n_queries = 1 if mask_BTS is None else mask_BTS.shape[1]
        q_BHTK = self._heads(q_11D).expand(len(e_BTD), -1, n_queries, -1)
        z_BHTK = F.scaled_dot_product_attention(
            q_BHTK, k_BHSK, v_BHSK, attn_mask=None if mask_BTS is None else mask_BTS[:, None]
        )
        return self.out(z_BHTK.transpose(1, 2).flatten(2))

    def _heads(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)


class Controller(nn.Module):
    """Signals of every step from a row's pooled embeddings and each token's own one."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.signals, self.n_steps = config.signals, config.n_blocks
        self.pool = Pooling(config.d_model, config.n_controller_heads)
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.hidden = Biased(config.d_model, config.d_controller)
        self.raw = Biased(config.d_controller, config.n_blocks * len(config.signals))

    def forward(self, e_BTD: Tensor, mask_BTS: Tensor | None, taps: TapPoint) -> Modulation:
        pooled = taps("control.pooled", self.pool(e_BTD, mask_BTS))
        u_BTD = taps("control.input", self.norm(pooled + e_BTD))
        h_BTE = taps("control.hidden", self.hidden(u_BTD).tanh())
        z_BTLN = taps("control.raw", self.raw(h_BTE).unflatten(-1, (self.n_steps, len(self.signals))))
        given = {name: _signal(name, z_BTL) for name, z_BTL in zip(self.signals, z_BTLN.unbind(-1), strict=True)}
        return Modulation(**{name: taps(f"control.{name}", signal_BTL) for name, signal_BTL in given.items()})


def _signal(name: Signal, z_BTL: Tensor) -> Tensor:
    if name == "gain":
        return 2 * z_BTL.sigmoid()
    return F.softplus(z_BTL) + 0.01 if name == "precision" else z_BTL.sigmoid()


class Attention(nn.Module):
    """Causal attention whose queries are multiplied by the token's precision; positions are in the stream already."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.n_heads, self.attn_dropout = config.n_heads, config.attn_dropout
        self.q, self.k, self.v, self.o = (Linear(config.d_model, config.d_model) for _ in range(4))
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x_BTD: Tensor,
        precision_BT1: Tensor | None,
        taps: TapPoint,
        mask_BTS: Tensor | None,
        cache: tuple[KVSlot, Tensor] | None,
    ) -> Tensor:
        q_BTD = self.q(x_BTD)
        if precision_BT1 is not None:
            q_BTD = q_BTD * precision_BT1.clamp(max=LARGEST_PRECISION)
        named = (("attn.q", q_BTD), ("attn.k", self.k(x_BTD)), ("attn.v", self.v(x_BTD)))
        q, k, v = (taps(name, t.unflatten(-1, (self.n_heads, -1))).transpose(1, 2) for name, t in named)
        if cache is not None:
            k, v = (t.to(q.dtype) for t in cache[0].extend(k, v, cache[1]))
        z_BHTK = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=None if mask_BTS is None else mask_BTS[:, None],
            dropout_p=self.attn_dropout if self.training else 0.0,
            is_causal=mask_BTS is None,
        )
        z_BTHK = taps("attn.z", z_BHTK.transpose(1, 2))
        return taps("attn.out", self.dropout(self.o(z_BTHK.flatten(2))))


class Block(nn.Module):
    """x + g · attention(norm(x)), then x + g · c · mlp(norm(x)), with the step's gain g and gate c."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        d_mlp = config.d_mlp or 4 * config.d_model
        self.attn_norm = RMSNorm(config.d_model, config.norm_eps)
        self.attn = Attention(config)
        self.mlp_norm = RMSNorm(config.d_model, config.norm_eps)
        self.mlp = nn.ModuleDict({"in": Biased(config.d_model, d_mlp), "out": Biased(d_mlp, config.d_model)})
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x_BTD: Tensor,
        modulation: Modulation,
        taps: TapPoint,
        mask_BTS: Tensor | None,
        cache: tuple[KVSlot, Tensor] | None,
    ) -> Tensor:
        x_BTD = taps("resid_pre", x_BTD)
        change_BTD = self.dropout(self.attn(self.attn_norm(x_BTD), modulation.precision, taps, mask_BTS, cache))
        x_BTD = taps("resid_mid", x_BTD + _times(modulation.gain, change_BTD))
        pre_BTM = taps("mlp.pre", self.mlp["in"](self.mlp_norm(x_BTD)))
        post_BTM = taps("mlp.post", self.dropout(F.gelu(pre_BTM)))
        change_BTD = self.dropout(taps("mlp.out", self.mlp["out"](post_BTM)))
        return taps("resid_post", x_BTD + _times(modulation.gain, _times(modulation.gate, change_BTD)))


def _times(signal_BT1: Tensor | None, x_BTD: Tensor) -> Tensor:
    return x_BTD if signal_BT1 is None else x_BTD * signal_BT1


CONTRACT_CONFIGS: tuple[dict[str, Any], ...] = (
    {"n_blocks": 2, "n_heads": 4, "d_controller": 12, "dropout": 0.0, "attn_dropout": 0.0},
    {"n_blocks": 2, "n_heads": 2, "signals": ("precision", "gain"), "tied": False, "d_mlp": 40, "dropout": 0.0},
    {"n_blocks": 3, "n_heads": 4, "d_controller": 12, "init": "intended", "signals": ("gate",)},
)
EXEMPTIONS = {
    "causality": "the released pooling reads the whole row, later tokens included",
    "cached_decoding": "the released decoding pools the tokens of a call only, which is another function",
    "taps": "what is written at a later position reaches earlier ones through the pooling",
}


@architecture("ncn_published", Config, exemptions=EXEMPTIONS, variants=CONTRACT_CONFIGS)
class NCNPublished(LanguageModel):
    """Neuromodulatory control network as released: not causal, a control for the causal one.

    With a cache it computes what the release does: the controller pools over the tokens of the call alone, so decoding
    token by token is another function than the full forward. Attention stays causal in calls of several tokens.

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
        self.positions = nn.Embedding(config.max_seq_len, config.d_model)
        self.controller = Controller(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_blocks))
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.untied = None if config.tied else Linear(config.d_model, config.vocab_size)
        self.dropout = nn.Dropout(config.dropout)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Normal weights of 0.02 and biases 0; the pooling's query normal of 1, its joined maps uniform (Glorot).

        `intended` sets the biases of the signals last, which the release does first and then overwrites.
        """
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, Biased):
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.controller.pool.qkv_weight)
        if self.config.init == "intended":
            bias_N = torch.tensor([INTENDED_BIAS[name] for name in self.config.signals])
            self.controller.raw.bias.copy_(bias_N.repeat(self.config.n_blocks))

    def trunk(
        self,
        ids_BT: Tensor,
        taps: TapPoint = NO_TAPS,
        cache: Cache | None = None,
        documents_BT: Tensor | None = None,
    ) -> Hidden:
        positions, pooled_BTS, mask_BTS = self._positions_and_masks(ids_BT, cache, documents_BT)
        e_BTD = self.dropout(self.embed(ids_BT) + self.positions.weight[positions])
        x_BTD = e_BTD = taps("embed", e_BTD.to(self.compute_dtype or e_BTD.dtype))
        modulation = self.controller(e_BTD, pooled_BTS, taps)
        for i, step in enumerate(self.schedule):
            slot = None if cache is None else (cache.at(step.slot), positions)
            x_BTD = self.blocks[step.block](x_BTD, modulation.at(i), taps.at(i), mask_BTS, slot)
        signals = {name: getattr(modulation, name) for name in self.config.signals}
        means = {f"{name}_mean": signal_BTL.detach().float().mean() for name, signal_BTL in signals.items()}
        return Hidden(x_BTD, {"homeostasis": self._homeostasis(list(signals.values()))}, statistics=means)

    def _homeostasis(self, signals: list[Tensor]) -> Tensor:
        """λ · sum over signals of the mean of (signal − 1)², the precision as it is before the cut."""
        wide = torch.promote_types(signals[0].dtype, torch.float32)
        return self.config.homeostasis * torch.stack([(s.to(wide) - 1).square().mean() for s in signals]).sum()

    def readout(self, x_BTD: Tensor, taps: TapPoint = NO_TAPS) -> Tensor:
        weight_VD = self.embed.weight if self.untied is None else self.untied.weight
        x_BTD = taps("readout.norm", self.norm(x_BTD))
        return taps("readout.logits", F.linear(x_BTD, weight_VD.to(x_BTD.dtype)))

    def _positions_and_masks(
        self, ids_BT: Tensor, cache: Cache | None, documents_BT: Tensor | None
    ) -> tuple[Tensor | slice, Tensor | None, Tensor | None]:
        """Positions, what is pooled for each token (None: its whole row), what each may attend to (None: its past)."""
        n_tokens = ids_BT.shape[1]
        if cache is not None:
            positions_BT, valid_BT = cache.positions(n_tokens), cache.valid(n_tokens)
            pooled_BTS = None if valid_BT is None else valid_BT[:, None]
            return (
                positions_BT,
                pooled_BTS,
                torch.arange(cache.capacity, device=ids_BT.device) <= positions_BT[..., None],
            )
        if n_tokens > self.config.max_seq_len:
            raise InputError(f"{n_tokens} tokens are more than model.max_seq_len={self.config.max_seq_len}")
        if documents_BT is None:
            return slice(0, n_tokens), None, None
        same_BTS = documents_BT[:, :, None] == documents_BT[:, None, :]
        return slice(0, n_tokens), same_BTS, same_BTS.tril()

    def new_cache(self, batch_size: int, capacity: int) -> Cache:
        device, dtype = self.embed.weight.device, self.compute_dtype or self.embed.weight.dtype
        if capacity > self.config.max_seq_len:
            raise InputError(f"a cache of {capacity} tokens is more than model.max_seq_len={self.config.max_seq_len}")
        shape = (batch_size, self.config.n_heads, capacity, self.config.d_model // self.config.n_heads)
        return Cache([KVSlot.empty(shape, dtype, device) for _ in self.schedule], batch_size, capacity, device)

    def budget(self, context: int | None = None) -> Budget:
        """The pooling's query and output map act once a row: they count as FLOPs, not as executed parameters."""
        context, d_model = context or self.config.max_seq_len, self.config.d_model
        table = self.embed.weight.numel()
        maps = [p for part in (self.blocks, self.controller) for p in part.parameters() if p.dim() == 2]
        executed = sum(p.numel() for p in maps) - 2 * d_model**2 + table
        square = 4 * context * d_model * len(self.schedule)
        row = 4 * d_model**2 / context + 4 * d_model
        return Budget(
            parameters=count_parameters(self),
            embedding_parameters=table if self.untied is None else 2 * table,
            executed_parameters=executed,
            flops_per_token=int(2 * executed + square + row),
            cache_bytes_per_token=2 * 2 * len(self.schedule) * d_model,
        )
