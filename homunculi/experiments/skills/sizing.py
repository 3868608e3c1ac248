"""Small models of equal size: the shape that an architecture takes in a battery.

Equal parameters: beside token tables, within 1 %, as many as a plain transformer of the battery's width and depth with
gated feed-forward parts; see `homunculi.experiments.skills.widening` about models that are as wide as their vocabulary.
Equal state: beside them, what a decoder keeps of one sequence of the task's length (keys, values, recurrent states, in
float32) takes as many bytes as that transformer's keys and values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

import torch

from homunculi.errors import InputError
from homunculi.experiments.costs import Cost, Stages
from homunculi.experiments.matching import FINE, NEAR, TOLERANCE, Search
from homunculi.experiments.skills.widening import WORDS, as_wide_as_words, widened
from homunculi.models import get, name_of
from homunculi.train.config import RunConfig

MATCHES = ("parameters", "state", "none")
HEADS = 4
STATE_TOLERANCE = 0.15  # widths of heads come in steps
_STATE_KNOBS = ("d_head", "n_kv_heads", "window", "d_model", "n_blocks")
_DERIVED = ("n_kv_heads", "d_head", "d_mlp", "d_expert")
_AT_MOST = {"n_experts": 4, "n_active": 1}
_MOST_STEPS = 2  # times its own number of steps, of a model that could be wider instead
_PLACEHOLDER = 64  # of a vocabulary and a context, until the task's are known


@dataclass(frozen=True, slots=True)
class Frame:
    """The transformer whose size all take: its width and number of blocks, and what is made equal."""

    width: int = 64
    blocks: int = 2
    match: str = "parameters"

    def __post_init__(self) -> None:
        if self.match not in MATCHES:
            raise InputError(f"--match: {self.match} is none of {', '.join(MATCHES)}")
        if self.width < 16 or self.width % (2 * HEADS) or self.blocks < 1:
            raise InputError(f"width: {self.width} must be a multiple of {2 * HEADS} from 16 on, blocks at least 1")

    @property
    def parameters(self) -> int:
        """Four maps of attention and three of a gated feed-forward part 8/3 as wide a block, and gains of norms."""
        d_mlp = 8 * math.ceil(self.width / 3)
        per_block = 4 * self.width**2 + 3 * self.width * d_mlp + 2 * self.width
        return self.blocks * per_block + self.width

    def state_bytes(self, length: int) -> int:
        """Of keys and values of a sequence, in float32."""
        return 2 * 4 * self.blocks * self.width * length


def small(config: Any, frame: Frame) -> Any:
    """A configuration at the frame's width and depth; what follows from the width is derived anew.

    A loop keeps its passes and becomes as short as it can be; of experts there are at most four, one for each token.
    """
    derived = [field.name for field in fields(config) if field.name in _DERIVED and field.default == 0]
    wanted = {"d_model": frame.width, "n_blocks": frame.blocks, "n_heads": HEADS} | dict.fromkeys(derived, 0)
    wanted |= {"vocab_size": _PLACEHOLDER, "max_seq_len": _PLACEHOLDER}
    wanted |= {name: min(most, getattr(config, name, most)) for name, most in _AT_MOST.items()}
    present = {field.name for field in fields(config)}
    shape = replace(
        config, **{name: value for name, value in wanted.items() if name in present and _suits(config, name)}
    )
    for n_slots in range(1, getattr(shape, "n_slots", 0)):
        try:
            shorter = replace(shape, n_slots=n_slots)
        except (InputError, ValueError):
            continue
        if getattr(shorter, "n_shared", 0) > 0:
            return shorter
    return shape


def _suits(config: Any, name: str) -> bool:
    """Whether a setting follows the frame: heads of a model without a width of its own are as they are."""
    return name != "n_heads" or hasattr(config, "d_model")


@dataclass(frozen=True, slots=True)
class Side:
    """An architecture in a battery.

    Attributes:
        config: at the frame's width and depth, before it is made equal.
        fixed: settings of it that the user chose, which nothing turns.
        files: that register it, if it is no installed one.
    """

    name: str
    config: Any
    fixed: frozenset[str] = frozenset()
    files: tuple[str, ...] = ()


def fitted(side: Side, frame: Frame, vocabulary: int, lengths: tuple[int, int]) -> Any:
    """The configuration of a side made equal as the frame says, for a task.

    Args:
        lengths: of the task's examples, and the longest that is ever read.

    Raises:
        InputError: no shape comes near enough.
    """
    length, longest = lengths
    if frame.match == "parameters" and as_wide_as_words(side.config) and WORDS not in side.fixed:
        return replace(_equal_widened(side, frame, max(vocabulary, frame.width)), max_seq_len=longest)
    side = replace(side, config=replace(side.config, vocab_size=vocabulary))  # which is the width of some models
    shape = side.config
    if frame.match == "parameters":
        shape = _equal_parameters(side, frame)
    elif frame.match == "state":
        shape = _equal_state(side, frame, length)
    return replace(shape, vocab_size=vocabulary, max_seq_len=longest)


@lru_cache(maxsize=256)
def _equal_widened(side: Side, frame: Frame, width: int) -> Any:
    """Of a model that is as wide as its vocabulary."""
    return widened(side.config, width, lambda shape: _search(side, shape, frame))


@lru_cache(maxsize=256)
def _equal_parameters(side: Side, frame: Frame) -> Any:
    if abs(parameters_of(side.config) / frame.parameters - 1) <= NEAR:
        return side.config
    return replace(side.config, **_search(side, side.config, frame).solve())


@dataclass(frozen=True, slots=True)
class _Search(Search):
    """A search that leaves some knobs alone, and takes no more steps than so many where it is told: a model of many
    narrow ones would learn slowly for its size."""

    fixed: frozenset[str] = frozenset()
    most_steps: float = math.inf

    def _knobs(self) -> list[str]:
        return [knob for knob in Search._knobs(self) if knob not in self.fixed]

    def _turn(self, model: Any, knob: str) -> tuple[Any, Cost] | None:
        found = Search._turn(self, model, knob)
        many = found is not None and math.isfinite(self.most_steps) and found[0].n_steps > self.most_steps
        return None if many else found


def _search(side: Side, shape: Any, frame: Frame) -> Search:
    target, stages = Cost(frame.parameters, 1.0, 1.0), Stages(1, ((1, 1.0),))
    plain = RunConfig(model=shape, steps=1, batch_tokens=1)
    most = _MOST_STEPS * side.config.n_steps if as_wide_as_words(side.config) else math.inf
    return _Search(plain, shape, stages, target, ("parameters",), side.name, side.fixed, most)


@lru_cache(maxsize=1024)
def _equal_state(side: Side, frame: Frame, length: int) -> Any:
    target, name = frame.state_bytes(length), side.name
    shape = _nearest_state(side, target, length)
    ratio = state_bytes(shape, length) / target
    if abs(math.log(ratio)) > math.log1p(STATE_TOLERANCE):
        raise InputError(
            f"--match state: {name} has {ratio:.2f} times the state of the others at {length} tokens, and no "
            f"{', '.join(_STATE_KNOBS)} brings it nearer; use --match parameters, or change its shape"
        )
    wanted = frame.parameters
    for knob in FINE:  # these leave the state as it is
        turns = hasattr(shape, knob) and knob not in side.fixed
        found = _search(side, shape, frame)._turn(shape, knob) if turns else None
        if found is not None and abs(found[1].parameters / wanted - 1) <= TOLERANCE:
            return found[0]
    return shape


def _nearest_state(side: Side, target: int, length: int) -> Any:
    """The configuration itself where it is near enough, else the nearest by one knob after the other, twice."""
    best, least = side.config, abs(math.log(state_bytes(side.config, length) / target))
    for knob in _STATE_KNOBS * 2:
        if knob in side.fixed:
            continue
        if least <= TOLERANCE:
            break
        for shape in _turned(best, knob, length):
            miss = abs(math.log(state_bytes(shape, length) / target))
            if miss < least - 1e-9:
                best, least = shape, miss
            if least <= TOLERANCE:
                break
    return best


def _turned(config: Any, knob: str, length: int) -> list[Any]:
    """Legal shapes with a knob at other values."""
    if not hasattr(config, knob):
        return []
    step, most = {"d_head": (2, 64), "d_model": (8, 128), "window": (8, length)}.get(knob, (1, 8))
    shapes = []
    for value in range(step, most + 1, step):
        try:
            shapes.append(replace(config, **{knob: value}))
        except (InputError, ValueError, ArithmeticError):
            continue
    return shapes


def build_empty(config: Any) -> Any:
    """The model without memory of its own, for counting."""
    with torch.device("meta"):
        return get(name_of(config)).model_type(config)


@lru_cache(maxsize=4096)
def state_bytes(config: Any, length: int) -> int:
    """Bytes that a decoder keeps of one sequence of that length.

    Raises:
        InputError: it cannot be decoded with a cache.
    """
    model = build_empty(replace(config, max_seq_len=max(length, config.max_seq_len)))
    if model.cacheless:
        raise InputError(f"--match state: {name_of(config)} keeps no state ({model.cacheless}); use --match parameters")
    return max(1, int(model.new_cache(1, length).n_bytes))


@lru_cache(maxsize=1024)
def parameters_of(config: Any) -> int:
    """Beside token tables."""
    return int(build_empty(config).budget().non_embedding_parameters)
