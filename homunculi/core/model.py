"""The abstract language model. It holds a configuration and names what an architecture provides.

Legend: B batch, T positions, D width, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from .budget import Budget
from .cache import Cache
from .held import Holding
from .output import Hidden, Output
from .pieces import at_once
from .schedule import Schedule
from .taps import NO_TAPS, TapPoint


class LanguageModel(Holding, ABC):
    """A model from token ids to logits.

    Attributes:
        config: the architecture's frozen configuration dataclass.
        schedule: which stored block each step applies.
        compute_dtype: activations flow in this type while weights keep theirs; None: the weights' own type.
        always: hooks that are part of what a model computes (`homunculi.train.interventions`); for most models none.
        cacheless: why it cannot be decoded with a cache; empty: it can.
        n_changes: grows where something changes that a recorded step would not notice.
        in_pieces: the trunk says itself what its pieces are (`homunculi.core.pieces`), as it must where it reads on the
            host; else it is one.
    """

    config: Any
    schedule: Schedule
    compute_dtype: torch.dtype | None = None
    always: TapPoint = NO_TAPS
    cacheless: str = ""
    in_pieces: bool = False
    n_changes: int = 0

    @abstractmethod
    def trunk(
        self,
        ids_BT: Tensor,
        taps: TapPoint = NO_TAPS,
        cache: Cache | None = None,
        documents_BT: Tensor | None = None,
    ) -> Hidden:
        """Everything before the read-out.

        Args:
            ids_BT: token ids.
            taps: where to read or replace tensors.
            cache: tokens already read; the ids are the next ones. The caller advances it.
            documents_BT: document number of each token; tokens of different documents do not see each other.
        """

    @abstractmethod
    def readout(self, x_BTD: Tensor, taps: TapPoint = NO_TAPS) -> Tensor:
        """Logits (B, T, V) of a residual state, of the last step or of any other."""

    def forward(
        self,
        ids_BT: Tensor,
        taps: TapPoint = NO_TAPS,
        cache: Cache | None = None,
        documents_BT: Tensor | None = None,
    ) -> Output:
        """The read-out of the trunk; arguments as `trunk`."""
        if cache is not None:
            return self._go_on(ids_BT, taps, cache, documents_BT)
        hidden = self.trunk(ids_BT, taps, None, documents_BT)
        return Output(self.readout(hidden.x_BTD, taps), hidden.loss_terms, hidden.state, hidden.statistics)

    def _go_on(self, ids_BT: Tensor, taps: TapPoint, cache: Cache, documents_BT: Tensor | None) -> Output:
        """`forward` from a cache on, in pieces."""
        n_tokens = ids_BT.shape[1]
        cache.check_room(n_tokens)
        with cache.pieces.step(n_tokens == 1 and taps is NO_TAPS):
            run = at_once if self.in_pieces else cache.pieces
            hidden = run(("trunk", self.n_changes), self.trunk, ids_BT, taps, cache, documents_BT)
            logits_BTV = cache.pieces("readout", self.readout, hidden.x_BTD, taps)
        return Output(logits_BTV, hidden.loss_terms, hidden.state, hidden.statistics)

    @abstractmethod
    def new_cache(self, batch_size: int, capacity: int) -> Cache:
        """An empty cache for `capacity` tokens a row, on the model's device."""

    @abstractmethod
    def budget(self, context: int | None = None) -> Budget:
        """Costs at a context of that many tokens (default: the longest the model takes)."""

    def before_update(self, step: int, steps: int) -> None:
        """Told before update `step` of `steps`, counted from 1: for what follows a schedule. The same on all processes.

        What it sets must be a function of its arguments and of buffers, so that a resumed run goes on exactly.
        """

    def after_update(self, statistics: dict[str, Tensor]) -> None:
        """Adapt buffers after an update: thresholds, biases, running means. A forward never changes them.

        Args:
            statistics: those of the forward passes of the update, averaged over micro-batches and processes. They lie
                on the device; reading them on the host would make it wait.
        """

    def after_evaluation(self, loss: float) -> None:
        """Told the validation loss, in nats a token, after each evaluation. The same on all processes."""
