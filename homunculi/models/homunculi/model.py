"""The flagship's loop: a shared block applied again to the tokens that take another pass.

Legend: B batch, T positions, C places of a gathered block, S positions attended to, D width, H heads, P plan, Q packet
summary, E experts, R passes, G regions with a gain, V vocabulary; a trailing 1 is an axis of size one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ...core.budget import Budget
from ...core.cache import Cache, KVSlot
from ...core.model import LanguageModel
from ...core.output import Hidden
from ...core.pieces import at_once
from ...core.schedule import shared
from ...core.taps import NO_TAPS, TapPoint
from ...errors import InputError
from ...parts.block import Block
from ...parts.experts import Experts
from ...parts.gathered import GatheredTaps, Size, gather, gather_now, look, measure
from ...parts.kv_sharing import Kept
from ...parts.linear import Linear
from ...parts.mlp import feed_forward
from ...parts.norm import RMSNorm
from ...parts.rope import RotaryEmbedding
from ...parts.routers import Choice, Router, Span, TokenChoiceRouter
from ...parts.weights import init_maps, read_out
from ..registry import architecture
from .config import EFFECTS, GAINED, PARTS, ROUTERS, VARIANTS, Config
from .costs import budget_of, count_filled
from .learning import count, follow, foresee, loss_terms, paced
from .paths import PathRouter
from .regions import Amygdala, Neocortex, Packet, Prefrontal, Temporal, feel, scaled
from .state import Call, Chosen, Felt, Mind, Passed, Place, Slot


@architecture("homunculi", Config, variants=VARIANTS, parts=PARTS)
class Homunculi(LanguageModel):
    """Four regions, a packet of neuromodulators and a router of depth over one shared block.

    Raises:
        InputError: `config.vocab_size` is 0.
    """

    router: Router
    dopamine_G: Tensor
    in_pieces = True

    def __init__(self, config: Config) -> None:
        super().__init__()
        if config.vocab_size < 1:
            raise InputError("model.vocab_size: a model needs a vocabulary; give its size")
        self.config = config
        d, R, K = config.d_model, config.n_passes, config.n_shared
        self.schedule = shared("middle_cycle", 2 + R * K, R)
        self.first_steps = tuple(1 + r * K for r in range(R))
        self.embed = nn.Embedding(config.vocab_size, d)
        self.first, self.last = Block(config), Block(config)
        self.temporal = nn.ModuleList(Temporal(config) for _ in range(K))
        self.neocortex = nn.ModuleList(Neocortex(config) for _ in range(K))
        alert = 0.0 if config.forecast == "none" else 4.0
        self.amygdala = Amygdala(d, alert) if config.has("amygdala") else None
        self.prefrontal = Prefrontal(config) if config.has("prefrontal") else None
        self.packet = Packet(config) if config.signals else None
        self.router = ROUTERS[config.router](d, config.shares, config.burst, self.first_steps, config.routing)
        routed = len(self.router.routed)
        routed = 1 if routed and config.router == "token_choice" else routed
        self.alarm_R = nn.Parameter(torch.ones(routed)) if self.amygdala is not None and routed else None
        self.paths = nn.ModuleDict({name: PathRouter(config, name) for name in config.paths})
        self.filler = self._filler()
        self.filler_norm = None if self.filler is None else RMSNorm(d)
        self.norm = RMSNorm(d)
        self.untied = None if config.tied else Linear(d, config.vocab_size)
        self.rope = RotaryEmbedding(config.width_of_heads, config.max_seq_len, config.rope_base)
        self.register_buffer("dopamine_G", torch.ones(3))
        self.init_weights()

    def _filler(self) -> nn.Module | None:
        """A plain part with as many parameters as the regions in `config.filled` would have."""
        wanted = count_filled(self.config)
        if wanted < 0:  # a wide feed-forward part stands where few narrow experts were
            filled = ", ".join(self.config.filled)
            raise InputError(f"model.filled: {filled} would have {-wanted} parameters fewer; lower model.d_mlp")
        hidden = round(wanted / (2 * self.config.d_model))
        return feed_forward(self.config.d_model, hidden, "gelu") if hidden else None

    def init_weights(self) -> None:
        """As the plain transformer's, with maps to the residual stream smaller by √(2 · steps). Plans, gates and the
        packet begin at zero, so that a new model is its twin without them."""
        init_maps(self, writes=(".o", "mlp.out", "plain.out", "filler.out"))
        for experts in [module for module in self.modules() if isinstance(module, Experts)]:
            for out_MD in experts.maps["out"].parameters():
                nn.init.normal_(out_MD, std=(self.config.expert_width * 2 * len(self.schedule)) ** -0.5)
        deciding: Any = [self.router, *self.paths.values()]
        for router in deciding:
            router.init_weights()
        silent = [self.packet.out] if self.packet is not None else []
        silent += [self.prefrontal.plan, self.prefrontal.gates] if self.prefrontal is not None else []
        for module in silent:
            nn.init.zeros_(module.weight)

    def neutral_twin(self) -> Homunculi:
        """The same weights without a packet."""
        twin = type(self)(replace(self.config, signals=()))
        twin.load_state_dict(self.state_dict(), strict=False)
        return twin.to(self.embed.weight.device, self.embed.weight.dtype)

    def trunk(
        self,
        ids_BT: Tensor,
        taps: TapPoint = NO_TAPS,
        cache: Cache | None = None,
        documents_BT: Tensor | None = None,
    ) -> Hidden:
        run = at_once if cache is None else cache.pieces
        call, mind = run("first", self._awake, ids_BT, taps, cache, documents_BT)
        choices: list[Choice] = []
        passed: list[Passed] = []
        for r in range(self.config.n_passes):
            chosen = run("choose", self._choose, mind, r, choices[-1] if choices else None, call, taps)
            size = None if chosen.crowd is None else measure(chosen.crowd, call.recorded)
            mind, left = run(size, self._think, mind, chosen, size, r, call, taps)
            choices.append(chosen.choice)
            passed.append(left)
        here = taps.at(len(self.schedule) - 1)
        x_BTD = run("last", self.last, mind.x_BTD, call.rotation, here, call.mask_BTS, call.kv(-1))
        if cache is not None:
            return Hidden(x_BTD)
        foreseen = foresee(self, ids_BT, passed[0], x_BTD)
        terms = loss_terms(self, choices, passed, foreseen)
        return Hidden(x_BTD, terms, statistics=count(self, choices, passed, foreseen))

    def _call(self, ids_BT: Tensor, cache: Cache | None, documents_BT: Tensor | None) -> Call:
        n_tokens, device = ids_BT.shape[1], ids_BT.device
        if cache is None:
            if n_tokens > self.config.max_seq_len:
                raise InputError(f"{n_tokens} tokens are more than model.max_seq_len={self.config.max_seq_len}")
            span = Span(torch.arange(n_tokens, device=device)[None])
            kept = tuple(Kept() for _ in self.temporal) if self._shares_kv else ()
            same_BTS = None if documents_BT is None else (documents_BT[..., None] == documents_BT[:, None]).tril()
            return Call(self.rope.at(slice(0, n_tokens), self._dtype), same_BTS, None, span, kept, documents_BT)
        positions_BT = cache.positions(n_tokens)
        mask_BTS = torch.arange(cache.capacity, device=device) <= positions_BT[..., None]
        counts = tuple(cache.at(first).routed.count_B.clone() for first in self.first_steps)
        span = Span(positions_BT, cache.valid(n_tokens), counts)
        layers = range(1, 1 + self.config.n_shared) if self._shares_kv else ()
        kept = tuple(cache.at(i).routed.kv for i in layers)
        return Call(self.rope.at(positions_BT, self._dtype), mask_BTS, cache, span, kept)

    @property
    def _shares_kv(self) -> bool:
        return self.config.kv == "shared"

    @property
    def _dtype(self) -> torch.dtype:
        return self.compute_dtype or self.embed.weight.dtype

    def _awake(
        self, ids_BT: Tensor, taps: TapPoint, cache: Cache | None, documents_BT: Tensor | None
    ) -> tuple[Call, Mind]:
        """The state before the first pass."""
        call = self._call(ids_BT, cache, documents_BT)
        x_BTD = self.embed(ids_BT)
        x_BTD = taps("embed", x_BTD.to(self.compute_dtype or x_BTD.dtype))
        valid_BT = call.span.valid_BT
        took_BT = torch.ones_like(ids_BT, dtype=torch.bool) if valid_BT is None else valid_BT
        salience_BT1 = None if self.amygdala is None else self.amygdala(x_BTD, taps)[0]
        plan_BTP = None if self.prefrontal is None else x_BTD.new_zeros(*ids_BT.shape, self.config.plan_width)
        x_BTD = self.first(x_BTD, call.rotation, taps.at(0), call.mask_BTS, call.kv(0))
        return call, Mind(x_BTD, took_BT, salience_BT1, plan_BTP)

    def _choose(self, mind: Mind, r: int, last: Choice | None, call: Call, taps: TapPoint) -> Chosen:
        """What the packet says before a pass, and who takes it; in a cache they are counted."""
        levels = self._levels(mind, r, call, taps)
        choice = self._route(mind, levels, r, last, call, taps)
        if call.cache is None:
            return Chosen(choice, levels, None)
        count_B, count_BT = self._slot(call, r).routed.count_B, choice.count_BT
        before_B = count_B.clone()
        if count_BT is None:
            count_BT = before_B[:, None] + mind.took_BT.long().cumsum(1)
        count_B.copy_(count_BT[:, -1])
        crowd = look(count_BT, before_B)
        return Chosen(
            choice, levels, crowd._replace(sizes=None) if choice.count_BT is None and call.recorded else crowd
        )

    def _levels(self, mind: Mind, r: int, call: Call, taps: TapPoint) -> dict[str, Tensor]:
        """The packet's signals of a pass, by name, each (B, T, 1)."""
        if self.packet is None:
            return {}
        here, slot = taps.at(self.first_steps[r]), call.slot(self.first_steps[r])
        levels_BTS = self.packet(mind.x_BTD, mind.salience_BT1, mind.took_BT, r, slot, call.documents_BT)
        effective = {EFFECTS[effect] for effect in self.packet.sensitivity if effect != "patience" or self._routes(r)}
        return {
            name: here(f"packet.{name}", levels_BTS[..., i : i + 1])
            for i, name in enumerate(self.config.signals)
            if name in effective
        }

    def _routes(self, r: int) -> bool:
        """Whether anything is decided before pass `r`."""
        return r in self.router.routed if self.config.router != "token_choice" else r == 0

    def _route(
        self, mind: Mind, levels: dict[str, Tensor], r: int, last: Choice | None, call: Call, taps: TapPoint
    ) -> Choice:
        """Who takes the pass: salience, a wish to halt and the packet's patience move the router's score."""
        score = self.router.score(r, mind.x_BTD)
        if score is not None:
            urge_BT1 = torch.zeros_like(mind.x_BTD[..., :1])
            if mind.salience_BT1 is not None and self.alarm_R is not None:
                alarm = self.alarm_R[self.router.routed.index(r) if r else 0].to(urge_BT1.dtype)  # r = 0 plans all
                urge_BT1 = urge_BT1 + alarm * (2 * mind.salience_BT1 - 1)
            if mind.halt_BT1 is not None:
                urge_BT1 = urge_BT1 - mind.halt_BT1
            patience = None if self.packet is None else self.packet.influence("patience", levels)
            if patience is not None:
                urge_BT1 = urge_BT1 + (patience - 1)
            # Of a choice of depths, urges speak for the deeper ones.
            if isinstance(self.router, TokenChoiceRouter):
                score = score + urge_BT1 * self.router.depth_E.to(score.dtype)
            else:
                score = score + urge_BT1[..., 0]
        return self.router.choose(r, mind.x_BTD, score, last, call.span, taps)

    def _place(self, chosen: Chosen, size: Size | None, r: int, call: Call, mind: Mind) -> Place | None:
        """Where those who take the pass stand; None: while decoding, nobody takes it."""
        B, T = mind.x_BTD.shape[:2]
        device, count_BT = mind.x_BTD.device, chosen.choice.count_BT
        if chosen.crowd is not None and size is not None:
            block = gather_now(chosen.crowd, size)
            if block is None:
                return None
        elif count_BT is None:
            return Place(None, None, call.span.positions_BT, call.rotation, T, r, device, call.documents_BT)
        else:
            block = gather(count_BT, self.router.places(r, T))
        positions_BC = block.take_numbers(call.span.positions_BT.expand(B, T))
        rotation = self.rope.at(positions_BC, self._dtype)
        taken_BC, n_places = block.selection.taken_BC, positions_BC.shape[1]
        return Place(block, taken_BC, positions_BC, rotation, n_places, r, device, call.documents_BT)

    def _slot(self, call: Call, r: int) -> Any:
        return call.slot(self.first_steps[r])

    def _think(
        self, mind: Mind, chosen: Chosen, size: Size | None, r: int, call: Call, taps: TapPoint
    ) -> tuple[Mind, Passed]:
        """One pass over those who take part."""
        mind, choice, levels, context = replace(mind), chosen.choice, chosen.levels, None
        if self.prefrontal is not None and mind.plan_BTP is not None:
            slot, span = self._slot(call, r), call.span
            context = self.prefrontal.recall(mind.plan_BTP, slot, span.valid_BT, call.documents_BT)
        place = self._place(chosen, size, r, call, mind)
        mind.took_BT = mind.took_BT if choice.taking_BT is None else choice.taking_BT
        if place is None:
            return mind, Passed(mind.x_BTD, None, [], {}, {})
        felt = feel(self.packet, mind, levels, place)
        start_BCD = y_BCD = place.pick(mind.x_BTD)
        forecast, wanted = None, []
        for k in range(self.config.n_shared):
            i = self.first_steps[r] + k
            here = self._taps(taps.at(i), place, mind, call, own_keys=r == 0 or not self._shares_kv)
            y_BCD = here("resid_pre", y_BCD)
            if k == 0:
                felt = self._send("memory", y_BCD, mind, place, felt, call, here)
            bound_BCD = self.temporal[k](y_BCD, place, felt, here, call.slot(i), call.shared_kv(k, r))
            y_BCD = y_BCD + scaled(bound_BCD, felt.gains["temporal"])
            if k == 0:
                y_BCD, felt, forecast = self._reflect(mind, y_BCD, context, place, felt, r, here)
                felt = self._send("experts", y_BCD, mind, place, felt, call, here)
            y_BCD = here("resid_mid", y_BCD)
            out_BCD, wants = self.neocortex[k](y_BCD, place, felt, here)
            y_BCD = here("resid_post", y_BCD + scaled(out_BCD, felt.gains["neocortex"]))
            wanted += [] if wants is None else [wants]
        if self.training and self.config.token_plasticity and "dopamine" in levels:
            y_BCD = paced(y_BCD, start_BCD, place.pick(levels["dopamine"]), place.taken_BC)
        if choice.gate_BT is None and place.block is None:
            mind.x_BTD = y_BCD
        else:
            change_BCD = y_BCD - start_BCD
            if choice.gate_BT is not None:
                change_BCD = place.pick(choice.gate_BT[..., None]) * change_BCD
            mind.x_BTD = place.add(mind.x_BTD, change_BCD)
        gains = {f"gain_{name}": gain for name, gain in felt.gains.items() if gain is not None}
        return mind, Passed(mind.x_BTD, forecast, wanted, levels | gains, felt.paths)

    def _send(self, name: str, y_BCD: Tensor, mind: Mind, place: Place, felt: Felt, call: Call, taps: TapPoint) -> Felt:
        """With the choice of who goes through a region, where it can be gone past."""
        if name not in self.config.paths:
            return felt
        plan_BCP, slot = place.picked(mind.plan_BTP), self._slot(call, place.r)
        path = self.paths[name](y_BCD, felt.salience_BC1, plan_BCP, place, slot, taps)
        return replace(felt, paths={**felt.paths, name: path})

    def _taps(self, taps: TapPoint, place: Place, mind: Mind, call: Call, own_keys: bool) -> TapPoint:
        """Taps that show gathered tensors at full length; `own_keys`: the pass attends to its own."""
        if place.block is None:
            return taps
        n_rows, n_tokens = mind.took_BT.shape
        return GatheredTaps(taps, place.block, (n_rows, n_tokens), own_keys and call.cache is None)

    def _reflect(
        self, mind: Mind, y_BCD: Tensor, context_BTP: Tensor | None, place: Place, felt: Felt, r: int, here: TapPoint
    ) -> tuple[Tensor, Felt, Tensor | None]:
        """Between binding and answering: how much it matters, what to plan, what to inhibit. Changes `mind`."""
        forecast = None
        if self.amygdala is not None and mind.salience_BT1 is not None:
            salience_BC1, forecast = self.amygdala(y_BCD, here)
            felt = replace(felt, salience_BC1=salience_BC1)
            mind.salience_BT1 = place.put(mind.salience_BT1, salience_BC1, mind.took_BT)
        if self.prefrontal is not None and mind.plan_BTP is not None and context_BTP is not None:
            plans = place.pick(mind.plan_BTP), place.pick(context_BTP)
            plan_BCP, (experts_BCE, heads_BCH, halt_BC1) = self.prefrontal(y_BCD, felt.salience_BC1, plans, r, here)
            mind.plan_BTP = place.put(mind.plan_BTP, plan_BCP, mind.took_BT)
            if self._routes(r + 1):
                halt_BC1 = here("prefrontal.halt", halt_BC1)
                mind.halt_BT1 = place.put(_or_full(mind.halt_BT1, mind.x_BTD, 1, 0.0), halt_BC1, mind.took_BT)
            if heads_BCH.shape[-1] and r + 1 < self.config.n_passes:
                heads_BCH = here("prefrontal.open_heads", heads_BCH)
                heads_BTH = _or_full(mind.open_heads_BTH, mind.x_BTD, heads_BCH.shape[-1], 1.0)
                mind.open_heads_BTH = place.put(heads_BTH, heads_BCH, mind.took_BT)
            if experts_BCE.shape[-1]:
                felt = replace(felt, open_experts_BCE=here("prefrontal.open_experts", experts_BCE))
            plan_BCD = here("prefrontal.plan", self.prefrontal.plan(plan_BCP))
            y_BCD = y_BCD + scaled(plan_BCD, felt.gains["prefrontal"])
        if self.filler is not None and self.filler_norm is not None:
            y_BCD = y_BCD + self.filler(self.filler_norm(y_BCD), NO_TAPS)
        return y_BCD, felt, forecast

    def readout(self, x_BTD: Tensor, taps: TapPoint = NO_TAPS) -> Tensor:
        return read_out(self, x_BTD, taps)

    def before_update(self, step: int, steps: int) -> None:
        self.router.before_update(step, steps)

    def after_update(self, statistics: dict[str, Tensor]) -> None:
        follow(self, statistics)

    def plasticity(self) -> dict[str, Tensor]:
        """The running mean of dopamine's gain of each region that it modulates (`homunculi.train.plasticity`)."""
        if "dopamine" not in self.config.signals:
            return {}
        present = [name for name in GAINED if name != "prefrontal" or self.prefrontal is not None]
        return {name: self.dopamine_G[GAINED.index(name)] for name in present}

    def new_cache(self, batch_size: int, capacity: int) -> Cache:
        config, device = self.config, self.embed.weight.device
        if capacity > config.max_seq_len:
            raise InputError(f"a cache of {capacity} tokens is more than model.max_seq_len={config.max_seq_len}")
        shape = (batch_size, config.n_heads, capacity, config.width_of_heads)
        first, last = (KVSlot.empty(shape, self._dtype, device) for _ in range(2))
        widths = [self.router.quotas[r].of_first(capacity) for r in range(config.n_passes)]
        if self._shares_kv:
            widths[1:] = [0] * (config.n_passes - 1)
        inner = [
            Slot.empty(config, batch_size, widths[r], self._dtype, device, speaks=k == 0)
            for r in range(config.n_passes)
            for k in range(config.n_shared)
        ]
        memories = tuple(slot.memory_BHKK for slot in inner)
        return Cache([first, *inner, last], batch_size, capacity, device, memories)

    def budget(self, context: int | None = None) -> Budget:
        return budget_of(self, context)


def _or_full(x: Tensor | None, like_BTD: Tensor, width: int, value: float) -> Tensor:
    return torch.full_like(like_BTD[..., :1], value).expand(*like_BTD.shape[:2], width) if x is None else x
