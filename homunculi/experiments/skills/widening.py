"""Sizes of models that are as wide as their vocabulary: at the few words of a task they would be a few numbers wide.

Their vocabulary gets words that no row has, up to the width that all others have, and beyond it where nothing else
makes them equal; then their other knobs are turned as those of any model. Where no width and no knob comes within 1 %,
the nearest shape within `FAR` stands, and is said to be another size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from homunculi.errors import InputError
from homunculi.experiments.matching import TOLERANCE, Search

FAR = 0.25  # of the parameters; beyond it a side is refused
WORDS = "vocab_size"
_WIDTHS = 12  # that are tried, each an eighth wider than the one before


def width_field(config: Any) -> str:
    """The setting that a model's state is as wide as: what its configuration says, else `d_model`."""
    return str(getattr(config, "width_field", "d_model"))


def as_wide_as_words(config: Any) -> bool:
    """Whether unused words make a model wider."""
    return width_field(config) == WORDS


def widened(config: Any, width: int, search: Callable[[Any], Search]) -> Any:
    """The configuration with unused words and turned knobs, within 1 % of what the search wants, else the nearest.

    Args:
        width: the least, with room for the words of the task.
        search: of a configuration at one width.

    Raises:
        InputError: nothing comes within `FAR`.
    """
    first = search(replace(config, vocab_size=width))
    try:
        return replace(first.model, **first.solve())
    except InputError as error:
        refusal = error
    nearest = first.model
    counts = first.miss(nearest) != first.miss(replace(config, vocab_size=2 * width))
    for words in _widths(width, _WIDTHS if counts else 1):
        wider = _knob_by_knob(replace(config, vocab_size=words), search)
        nearest = min(nearest, wider, key=first.miss)
        if first.miss(nearest) <= TOLERANCE:
            break
    if first.miss(nearest) > FAR:
        raise refusal
    return nearest


def _widths(least: int, n: int) -> Iterator[int]:
    width = least
    for _ in range(n):
        yield width
        width += max(1, width // 8)


def _knob_by_knob(shape: Any, search: Callable[[Any], Search]) -> Any:
    """The shape after one knob after the other brought it nearer, until none does."""
    while (one := search(shape)).miss(shape) > TOLERANCE:
        nearer = one.one_knob_nearer()
        if nearer == shape:
            break
        shape = nearer
    return shape
