"""Models whose state can be read as words: as wide as the vocabulary, with no token table and no read-out map.

Such a state starts as the token itself and is read after every step in the same way: normalised, scaled by one learned
number, softly limited, then a softmax. After the vocabulary-space models of github.com/urmzd/exp-agi-models.

Legend: B batch, T positions, V vocabulary, the width of the state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.budget import Budget, count_parameters
from ..core.cache import Cache, tensors_of
from ..core.model import LanguageModel
from ..core.output import Hidden
from ..core.schedule import in_order
from ..core.taps import NO_TAPS, TapPoint
from ..errors import InputError
from ..settings import check_range
from .mlp import squared_relu

EPS = torch.finfo(torch.float32).eps
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "swish": F.silu,
    "relu2": squared_relu,
    "relu": F.relu,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadableConfig:
    """What all readable models are told. A subclass checks its own fields and calls `check` of this one.

    Attributes:
        vocab_size: 0 stands for the tokenizer's size when a run is planned.
        n_steps: steps between the token and the read-out.
        max_seq_len: the longest row in training.
        softcap: no logit goes beyond it.
        first_scale: of normalised states, to make them logits, before training; it is learned. The published models
            start at 1, at which the current word has nearly all the probability.
        width_field: the setting that the state is as wide as; where nothing is said, as in other rooms, `d_model`.
    """

    width_field: ClassVar[str] = "vocab_size"

    vocab_size: int = 0
    n_steps: int = 8
    max_seq_len: int = 512
    softcap: float = 30.0
    first_scale: float = 0.1

    def check(self) -> None:
        """Refuse values that no readable model can have.

        Raises:
            InputError: a value is out of range.
        """
        check_range("model.vocab_size", self.vocab_size, low=0)
        check_range("model.n_steps", self.n_steps, low=1)
        check_range("model.max_seq_len", self.max_seq_len, low=1)
        check_range("model.softcap", self.softcap, above=0)
        check_range("model.first_scale", self.first_scale, above=0)


@dataclass(frozen=True, slots=True)
class Reading:
    """What a mixer has to know of the tokens of a call, beside their states.

    Attributes:
        slot: what this step's mixer remembers of earlier calls, changed in place; None: the call is all there is.
        documents_BT: tokens of different documents do not see each other; None: all are of one.
        valid_BT: False for padding, which is at the end of a row and must not be remembered; None: nothing is.
    """

    slot: Any = None
    documents_BT: Tensor | None = None
    valid_BT: Tensor | None = None


class ReadableModel(LanguageModel):
    """A readable model but for its steps, which a subclass brings, with what each remembers while decoding.

    Where steps are more than one after the other it has a trunk of its own, and where a place in the text matters to
    what they remember, a cache of its own.

    Attributes:
        steps: the stored blocks, called with the state, what they share, taps and a `Reading`.

    Raises:
        InputError: `config.vocab_size` is 0.
    """

    steps: nn.ModuleList

    def __init__(self, config: ReadableConfig) -> None:
        super().__init__()
        if config.vocab_size < 1:
            raise InputError("model.vocab_size: a model needs a vocabulary; give its size")
        self.config = config
        self.schedule = in_order(range(config.n_steps))
        self.logit_scale = nn.Parameter(torch.tensor(config.first_scale))

    def start(self, ids_BT: Tensor, taps: TapPoint) -> Tensor:
        """The token, as a state whose mean square is 1: √V at its place and 0 elsewhere."""
        n_words = self.config.vocab_size
        dtype = self.compute_dtype or self.logit_scale.dtype
        words_V = torch.arange(n_words, device=ids_BT.device)
        size = (1 / n_words + EPS) ** -0.5
        return taps("embed", (ids_BT[..., None] == words_V).to(dtype) * size)

    def trunk(
        self,
        ids_BT: Tensor,
        taps: TapPoint = NO_TAPS,
        cache: Cache | None = None,
        documents_BT: Tensor | None = None,
    ) -> Hidden:
        x_BTV = self.start(ids_BT, taps)
        for i, reading in enumerate(self.readings(ids_BT, cache, documents_BT)):
            x_BTV = self.steps[self.schedule[i].block](x_BTV, *self.shared(), taps.at(i), reading)
        return Hidden(x_BTV)

    def shared(self) -> tuple[Any, ...]:
        """What every step is handed beside the state: maps of which the model has one."""
        return ()

    def readings(self, ids_BT: Tensor, cache: Cache | None, documents_BT: Tensor | None) -> Iterator[Reading]:
        """One for each step of the schedule."""
        valid_BT = None if cache is None else cache.valid(ids_BT.shape[1])
        for step in self.schedule:
            yield Reading(None if cache is None else cache.at(step.slot), documents_BT, valid_BT)

    def readout(self, x_BTD: Tensor, taps: TapPoint = NO_TAPS) -> Tensor:
        x_BTV = taps("readout.norm", rms(x_BTD)).to(torch.promote_types(x_BTD.dtype, torch.float32))
        softcap = self.config.softcap
        return taps("readout.logits", softcap * torch.tanh(x_BTV * (self.logit_scale / softcap)))

    def new_slot(self, batch_size: int) -> Any:
        """What a step remembers of nothing read, if that is running sums alone: no places, so no capacity either."""
        raise InputError(f"cache: {type(self).__name__} says nothing of what its steps remember; give it a new_slot")

    def new_cache(self, batch_size: int, capacity: int) -> Cache:
        """A cache that a text may outgrow, one slot a step."""
        slots = [self.new_slot(batch_size) for _ in self.schedule]
        running = tuple(tensor for slot in slots for tensor in tensors_of(slot))
        return Cache(slots, batch_size, capacity, self.logit_scale.device, running)

    def counted(self, executed: int, mixing: int, cache_bytes_per_token: int = 0, constant: int = 0) -> Budget:
        """A budget without token tables.

        Args:
            executed: parameters that multiply activations for one token.
            mixing: further FLOPs a token.
            cache_bytes_per_token: as in `Budget`.
            constant: FLOPs a token of products with constants: of their two backward products training needs one.
        """
        return Budget(
            parameters=count_parameters(self),
            embedding_parameters=0,
            executed_parameters=executed,
            flops_per_token=2 * executed + mixing + constant,
            cache_bytes_per_token=cache_bytes_per_token,
            forward_only_flops_per_token=constant // 2,
        )


def rms(x: Tensor) -> Tensor:
    """x / √(mean(x²) + ε) over the last axis."""
    return F.rms_norm(x, (x.shape[-1],), eps=EPS)


def number(value: float) -> nn.Parameter:
    """A learned scalar."""
    return nn.Parameter(torch.tensor(float(value)))
