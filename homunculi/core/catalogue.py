"""The catalogue of a model's taps, from one pass that computes no numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import fields
from itertools import count

import torch
from torch import Tensor
from torch.func import functional_call

from .model import LanguageModel
from .schedule import repeat_of
from .taps import Recording, TapInfo

_STEP = re.compile(r"steps\.(\d+)\.")


def catalogue(model: LanguageModel) -> list[TapInfo]:
    """All taps of `model`, in the order in which an evaluating forward passes them.

    The pass runs on the meta device; a model whose path depends on numbers runs on its own device instead. Sizes equal
    to the pass's batch and length are written ``B`` and ``T``; both are chosen to differ from all sizes of the model.
    """
    n_rows, n_tokens = _free_sizes(model)
    recording = Recording("*")
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            _pass(model, n_rows, n_tokens, recording)
    finally:
        model.train(was_training)
    letters = {n_rows: "B", n_tokens: "T"}
    return [_info(model, name, tensor, letters) for name, tensor in recording.seen.items()]


def _pass(model: LanguageModel, n_rows: int, n_tokens: int, recording: Recording) -> None:
    state = {name: t.to("meta") for name, t in (*model.named_parameters(), *model.named_buffers())}
    ids_BT = torch.zeros(n_rows, n_tokens, dtype=torch.long, device="meta")
    try:
        functional_call(model, state, (ids_BT, recording))
    except (RuntimeError, NotImplementedError):  # numbers decide where this model goes
        recording.seen.clear()
        device = next(model.parameters()).device
        model(torch.zeros(n_rows, n_tokens, dtype=torch.long, device=device), recording)


def _free_sizes(model: LanguageModel) -> tuple[int, int]:
    """A batch and a length that are no size of any parameter, buffer or setting, if the longest sequence allows."""
    taken = {n for tensor in (*model.parameters(), *model.buffers()) for n in tensor.shape} | _integers(model.config)
    longest = getattr(model.config, "max_seq_len", None)
    n_tokens = next(n for n in count(3) if n not in taken)
    if longest is not None and n_tokens > longest:
        n_tokens = longest
    return next(n for n in count(2) if n not in taken | {n_tokens}), n_tokens


def _integers(config: object) -> set[int]:
    values: Iterable[object] = (getattr(config, field.name) for field in fields(config))  # type: ignore[arg-type]
    return {value for value in values if isinstance(value, int)}


def _info(model: LanguageModel, name: str, tensor: Tensor, letters: dict[int, str]) -> TapInfo:
    found = _STEP.match(name)
    shape = tuple(letters.get(n, n) for n in tensor.shape)
    if found is None:
        return TapInfo(name, shape, None, None)
    step = int(found[1])
    return TapInfo(name, shape, model.schedule[step].block, repeat_of(model.schedule, step))
