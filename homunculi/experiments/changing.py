"""A model with some of its signals changed, for as long as a `with` block lasts.

    PATTERN=neutral:NUMBER   what passes the taps is that number
    PATTERN=scaled:NUMBER    … is multiplied by it
    PATTERN=shuffled         … is that of an earlier token
    PATTERN=patched          … is what passed another forward (`source`)
    REGION=silenced          what a region hands on is held at the values at which it does nothing
    depth=N                  every token takes N passes, each at full weight

The model itself stays as it is: what it is worth to a signal or a region can be asked without training again.

Legend: B batch, T positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor

from homunculi.core.cache import Cache
from homunculi.core.model import LanguageModel
from homunculi.core.schedule import repeat_of
from homunculi.core.taps import TapInfo, TapPoint
from homunculi.errors import InputError
from homunculi.instruments.hooks import patch_from, tapped, taps_of
from homunculi.models import get, name_of
from homunculi.parts.routers import Router, TokenChoiceRouter
from homunculi.parts.routing import Quota
from homunculi.train.interventions import (
    CACHELESS,
    Change,
    Intervention,
    Interventions,
    read_intervention,
    resolve,
)

_FIELD = "change"
_FORMS = "PATTERN=neutral:NUMBER, =scaled:NUMBER, =shuffled or =patched, REGION=silenced, or depth=N"
MOST_PASSES = 256  # of a loop
_SURE = 4.0  # how far beyond its threshold a score is put that is to decide
# What any architecture's parts hand on: name of a region → pattern of taps.
OUTPUTS = {
    "attention": "steps.*.attn.out",
    "memory": "steps.*.memory.out",
    "plan": "steps.*.prefrontal.plan",
    "experts": "steps.*.experts.out",
    "feed-forward": "steps.*.mlp.out",
}
# Range of a slider for a signal, by the value at which it does nothing.
_RANGES = {1.0: (0.0, 2.0), 0.5: (0.0, 1.0), 0.0: (-4.0, 4.0)}


@dataclass(frozen=True, slots=True)
class Signal:
    """Something to hold or scale: taps of `pattern` do nothing at `neutral`; a slider goes from `low` to `high`."""

    pattern: str
    title: str
    neutral: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Region:
    """A part that can be silenced by holding the taps of `pattern` at `value`."""

    name: str
    pattern: str
    value: float


@dataclass(frozen=True, slots=True)
class _Patched:
    """A `homunculi.train.interventions.Change`: what passed another forward."""

    pattern: str
    source: Mapping[str, Tensor]
    shuffles: bool = False

    def apply(self, name: str, tensor: Tensor, present_BT: Tensor | None) -> Tensor:
        if name not in self.source:
            raise InputError(f"{_FIELD}: {self.pattern}=patched: the other text passed no tap {name}")
        found = patch_from({name: self.source[name]})[name](tensor, name)
        assert found is not None
        return found


@contextmanager
def changed(
    model: LanguageModel, changes: Sequence[str], source: Mapping[str, Tensor] | None = None
) -> Iterator[LanguageModel]:
    """All forwards of `model` inside the block are changed; with a cache too, unless a signal is shuffled or patched.

    A depth needs a cache that was made inside the block, as generation makes it. Blocks inside each other add up; of
    two depths the inner one holds.

    Args:
        changes: as described at the top of this file, done in that order.
        source: what passed another forward, for ``=patched`` (`homunculi.run_with_cache`).

    Raises:
        InputError: not a change, no such tap, region or depth, or nothing to patch from. One line.
    """
    n_passes = [_depth(text) for text in changes if text.startswith("depth=")]
    taps = taps_of(model)
    asked = [one for text in changes if not text.startswith("depth=") for one in _read(text, model, taps, source)]
    with ExitStack() as stack:
        for n in n_passes[-1:]:
            asked += stack.enter_context(_at_depth(model, n))
        if asked:
            resolved = resolve(asked, taps, _FIELD)
            cacheless = any(one.shuffles for one in asked)

            def put(others: TapPoint, cache: Cache | None) -> TapPoint:
                if cache is not None and cacheless:
                    raise InputError(f"{_FIELD}: no cache and so no samples: {CACHELESS}")
                return Interventions(resolved, others)

            stack.enter_context(tapped(model, put))
        yield model


def _depth(text: str) -> int:
    number = text.removeprefix("depth=")
    if not number.isdecimal():
        raise InputError(f"{_FIELD}: {text}: a depth is a number of passes, as in depth=2")
    return int(number)


def _read(
    text: str, model: LanguageModel, taps: Sequence[TapInfo], source: Mapping[str, Tensor] | None
) -> list[Change]:
    name, _, action = text.partition("=")
    if action == "silenced" and name:
        held = _silent(name, model, taps)
        return [Intervention(pattern, "neutral", value) for pattern, value in held.items()]
    if action == "patched" and name:
        if source is None:
            raise InputError(f"{_FIELD}: {text}: there is no other text to patch from; give one")
        return [_Patched(name, source)]
    try:
        return [read_intervention(text, _FIELD)]
    except InputError:
        raise InputError(f"{_FIELD}: {text}: write {_FORMS}") from None


def _silent(name: str, model: LanguageModel, taps: Sequence[TapInfo]) -> dict[str, float]:
    """Patterns of a region's taps with the values at which it does nothing."""
    known = {part: _present(dict(neutral), taps) for part, neutral in _declared(model)}
    known |= {region: _present({pattern: 0.0}, taps) for region, pattern in OUTPUTS.items()}
    known = {region: held for region, held in known.items() if held}
    if name not in known:
        raise InputError(f"{_FIELD}: {name}=silenced: this model has {', '.join(known)}")
    return known[name]


def _declared(model: LanguageModel) -> list[tuple[str, Mapping[str, float]]]:
    """Parts that the model's architecture declares, with the neutral values of their signals."""
    try:
        return [(part.name, part.neutral) for part in get(name_of(model.config)).parts]
    except InputError:  # a model of nobody's architecture
        return []


def _present(held: Mapping[str, float], taps: Sequence[TapInfo]) -> dict[str, float]:
    return {
        pattern: float(value) for pattern, value in held.items() if any(fnmatchcase(tap.name, pattern) for tap in taps)
    }


def signals_of(model: LanguageModel) -> list[Signal]:
    """Signals of `model` that do nothing at a known value, as its architecture declares them."""
    taps, found = taps_of(model), {}
    for _, neutral in _declared(model):
        for pattern, value in _present(neutral, taps).items():
            title = pattern.rsplit(".", 1)[-1]
            if title != "*" and pattern not in OUTPUTS.values():
                low, high = _RANGES.get(value, (value - 1, value + 1))
                found[pattern] = Signal(pattern, title.replace("_", " "), value, low, high)
    return list(found.values())


def regions_of(model: LanguageModel) -> list[Region]:
    """What can be silenced in `model` by one pattern."""
    taps = taps_of(model)
    return [Region(name, pattern, 0.0) for name, pattern in OUTPUTS.items() if _present({pattern: 0.0}, taps)]


def parts_of(model: LanguageModel) -> list[str]:
    """Names of parts of `model` that `NAME=silenced` holds where they do nothing, as its architecture declares them:
    those that are more than one signal of their name."""
    taps, found = taps_of(model), []
    for name, neutral in _declared(model):
        held = _present(neutral, taps)
        if held and name not in OUTPUTS and any(pattern.rsplit(".", 1)[-1] != name for pattern in held):
            found.append(name)
    return found


def depths_of(model: LanguageModel) -> list[int]:
    """Depths that ``depth=N`` can force: of a loop, each number of passes; of a routed one, those below which a router
    decides. Empty where there is nothing to choose."""
    if hasattr(model, "with_passes"):
        return list(range(1, 2 + max(repeat_of(model.schedule, i) for i in range(len(model.schedule)))))
    router = getattr(model, "router", None)
    if not isinstance(router, Router) or not router.routed:
        return []
    always = [r for r in range(len(router.capacities)) if r not in router.routed]
    return list(range(max(always, default=-1) + 1, len(router.capacities) + 1))


@contextmanager
def _at_depth(model: LanguageModel, n_passes: int) -> Iterator[list[Change]]:
    """Make room for a depth, and say what is to be done at the routers' taps."""
    depths = depths_of(model)
    if not depths:
        raise InputError(f"{_FIELD}: depth={n_passes}: this model has no passes to choose from")
    deeper = hasattr(model, "with_passes") and 0 < n_passes <= MOST_PASSES
    if n_passes not in depths and not deeper:
        more = f", and others up to {MOST_PASSES}" if hasattr(model, "with_passes") else ""
        raise InputError(f"{_FIELD}: depth={n_passes}: this model can take {', '.join(map(str, depths))} passes{more}")
    router = getattr(model, "router", None)
    if isinstance(router, Router):
        everybody = tuple(Quota(1.0, 0) for _ in router.quotas)
        with _set(router, {"quotas": everybody}):
            yield _decided(model, router, n_passes)
        return
    view: Any = model.with_passes(n_passes)  # type: ignore[operator]
    differing = {name: value for name, value in vars(view).items() if vars(model).get(name) is not value}
    with _set(model, differing):
        yield []


def _decided(model: LanguageModel, router: Router, n_passes: int) -> list[Change]:
    """Scores far on one side of the thresholds: so who is padding, or stopped before, is still left out."""
    names = {tap.name for tap in taps_of(model)}
    if isinstance(router, TokenChoiceRouter):
        return [Intervention("control.depth", "neutral", n_passes)] if "control.depth" in names else []
    found: list[Change] = []
    thresholds: Any = router.threshold_R
    for r in router.routed:
        score = float(thresholds[r]) + (_SURE if r < n_passes else -_SURE)
        held = {"score": score, "stand_in": score, "gate": 1.0}
        sites = {f"steps.{router.first_steps[r]}.router.{site}": value for site, value in held.items()}
        found += [Intervention(name, "neutral", value) for name, value in sites.items() if name in names]
    return found


@contextmanager
def _set(thing: Any, values: Mapping[str, Any]) -> Iterator[None]:
    """Attributes of a module for the length of a block, put past its own bookkeeping."""
    before = {name: vars(thing)[name] for name in values if name in vars(thing)}
    vars(thing).update(values)
    try:
        yield
    finally:
        for name in values:
            vars(thing).pop(name)
        vars(thing).update(before)
