"""Read a model once, and hand what passed to several instruments.

Legend: B rows, T positions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from homunculi.core.catalogue import catalogue
from homunculi.core.model import LanguageModel
from homunculi.core.taps import Recording
from homunculi.instruments.observation import Observation
from homunculi.instruments.registry import Instrument, get, names
from homunculi.runs.measures import Measurement, Stored


def suitable(model: LanguageModel, chosen: Iterable[str] = ()) -> list[Instrument]:
    """Instruments of these names (all, where none is named) that have something to measure in `model`.

    Raises:
        InputError: no such instrument.
    """
    found = [get(name) for name in (chosen or names())]
    tap_names = [tap.name for tap in catalogue(model)]
    return [one for one in found if one.suits(tap_names)]


def observe(
    model: LanguageModel, ids_BT: Tensor, taps: Iterable[str], documents_BT: Tensor | None = None, **known: Any
) -> Observation:
    """One forward pass over `ids_BT` with the taps of these patterns kept. The model's mode is left as it was.

    Args:
        documents_BT: document of each token, where the model was trained not to look out of its document.
        known: further fields of the `Observation`.
    """
    recording = Recording(*dict.fromkeys(taps))
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            bounds = {} if documents_BT is None else {"documents_BT": documents_BT}
            output = model(ids_BT, recording, **bounds)
    finally:
        model.train(was_training)
    return Observation(model, ids_BT, recording.seen, output.logits, output.statistics, **known)


def measure(instruments: Iterable[Instrument], seen: Observation, tokens: int = 0) -> dict[str, Stored]:
    """What each of these instruments finds in an observation, ready to be kept; those that find nothing are absent."""
    found = {}
    for one in instruments:
        mine = replace(seen, taps=seen.matching(*one.taps))
        result = one.measure(mine)
        if result is not None:
            found[one.name] = store(one, result, seen.step, tokens)
    return found


def store(one: Instrument, result: Measurement, step: int, tokens: int) -> Stored:
    """A measurement with whose it is."""
    return Stored(one.name, one.view, one.title, one.question, step, tokens, result)


def look(model: LanguageModel, ids_BT: Tensor, chosen: Iterable[str] = (), **known: Any) -> Mapping[str, Measurement]:
    """Measure a model from Python: name of an instrument → what it found.

    Args:
        ids_BT: what the model reads, on its device.
        chosen: names of instruments that read a forward pass; none: all that suit the model.
        known: as in `observe`; with `documents_BT` every state is that of a model that looks into its document alone.

    Raises:
        InputError: no such instrument.
    """
    instruments = [one for one in suitable(model, chosen) if one.reads == "forward"]
    seen = observe(model, ids_BT, [pattern for one in instruments for pattern in one.taps], **known)
    return {name: stored.measurement for name, stored in measure(instruments, seen).items()}
