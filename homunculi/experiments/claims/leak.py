"""The price of a look ahead: what the published controller's loss gains because its pooling reads the whole text.

One model of the published form is trained on the batches of the comparison's first seed, at the first side's rate. Then
its loss is measured twice at the same positions: with the whole window in one pass, as its authors evaluate, and with
nothing but the tokens before, as a model that generates has it. It is not ranked.

Legend: N windows, T tokens, P positions.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from homunculi.core.model import LanguageModel
from homunculi.errors import InputError
from homunculi.experiments.certify import certify_architecture
from homunculi.experiments.claims.evidence import Json
from homunculi.experiments.comparison import Comparison
from homunculi.experiments.execution import Reporter
from homunculi.models import get
from homunculi.runs.directory import INFO, RunDirectory, claim, state_of
from homunculi.text.batches import validation_windows
from homunculi.text.shards import prepare
from homunculi.train.config import RunConfig, config_from_json, config_to_json
from homunculi.train.loading import load
from homunculi.train.loop import train
from homunculi.train.precision import resolve_device

PUBLISHED = "ncn_published"
N_WINDOWS, N_POSITIONS = 32, 32
FOLDER = "published-s0"
SMALL = {"d_model": 64, "n_blocks": 2, "n_heads": 2, "max_seq_len": 32}  # of the published form, to be certified


def price_of_leak(comparison: Comparison, folder: Path, reporter: Reporter) -> Json:
    """Train the published form beside a comparison and measure it both ways.

    Args:
        comparison: that has ended; its first side says shape, text, steps and rate.
        folder: of the comparison; the run goes into it.

    Returns: nats a token with the whole window (`whole`) and honestly (`prefix`), and the differences of each window.

    Raises:
        InputError: the validation text is shorter than a window.
        Stopped: a signal asked for it; the run goes on when it is asked for again.
    """
    first = comparison.sides[0]
    config = config_from_json(first.config)
    config = replace(config, model=published(config.model), lr=first.lr or config.lr)
    certificate = certify_architecture(PUBLISHED, trial_seconds=0, **SMALL)
    reporter.message(f"{PUBLISHED} is not ranked (causal: {certificate.causal}); its loss is measured both ways")
    run = _trained(config, folder / FOLDER, reporter)
    windows_NT1 = whole_windows(config)
    model = load(run.path).to(resolve_device(config.device))
    whole_N, prefix_N = both_ways(model, windows_NT1)
    return {
        "whole": float(whole_N.mean()),
        "prefix": float(prefix_N.mean()),
        "differences": [round(float(value), 6) for value in prefix_N - whole_N],
        "causal": certificate.causal,
        "failed": [check.name for check in certificate.checks if not check.passed],
        "positions": N_POSITIONS,
        "steps": config.steps,
        "lr": config.lr,
    }


def published(model: Any) -> Any:
    """The published form in the width, depth and context of a plain transformer."""
    shared = ("vocab_size", "d_model", "n_blocks", "n_heads", "max_seq_len")
    return get(PUBLISHED).config_type(**{name: getattr(model, name) for name in shared})


def whole_windows(config: RunConfig) -> np.ndarray:
    """(N, T + 1) ids of the validation text's start."""
    text, length = prepare(config.corpus, config.text), config.model.max_seq_len
    found = [window for window in islice(validation_windows(text.val, length), N_WINDOWS) if len(window) == length + 1]
    if not found:
        raise InputError(f"text.val_corpus: is shorter than {length} tokens; use a longer text or a shorter context")
    return np.stack(found).astype(np.int64)


@torch.no_grad()
def both_ways(model: LanguageModel, windows_NT1: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) nats a token at the same positions of each window: read as a whole, and prefix by prefix."""
    ids_NT1 = torch.from_numpy(windows_NT1).to(next(model.parameters()).device)
    inputs_NT, targets_NT = ids_NT1[:, :-1], ids_NT1[:, 1:]
    positions = torch.linspace(0, inputs_NT.shape[1] - 1, N_POSITIONS).round().long().unique().tolist()
    whole, prefix = [], []
    for row in range(len(ids_NT1)):  # one window at a time: the whole one has T rows of logits
        logits_PV = model(inputs_NT[row : row + 1]).logits[0, positions].float()
        whole.append(F.cross_entropy(logits_PV, targets_NT[row, positions]).item())
    for t in positions:
        logits_NV = model(inputs_NT[:, : t + 1]).logits[:, -1].float()
        prefix.append(F.cross_entropy(logits_NV, targets_NT[:, t], reduction="none"))
    return np.array(whole), torch.stack(prefix).mean(0).cpu().numpy()


def _trained(config: RunConfig, folder: Path, reporter: Reporter) -> RunDirectory:
    """The finished run in a folder, trained as far as it is not."""
    run = RunDirectory(folder)
    if not (folder / INFO).exists():
        run = claim(folder)
        run.write_info({"recipe": PUBLISHED, "config": config_to_json(config)})
    if state_of(run) != "done":
        train(config, run, Messages(reporter))
    return run


class Messages:
    """A reporter of one run that passes on messages alone."""

    def __init__(self, reporter: Reporter) -> None:
        self.message = reporter.message

    def plan(self, lines: list[str]) -> None:
        """Nothing is shown."""

    def metrics(self, line: dict[str, Any], steps: int) -> None:
        """Nothing is shown."""

    def sample(self, step: int, prompt: str, text: str) -> None:
        """Nothing is shown."""

    def progress(self, step: int, steps: int, loss: float) -> None:
        """Nothing is shown."""
