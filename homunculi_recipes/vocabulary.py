"""Models whose state reads as words, and the plain transformer beside them, with a 1,024-word vocabulary.

Shapes are those that the published variants were run with; `shared_maps` is this project's own.
"""

from typing import Any

from homunculi.models import get
from homunculi.models.gpt import Config
from homunculi.text.config import TextConfig
from homunculi.train.config import OutputConfig, RunConfig, TrainConfig

LIBRARY = "tinystories@8,childrens_books@17,classic_books@75"


def _run(model: Any) -> RunConfig:
    return RunConfig(
        model=model,
        corpus=LIBRARY,
        steps=1000,
        batch_tokens=16_384,
        lr=1e-2,
        eval_every=250,
        sample_every=500,
        checkpoint_every=500,
        precision="bf16",
        text=TextConfig(vocab_size=1024, val_corpus="tinystories"),
        train=TrainConfig(eval_tokens=0),
        output=OutputConfig(log_every=25, prompts=("Once upon a time", "The old sailor"), sample_tokens=120),
    )


def _readable(name: str) -> RunConfig:
    return _run(get(f"vocab_{name}").config_type(max_seq_len=512))


def gpt() -> RunConfig:
    """The plain transformer, 1.1 M parameters beside the token table."""
    return _run(Config(d_model=152, n_blocks=4, n_heads=4, qk_norm=True, max_seq_len=512))


def shared_maps() -> RunConfig:
    """A readable transformer that reads and says words through one map; 1.1 M parameters."""
    return _readable("shared_maps")


def shared_attention() -> RunConfig:
    """v1: one attention for all steps, and waves; 3.4 M parameters."""
    return _readable("shared_attention")


def convolution() -> RunConfig:
    """v2: a convolution over positions for each word, and waves; 0.35 M parameters."""
    return _readable("convolution")


def fourier_memory() -> RunConfig:
    """v3: a decaying memory of waves; 0.33 M parameters."""
    return _readable("fourier_memory")


def tied_fourier() -> RunConfig:
    """v4: five stored steps of waves, each used twice; 0.10 M parameters."""
    return _readable("tied_fourier")


def fft_memory() -> RunConfig:
    """v5: a decaying memory of harmonics; 0.33 M parameters."""
    return _readable("fft_memory")


def bands() -> RunConfig:
    """v6: slow memory on low waves, fast memory on high ones; 0.82 M parameters."""
    return _readable("bands")


def soft_ops() -> RunConfig:
    """v7: a blend of eight operations on waves; 0.33 M parameters."""
    return _readable("soft_ops")


def low_rank() -> RunConfig:
    """v8: the state remembers itself, and a map of rank 8 between words; 0.16 M parameters."""
    return _readable("low_rank")


def dense_memory() -> RunConfig:
    """v9: decaying memory and feed-forward part with dense maps; 4.2 M parameters."""
    return _readable("dense_memory")


def policy() -> RunConfig:
    """v10: the state chooses what to do with itself; 1.4 M parameters."""
    return _readable("policy")


def mixed_ops() -> RunConfig:
    """v11, first form: moving average, long and short memory, gate; 3.4 M parameters."""
    return _readable("mixed_ops")


def hard_routing() -> RunConfig:
    """v11, second form: three time scales, one activation a token, halting; 6.4 M parameters."""
    return _readable("hard_routing")


def slices() -> RunConfig:
    """v12: each step reads some words and writes others; 4.2 M parameters."""
    return _readable("slices")


def embedded_slices() -> RunConfig:
    """v13: the body of v12 behind a token table, so not readable: the control; 4.5 M parameters."""
    return _readable("embedded_slices")


def adaptive() -> RunConfig:
    """v14: convolution, and a memory whose decay each token chooses; 2.5 M parameters."""
    return _readable("adaptive")


def sparse_slices() -> RunConfig:
    """v15: v12 with a loss for every state and few words kept; 4.2 M parameters."""
    return _readable("sparse_slices")


def columns() -> RunConfig:
    """v16: four columns of slices that vote; 6.3 M parameters."""
    return _readable("columns")
