"""The brain scan: what a model did with one text, signal by signal, layer or pass by layer or pass, token by token.

    model, tokenizer, name, step = open_run_for_scan(run)
    found = scan(model, tokenizer, "Once upon a time", run=name, step=step)

A text begins after the end-of-text token, as where a model writes; that token is the first of the scan, ⟨start⟩. The
text is read once, in evaluation mode, on the model's device.

Legend: B batch (one row), T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from homunculi.core.model import LanguageModel
from homunculi.core.taps import TapInfo
from homunculi.errors import InputError
from homunculi.experiments.changing import changed
from homunculi.experiments.panels import attention_of, entropy_of, joined, panels_of, wanted, whole
from homunculi.experiments.word_tracing import lens_of
from homunculi.instruments.hooks import taps_of
from homunculi.instruments.observing import measure, observe, suitable
from homunculi.instruments.registry import Instrument
from homunculi.runs.directory import open_run
from homunculi.runs.measures import Stored
from homunculi.runs.scans import Scan, Token, numbers
from homunculi.text.labels import labels
from homunculi.text.tokenizers import Tokenizer, byte_lengths, load_tokenizer
from homunculi.train.checkpoint import checkpoints
from homunculi.train.loading import load

START = "⟨start⟩"


def open_run_for_scan(run: Path | str, step: int | None = None) -> tuple[LanguageModel, Tokenizer, str, int]:
    """The model of a run, its tokenizer, the run's name, and the step of the checkpoint.

    Raises:
        InputError: as `homunculi.load`, or the run has no tokenizer.
    """
    opened = open_run(run)
    present = [step] if step is not None else [*reversed(checkpoints(opened.path / "checkpoints")), None]
    for at in present:
        try:
            model = load(run, at)
        except InputError:
            if at is None or step is not None:
                raise
            continue
        return model, load_tokenizer(opened.path), str(opened.info().get("name") or opened.path.name), at or 0
    raise InputError(f"{run}: no checkpoint")


def ids_of(model: LanguageModel, tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text after the start, as a scan reads it.

    Raises:
        InputError: it is empty, or longer than the model reads.
    """
    found = tokenizer.encode(text)
    if not found:
        raise InputError("text: is empty; give at least one word")
    longest = model.config.max_seq_len
    if len(found) + 1 > longest:
        raise InputError(f"text: {len(found)} tokens and the start are more than the {longest} that this model reads")
    return [tokenizer.eot_id, *found]


def scan(
    model: LanguageModel,
    tokenizer: Tokenizer,
    text: str,
    *,
    changes: Sequence[str] = (),
    patch_text: str | None = None,
    instruments: Sequence[str] = (),
    known: Mapping[str, Any] | None = None,
) -> Scan:
    """Scan a text.

    Args:
        changes: what is changed in the model meanwhile (`homunculi.experiments.changing`).
        patch_text: the other text that ``PATTERN=patched`` takes from; as many tokens as `text`.
        instruments: names of instruments whose measurements are added.
        known: `run` and `step`, which the scan carries.

    Raises:
        InputError: the text is empty or too long, or a change or an instrument is none. One line.
    """
    ids_BT = torch.tensor([ids_of(model, tokenizer, text)], device=next(model.parameters()).device)
    taps = taps_of(model)
    chosen = _chosen(model, instruments)
    patterns = [*wanted(taps, model.schedule), *(pattern for one in chosen for pattern in one.taps)]
    with changed(model, changes, _source(model, tokenizer, patch_text, changes)):
        seen = observe(
            model,
            ids_BT,
            patterns,
            step=int((known or {}).get("step", 0)),
            pieces=tuple(labels(tokenizer, range(tokenizer.vocab_size))) if chosen else (),
            byte_lengths=tuple(map(int, byte_lengths(tokenizer))) if chosen else (),
            encode=tokenizer.encode,
        )
        measured = measure(chosen, seen)
    ids = ids_BT[0].tolist()
    words = labels(tokenizer, ids)
    shown = whole(seen.taps, len(ids))
    attention = attention_of(shown, model.schedule)
    with torch.no_grad():
        lens, moved = lens_of(replace(seen, taps=shown), tokenizer)
    entropy = entropy_of(attention)
    attention, notes = joined(attention)
    if bool(seen.logits_BTV.isnan().any()):
        notes += ("What the model said is no number at some tokens; nothing is shown for them.",)
    surprisals = [None, *(nats if math.isfinite(nats) else None for nats in seen.surprisals[0].tolist())]
    found = Scan(
        run=str((known or {}).get("run", "")),
        step=int((known or {}).get("step", 0)),
        text=text,
        tokens=tuple(Token(i, w, s) for i, w, s in zip(ids, [START, *words[1:]], surprisals, strict=True)),
        panels=(*panels_of(model, taps, shown), *(one for one in (moved, entropy) if one is not None)),
        attention=tuple(attention),
        lens=tuple(lens),
        changes=tuple(changes),
        notes=notes + _notes(taps, len(shown) < len(seen.taps), [name for name in instruments if name not in measured]),
    )
    return replace(found, measures=tuple(_measured(one) for one in measured.values()))


def _chosen(model: LanguageModel, names: Sequence[str]) -> list[Instrument]:
    """Instruments of these names that suit the model."""
    found = suitable(model, names) if names else []
    for one in found:
        if one.reads != "forward":
            raise InputError(
                f"{one.name}: reads an update of the weights, which a scan has not; it measures in training"
            )
    return found


def tracks_of(
    model: LanguageModel, tokenizer: Tokenizer, text: str, changes: Sequence[str] = ()
) -> tuple[list[str], np.ndarray]:
    """Every signal of a text as one line: names, and values (S, T) with NaN where there are none. Surprisal is first.

    Raises:
        InputError: as `scan`.
    """
    ids_BT = torch.tensor([ids_of(model, tokenizer, text)], device=next(model.parameters()).device)
    taps = taps_of(model)
    with changed(model, changes):
        seen = observe(model, ids_BT, [name for name in wanted(taps, model.schedule) if "attn." not in name])
    panels = panels_of(model, taps, whole(seen.taps, ids_BT.shape[1]))
    names = ["surprisal", *(f"{panel.title}, {row}" for panel in panels for row in panel.rows)]
    surprisal_T = np.concatenate([[np.nan], seen.surprisals[0].double().cpu().numpy()])
    return names, np.concatenate([surprisal_T[None], *(panel.values for panel in panels)])


def _source(
    model: LanguageModel, tokenizer: Tokenizer, patch_text: str | None, changes: Sequence[str]
) -> Mapping[str, Tensor] | None:
    """What the other text passed, of the taps that are patched."""
    patterns = [text.removesuffix("=patched") for text in changes if text.endswith("=patched")]
    if patch_text is None:
        return None
    if not patterns:
        raise InputError("patch_text: no change takes from it; add one such as PATTERN=patched")
    ids_BT = torch.tensor([ids_of(model, tokenizer, patch_text)], device=next(model.parameters()).device)
    return observe(model, ids_BT, patterns).taps


def _notes(taps: Sequence[TapInfo], partial: bool, silent: Sequence[str]) -> tuple[str, ...]:
    notes = []
    if partial:
        notes.append("Steps that show only the tokens which take part, without their places, are left out.")
    if any(tap.name.endswith("router.taking") for tap in taps):
        notes.append(
            "Blank: the token does not take that pass. The lens shows it as the last step that took it left it."
        )
    notes += [f"{name}: nothing to measure in this model." for name in silent]
    return tuple(notes)


def _measured(stored: Stored) -> dict[str, Any]:
    """A measurement as a scan's JSON has it."""
    found = stored.measurement
    return {
        "instrument": stored.instrument,
        "view": stored.view,
        "title": stored.title,
        "question": stored.question,
        "units": dict(found.units),
        "notes": list(found.notes),
        "axes": {name: list(axes) for name, axes in found.axes.items()},
        "labels": {axis: list(names) for axis, names in found.labels.items()},
        "values": {name: numbers(value) for name, value in found.values.items()},
    }
