"""An architecture with a part that matters, and one that does nothing."""

from __future__ import annotations

import random
import string
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from homunculi.core.output import Hidden
from homunculi.core.taps import NO_TAPS, TapPoint
from homunculi.models import Part, architecture, registry
from homunculi.models.gpt import GPT
from homunculi.models.gpt import Config as PlainConfig

RECIPE = """
from homunculi.models import get
from homunculi.text.config import TextConfig
from homunculi.train.config import OutputConfig, RunConfig, TrainConfig

def toy():
    return RunConfig(
        model=get("toy_parts").config_type(d_model=16, n_blocks=1, n_heads=2, max_seq_len=32),
        corpus={corpus!r}, steps=32, batch_tokens=256, lr=3e-2, device="cpu",
        text=TextConfig(tokenizer="bytes", val_frac=0.1), train=TrainConfig(optimizer="muon", eval_tokens=1024),
        output=OutputConfig(log_every=8, prompts=("a",), sample_tokens=4),
    )
"""


def write_recipe(folder: Path) -> str:
    """``toy.py:toy`` over a text in which a letter says which one is next."""
    starts = random.Random(0).choices(range(26), k=400)
    letters = string.ascii_lowercase * 2
    (folder / "letters.txt").write_text("".join(letters[at : at + 26] for at in starts), encoding="utf-8")
    text = RECIPE.replace("{corpus!r}", repr(str(folder / "letters.txt")))
    (folder / "toy.py").write_text(text, encoding="utf-8")
    return f"{folder / 'toy.py'}:toy"


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(PlainConfig):
    """As the plain transformer's.

    Attributes:
        knows: whether the read-out hears anything.
        idles: whether there is a signal that nothing listens to, and other initial weights with it.
    """

    knows: bool = True
    idles: bool = True


PARTS = (
    Part("knows", removed={"knows": False}, neutral={"control.hint": 0.0}),
    Part("idles", removed={"idles": False}, neutral={"control.idle": 1.0}, note="only for company"),
    Part("absent", removed={"tied": True}),
)


@contextmanager
def registered() -> Iterator[None]:
    """The architecture ``toy_parts`` for the duration of the block."""

    @architecture("toy_parts", Config, parts=PARTS)
    class Toy(GPT):
        def __init__(self, config: Any) -> None:
            torch.rand(int(config.idles))
            super().__init__(config)

        def trunk(self, ids_BT: Tensor, taps: TapPoint = NO_TAPS, *more: Any, **others: Any) -> Hidden:
            hidden = super().trunk(ids_BT, taps, *more, **others)
            hint_BTD = taps("control.hint", hidden.x_BTD)
            if self.config.idles:
                hint_BTD = hint_BTD + 0 * taps("control.idle", hint_BTD.mean(-1, keepdim=True))
            return replace(hidden, x_BTD=hint_BTD if self.config.knows else 0 * hint_BTD)

    try:
        yield
    finally:
        del registry._REGISTERED["toy_parts"]
