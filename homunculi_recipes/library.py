"""All the text at hand: stories, children's books and classic books, for one GPU."""

from homunculi.models.gpt import Config
from homunculi.text.config import TextConfig
from homunculi.train.config import OutputConfig, RunConfig, TrainConfig

# Shares in proportion to the tokens of each, so that all are read equally often.
CORPUS = "tinystories@8,childrens_books@17,classic_books@75"


def library() -> RunConfig:
    """10 M parameters beside the token table, four passes over 28 M tokens; validated on TinyStories."""
    return RunConfig(
        model=Config(d_model=384, n_blocks=6, n_heads=6, max_seq_len=512, activation="swiglu", qk_norm=True),
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
