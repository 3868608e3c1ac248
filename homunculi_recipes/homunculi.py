"""The flagship in three sizes: four regions, a packet of neuromodulators, tokens that choose their depth."""

from dataclasses import replace

from homunculi.models.homunculi import Config
from homunculi.text.config import TextConfig
from homunculi.train.config import OutputConfig, RunConfig, TrainConfig

# Shares in proportion to the tokens of each, so that all are read equally often.
LIBRARY = "tinystories@8,childrens_books@17,classic_books@75"


def small() -> RunConfig:
    """1.2 M parameters on the embedded story world; minutes on two CPU cores."""
    return RunConfig(
        model=Config(d_model=128, n_heads=4, n_passes=3, n_experts=4, n_active=1, max_seq_len=256),
        corpus="stories",
        steps=600,
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
    """9 M parameters beside the token table, on the text at hand; validated on TinyStories; one GPU."""
    return RunConfig(
        # Where every pass has a threshold of its own, or keys and values of its own, this size ends higher
        # (docs/LOG.md). With two passes for all and a third for half, a token costs what it costs gpt of this size.
        model=Config(
            d_model=384,
            n_heads=6,
            n_passes=3,
            capacities=(1.0, 1.0, 0.5),
            router="token_choice",
            kv="shared",
            n_experts=8,
            n_active=2,
            max_seq_len=512,
        ),
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
    """Width and unrolled depth of a transformer of 124 M parameters; one large GPU."""
    recipe = medium()
    model = replace(recipe.model, d_model=768, n_heads=12, n_passes=3, n_shared=3, max_seq_len=1024, window=128)
    return replace(recipe, model=model, steps=3440, batch_tokens=65_536, lr=4e-3)
