"""Mixture-of-Recursions as its authors released it (Bae et al. 2025), for parity and as a control.

Blocks shared over recursions, a router that decides which tokens take another one, and the plain weight-tied model.
Expert choice ranks the tokens of a sequence against one another, later ones included, in training and in evaluation:
**that form is not causal**. Token choice and plain tying are.

Legend: B batch, T positions, C tokens that take part, S positions attended to, D width, R recursions, L cache capacity.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.budget import Budget, count_parameters
from ..core.cache import Cache, KVSlot
from ..core.model import LanguageModel
from ..core.output import Hidden
from ..core.schedule import Sharing, shared
from ..core.taps import NO_TAPS, TapPoint
from ..errors import InputError
from ..parts.attention import CausalSelfAttention
from ..parts.linear import Linear
from ..parts.mlp import SwiGLU
from ..parts.norm import RMSNorm
from ..parts.rope import RotaryEmbedding
from ..parts.routing import Selection, put_sum, take
from ..settings import check_range
from .registry import architecture


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertChoice:
    """Each recursion keeps the best tokens of those that took part in the one before.

    Attributes:
        capacity: share of the sequence that each recursion keeps, not rising; empty: 1, (R − 1)/R, … 1/R.
        router: one linear map, or two with 2 · d_model units between them.
        gate: squashes a score, which is then times `alpha` the weight of the token's update.
        auxiliary: who learns by a cross-entropy, times `coefficient`, who was kept: the router, or one beside it.
        shared_kv: later recursions attend to the keys and values of the first one, and every token is computed.
        tied_attention: off repeats the released error: each recursion has attention weights of its own.
    """

    capacity: tuple[float, ...] = ()
    router: Literal["linear", "mlp"] = "linear"
    gate: Literal["sigmoid", "tanh"] = "sigmoid"
    alpha: float = 0.1
    auxiliary: Literal["loss", "router"] = "loss"
    coefficient: float = 0.001
    shared_kv: bool = False
    tied_attention: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenChoice:
    """Each token is given its number of recursions before the first one, by a linear router.

    Attributes:
        gate: makes shares of scores; times `alpha`, the share of the chosen number is the weight of the token's update.
        balancing: a loss on uneven numbers, or a bias of the choice that each update moves by `bias_rate`.
        coefficient: of the balancing loss; z_coefficient: of the mean squared log-sum-exp of the scores.
    """

    gate: Literal["softmax", "sigmoid"] = "softmax"
    alpha: float = 1.0
    balancing: Literal["loss", "loss_free"] = "loss"
    coefficient: float = 0.1
    bias_rate: float = 0.001
    z_coefficient: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Shape of the model; a zero is derived.

    Attributes:
        vocab_size: 0 stands for the tokenizer's size when a run is planned.
        n_slots: applications of a block, one after another; n_passes: recursions R.
        sharing: which slots share a block, as in `homunculi.core.schedule.shared`; a router needs one of the cycles.
        d_mlp: 0: 8/3 · d_model rounded up to a multiple of 8.
        routing: none ties weights only; expert and token are described by the groups of those names.
    """

    vocab_size: int = 0
    d_model: int = 256
    n_slots: int = 8
    n_passes: int = 3
    sharing: Sharing = "middle_cycle"
    n_heads: int = 8
    n_kv_heads: int = 0
    d_mlp: int = 0
    max_seq_len: int = 512
    tied: bool = True
    rope_base: float = 10000.0
    norm_eps: float = 1e-5
    routing: Literal["none", "expert", "token"] = "expert"
    expert: ExpertChoice = ExpertChoice()
    token: TokenChoice = TokenChoice()

    def __post_init__(self) -> None:
        for name in ("d_model", "n_slots", "n_passes", "n_heads", "max_seq_len"):
            check_range(f"model.{name}", getattr(self, name), low=1)
        for name in ("vocab_size", "n_kv_heads", "d_mlp", "norm_eps"):
            check_range(f"model.{name}", getattr(self, name), low=0)
        check_range("model.rope_base", self.rope_base, above=1)
        check_range("model.expert.alpha", self.expert.alpha, above=0)
        check_range("model.token.alpha", self.token.alpha, above=0)
        if self.d_model % (2 * self.n_heads):
            raise InputError(f"model.n_heads: {self.n_heads} heads of model.d_model={self.d_model} have no even width")
        if self.n_heads % (self.n_kv_heads or 1):
            raise InputError(f"model.n_kv_heads: {self.n_kv_heads} does not divide model.n_heads={self.n_heads}")
        if self.routing != "none" and self.sharing not in ("cycle", "middle_cycle"):
            raise InputError(f"model.sharing: {self.sharing} cannot carry a router; use cycle or middle_cycle")
        shares = self.expert.capacity or (1.0,) * self.n_passes
        if len(shares) != self.n_passes or list(shares) != sorted(shares)[::-1] or not 0 < shares[-1] <= shares[0] <= 1:
            raise InputError(f"model.expert.capacity: give {self.n_passes} shares in (0, 1], none above the one before")
        shared(self.sharing, self.n_slots, self.n_passes)  # raises where it does not come out even

    @property
    def heads(self) -> tuple[int, int, int]:
        return self.n_heads, self.n_kv_heads or self.n_heads, self.d_model // self.n_heads

    def kept(self, n_tokens: int) -> list[int]:
        """How many of a sequence's tokens expert choice keeps in each recursion."""
        shares = self.expert.capacity or [(self.n_passes - r) / self.n_passes for r in range(self.n_passes)]
        return [max(1, int(share * n_tokens)) for share in shares]


class Sight(NamedTuple):
    """What a step knows of positions: rotary tables, who may be seen (None: the past), where its tokens stand."""

    rotation: tuple[Tensor, Tensor]
    mask_BTS: Tensor | None
    positions_BT: Tensor


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); of several attentions, the one of the recursion."""

    def __init__(self, config: Config, n_attentions: int) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(config.d_model, config.norm_eps)
        self.attns = nn.ModuleList(CausalSelfAttention(config.d_model, *config.heads) for _ in range(n_attentions))
        self.mlp_norm = RMSNorm(config.d_model, config.norm_eps)
        self.mlp = SwiGLU(config.d_model, config.d_mlp or 8 * -(-config.d_model // 3))

    def forward(self, x_BTD: Tensor, recursion: int, sight: Sight, taps: TapPoint, slot: KVSlot | None) -> Tensor:
        attn = self.attns[recursion % len(self.attns)]
        cache = None if slot is None else (slot, sight.positions_BT)
        x_BTD = taps("resid_pre", x_BTD)
        x_BTD = x_BTD + attn(self.attn_norm(x_BTD), sight.rotation, taps, sight.mask_BTS, cache)
        x_BTD = taps("resid_mid", x_BTD)
        return taps("resid_post", x_BTD + self.mlp(self.mlp_norm(x_BTD), taps))


def router(d_model: int, n_scores: int, kind: str) -> nn.Sequential:
    """Scores (B, T, n) of tokens (B, T, D)."""
    if kind == "linear":
        return nn.Sequential(Linear(d_model, n_scores))
    return nn.Sequential(Linear(d_model, 2 * d_model), nn.GELU(), Linear(2 * d_model, n_scores))


class FirstPass(KVSlot):
    """Keys and values of the first recursion, given to all; those of later ones are computed and dropped."""

    def extend(self, k_BHTK: Tensor, v_BHTK: Tensor, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
        if not self.k_BHLK.numel():
            self.k_BHLK, self.v_BHLK = k_BHTK, v_BHTK
        return self.k_BHLK, self.v_BHLK


@dataclass(slots=True)
class Numbers:
    """A whole number for each token read: its id, or the last recursion that it takes part in."""

    n_BL: Tensor


MLP = ExpertChoice(capacity=(0.8, 0.5), router="mlp", gate="tanh", auxiliary="router", tied_attention=False)
CONTRACT_CONFIGS: tuple[dict[str, Any], ...] = (
    {"n_heads": 4, "n_kv_heads": 2, "n_slots": 5, "d_mlp": 40, "expert": ExpertChoice()},
    {"n_heads": 4, "n_slots": 4, "n_passes": 2, "sharing": "cycle", "expert": MLP},
    {"n_heads": 4, "n_slots": 5, "d_mlp": 40, "expert": ExpertChoice(shared_kv=True)},
    {"n_heads": 4, "n_slots": 5, "routing": "token", "token": TokenChoice(z_coefficient=0.001)},
    {"n_heads": 4, "n_slots": 6, "n_passes": 2, "sharing": "middle_sequence", "routing": "none", "tied": False},
)
EXEMPTIONS = {
    "causality": "expert choice ranks tokens against later ones; the other forms are certified in tests/parity",
    "cached_decoding": "expert choice: who takes part in a whole sequence is not known while it is read",
    "taps": "expert choice: what is written at a later position changes which earlier tokens take part",
}


@architecture("mor_published", Config, exemptions=EXEMPTIONS, variants=CONTRACT_CONFIGS)
class MoRPublished(LanguageModel):
    """Mixture-of-Recursions as released: with expert choice not causal, a control for the causal one.

    Where a mask is enough (token choice, shared keys and values), all tokens are computed at all recursions. Expert
    choice has no decoding in the original: its cache keeps tokens and reads all of them anew at each call, without
    taps, so that the logits after a prefix are those of a full forward over that prefix.

    Raises:
        InputError: `config.vocab_size` is 0.
    """

    router_bias_R: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        if config.vocab_size < 1:
            raise InputError("model.vocab_size: a model needs a vocabulary; give its size")
        self.config = config
        self.schedule = shared(config.sharing, config.n_slots, config.n_passes)
        n, edge = config.n_slots, int(config.sharing.startswith("middle"))
        self.regions = (range(edge), range(edge, n - edge), range(n - edge, n))
        width = len(self.regions[1]) // config.n_passes
        self.passes = [range(i, i + width) for i in self.regions[1][::width]]
        self.embed = nn.Embedding(config.vocab_size, config.d_model)
        untied = config.routing == "expert" and not config.expert.tied_attention
        attentions = {self.schedule[i].block: config.n_passes if untied else 1 for i in self.regions[1]}
        blocks = range(1 + max(step.block for step in self.schedule))
        self.blocks = nn.ModuleList(Block(config, attentions.get(block, 1)) for block in blocks)
        self._add_routers(config.d_model, config.n_passes)
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.untied = None if config.tied else Linear(config.d_model, config.vocab_size)
        self.rope = RotaryEmbedding(config.heads[2], config.max_seq_len, config.rope_base)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)

    def _add_routers(self, d_model: int, n_passes: int) -> None:
        """One router a recursion and perhaps as many beside them, or one for all recursions, or none."""
        routing, kind = self.config.routing, self.config.expert.router
        n_beside = n_passes if routing == "expert" and self.config.expert.auxiliary == "router" else 0
        routers = [router(d_model, 1, kind) for _ in range(n_passes)] if routing == "expert" else []
        self.routers = nn.ModuleList([router(d_model, n_passes, "linear")] if routing == "token" else routers)
        self.routers_beside = nn.ModuleList(router(d_model, 1, kind) for _ in range(n_beside))
        if routing == "token" and self.config.token.balancing == "loss_free":
            self.register_buffer("router_bias_R", torch.zeros(n_passes))

    def trunk(
        self, ids_BT: Tensor, taps: TapPoint = NO_TAPS, cache: Cache | None = None, documents_BT: Tensor | None = None
    ) -> Hidden:
        if cache is not None and self.config.routing == "expert":
            return Hidden(self._read_anew(ids_BT, cache))
        x_BTD = taps("embed", self.embed(ids_BT).to(self.compute_dtype or self.embed.weight.dtype))
        sight = self._sight(ids_BT, x_BTD.dtype, cache, documents_BT)
        slots = None if cache is None else cache.slots
        first, middle, last = self.regions
        x_BTD = self._steps(first, 0, x_BTD, sight, taps, slots)
        if self.config.routing == "expert":
            routed = self._expert_choice(x_BTD, sight, taps)
        elif self.config.routing == "token":
            routed = self._token_choice(x_BTD, sight, taps, slots)
        else:
            routed = Hidden(self._steps(middle, 0, x_BTD, sight, taps, slots))
        x_BTD = self._steps(last, 0, routed.x_BTD, sight, taps, slots)
        return Hidden(x_BTD, routed.loss_terms, statistics=routed.statistics)

    def _steps(
        self, steps: range, recursion: int, x_BTD: Tensor, sight: Sight, taps: TapPoint, slots: list[Any] | None
    ) -> Tensor:
        for i in steps:
            slot = None if slots is None else slots[self.schedule[i].slot]
            x_BTD = self.blocks[self.schedule[i].block](x_BTD, recursion, sight, taps.at(i), slot)
        return x_BTD

    def _expert_choice(self, x_BTD: Tensor, sight: Sight, taps: TapPoint) -> Hidden:
        """x += gate · recursion(x) for the tokens that a recursion keeps of those that the one before kept."""
        expert, (cos, sin), wide = self.config.expert, sight.rotation, torch.promote_types(x_BTD.dtype, torch.float32)
        index_BC = sight.positions_BT.expand(len(x_BTD), -1)
        first = [FirstPass(x_BTD.new_empty(0), x_BTD.new_empty(0)) for _ in self.blocks]
        losses, right = [], []
        for r, (steps, n_kept) in enumerate(zip(self.passes, self.config.kept(x_BTD.shape[1]), strict=True)):
            tap, active_BCD = taps.at(steps[0]), take(x_BTD, index_BC)
            score_BC = tap("router.logits", self.routers[r](active_BCD)[..., 0])
            gate_BC = tap("router.gate", expert.alpha * getattr(torch, expert.gate)(score_BC))
            kept_BC = gate_BC.topk(n_kept).indices.sort(-1).values
            guess_BC = self.routers_beside[r](active_BCD.detach())[..., 0] if self.routers_beside else score_BC
            was_kept_BC = torch.zeros_like(guess_BC, dtype=wide).scatter(1, kept_BC, 1.0)
            losses.append(F.binary_cross_entropy_with_logits(guess_BC.to(wide), was_kept_BC))
            right.append(((guess_BC.detach() > 0) == (was_kept_BC > 0)).to(wide).mean())
            index_BC = tap("router.selected", index_BC.gather(1, kept_BC))
            if expert.shared_kv:
                slots = [first[step.block] for step in self.schedule]
                y_BCD = take(self._steps(steps, r, x_BTD, sight, taps, slots), index_BC)
            else:
                here = Sight((cos[index_BC], sin[index_BC]), None, index_BC)
                y_BCD = self._steps(steps, r, take(x_BTD, index_BC), here, taps, None)
            everyone = Selection(index_BC, torch.ones_like(index_BC, dtype=torch.bool), index_BC)
            x_BTD = put_sum(x_BTD, gate_BC.gather(1, kept_BC)[..., None] * y_BCD, everyone)
            x_BTD = taps.at(steps[-1])("router.out", x_BTD)
        terms = {"router_prediction": expert.coefficient * torch.stack(losses).sum()}
        return Hidden(x_BTD, terms, statistics={"router_accuracy": torch.stack(right).mean()})

    def _token_choice(self, x_BTD: Tensor, sight: Sight, taps: TapPoint, slots: list[Any] | None) -> Hidden:
        """x + gate · (x after as many recursions as the token was given); who left is seen by nobody any more."""
        token, tap, n_passes = self.config.token, taps.at(self.passes[0][0]), self.config.n_passes
        score_BTR = tap("router.logits", self.routers[0](x_BTD))
        share_BTR = score_BTR.softmax(-1) if token.gate == "softmax" else score_BTR.sigmoid()
        share_BTR = tap("router.gate", token.alpha * share_BTR)
        biased_BTR = share_BTR + self.router_bias_R if token.balancing == "loss_free" else share_BTR
        depth_BT = tap("router.depth", biased_BTR.argmax(-1)).clamp(0, n_passes - 1)
        depth_BS = depth_BT if slots is None else slots[-1].n_BL.scatter_(1, sight.positions_BT, depth_BT)
        # Each sees itself as well, so that no row of the mask is empty; who left computes, and it is thrown away.
        itself_BTS = sight.positions_BT[..., None] == torch.arange(depth_BS.shape[1], device=depth_BS.device)
        y_BTD, seen_BTS = x_BTD, cast(Tensor, sight.mask_BTS)
        for r, steps in enumerate(self.passes):
            among = sight._replace(mask_BTS=(seen_BTS & (depth_BS >= r)[:, None]) | itself_BTS)
            deeper_BTD = self._steps(steps, r, y_BTD, among, taps, slots)
            y_BTD = torch.where((depth_BT >= r)[..., None], deeper_BTD, y_BTD)
        gated_BTD = share_BTR.gather(-1, depth_BT[..., None]) * y_BTD
        x_BTD = taps.at(self.passes[-1][-1])("router.out", x_BTD + gated_BTD)
        wide = torch.promote_types(score_BTR.dtype, torch.float32)
        load_R, mean_depth = F.one_hot(depth_BT, n_passes).to(wide).mean((0, 1)), depth_BT.to(wide).mean() + 1
        balance = token.coefficient * n_passes * (share_BTR.to(wide).mean((0, 1)) * load_R).sum()
        terms = {"router_balance": balance} if token.balancing == "loss" else {}
        if token.z_coefficient:
            terms["router_z"] = token.z_coefficient * score_BTR.to(wide).logsumexp(-1).square().mean()
        return Hidden(x_BTD, terms, statistics={"router_load": load_R, "mean_depth": mean_depth})

    @torch.no_grad()
    def after_update(self, statistics: dict[str, Tensor]) -> None:
        """Without a balancing loss: raise the bias of numbers that were given too rarely, lower that of the others."""
        if self.config.routing == "token" and self.config.token.balancing == "loss_free":
            load_R = statistics["router_load"]
            self.router_bias_R += self.config.token.bias_rate * (load_R.mean() - load_R).sign()

    def _read_anew(self, ids_BT: Tensor, cache: Cache) -> Tensor:
        """States of the next tokens, each row by a full forward over all tokens of it that were read."""
        n_tokens, valid_BT = ids_BT.shape[1], cache.valid(ids_BT.shape[1])
        ids_BL = cache.at(0).n_BL.scatter_(1, cache.positions(n_tokens), ids_BT)
        counts = [n_tokens] * len(ids_BT) if valid_BT is None else valid_BT.sum(1).tolist()
        reads = zip(ids_BL.split(1), cache.lengths_B.tolist(), counts, strict=True)
        states = [self.trunk(row[:, : before + n]).x_BTD[:, before:] for row, before, n in reads]
        return torch.cat([F.pad(x_1TD, (0, 0, 0, n_tokens - x_1TD.shape[1])) for x_1TD in states])

    def readout(self, x_BTD: Tensor, taps: TapPoint = NO_TAPS) -> Tensor:
        weight_VD = self.embed.weight if self.untied is None else self.untied.weight
        x_BTD = taps("readout.norm", self.norm(x_BTD))
        return taps("readout.logits", F.linear(x_BTD, weight_VD.to(x_BTD.dtype)))

    def _sight(self, ids_BT: Tensor, dtype: torch.dtype, cache: Cache | None, documents_BT: Tensor | None) -> Sight:
        """What steps on all tokens of a call know of positions; a mask is made only where one is needed."""
        n_tokens, device = ids_BT.shape[1], ids_BT.device
        if cache is not None:
            positions_BT = cache.positions(n_tokens)
            seen_BTL = torch.arange(cache.capacity, device=device) <= positions_BT[..., None]
            return Sight(self.rope.at(positions_BT, dtype), seen_BTL, positions_BT)
        if n_tokens > self.config.max_seq_len:
            raise InputError(f"{n_tokens} tokens are more than model.max_seq_len={self.config.max_seq_len}")
        positions_BT, mask_BTS = torch.arange(n_tokens, device=device)[None], None
        if documents_BT is not None and self.config.routing == "expert":
            raise InputError("text.document_mask: expert choice ranks documents against one another; switch it off")
        if documents_BT is not None:
            mask_BTS = (documents_BT[:, :, None] == documents_BT[:, None, :]).tril()
        elif self.config.routing == "token" or self.config.expert.shared_kv:
            mask_BTS = positions_BT[:, :, None] >= positions_BT[:, None, :]
        return Sight(self.rope.at(slice(0, n_tokens), dtype), mask_BTS, positions_BT)

    def new_cache(self, batch_size: int, capacity: int) -> Cache:
        device, dtype = self.embed.weight.device, self.compute_dtype or self.embed.weight.dtype
        if capacity > self.config.max_seq_len:
            raise InputError(f"a cache of {capacity} tokens is more than model.max_seq_len={self.config.max_seq_len}")
        shape, slots = (batch_size, self.config.heads[1], capacity, self.config.heads[2]), list[Any]()
        if self.config.routing != "expert":
            slots += [KVSlot.empty(shape, dtype, device) for _ in self.schedule]
        if self.config.routing != "none":
            slots.append(Numbers(torch.zeros(batch_size, capacity, dtype=torch.long, device=device)))
        return Cache(slots, batch_size, capacity, device)

    def budget(self, context: int | None = None) -> Budget:
        """Executed parameters are those of the mean token of a context: not every one takes part everywhere."""
        n, (n_heads, n_kv_heads, d_head) = context or self.config.max_seq_len, self.config.heads
        table, kept = self.embed.weight.numel(), self.config.kept(n)
        gathers = self.config.routing == "expert" and not self.config.expert.shared_kv
        fewer = {i: m for m, steps in zip(kept, self.passes, strict=True) for i in steps} if gathers else {}
        work: list[tuple[Any, int]] = [(self.blocks[s.block], fewer.get(i, n)) for i, s in enumerate(self.schedule)]
        parts = [(part, m) for block, m in work for part in (block.attns[0], block.mlp)]
        parts += [*zip(self.routers, [n, *kept], strict=False), *zip(self.routers_beside, [n, *kept], strict=False)]
        executed = table * n + sum(count_parameters(part) * m for part, m in parts)
        keys = 2 * 2 * len(self.schedule) * n_kv_heads * d_head
        return Budget(
            parameters=count_parameters(self),
            embedding_parameters=table if self.untied is None else 2 * table,
            executed_parameters=executed // n,
            flops_per_token=(2 * executed + 4 * n_heads * d_head * sum(m * m for _, m in work)) // n,
            cache_bytes_per_token={"none": keys, "token": keys + 8, "expert": 8}[self.config.routing],
        )
