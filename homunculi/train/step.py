"""One update: micro-batches forward and backward, a check that everything is finite, clipping, the optimisers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from homunculi.core.model import LanguageModel
from homunculi.train.config import RunConfig
from homunculi.train.distributed import World, parallel, total
from homunculi.train.loss import Losses, TrainingLoss
from homunculi.train.lr import lr_factor
from homunculi.train.optim import build_optimizers, set_lr
from homunculi.train.plasticity import multipliers

BeforeStep = Callable[[int, float, dict[str, Tensor]], None]

_TRIALS = 5  # updates until compiled code is trusted: graphs are captured in the second and third


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one update measured, over all processes.

    Attributes:
        step: counted from 1.
        loss: mean cross-entropy in nats a token.
        grad_norm: norm of the gradient before clipping.
        terms: the architecture's own loss terms by name.
        statistics: its scalar statistics by name.
        lr: learning rate used.
        stop: some process was asked to stop.
    """

    step: int
    loss: float
    grad_norm: float
    terms: dict[str, float]
    statistics: dict[str, float]
    lr: float
    stop: bool

    @property
    def finite(self) -> bool:
        return all(map(math.isfinite, (self.loss, self.grad_norm, *self.terms.values())))


class PendingResult:
    """A `StepResult` that may still be on its way from the device.

    Args:
        measured: loss, norm of the gradient, whether to stop, loss terms, scalar statistics.
        names: of the loss terms, and of the statistics.
    """

    def __init__(self, step: int, measured: Tensor, names: tuple[list[str], list[str]], lr: float) -> None:
        self.step, self.names, self.lr = step, names, lr
        self._host, self._arrived = measured, None
        if measured.is_cuda:
            self._host = torch.empty(measured.shape, dtype=measured.dtype, pin_memory=True)
            self._host.copy_(measured, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self) -> StepResult:
        """Wait for the update to be finished, and return what it measured."""
        if self._arrived is not None:
            self._arrived.synchronize()
        loss, norm, stop, *rest = self._host.tolist()
        n_terms = len(self.names[0])
        terms = dict(zip(self.names[0], rest[:n_terms], strict=True))
        statistics = dict(zip(self.names[1], rest[n_terms:], strict=True))
        return StepResult(self.step, loss, norm, terms, statistics, self.lr, stop > 0)


class Updater:
    """Holds what an update needs: the loss module (compiled or not), the optimisers, the mean of the weights.

    Where `reads_late` is true, the device itself skips updates that are not finite, so that the next update may be
    handed to it before the result of one is read.

    Args:
        model: the model to train, on `device`.
        config: the run.
        separator: token id between documents when attention stays inside one, else None.
        world: the processes that share the global batch.
        device: where the model lies.
        on_fallback: told why compilation was given up, if it was.

    Attributes:
        before_step: told of each update before the weights change: its number, its base rate and the factors of
            regions. Gradients are those of the whole batch, before clipping. None: nobody is.
    """

    before_step: BeforeStep | None = None

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
        # Many small kernels wait for the host; a captured graph is launched as one. Not beside a sum over processes.
        self.graphs = self.compiled and device.type == "cuda" and world.size == 1 and config.train.cuda_graphs == "auto"
        self._unproven = _TRIALS if self.compiled and config.compile == "auto" else 0
        self.loss: nn.Module = self._prepared()
        # Only fused AdamW can skip an update by a flag on the device, and only there is waiting for it expensive.
        self.reads_late = device.type == "cuda" and not self.average and len(self.optimizers) == 1
        self._broken = torch.zeros((), dtype=torch.bool, device=device)
        self._n_taken = 0

    @property
    def settled(self) -> bool:
        """Whether nothing is compiled or captured any more in the next update, so that others may use the device."""
        return not self.compiled or self._n_taken >= _TRIALS

    def _wants_compilation(self) -> bool:
        wish = self.config.compile
        return wish == "on" or (wish == "auto" and self.device.type == "cuda")

    def _prepared(self) -> nn.Module:
        if not self.compiled:
            return parallel(self.eager, self.world, self.device)
        mode = "reduce-overhead" if self.graphs else None
        compiled = cast(nn.Module, torch.compile(self.eager, dynamic=False, mode=mode))
        return parallel(compiled, self.world, self.device)

    def update(self, step: int, micro_batches: list[Tensor], stop: bool) -> PendingResult:
        """Take update `step`, counted from 1, unless something is not finite: then this one and all later ones leave
        the weights as they are.

        Dropout draws from a generator seeded by (seed, step, process): no state to save, and a resumed run draws the
        same.
        """
        torch.manual_seed(_mix(self.config.seed, step, self.world.rank))
        self.model.before_update(step, self.config.steps)
        if not self.model.training:
            self.model.train()
        losses = self._backward_all(micro_batches)
        loss, stopped, terms, statistics = self._agree(losses, stop)
        norm = self._gradient_norm()
        factors = multipliers(self.model, self.config.train.plasticity)
        scalars = {name: value.float() for name, value in statistics.items() if value.dim() == 0}
        scalars |= {f"plasticity/{region}": factor for region, factor in factors.items()}
        needed = torch.stack([loss, norm, stopped, *terms.values()])
        measured = torch.cat([needed, torch.stack([*scalars.values()])]) if scalars else needed
        lr = self.config.lr * lr_factor(step, self.config.steps, self.config.train)
        pending = PendingResult(step, measured, (list(terms), list(scalars)), lr)
        set_lr(self.optimizers, lr, factors)
        self._n_taken += 1
        if self.before_step is not None:
            self.before_step(step, lr, factors)
        if self.reads_late:
            self._step_on_device(needed, norm)
        elif pending.read().finite:
            self._step_from_host(norm)
        with torch.no_grad():
            self.model.after_update(statistics)
        return pending

    def _agree(self, losses: list[Losses], stop: bool) -> tuple[Tensor, Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Means over micro-batches and processes, by one sum over processes: loss, wish to stop, terms, statistics."""
        flat = [torch.cat([loss.cross_entropy.view(1), *_flat(loss.terms), *_flat(loss.statistics)]) for loss in losses]
        mean = flat[0] if len(flat) == 1 else torch.stack(flat).mean(0)
        shared = total(torch.cat([mean, mean.new_full((1,), float(stop))]), self.world) / self.world.size
        first = losses[0]
        sizes = [1, *(t.numel() for t in (*first.terms.values(), *first.statistics.values())), 1]
        loss, *parts, stopped = shared.split(sizes)
        terms = {name: part[0] for name, part in zip(first.terms, parts, strict=False)}
        rest = zip(first.statistics.items(), parts[len(terms) :], strict=True)
        return loss[0], stopped[0], terms, {name: part.view(value.shape) for (name, value), part in rest}

    def _gradient_norm(self) -> Tensor:
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))

    def _step_on_device(self, measured: Tensor, norm: Tensor) -> None:
        """Let the fused kernel clip and skip, so that the host need not wait for the device before the next update."""
        self._broken.logical_or_(~measured.isfinite().all())
        clip = self.config.train.clip
        for optimizer in self.optimizers:
            optimizer.grad_scale = (norm / clip).clamp(min=1.0) if clip else None  # type: ignore[attr-defined]
            optimizer.found_inf = self._broken.float()  # type: ignore[attr-defined]
            optimizer.step()

    def _step_from_host(self, norm: Tensor) -> None:
        clip = self.config.train.clip
        if clip:
            torch.nn.utils.clip_grads_with_norm_(list(self.model.parameters()), clip, norm)
        for optimizer in self.optimizers:
            optimizer.step()
        self._average()

    def _backward_all(self, micro_batches: list[Tensor]) -> list[Losses]:
        """Gradients of the mean loss. Compilation fails in many ways and not only in the first call: while it is
        unproven, a failure leads to the next plainer way, and eager code says what is really wrong."""
        if self.graphs and len(micro_batches) > 1:  # gradients would add up in memory that a graph uses again
            self.graphs = False
            self.loss = self._prepared()
        while self._unproven:
            try:
                losses = self._backwards(micro_batches)
                self._unproven -= 1
                return losses
            except Exception as error:
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                said = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:300]}"
            self.graphs, self.compiled = False, self.graphs and "cudagraph" in said.lower()
            self._unproven = _TRIALS if self.compiled else 0
            self.loss = self._prepared()
            if not self.compiled:
                self.on_fallback(said)
        return self._backwards(micro_batches)

    def _backwards(self, micro_batches: list[Tensor]) -> list[Losses]:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        if self.graphs:
            torch.compiler.cudagraph_mark_step_begin()
        last = len(micro_batches) - 1
        return [self._backward(ids, len(micro_batches), last=i == last) for i, ids in enumerate(micro_batches)]

    def _backward(self, ids: Tensor, n_micro: int, last: bool) -> Losses:
        if self.world.size > 1 and not last:
            with cast(DistributedDataParallel, self.loss).no_sync():
                return self._backward_here(ids, n_micro)
        return self._backward_here(ids, n_micro)

    def _backward_here(self, ids: Tensor, n_micro: int) -> Losses:
        loss, terms, statistics = self.loss(ids)
        objective = loss if not terms else loss + torch.stack(list(terms.values())).sum()
        (objective / n_micro).backward()
        return Losses(loss.detach(), {name: term.detach() for name, term in terms.items()}, statistics)

    @torch.no_grad()
    def _average(self) -> None:
        if self.average is not None:
            own = [p.detach() for p in self.model.parameters()]
            torch._foreach_lerp_(list(self.average.values()), own, 1 - self.config.train.ema)


def _flat(named: dict[str, Tensor]) -> list[Tensor]:
    return [value.detach().float().flatten() for value in named.values()]


def _mix(*numbers: int) -> int:
    """One seed of several numbers: a 63-bit hash, the same everywhere."""
    state = 0x9E3779B97F4A7C15
    for number in numbers:
        state = (state ^ number) * 0xBF58476D1CE4E5B9 % 2**64
        state ^= state >> 29
    return state >> 1
