"""The four regions and the packet that influences them.

Legend: B batch, T positions, C places of a gathered block, S positions attended to, D width, H heads, P plan, Q packet
summary, E experts, R passes, K head width; a trailing 1 is an axis of size one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...core.cache import KVSlot, SlotOfRows
from ...core.modulation import Modulation
from ...core.taps import NO_TAPS, TapPoint
from ...parts import one_token
from ...parts.experts import Experts
from ...parts.gathered import GatheredTaps
from ...parts.kv_sharing import Attention, Earlier
from ...parts.linear import Linear
from ...parts.memory import AssociativeMemory, running_sum
from ...parts.mlp import feed_forward
from ...parts.norm import RMSNorm
from ...parts.pooling import decayed_sum, prefix_sum
from .config import EFFECTS, GAINED, KAPPA, Config
from .state import Felt, Mind, Place, Slot, Wanted


class Temporal(nn.Module):
    """Temporal lobe: what was just said, word for word, by attention inside a window, and bindings from further back by
    an associative memory that salient tokens write harder."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        d, h = config.d_model, config.n_heads
        self.norm = RMSNorm(d)
        self.window = config.window if config.has("temporal") else 0
        self.attn = Attention(d, h, h, d // h, qk_norm=config.qk_norm, window=self.window)
        self.memory = AssociativeMemory(d, h, d // h) if config.has("temporal") else None

    def forward(
        self, x_BCD: Tensor, place: Place, felt: Felt, taps: TapPoint, slot: Slot | None, shared: KVSlot | None = None
    ) -> Tensor:
        """What is bound to each token of a pass, (B, C, D).

        Args:
            slot: what the step remembers of earlier calls; None: there were none.
            shared: keys and values to fill for later passes, or `Earlier` ones to attend to; None: the pass's own. The
                memory is always the pass's own, of those who take it: what a token binds there is its present state.
        """
        n_BCD = self.norm(x_BCD)
        mask_BCS, cache = self._visible(place, slot, shared)
        y_BCD = self.attn(n_BCD, place.rotation, taps, mask_BCS, cache, felt.signals.precision)
        if self.memory is None:
            return y_BCD
        if slot is not None and "memory" not in felt.paths and one_token.fits(n_BCD, n_BCD.shape[1]):
            state = slot.memory_BHKK, None if place.block is None else place.block.rows_A, place.taken_BC
            return y_BCD + self.memory.remember(n_BCD, _write(felt), felt.open_heads_BCH, taps, state)
        state_BHKK = None if slot is None else place.rows(slot.memory_BHKK)
        if "memory" in felt.paths:
            y_BCD, after_BHKK = self._bind_some(n_BCD, y_BCD, place, felt, taps, state_BHKK)
        else:
            bound_BCD, after_BHKK = self._bind(n_BCD, felt, taps, place.taken_BC, state_BHKK, place.documents())
            y_BCD = y_BCD + bound_BCD
        if slot is not None and after_BHKK is not None:
            place.write_rows(slot.memory_BHKK, after_BHKK)
        return y_BCD

    def _bind(
        self,
        n_BCD: Tensor,
        felt: Felt,
        taps: TapPoint,
        taken_BC: Tensor | None,
        state_BHKK: Tensor | None,
        documents_BC: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """What the memory says, and what it holds afterwards."""
        assert self.memory is not None
        return self.memory(n_BCD, _write(felt), felt.open_heads_BCH, taps, taken_BC, state_BHKK, documents_BC)

    def _bind_some(
        self, n_BCD: Tensor, y_BCD: Tensor, place: Place, felt: Felt, taps: TapPoint, state_BHKK: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """As `_bind`, of those who go through: `y_BCD` with what it says to them."""
        path, documents_BC = felt.paths["memory"], place.documents()
        block = path.block
        if block is None:
            return y_BCD, None
        documents_BC = None if documents_BC is None else block.take_numbers(documents_BC)
        inside = GatheredTaps(taps, block, (n_BCD.shape[0], n_BCD.shape[1]), True)
        state = None if state_BHKK is None else block.rows(state_BHKK)
        taken_BC = block.selection.taken_BC
        bound_BCD, after_BHKK = self._bind(block.take(n_BCD), felt.on(block), inside, taken_BC, state, documents_BC)
        y_BCD = block.put_sum(y_BCD, block.take(path.gate_BC1) * bound_BCD)
        if state_BHKK is not None and block.rows_A is not None:
            after_BHKK = state_BHKK.index_copy(0, block.rows_A, after_BHKK)
        return y_BCD, after_BHKK

    def _visible(
        self, place: Place, slot: Slot | None, shared: KVSlot | None
    ) -> tuple[Tensor | None, tuple[KVSlot, Tensor] | None]:
        """What each token of the pass may see (None: those before it there), and where keys and values are."""
        documents_BC = place.documents()
        if isinstance(shared, Earlier) and place.block is not None:
            seen_BCS = self._near(place.positions_BC, shared.n_places)
            if documents_BC is not None and place.documents_BT is not None:
                seen_BCS = seen_BCS & (documents_BC[..., None] == place.documents_BT[:, None])
            masked = slot is not None or documents_BC is not None  # where positions alone do not say what is seen
            mine = shared.of_rows(place.block.rows_A, None if masked else place.block)
            return seen_BCS, (mine, place.positions_BC)
        cache = None if shared is None else (shared, place.positions_BC)
        if documents_BC is not None:
            among_1CC = self._near(torch.arange(place.n_places, device=place.device)[None], place.n_places)
            return among_1CC & (documents_BC[..., None] == documents_BC[:, None]), cache
        if slot is None or place.block is None or cache is not None:
            return None, cache
        where_BC = place.block.places(slot.routed.kv)
        kv = SlotOfRows(slot.routed.kv, place.block.rows_A, place.block.n_seen)
        return self._near(where_BC, kv.n_places), (kv, where_BC)

    def _near(self, where_BC: Tensor, n_keys: int) -> Tensor:
        """Which keys, by place, a query at a place may see, (B, C, S)."""
        ages_BCS = where_BC[..., None] - torch.arange(n_keys, device=where_BC.device)
        return ages_BCS >= 0 if not self.window else (ages_BCS >= 0) & (ages_BCS < self.window)


class Amygdala(nn.Module):
    """How much a token matters: σ(w · n + b + a (forecast − typical forecast)), n the normalised state.

    The forecast is an affine reading of the same n that learns by itself what the token's loss will be; its gradient
    stays with it.

    Args:
        alert: a; 0 where nothing teaches the forecast.
    """

    typical: Tensor
    turn: Tensor

    def __init__(self, d_model: int, alert: float = 4.0) -> None:
        super().__init__()
        self.alert = alert
        self.norm = RMSNorm(d_model)
        self.salience = Linear(d_model, 1)
        self.forecast = Linear(d_model, 1)
        self.bias = nn.Parameter(torch.zeros(2))
        self.register_buffer("typical", torch.zeros(()))
        self.register_buffer("turn", torch.zeros((), dtype=torch.long))  # which positions are asked next

    def forward(self, x_BTD: Tensor, taps: TapPoint) -> tuple[Tensor, Tensor]:
        """Salience and forecast, each (B, T, 1)."""
        n_BTD = self.norm(x_BTD)
        bias = self.bias.to(n_BTD.dtype)
        forecast_BT1 = taps("amygdala.forecast", self.forecast(n_BTD.detach()) + bias[1])
        unusual_BT1 = self.alert * (forecast_BT1.detach() - self.typical.to(n_BTD.dtype))
        score_BT1 = self.salience(n_BTD) + bias[0] + unusual_BT1
        return taps("amygdala.salience", score_BT1.sigmoid()), forecast_BT1


class Prefrontal(nn.Module):
    """Plans and inhibits across passes: a gated recurrent cell over passes (Cho et al. 2014) that also hears a decaying
    mean, over positions, of the plans of the pass before."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        P = config.plan_width
        self.sizes = (
            config.n_experts if config.has("neocortex") else 0,
            config.n_heads if config.has("temporal") else 0,
            1,
        )
        self.norm = RMSNorm(config.d_model)
        self.read = Linear(config.d_model, P)
        self.salience_P = nn.Parameter(torch.zeros(P))
        self.passes_RP = nn.Parameter(torch.zeros(config.n_passes, P))
        self.context = Linear(P, P)
        self.decay_P = nn.Parameter(torch.linspace(0.0, 4.0, P))  # time constants from 2 to about 50 tokens
        self.update = Linear(2 * P, 2 * P)
        self.candidate = Linear(2 * P, P)
        self.plan = Linear(P, config.d_model)
        self.gates = Linear(P, sum(self.sizes))

    def forward(
        self,
        y_BCD: Tensor,
        salience_BC1: Tensor | None,
        plans: tuple[Tensor, Tensor],
        r: int,
        taps: TapPoint,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One step of the cell over passes.

        Args:
            plans: the token's plan of the pass before, and the mean of the plans before it, each (B, C, P).

        Returns:
            The plan (B, C, P), and the gates: experts open (E) and memory heads open (H), 1 at the start, and the wish
            to halt (1).
        """
        plan_BCP, context_BCP = plans
        heard_BCP = self.read(self.norm(y_BCD)) + self.context(context_BCP) + self.passes_RP[r].to(y_BCD.dtype)
        if salience_BC1 is not None:
            heard_BCP = heard_BCP + salience_BC1 * self.salience_P.to(y_BCD.dtype)
        keep, reset = self.update(torch.cat([heard_BCP, plan_BCP], -1)).sigmoid().chunk(2, -1)
        new_BCP = self.candidate(torch.cat([heard_BCP, reset * plan_BCP], -1)).tanh()
        state_BCP = keep * plan_BCP + (1 - keep) * new_BCP
        state_BCP = taps("prefrontal.state", state_BCP)
        experts, heads, halt = self.gates(state_BCP).split(self.sizes, -1)
        return state_BCP, (2 * experts.sigmoid(), 2 * heads.sigmoid(), halt)

    def recall(
        self, plan_BTP: Tensor, slot: Slot | None, valid_BT: Tensor | None, documents_BT: Tensor | None
    ) -> Tensor:
        """Of each position the decaying mean of plans up to it in its document, (B, T, P)."""
        wide = torch.promote_types(plan_BTP.dtype, torch.float32)
        keep_P = self.decay_P.to(wide).sigmoid()
        mean_BTP = decaying_mean(plan_BTP.to(wide), keep_P, None if slot is None else slot.plan_BP, documents_BT)
        if slot is not None and valid_BT is None:
            slot.plan_BP.copy_(mean_BTP[:, -1].detach())
        elif slot is not None and valid_BT is not None:
            series = torch.cat([slot.plan_BP[:, None], mean_BTP], 1)
            rows = torch.arange(len(plan_BTP), device=series.device)
            slot.plan_BP.copy_(series[rows, valid_BT.sum(1)].detach())
        return mean_BTP.to(plan_BTP.dtype)


def decaying_mean(
    x_BTP: Tensor, keep_P: Tensor, before_BP: Tensor | None, documents_BT: Tensor | None = None
) -> Tensor:
    """c_t = keep · c_{t−1} + (1 − keep) · x_t along T, from `before_BP` or 0 on, with each document from 0."""
    part_BTP = (1 - keep_P) * x_BTP
    if documents_BT is not None:
        return prefix_sum(part_BTP[..., None], keep_P, documents_BT)[..., 0]
    if before_BP is not None and x_BTP.shape[1] == 1:
        return keep_P * before_BP[:, None] + part_BTP
    if before_BP is not None:
        part_BTP = torch.cat([before_BP[:, None], part_BTP], 1)
    sums_BTP = decayed_sum(part_BTP[..., None], keep_P)[..., 0]
    return sums_BTP if before_BP is None else sums_BTP[:, 1:]


class Neocortex(nn.Module):
    """Experts, chosen by what the token is, how salient it is and what is inhibited; or one plain part."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        d, E = config.d_model, config.n_experts
        self.norm = RMSNorm(d)
        self.experts: Experts | None = None
        if config.has("neocortex"):
            self.experts = Experts(d, config.expert_width, E, config.n_active, "swiglu")
            self.router = Linear(d, E)
            self.salience_E = nn.Parameter(torch.zeros(E)) if config.has("amygdala") else None
        else:
            self.plain = feed_forward(d, config.hidden, "swiglu")

    def forward(self, y_BCD: Tensor, place: Place, felt: Felt, taps: TapPoint) -> tuple[Tensor, Wanted | None]:
        """The answer (B, C, D), 0 to those who go past the experts, and which experts were wanted before inhibition."""
        if "experts" not in felt.paths:
            return self._answer(y_BCD, place.taken_BC, felt, taps)
        path = felt.paths["experts"]
        block, nothing_BCD = path.block, torch.zeros_like(y_BCD)
        if block is None:
            return nothing_BCD, None
        inside = GatheredTaps(taps, block, (y_BCD.shape[0], y_BCD.shape[1]), True)
        out_BCD, wanted = self._answer(block.take(y_BCD), block.selection.taken_BC, felt.on(block), inside)
        return block.put_sum(nothing_BCD, block.take(path.gate_BC1) * out_BCD), wanted

    def _answer(
        self, y_BCD: Tensor, taken_BC: Tensor | None, felt: Felt, taps: TapPoint
    ) -> tuple[Tensor, Wanted | None]:
        n_BCD = self.norm(y_BCD)
        if self.experts is None:
            return self.plain(n_BCD, taps), None
        wanted_BCE = self.router(n_BCD)
        if self.salience_E is not None and felt.salience_BC1 is not None:
            wanted_BCE = wanted_BCE + felt.salience_BC1 * self.salience_E.to(n_BCD.dtype)
        logits_BCE = wanted_BCE
        if felt.open_experts_BCE is not None:
            logits_BCE = logits_BCE + felt.open_experts_BCE.float().clamp(min=1e-6).log().to(n_BCD.dtype)
        if felt.signals.router_temperature is not None:
            logits_BCE = logits_BCE / felt.signals.router_temperature
        logits_BCE = taps("experts.logits", logits_BCE)
        out_BCD, _ = self.experts(n_BCD, logits_BCE, taps, taken_BC)
        return out_BCD, Wanted(wanted_BCE.detach(), taken_BC)

    def load(self, wanted: Wanted) -> Tensor:
        """Share of each expert in what was wanted, (E,)."""
        assert self.experts is not None
        return self.experts.load(self.experts.choose(wanted.logits_BCE, NO_TAPS).indices_BCA, wanted.taken_BC)


class Packet(nn.Module):
    """The packet of neuromodulators: bounded signals 2σ(·), exactly 1 at the start, from a running mean over the tokens
    that took part so far, the token itself and its salience.

    A signal influences and does not force: a positive quantity θ of a pass becomes θ · (1 + KAPPA · tanh(c (m − 1))),
    with a sensitivity c for each effect.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        Q = config.packet_width
        self.signals = config.signals
        self.norm = RMSNorm(config.d_model)
        self.read = Linear(config.d_model, Q)
        self.summary = Linear(Q, Q)
        self.salience_Q = nn.Parameter(torch.zeros(Q)) if config.has("amygdala") else None
        self.passes_RQ = nn.Parameter(torch.zeros(config.n_passes, Q))
        self.out = Linear(Q, len(config.signals))

        owner = {"gain_prefrontal": "prefrontal", "router_temperature": "neocortex"}
        absent = {effect for effect, region in owner.items() if not config.has(region)}
        absent |= {"patience"} if min(config.shares) == 1 else set()
        effects = [e for e, signal in EFFECTS.items() if signal in config.signals and e not in absent]
        self.sensitivity = nn.ParameterDict({e: nn.Parameter(torch.ones(())) for e in effects})

    def forward(
        self,
        x_BTD: Tensor,
        salience_BT1: Tensor | None,
        took_BT: Tensor,
        r: int,
        slot: Slot | None,
        documents_BT: Tensor | None = None,
    ) -> Tensor:
        """The signals of pass `r` at every token, (B, T, S)."""
        read_BTQ = self.read(self.norm(x_BTD))
        wide = torch.promote_types(read_BTQ.dtype, torch.float32)
        counted = torch.cat([read_BTQ.to(wide), torch.ones_like(read_BTQ[..., :1], dtype=wide)], -1)
        counted = counted * took_BT[..., None]
        if slot is not None:
            counted = torch.cat([slot.summary_BQ[:, None], counted], 1)
        if slot is not None and x_BTD.shape[1] == 1:
            sums = counted[:, :1] + counted[:, 1:]
        elif documents_BT is None:
            sums = running_sum(counted.mT).mT[:, slot is not None :]
        else:
            sums = prefix_sum(counted[:, :, None], documents_BT=documents_BT)[:, :, 0]
        if slot is not None:
            slot.summary_BQ.copy_(sums[:, -1])
        mean_BTQ = (sums[..., :-1] / sums[..., -1:].clamp(min=1)).to(x_BTD.dtype)
        heard_BTQ = read_BTQ + self.summary(mean_BTQ) + self.passes_RQ[r].to(x_BTD.dtype)
        if self.salience_Q is not None and salience_BT1 is not None:
            heard_BTQ = heard_BTQ + salience_BT1 * self.salience_Q.to(x_BTD.dtype)
        return 2 * self.out(heard_BTQ.tanh()).sigmoid()

    def influence(self, effect: str, levels: dict[str, Tensor]) -> Tensor | None:
        """The factor that an effect's signal puts on it, in 1 ± KAPPA; None where the packet has no such signal."""
        if effect not in self.sensitivity:
            return None
        level = levels[EFFECTS[effect]]
        return 1 + KAPPA * torch.tanh(self.sensitivity[effect].to(level.dtype) * (level - 1))


def feel(packet: Packet | None, mind: Mind, levels: dict[str, Tensor], place: Place) -> Felt:
    """What the tokens of a pass feel when it begins."""

    def influence(effect: str) -> Tensor | None:
        return None if packet is None else place.picked(packet.influence(effect, levels))

    gains = {region: influence(f"gain_{region}") for region in GAINED}
    signals = Modulation(precision=influence("precision"), router_temperature=influence("router_temperature"))
    return Felt(gains, signals, place.picked(mind.salience_BT1), None, place.picked(mind.open_heads_BTH))


def scaled(x: Tensor, gain: Tensor | None) -> Tensor:
    return x if gain is None else gain * x


def _write(felt: Felt) -> Tensor | None:
    """How hard a token writes: the more salient, the harder."""
    return None if felt.salience_BC1 is None else 2 * felt.salience_BC1
