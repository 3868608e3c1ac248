"""The fixed cases of the benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from homunculi.train.config import Precision


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One thing to measure.

    Attributes:
        model: configuration of `architecture`; its `max_seq_len` is the training context.
        batch: sequences of a step.
        precision: of the activations; weights are float32.
        on_gpu: meant for a GPU; else it is measured on the CPU wherever it is asked for.
        prompt: tokens read before decoding.
        new_tokens: tokens decoded a row; 0 makes it a training case.
    """

    model: Mapping[str, Any]
    batch: int
    precision: Precision
    on_gpu: bool
    prompt: int = 0
    new_tokens: int = 0
    architecture: str = "gpt"

    @property
    def decodes(self) -> bool:
        return self.new_tokens > 0

    @property
    def tokens_per_step(self) -> int:
        """Tokens learned from in a training step, or drawn in a decoding step."""
        return self.batch if self.decodes else self.batch * int(self.model["max_seq_len"])

    def scaled(self, scale: float) -> Case:
        """The same with `scale` times the sequences and new tokens, at least 1 and 2."""
        new_tokens = max(2, round(self.new_tokens * scale)) if self.decodes else 0
        return replace(self, batch=max(1, round(self.batch * scale)), new_tokens=new_tokens)


def _shape(d_model: int, n_blocks: int, n_heads: int, max_seq_len: int, vocab_size: int) -> dict[str, Any]:
    sizes = {"d_model": d_model, "n_blocks": n_blocks, "n_heads": n_heads, "max_seq_len": max_seq_len}
    return sizes | {"vocab_size": vocab_size, "activation": "gelu"}


_SMALL = _shape(192, 6, 6, 256, 1024)
_MIDDLE = _shape(256, 6, 8, 512, 50304)
_LARGE = _shape(768, 12, 12, 1024, 50304)

_RECURSIVE = {"d_model": 512, "n_heads": 8, "n_passes": 3, "max_seq_len": 512, "vocab_size": 4096}
_ALL_PASSES = {"capacities": (1.0, 1.0, 1.0)}

# Models whose state is as wide as the vocabulary, in the shapes that they were published in; `convolution` and
# `shared_attention` in the deeper ones of their code's own defaults.
READABLE: dict[str, dict[str, Any]] = {
    "shared_attention": {"n_steps": 24, "n_channels": 32},
    "convolution": {"n_steps": 48, "n_channels": 64},
    "fourier_memory": {},
    "tied_fourier": {},
    "fft_memory": {},
    "bands": {},
    "soft_ops": {},
    "low_rank": {},
    "dense_memory": {},
    "policy": {},
    "mixed_ops": {},
    "hard_routing": {},
    "slices": {},
    "embedded_slices": {},
    "adaptive": {},
    "sparse_slices": {},
    "columns": {},
    "shared_maps": {},
}


def _words(name: str, **shape: Any) -> Case:
    model = {"vocab_size": 1024, "max_seq_len": 1024} | shape
    return Case(model=model, batch=32, precision="bf16", on_gpu=True, architecture=f"vocab_{name}")


CASES: dict[str, Case] = {
    "train-18m": Case(model=_MIDDLE, batch=64, precision="bf16", on_gpu=True),
    "train-124m": Case(model=_LARGE, batch=32, precision="bf16", on_gpu=True),
    "decode-18m-b1": Case(model=_MIDDLE, batch=1, precision="bf16", on_gpu=True, prompt=64, new_tokens=256),
    "decode-18m-b64": Case(model=_MIDDLE, batch=64, precision="bf16", on_gpu=True, prompt=64, new_tokens=256),
    "train-18m-ncn": Case(model=_MIDDLE, batch=64, precision="bf16", on_gpu=True, architecture="ncn"),
    "train-mor": Case(model=_RECURSIVE | {"n_slots": 11}, batch=64, precision="bf16", on_gpu=True, architecture="mor"),
    "train-mor-all": Case(
        model=_RECURSIVE | {"n_slots": 11} | _ALL_PASSES, batch=64, precision="bf16", on_gpu=True, architecture="mor"
    ),
    "train-homunculi": Case(
        model=_RECURSIVE | {"n_shared": 2}, batch=64, precision="bf16", on_gpu=True, architecture="homunculi"
    ),
    "train-homunculi-all": Case(
        model=_RECURSIVE | {"n_shared": 2} | _ALL_PASSES,
        batch=64,
        precision="bf16",
        on_gpu=True,
        architecture="homunculi",
    ),
    **{f"train-words-{name.replace('_', '-')}": _words(name, **shape) for name, shape in READABLE.items()},
    "train-cpu": Case(model=_SMALL, batch=16, precision="float32", on_gpu=False),
    "decode-cpu": Case(model=_SMALL, batch=1, precision="float32", on_gpu=False, prompt=64, new_tokens=128),
}
