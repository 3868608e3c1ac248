"""Mixtures of recursions in three sizes: shared blocks once for every token, again for those that a router takes on."""

from homunculi.models.mor import Config
from homunculi.text.config import TextConfig
from homunculi.train.config import OutputConfig, RunConfig, TrainConfig

# Shares in proportion to the tokens of each, so that all are read equally often.
CORPUS = "tinystories@8,childrens_books@17,classic_books@75"


def small() -> RunConfig:
    """Four stored blocks, eight steps, 1.4 M tokens of the embedded story world; minutes on a CPU."""
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


def medium() -> RunConfig:
    """7 M parameters beside the token table in four stored blocks, eight steps; validated on TinyStories."""
    return RunConfig(
        # Of three routers and two caches these end lowest at this size (docs/LOG.md).
        model=Config(
            d_model=384,
            n_slots=8,
            n_passes=3,
            router="token_choice",
            kv="shared",
            n_heads=6,
            max_seq_len=512,
            qk_norm=True,
        ),
        corpus=CORPUS,
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
    """The depth and width of a 124 M transformer in seven stored blocks: twelve steps, the second pass for half."""
    return RunConfig(
        model=Config(d_model=768, n_slots=12, n_passes=2, n_heads=12, max_seq_len=1024, qk_norm=True),
        corpus=CORPUS,
        steps=3000,
        batch_tokens=131_072,
        lr=3e-3,
        eval_every=250,
        sample_every=500,
        checkpoint_every=500,
        precision="bf16",
        text=TextConfig(vocab_size=16_384, val_corpus="tinystories"),
        train=TrainConfig(optimizer="muon", eval_tokens=0),
        output=OutputConfig(log_every=25, prompts=("Once upon a time", "The old sailor"), sample_tokens=120),
    )
