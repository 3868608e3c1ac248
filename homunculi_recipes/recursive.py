"""Blocks applied again: parameter sharing, recurrent depth and loops that grow, from a laptop to one large GPU."""

from dataclasses import replace

from homunculi.models.recursive import Config
from homunculi.text.config import TextConfig
from homunculi.train.config import OutputConfig, RunConfig, TrainConfig

LIBRARY = "tinystories@8,childrens_books@17,classic_books@75"


def small() -> RunConfig:
    """Four stored blocks, eight steps: two blocks three times between a first and a last one; minutes on a CPU."""
    return RunConfig(
        model=Config(d_model=128, n_slots=8, n_passes=3, n_heads=4, max_seq_len=256, activation="gelu"),
        corpus="stories",
        steps=700,
        batch_tokens=2048,
        lr=1e-2,
        eval_every=100,
        sample_every=100,
        checkpoint_every=100,
        text=TextConfig(vocab_size=1024),
        train=TrainConfig(optimizer="muon", eval_tokens=16_384),
        output=OutputConfig(log_every=10, prompts=("", "One morning"), sample_tokens=120),
    )


def growing() -> RunConfig:
    """`small` beginning with one pass, a second and a third added after a third of the run each."""
    recipe = small()
    return replace(recipe, model=replace(recipe.model, growth="steps"))


def recurrent() -> RunConfig:
    """`small` with recurrent depth: noise at the start, the first block's output in every pass, random pass counts."""
    recipe = small()
    model = replace(
        recipe.model,
        n_slots=10,
        n_passes=4,
        injection="concat",
        start="noise",
        pass_count="random",
        max_passes=8,
        backprop_passes=4,
        sandwich_norm=True,
    )
    return replace(recipe, model=model, lr=5e-3)


def medium() -> RunConfig:
    """7 M parameters beside the token table, eight steps, on the text at hand; one GPU."""
    return RunConfig(
        model=Config(d_model=384, n_slots=8, n_passes=3, n_heads=6, max_seq_len=512, qk_norm=True),
        corpus=LIBRARY,
        steps=6880,
        batch_tokens=16_384,
        lr=8e-3,
        eval_every=250,
        sample_every=500,
        checkpoint_every=500,
        precision="bf16",
        text=TextConfig(vocab_size=4096, val_corpus="tinystories"),
        train=TrainConfig(optimizer="muon", eval_tokens=0),
        output=OutputConfig(log_every=25, prompts=("Once upon a time", "The old sailor"), sample_tokens=120),
    )


def large() -> RunConfig:
    """As deep and wide as a transformer of 124 M parameters, twelve steps, of four stored blocks; one large GPU."""
    recipe = medium()
    model = replace(
        recipe.model, d_model=768, n_slots=12, n_passes=5, n_heads=12, max_seq_len=1024, pass_signal="embedding"
    )
    return replace(recipe, model=model, steps=3440, batch_tokens=65_536, lr=4e-3)
