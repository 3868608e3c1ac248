"""Decoding with a static cache: prompts of different lengths, one token a step. Legend: B batch, T positions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from homunculi.core.cache import Cache
from homunculi.core.held import holding
from homunculi.core.model import LanguageModel
from homunculi.core.pieces import GraphRecorder
from homunculi.errors import InputError


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How the next token is drawn.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_k: only that many likeliest tokens; 0: all.
        top_p: only the likeliest tokens that together reach this probability; 1: all.
        seed: of the draw; the same seed and model give the same text on the same device.
        carry: of an architecture with a running memory, keep it when reading starts afresh: it then reaches back to the
            beginning of the text. What no longer fits is read once more for it.
    """

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    carry: bool = False

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise InputError(f"temperature: {self.temperature} is negative; 0 takes the likeliest token")
        if self.top_k < 0 or not 0 < self.top_p <= 1:
            raise InputError("top_k must be 0 or more, top_p above 0 and at most 1")


@torch.no_grad()
def generate(
    model: LanguageModel, prompts: Sequence[Sequence[int]], n_tokens: int, sampling: Sampling
) -> Iterator[Tensor]:
    """Yield the next token of every row, (B,), `n_tokens` times.

    Prompts may differ in length; an empty one is an error. When a row reaches the model's longest sequence, reading
    starts afresh from the latest half of it, so text of any length can be drawn (`Sampling.carry`: what is kept).
    Weights must not change before the last token is drawn.

    Raises:
        InputError: a prompt is empty.
    """
    if not prompts or min(map(len, prompts)) == 0:
        raise InputError("prompt: needs at least one token; begin with the separator token for text from nothing")
    device = next(model.parameters()).device
    generator = torch.Generator(device=device).manual_seed(sampling.seed)
    longest = model.config.max_seq_len
    rows = [list(prompt)[-longest // 2 :] if len(prompt) >= longest else list(prompt) for prompt in prompts]
    fed_B1 = torch.empty(len(rows), 1, dtype=torch.long, device=device)  # a recorded step reads here
    drawn: list[Tensor] = []  # since the rows were read; left on the device, which the host need not wait for
    was_training, cache = model.training, None
    model.eval()
    try:
        with holding(model):
            dropped = [list(prompt)[: len(prompt) - len(row)] for prompt, row in zip(prompts, rows, strict=True)]
            before = _remember(model, dropped, None, device) if sampling.carry else None
            cache, logits = _read(model, rows, device, before)
            for i in range(n_tokens):
                next_B = _draw(logits, sampling, generator)
                yield next_B
                drawn.append(next_B)
                if i + 1 == n_tokens:
                    break
                if max(map(len, rows)) + len(drawn) > longest:
                    added = torch.stack(drawn, 1).tolist()
                    rows = [row + new for row, new in zip(rows, added, strict=True)]
                    dropped, drawn = [row[: -(longest // 2)] for row in rows], []
                    before = _remember(model, dropped, before, device) if sampling.carry else None
                    rows = [row[-(longest // 2) :] for row in rows]
                    cache.pieces.forget()
                    cache, logits = _read(model, rows, device, before)
                else:
                    fed_B1.copy_(next_B[:, None])
                    logits = model(fed_B1, cache=cache).logits[:, -1]
                    cache.advance(1)
    finally:
        if cache is not None:  # recordings and the cache refer to each other
            cache.pieces.forget()
        model.train(was_training)


def _remember(model: LanguageModel, rows: list[list[int]], before: Cache | None, device: torch.device) -> Cache | None:
    """A cache whose running memory has read these tokens after those of `before`, whatever their number; None: the
    model has no such memory, or there was nothing to read."""
    longest = model.config.max_seq_len
    if not model.new_cache(1, 1).running:
        return None
    for start in range(0, max(map(len, rows)), longest):
        before, _ = _read(model, [row[start : start + longest] for row in rows], device, before)
    return before


def _read(
    model: LanguageModel, rows: list[list[int]], device: torch.device, before: Cache | None = None
) -> tuple[Cache, Tensor]:
    """A fresh cache that has read all rows, with the running memory of `before`, and the logits after each row's last
    token."""
    lengths_B = torch.tensor([len(row) for row in rows], device=device)
    longest = int(lengths_B.max())
    ids_BT = torch.zeros(len(rows), longest, dtype=torch.long)
    for i, row in enumerate(rows):
        ids_BT[i, : len(row)] = torch.tensor(row)
    cache = model.new_cache(len(rows), model.config.max_seq_len)
    if before is not None:
        cache.carry_on(before)
    cache.announce(lengths_B)
    logits_BTV = model(ids_BT.to(device), cache=cache).logits
    cache.advance(lengths_B)
    if device.type == "cuda":
        cache.pieces.record(GraphRecorder(device))
    return cache, logits_BTV[torch.arange(len(rows), device=device), lengths_B - 1]


def _draw(logits_BV: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    if sampling.temperature == 0:
        return logits_BV.argmax(-1)
    scores = logits_BV.float() / sampling.temperature
    if sampling.top_k:
        kth = scores.topk(min(sampling.top_k, scores.shape[-1]), dim=-1).values[:, -1:]
        scores = scores.masked_fill(scores < kth, float("-inf"))
    if sampling.top_p < 1:
        ordered, order = scores.softmax(-1).sort(dim=-1, descending=True)
        beyond = ordered.cumsum(-1) - ordered >= sampling.top_p
        scores = scores.masked_fill(beyond.scatter(-1, order, beyond), float("-inf"))
    return torch.multinomial(scores.softmax(-1), 1, generator=generator)[:, 0]


class TextCodec(Protocol):
    """What is needed of a tokenizer."""

    eot_id: int

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


def continue_text(model: LanguageModel, tokenizer: TextCodec, prompt: str, n_tokens: int, sampling: Sampling) -> str:
    """The continuation of `prompt`, at most `n_tokens` long; it ends where the model ends the text."""
    drawn: list[int] = []
    for token in generate(model, [[tokenizer.eot_id, *tokenizer.encode(prompt)]], n_tokens, sampling):
        if int(token) == tokenizer.eot_id:
            break
        drawn.append(int(token))
    return tokenizer.decode(drawn)
