"""One update: micro-batches forward and backward, a check that everything is finite, clipping, the optimisers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core.model import LanguageModel
from .config import RunConfig
from .distributed import World, parallel, total
from .loss import TrainingLoss
from .lr import lr_factor
from .optim import build_optimizers, set_lr


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one update measured, over all processes.

    Attributes:
        loss: mean cross-entropy in nats a token.
        grad_norm: norm of the gradient before clipping.
        terms: the architecture's own loss terms by name.
        lr: learning rate used.
        stop: some process was asked to stop.
    """

    loss: float
    grad_norm: float
    terms: dict[str, float]
    lr: float
    stop: bool

    @property
    def finite(self) -> bool:
        return all(map(math.isfinite, (self.loss, self.grad_norm, *self.terms.values())))


class Updater:
    """Holds what an update needs: the loss module (compiled or not), the optimisers, the mean of the weights.

    Args:
        model: the model to train, on `device`.
        config: the run.
        separator: token id between documents when attention stays inside one, else None.
        world: the processes that share the global batch.
        device: where the model lies.
        on_fallback: told why compilation was given up, if it was.
    """

    def __init__(
        self,
        model: LanguageModel,
        config: RunConfig,
        separator: int | None,
        world: World,
        device: torch.device,
        on_fallback: Callable[[str], None],
    ) -> None:
        self.model, self.config, self.world, self.device = model, config, world, device
        self.optimizers = build_optimizers(model, config)
        self.average: dict[str, Tensor] | None = None
        if config.train.ema:
            self.average = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.eager = TrainingLoss(model, config.train.loss_chunks, separator)
        self.on_fallback = on_fallback
        self.compiled = self._wants_compilation()
        loss = torch.compile(self.eager, dynamic=False) if self.compiled else self.eager
        self.loss: nn.Module = parallel(loss, world, device)

    def _wants_compilation(self) -> bool:
        wish = self.config.compile
        return wish == "on" or (wish == "auto" and self.device.type == "cuda")

    def update(self, step: int, micro_batches: list[Tensor], stop: bool) -> StepResult:
        """Take update `step`, counted from 1, unless something is not finite; then weights stay as they are.

        Dropout draws from a generator seeded by (seed, step, process): no state to save, and a resumed run draws the
        same.
        """
        torch.manual_seed(_mix(self.config.seed, step, self.world.rank))
        self.model.train()
        self._clear_gradients()
        losses: list[Tensor] = []
        terms: dict[str, Tensor] = {}
        for i, ids in enumerate(micro_batches):
            loss, named = self._backward(ids, len(micro_batches), last=i == len(micro_batches) - 1)
            losses.append(loss)
            for name, value in named.items():
                terms[name] = terms.get(name, 0.0) + value / len(micro_batches)
        result = self._measure(step, torch.stack(losses).mean(), terms, stop)
        if result.finite:
            set_lr(self.optimizers, result.lr)
            for optimizer in self.optimizers:
                optimizer.step()
            self._average()
        return result

    def _backward(self, ids: Tensor, n_micro: int, last: bool) -> tuple[Tensor, dict[str, Tensor]]:
        if self.world.size > 1 and not last:
            with self.loss.no_sync():
                return self._backward_here(ids, n_micro)
        return self._backward_here(ids, n_micro)

    def _backward_here(self, ids: Tensor, n_micro: int) -> tuple[Tensor, dict[str, Tensor]]:
        loss, terms = self._forward(ids)
        objective = loss if not terms else loss + torch.stack(list(terms.values())).sum()
        (objective / n_micro).backward()
        return loss.detach(), {name: term.detach() for name, term in terms.items()}

    def _forward(self, ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        if not self.compiled or self.config.compile == "on":
            return self.loss(ids)
        try:
            return self.loss(ids)
        except Exception as error:  # compilation fails in many ways; eager code then says what is really wrong
            if isinstance(error, torch.OutOfMemoryError):
                raise
            self.compiled = False
            self.loss = parallel(self.eager, self.world, self.device)
            self.on_fallback(f"{type(error).__name__}: {str(error).strip().splitlines()[0][:300]}")
            return self.loss(ids)

    def _clear_gradients(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def _measure(self, step: int, loss: Tensor, terms: dict[str, Tensor], stop: bool) -> StepResult:
        """Clip, and bring what was measured to the host in one transfer."""
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = nn.utils.clip_grad_norm_(parameters, self.config.train.clip or math.inf, foreach=True)
        shared = torch.stack([loss, *terms.values(), torch.full_like(loss, float(stop))])
        shared = total(shared, self.world) / self.world.size
        loss_value, *term_values, stop_value = shared.tolist()
        lr = self.config.lr * lr_factor(step, self.config.steps, self.config.train)
        return StepResult(loss_value, norm.item(), dict(zip(terms, term_values, strict=True)), lr, stop_value > 0)

    @torch.no_grad()
    def _average(self) -> None:
        if self.average is not None:
            own = [p.detach() for p in self.model.parameters()]
            torch._foreach_lerp_(list(self.average.values()), own, 1 - self.config.train.ema)


def _mix(*numbers: int) -> int:
    """One seed of several numbers: a 63-bit hash, the same everywhere."""
    state = 0x9E3779B97F4A7C15
    for number in numbers:
        state = (state ^ number) * 0xBF58476D1CE4E5B9 % 2**64
        state ^= state >> 29
    return state >> 1
