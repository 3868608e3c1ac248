"""A readable model whose steps read some words and write on others, so that several may be done at once.

x[write_i] += w / √k · W_up act(W_down rms(g) + b), g = x[read_i] and what a decaying memory of such slices adds to it.
Step i reads k words from i·⌊V/N⌋ on, and writes on the k words half a vocabulary further. Steps of which none writes
what another reads or writes are one wave. Published as v12 of the vocabulary-space models.

Legend: B batch, T positions, V vocabulary, N steps, k words of a slice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ...core.budget import Budget
from ...core.cache import Cache
from ...core.output import Hidden
from ...core.taps import NO_TAPS, TapPoint
from ...parts.decay_attention import DecaySlot, decay_flops
from ...parts.readable import ReadableModel
from ...parts.slices import SliceStep, SliceStepConfig, Waves, check_waves, reaches, schedule, waves_of
from ..registry import architecture


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(SliceStepConfig):
    """Shape of the model.

    Attributes:
        waves: greedy: steps that do not depend on each other are done at once; none: one after the other. The function
            is the same.
    """

    waves: Waves = "greedy"

    def __post_init__(self) -> None:
        self.check()
        check_waves(self.waves)


VARIANTS: tuple[dict[str, Any], ...] = (
    {"n_steps": 12, "d_slice": 14, "d_mlp": 512, "first_scale": 0.3},
    {"n_steps": 3, "d_slice": 40, "d_mlp": 200, "activation": "relu", "waves": "none"},
)


@architecture("vocab_slices", Config, variants=VARIANTS)
class Slices(ReadableModel):
    """Readable, in slices. The state before and after a wave is tapped at the last of its steps."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.reaches = reaches(config.vocab_size, config.n_steps, config.slice_size)
        self.schedule = schedule(self.reaches, config.waves)
        self.waves = waves_of(self.schedule)
        self.steps = nn.ModuleList(SliceStep(config, reach) for reach in self.reaches)

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
        return self.counted(c.n_steps * c.step_size, c.n_steps * mixing)
