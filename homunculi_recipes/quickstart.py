"""A small transformer learns to tell stories, in a few minutes on two cores."""

from homunculi.models.gpt import Config
from homunculi.text.config import TextConfig
from homunculi.train.config import OutputConfig, RunConfig, TrainConfig


def quickstart() -> RunConfig:
    """1.3 M parameters on 1.4 M tokens of the embedded story world; three to five minutes on two CPU cores."""
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
