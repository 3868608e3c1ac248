"""The control of readable models: it has a token table, so that its state does not start as the word itself.

x = rms(W E[token]), and then all is as in slices: x[write_i] += w / √k · W_up act(W_down rms(g) + b), g = x[read_i] and
what a decaying memory of such slices adds to it. With a table a word may start anywhere; so what follows can put
meanings into places of the state that have nothing to do with the words they are named after. The read-out is the same.
Published as v13 of the vocabulary-space models.

Legend: B batch, T positions, V vocabulary, E width of the table, k words of a slice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from ...core.budget import Budget
from ...core.cache import Cache
from ...core.output import Hidden
from ...core.taps import NO_TAPS, TapPoint
from ...parts.decay_attention import DecaySlot, decay_flops
from ...parts.linear import Linear
from ...parts.readable import ReadableModel, rms
from ...parts.slices import SliceStep, SliceStepConfig, Waves, check_waves, reaches, schedule, waves_of
from ...settings import check_range
from ..registry import architecture


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(SliceStepConfig):
    """Shape of the model.

    Attributes:
        d_embed: width of the token table.
        waves: greedy: steps that do not depend on each other are done at once; none: one after the other. The function
            is the same.
    """

    d_embed: int = 128
    waves: Waves = "greedy"

    def __post_init__(self) -> None:
        self.check()
        check_range("model.d_embed", self.d_embed, low=1)
        check_waves(self.waves)


VARIANTS: tuple[dict[str, Any], ...] = (
    {"n_steps": 7, "d_slice": 14, "d_mlp": 64, "d_embed": 16},
    {"n_steps": 3, "d_slice": 30, "d_mlp": 100, "d_embed": 24, "activation": "relu", "waves": "none"},
)


@architecture("vocab_embedded_slices", Config, variants=VARIANTS)
class EmbeddedSlices(ReadableModel):
    """Slices after a token table. The state before and after a wave is tapped at the last of its steps."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.d_embed)
        self.widen = Linear(config.d_embed, config.vocab_size)
        self.reaches = reaches(config.vocab_size, config.n_steps, config.slice_size)
        self.schedule = schedule(self.reaches, config.waves)
        self.waves = waves_of(self.schedule)
        self.steps = nn.ModuleList(SliceStep(config, reach) for reach in self.reaches)

    def start(self, ids_BT: Tensor, taps: TapPoint) -> Tensor:
        e_BTE = self.embed(ids_BT)
        return taps("embed", rms(self.widen(e_BTE.to(self.compute_dtype or e_BTE.dtype))))

    def trunk(
        self,
        ids_BT: Tensor,
        taps: TapPoint = NO_TAPS,
        cache: Cache | None = None,
        documents_BT: Tensor | None = None,
    ) -> Hidden:
        x_BTV, readings = self.start(ids_BT, taps), [*self.readings(ids_BT, cache, documents_BT)]
        for wave in self.waves:
            before_BTV = x_BTV = taps.at(wave[-1])("resid_pre", x_BTV)
            for i in wave:
                block = self.schedule[i].block
                said_BTK = self.steps[block](before_BTV, taps.at(i), readings[i])
                x_BTV = x_BTV + self.reaches[block].write.spread(said_BTK)
            x_BTV = taps.at(wave[-1])("resid_post", x_BTV)
        return Hidden(x_BTV)

    def new_slot(self, batch_size: int) -> DecaySlot:
        size = self.config.slice_size
        return DecaySlot.empty((batch_size, 1, size, size), self.logit_scale)

    def budget(self, context: int | None = None) -> Budget:
        c = self.config
        mixing = decay_flops(context or c.max_seq_len, c.slice_size, c.slice_size)
        counted = self.counted(c.n_steps * c.step_size + self.widen.weight.numel(), c.n_steps * mixing)
        return replace(counted, embedding_parameters=self.embed.weight.numel())
