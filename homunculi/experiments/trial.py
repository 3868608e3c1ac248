"""The random-token trial: whoever foresees what cannot be foreseen has looked.

Tokens are drawn evenly and independently from K ids, so whatever came before says nothing about the next one. Choosing
among those K, a causal model, however it was trained, loses at least ln K nats a token on average. More than that: its
opinion of the next token has nothing to do with that token, so the one that comes is favoured over the mean of the K
ids by 0 on average, exactly, also where a bad opinion keeps the loss above ln K. That is what is tested.

A copy of the model is trained for a short while on batches that are never repeated, so that it finds a use for whatever
it can see, then measured on further ones. This finds channels that edits of tokens cannot reach because they open only
in training. Only the logits of the K ids count, so the floor is the same for every vocabulary. Rows are short: a
summary of a row says the more of each token the fewer there are; the longer ones let a look of a few tokens ahead be
handed back from token to token.

Legend: B batch, T positions, V vocabulary, K ids in play.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from homunculi.core.model import LanguageModel
from homunculi.core.output import Output
from homunculi.experiments.certificate import Check
from homunculi.experiments.subject import add_noise, device_of, first_line, logits_in

N_IDS = 4
LENGTHS = (4, 8, 32)
TURNS = (0, 1, 0, 2)  # which of them, step by step: the shortest one teaches fastest what there is to see
STEPS = 240
BATCH_TOKENS = 128
SMALL = 6_000_000  # parameters up to which one thread is as good as several
HELD_OUT_TOKENS = 16_384  # of each length, in each mode
LEAST_HELD_OUT = 2048  # of them, where measuring them all takes too long
MEASURING = 0.03  # of the training's time, for each length in each mode
LR = 3e-3  # of models up to SMALL_LR parameters; above, by the fourth root of their number less
SMALL_LR = 100_000
WARMUP_STEPS = 20
N_ERRORS = 5.0  # standard errors that are no chance
ROUNDING = 1e-6  # nats
# Training stops early once recent batches leave no doubt.
LOOK_EVERY = 25
CLEAR_FAVOUR = 0.05  # nats
_RULED_OUT = 100.0  # a logit that far below the largest ones belongs to an id that the model never gives
_CHECKS = {"random_tokens": False, "random_tokens_training": True}
_PARTS = ("rows", "the first half of rows", "the second half of rows")


def check_random_tokens(
    model: nn.Module, logits_BTV: Tensor, context: int, *, seed: int, seconds: float, notes: list[str]
) -> list[Check]:
    """Whether a model trained on random tokens favours the one that comes: in evaluation and in training mode.

    A check's value is the mean favour in nats, on fresh rows and in the part of them (all, the first half, the second
    half) where it stands out most; the limit is five standard errors of it. In either direction it is a look ahead.

    Args:
        model: stays as it is.
        logits_BTV: some logits of it: ids that it never gives are not drawn.
        context: the longest row it takes.
        seconds: what training may take; a slow model takes fewer steps, which is added to `notes`.
        notes: also told why a trial was left out.
    """
    try:
        pupil = _pupil(model, seed)
    except Exception as error:
        notes.append(f"random-token trial left out: the model cannot be copied ({first_line(error)})")
        return []
    ids_K = _ids_in_play(logits_BTV, torch.Generator().manual_seed(seed))
    if len(ids_K) < 2 or not any(p.requires_grad for p in pupil.parameters()):
        reason = "nothing to train" if len(ids_K) > 1 else "the model gives fewer than two ids"
        notes.append(f"random-token trial left out: {reason}")
        return []
    trial = _Trial(pupil, ids_K, torch.Generator().manual_seed(seed + 1), MEASURING * seconds)
    torch.manual_seed(seed)
    trial.find_lengths(context)
    with _few_threads(trial):
        with torch.enable_grad():
            trial.train(seconds, notes)
        return [] if trial.diverged else [trial.measured(name, training) for name, training in _CHECKS.items()]


@contextmanager
def _few_threads(trial: _Trial) -> Iterator[None]:
    """One thread for a small model; for a larger one the faster of one and all of them.

    Where others compute on the same cores, waiting for each other makes several threads many times slower than one.
    """
    before = torch.get_num_threads()
    n_parameters = sum(p.numel() for p in trial.pupil.parameters())
    seconds = {n: trial.seconds_with(n) for n in {1, before}} if n_parameters > SMALL else {1: 0.0}
    torch.set_num_threads(min(seconds, key=lambda n: seconds[n]))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _pupil(model: nn.Module, seed: int) -> nn.Module:
    """A perturbed copy in float32, all of it to be trained unless a part is frozen."""
    pupil = copy.deepcopy(model).float()
    if isinstance(pupil, LanguageModel):
        pupil.compute_dtype = None
    add_noise(pupil, seed)
    if not any(p.requires_grad for p in pupil.parameters()):
        for parameter in pupil.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
    pupil.zero_grad(set_to_none=True)
    return pupil


def _ids_in_play(logits_BTV: Tensor, generator: torch.Generator) -> Tensor:
    """At most K ids, drawn from those that the model can give."""
    mean_V = logits_BTV.detach().flatten(0, 1).double().mean(0).cpu()
    known_V = mean_V[mean_V.isfinite()]
    if len(known_V) < 2:
        return torch.zeros(0, dtype=torch.long)
    given = (mean_V.isfinite() & (mean_V > known_V.topk(2).values[1] - _RULED_OUT)).nonzero()[:, 0]
    return given[torch.randperm(len(given), generator=generator)[:N_IDS]]


@dataclass(slots=True)
class _Trial:
    """One copy in training.

    Attributes:
        measuring_seconds: after which measuring one length in one mode may end.
        recent: mean favour of the rows of each step, by mode and length. Nothing of a step's tokens was in the
            parameters, so these are honest measurements as well.
        diverged: a loss was no number.
    """

    pupil: nn.Module
    ids_K: Tensor
    generator: torch.Generator
    measuring_seconds: float
    lengths: list[int] = field(default_factory=list)
    recent: dict[tuple[bool, int], list[Tensor]] = field(default_factory=dict)
    diverged: bool = False

    def find_lengths(self, context: int) -> None:
        """The lengths that the model takes; the context's own if no shorter one will do."""
        wished = sorted({min(n, context) for n in LENGTHS})
        self.lengths = [n for n in wished if self._takes(n)] or [context]

    def _takes(self, n_tokens: int) -> bool:
        try:
            with torch.no_grad():
                self.logits(self.draw(2, n_tokens))
        except Exception:  # what a model does not take it refuses in many ways
            return False
        return True

    def seconds_with(self, n_threads: int) -> float:
        """How long a forward takes; the shorter of two."""
        torch.set_num_threads(n_threads)
        which_BT = self.draw(BATCH_TOKENS // self.lengths[-1] + 1, self.lengths[-1])
        seconds = []
        for _ in range(2):
            began = time.perf_counter()
            with torch.no_grad():
                self.logits(which_BT)
            seconds.append(time.perf_counter() - began)
        return min(seconds)

    def draw(self, n_rows: int, n_tokens: int) -> Tensor:
        """Which of the K ids stands where, (B, T)."""
        return torch.randint(len(self.ids_K), (n_rows, n_tokens), generator=self.generator)

    def logits(self, which_BT: Tensor) -> tuple[Tensor, Any]:
        """Normalised logits (B, T − 1, K) of each next token among the K ids, float64, and what the model returned."""
        device = device_of(self.pupil)
        output = self.pupil(self.ids_K[which_BT].to(device))
        return logits_in(output)[:, :-1, self.ids_K.to(device)].cpu().double().log_softmax(-1), output

    def train(self, seconds: float, notes: list[str]) -> None:
        """Take the steps that fit into the time; lengths and, where they differ, modes take turns."""
        modes = (True, False) if self._modes_differ() else (True,)
        turns = [(training, self.lengths[min(i, len(self.lengths) - 1)]) for i in TURNS for training in modes]
        optimizer, lr = _optimizer(self.pupil)
        began, step, spent, clear = time.perf_counter(), 0, 0.0, False
        while step < STEPS and spent < 1 and not (clear or self.diverged):
            training, n_tokens = turns[step % len(turns)]
            step += 1
            for group in optimizer.param_groups:
                group["lr"] = lr * _share_of_lr(step, max(step / STEPS, spent))
            self._update(optimizer, training, n_tokens, step)
            spent = (time.perf_counter() - began) / seconds
            clear = step % LOOK_EVERY == 0 and all(map(self._is_clear, modes))
        if self.diverged:
            notes.append(f"random-token trial left out: training diverged at step {step}")
        elif step < STEPS and not clear:
            notes.append(f"random-token trial cut short by time after {step} of {STEPS} steps: weaker evidence")

    def _modes_differ(self) -> bool:
        which_BT = self.draw(4, self.lengths[-1])
        with torch.no_grad():
            in_training, in_evaluation = (self.logits(which_BT)[0] for _ in map(self.pupil.train, (True, False)))
        return not torch.allclose(in_training, in_evaluation, rtol=1e-4, atol=1e-5)

    def _update(self, optimizer: torch.optim.Optimizer, training: bool, n_tokens: int, step: int) -> None:
        """One update. A model of ours adapts its routers as in any training."""
        pupil = self.pupil.train(training)
        if isinstance(pupil, LanguageModel):
            pupil.before_update(step, STEPS)
        which_BT = self.draw(max(4, BATCH_TOKENS // n_tokens), n_tokens)
        logits_BTK, output = self.logits(which_BT)
        loss = -_of_next(logits_BTK, which_BT).mean()
        terms = [term.to(loss) for term in output.loss_terms.values()] if isinstance(output, Output) else []
        objective = torch.stack([loss, *terms]).sum()
        optimizer.zero_grad(set_to_none=True)
        objective.backward()
        norm = nn.utils.clip_grad_norm_(pupil.parameters(), 1.0)
        self.diverged = not math.isfinite(objective.item() + norm.item())
        if self.diverged:
            return
        optimizer.step()
        if isinstance(pupil, LanguageModel) and training:
            with torch.no_grad():
                pupil.after_update({name: value.detach().float() for name, value in output.statistics.items()})
        self.recent.setdefault((training, n_tokens), []).append(_favour(logits_BTK.detach(), which_BT).mean(1))

    def _is_clear(self, training: bool) -> bool:
        """Whether the latest batches of some length in this mode leave no doubt."""
        latest = [self.recent.get((training, n), [])[-LOOK_EVERY // 2 :] for n in self.lengths]
        favours = [torch.cat(rows) for rows in latest if rows]
        return any(abs(float(f.mean())) > max(CLEAR_FAVOUR, 2 * N_ERRORS * _error(f)) for f in favours)

    def measured(self, name: str, training: bool) -> Check:
        """The check of one mode, on fresh tokens."""
        self.pupil.train(training)
        found = []
        for n_tokens in self.lengths:
            favour_BT, loss = self._held_out(n_tokens)
            half = max(1, favour_BT.shape[1] // 2)
            for part, part_BT in zip(_PARTS, (favour_BT, favour_BT[:, :half], favour_BT[:, -half:]), strict=True):
                by_row_B = part_BT.mean(1)
                limit = N_ERRORS * _error(by_row_B) + ROUNDING
                found.append((abs(float(by_row_B.mean())), limit, f"in {part} of {n_tokens} random tokens", loss))
        value, limit, where, loss = max(found, key=lambda one: one[0] / one[1])
        note = f"the next token is no surprise {where}: loss {loss:.4f}, guessing costs {math.log(len(self.ids_K)):.4f}"
        return Check.of(name, value, limit, note if value > limit else "")

    @torch.no_grad()
    def _held_out(self, n_tokens: int) -> tuple[Tensor, float]:
        """What `_favour` gives on fresh tokens, and the mean loss."""
        at_once = max(4, 4 * BATCH_TOKENS // n_tokens)
        favours, losses = [], []
        began = time.perf_counter()
        for n_drawn in range(0, HELD_OUT_TOKENS, n_tokens * at_once):
            if n_drawn >= LEAST_HELD_OUT and time.perf_counter() - began > self.measuring_seconds:
                break
            which_BT = self.draw(at_once, n_tokens)
            logits_BTK, _ = self.logits(which_BT)
            favours.append(_favour(logits_BTK, which_BT))
            losses.append(-_of_next(logits_BTK, which_BT).mean())
        return torch.cat(favours), float(torch.stack(losses).mean())


def _of_next(logits_BTK: Tensor, which_BT: Tensor) -> Tensor:
    """The normalised logit of the token that came next, (B, T − 1)."""
    return logits_BTK.gather(-1, which_BT[:, 1:, None])[..., 0]


def _favour(logits_BTK: Tensor, which_BT: Tensor) -> Tensor:
    """By how much the token that came next is favoured over the mean of the K ids, in nats, (B, T − 1)."""
    return _of_next(logits_BTK, which_BT) - logits_BTK.mean(-1)


def _optimizer(module: nn.Module) -> tuple[torch.optim.Optimizer, float]:
    """The optimiser and its highest learning rate."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    lr = LR * min(1.0, SMALL_LR / sum(p.numel() for p in parameters)) ** 0.25
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
    return torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.99), weight_decay=0.0, fused=fused), lr


def _share_of_lr(step: int, progress: float) -> float:
    """A short rise, then 1, then from the middle of the steps or of the time on down to nearly 0."""
    return min(step / WARMUP_STEPS, 1.0, 2 * (1 - progress) + 1 / STEPS)


def _error(values_B: Tensor) -> float:
    """The standard error of a mean."""
    return float(values_B.std() / len(values_B) ** 0.5)
