"""The modulated transformer in three sizes, each the shape and budget of a plain one with a controller of about 1-2 %.

`model.signals=[]` takes the controller out and leaves the plain transformer with the same initial weights.
"""

from homunculi.models.ncn import Config
from homunculi.text.config import TextConfig
from homunculi.train.config import OutputConfig, RunConfig, TrainConfig

# Shares in proportion to the tokens of each, so that all are read equally often.
CORPUS = "tinystories@8,childrens_books@17,classic_books@75"


def small() -> RunConfig:
    """1.3 M parameters on 1.4 M tokens of the embedded story world; some minutes on two CPU cores."""
    return RunConfig(
        model=Config(d_model=128, n_blocks=6, n_heads=4, max_seq_len=256, activation="gelu"),
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
    """11 M parameters beside the token table, four passes over 28 M tokens; validated on TinyStories."""
    return RunConfig(
        model=Config(d_model=384, n_blocks=6, n_heads=6, max_seq_len=512, qk_norm=True),
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
    """The shape of the 124 M transformer: 12 blocks of width 768, context 1024. For one large GPU."""
    return RunConfig(
        model=Config(d_model=768, n_blocks=12, n_heads=12, max_seq_len=1024, qk_norm=True, d_control=128),
        corpus=CORPUS,
        steps=1720,
        batch_tokens=65_536,
        lr=4e-3,
        eval_every=100,
        sample_every=250,
        checkpoint_every=250,
        precision="bf16",
        text=TextConfig(vocab_size=16_384, val_corpus="tinystories"),
        train=TrainConfig(optimizer="muon", eval_tokens=0),
        output=OutputConfig(log_every=10, prompts=("Once upon a time", "The old sailor"), sample_tokens=120),
    )
