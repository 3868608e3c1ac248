"""Train on your own text: homunculi train text corpus=PATH."""

from homunculi.models.gpt import Config
from homunculi.text.config import TextConfig
from homunculi.train.config import OutputConfig, RunConfig, TrainConfig


def text() -> RunConfig:
    """A 3 M parameter transformer with a 2,048-word vocabulary trained on the text; `corpus` must be given."""
    return RunConfig(
        model=Config(d_model=192, n_blocks=6, n_heads=6, max_seq_len=256, activation="gelu"),
        corpus="",
        steps=1000,
        batch_tokens=4096,
        lr=8e-3,
        eval_every=100,
        sample_every=100,
        checkpoint_every=100,
        text=TextConfig(vocab_size=2048),
        train=TrainConfig(optimizer="muon"),
        output=OutputConfig(sample_tokens=80),
    )
