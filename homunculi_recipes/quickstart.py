"""A small transformer learns to tell stories, in a few minutes on two cores."""

from homunculi.models.gpt import Config
from homunculi.text.config import TextConfig
from homunculi.train.config import OutputConfig, RunConfig, TrainConfig


def quickstart() -> RunConfig:
    """2.7 M parameters on the embedded story world; about 5 minutes on two CPU cores."""
    return RunConfig(
        model=Config(d_model=192, n_blocks=6, n_heads=6, max_seq_len=256, activation="gelu"),
        corpus="stories",
        steps=600,
        batch_tokens=4096,
        lr=2e-3,
        eval_every=100,
        sample_every=100,
        checkpoint_every=100,
        text=TextConfig(vocab_size=1024),
        train=TrainConfig(eval_tokens=32_768),
        output=OutputConfig(log_every=10, prompts=("", "One morning"), sample_tokens=80),
    )
