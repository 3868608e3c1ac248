"""The bounded packet that may influence a step: a closed set of signals, each neutral at exactly 1.

Legend: B batch, T positions, S steps.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Modulation:
    """Signals of shape (B, T, S), or (B, T, 1) once taken `at` a step. None is neutral and costs nothing.

    Attributes:
        gain: factor of a step's update of the residual stream.
        precision: factor of the attention scores (inverse temperature).
        gate: factor of the feed-forward part's output.
        router_temperature: factor of the temperature of a router.
        patience: factor of the readiness to take another pass.
        plasticity: factor of the size of an optimiser update.
    """

    gain: Tensor | None = None
    precision: Tensor | None = None
    gate: Tensor | None = None
    router_temperature: Tensor | None = None
    patience: Tensor | None = None
    plasticity: Tensor | None = None

    def at(self, step: int) -> Modulation:
        """The signals of one step, each (B, T, 1)."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: s[..., step : step + 1] for name, s in given.items() if s is not None})


NEUTRAL = Modulation()
