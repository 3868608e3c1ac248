"""A small model with four regions learns to tell stories, in a few minutes on two cores."""

from homunculi.models.homunculi import Config
from homunculi.text.config import TextConfig
from homunculi.train.config import OutputConfig, RunConfig, TrainConfig


def quickstart() -> RunConfig:
    """The flagship, 1.2 M parameters, on 1.1 M tokens of the embedded story world; about five minutes on two cores."""
    return RunConfig(
        model=Config(d_model=128, n_heads=4, n_passes=3, n_experts=4, n_active=1, max_seq_len=256),
        corpus="stories",
        steps=540,
        batch_tokens=2048,
        lr=1e-2,
        eval_every=90,
        sample_every=90,
        checkpoint_every=90,
        text=TextConfig(vocab_size=1024),
        train=TrainConfig(optimizer="muon", eval_tokens=16_384),
        output=OutputConfig(log_every=10, prompts=("", "One morning"), sample_tokens=120),
    )
