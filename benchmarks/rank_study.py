"""Ranks of the low-rank readable model under two masks: the strict past and, as a control that is no model, the future.

    python -m benchmarks.rank_study --corpus tinystories --device cuda --write benchmarks/results/rank_study.json

The published figure for rank 64, a training loss near 0, came from the second mask: each position read only what comes
after it. For each rank and mask: loss on the text that is trained on and on held-out text, then on tokens drawn evenly,
where nothing that reads only the past can be better than ln V; and the same weights under the other mask.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from homunculi.experiments.peak import describe_device
from homunculi.experiments.random_tokens import random_token_trial
from homunculi.models.vocabulary.low_rank import Config, LowRank
from homunculi.text.config import TextConfig
from homunculi.text.shards import prepare
from homunculi.train.precision import resolve_device

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "experiments"))
FORMS = ("past", "future")


@dataclass(frozen=True, slots=True)
class Training:
    """Updates of `rows` windows of `length` tokens, at a rate."""

    steps: int
    lr: float
    length: int
    rows: int


def built(form: str, rank: int, length: int, n_words: int, device: torch.device) -> LowRank:
    from reversed_mask import ReversedMask  # type: ignore[import-not-found]  # a control, which only tests have

    torch.manual_seed(0)
    config = Config(vocab_size=n_words, rank=rank, max_seq_len=length, n_steps=8)
    model: LowRank = (LowRank if form == "past" else ReversedMask)(config).to(device)
    model.compute_dtype = torch.bfloat16 if device.type == "cuda" else None
    return model


def loss_of(model: LowRank, ids_BT: Tensor) -> Tensor:
    logits_BTV = model(ids_BT[:, :-1]).logits.float()
    return F.cross_entropy(logits_BTV.flatten(0, 1), ids_BT[:, 1:].flatten())


def trained(model: LowRank, tokens: Tensor, how: Training) -> float:
    """Updates on windows drawn alike for every model; the mean loss over the last tenth."""
    generator, device = torch.Generator().manual_seed(1), tokens.device
    optimizer = torch.optim.AdamW(model.parameters(), how.lr, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, how.lr, how.steps, pct_start=0.1)
    call = torch.compile(loss_of, dynamic=False) if device.type == "cuda" else loss_of
    losses = []
    for _ in range(how.steps):
        start_B = torch.randint(len(tokens) - how.length - 1, (how.rows, 1), generator=generator).to(device)
        loss = call(model, tokens[start_B + torch.arange(how.length + 1, device=device)])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
    return float(torch.stack(losses[-max(1, how.steps // 10) :]).mean())


@torch.no_grad()
def held_out(model: LowRank, tokens: Tensor, length: int) -> float:
    rows = tokens[: (len(tokens) - 1) // length * length + 1].unfold(0, length + 1, length)
    return sum(float(loss_of(model, part)) * len(part) for part in rows.split(64)) / len(rows)


def study(rank: int, form: str, train: Tensor, valid: Tensor, n_words: int, how: Training) -> dict[str, Any]:
    model = built(form, rank, how.length, n_words, train.device)
    found: dict[str, Any] = {"rank": rank, "mask": form, "lr": how.lr, "train": round(trained(model, train, how), 4)}
    model.eval()
    found["held_out"] = round(held_out(model, valid, how.length), 4)
    other = built(FORMS[1 - FORMS.index(form)], rank, how.length, n_words, train.device).eval()
    other.load_state_dict(model.state_dict())
    found["held_out_other_mask"] = round(held_out(other, valid, how.length), 4)
    for name, one in (("random", model), ("random_other_mask", other)):
        trial = random_token_trial(one, 8, how.length, seed=0)
        found[name] = {"loss": round(trial.cross_entropy, 4), "top1": round(trial.top1, 5), "looks": trial.looks_ahead}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", default="tinystories")
    parser.add_argument("--val-corpus", default="")
    parser.add_argument("--ranks", default="8,64")
    parser.add_argument("--forms", default=",".join(FORMS))
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--length", type=int, default=256, help="tokens of a window")
    parser.add_argument("--rows", type=int, default=32, help="windows of an update")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    device = resolve_device(options.device)
    text = prepare(options.corpus, TextConfig(vocab_size=1024, val_corpus=options.val_corpus))
    streams = [np.asarray(stream.plain_tokens).astype(np.int64) for stream in (text.streams[0].stream, text.val)]
    train, valid = (torch.from_numpy(tokens).to(device) for tokens in streams)
    n_words = text.tokenizer.vocab_size
    how = Training(options.steps, options.lr, options.length, options.rows)
    rows = [
        study(int(rank), form, train, valid, n_words, how)
        for rank in options.ranks.split(",")
        for form in options.forms.split(",")
    ]
    found = {"command": " ".join(sys.argv[1:]), "floor": float(torch.tensor(n_words).log()), "rows": rows}
    found |= describe_device(device)
    print(json.dumps(found, indent=1))
    if options.write is not None:
        options.write.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
