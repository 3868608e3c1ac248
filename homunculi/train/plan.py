"""What a run will do, worked out before it does it."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from homunculi.core.budget import Budget
from homunculi.errors import InputError
from homunculi.train.config import RunConfig
from homunculi.train.distributed import World

_SPARE_BYTES = 64 * 2**20  # metrics, samples, report, tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Derived quantities of a run.

    Attributes:
        seq_len: context in tokens.
        n_sequences: of one update over all processes.
        n_micro: micro-batches that each process accumulates.
        tokens: of the whole run; epochs: the same in passes over the training text.
        checkpoint_bytes: of one checkpoint; disk_bytes: of all that are kept, one more in the making, and the records.
        free_bytes: on the run's disk.
    """

    seq_len: int
    n_sequences: int
    n_micro: int
    tokens: int
    epochs: float
    checkpoint_bytes: int
    disk_bytes: int
    free_bytes: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def make_plan(
    config: RunConfig, budget: Budget, n_train_tokens: int, world: World, device: torch.device, folder: Path
) -> Plan:
    """Derive the plan and check that the batch can be divided and the disk can hold it.

    Raises:
        InputError: `batch_tokens` does not divide, or the disk is too small.
    """
    seq_len = config.model.max_seq_len
    unit = seq_len * world.size
    if config.batch_tokens % unit:
        nearest = max(1, round(config.batch_tokens / unit)) * unit
        processes = f" × {world.size} processes" if world.size > 1 else ""
        raise InputError(
            f"batch_tokens: {config.batch_tokens} is not a multiple of the context of {seq_len}{processes}; "
            f"use batch_tokens={nearest}, or set model.max_seq_len"
        )
    tensors = 3 + (config.train.ema > 0)
    checkpoint_bytes = 4 * tensors * budget.parameters
    kept = config.output.keep_last + 2
    if config.output.keep_every:
        kept += config.steps // config.output.keep_every
    return Plan(
        seq_len=seq_len,
        n_sequences=config.batch_tokens // seq_len,
        n_micro=_micro_batches(config, world, device),
        tokens=config.steps * config.batch_tokens,
        epochs=config.steps * config.batch_tokens / max(1, n_train_tokens),
        checkpoint_bytes=checkpoint_bytes,
        disk_bytes=checkpoint_bytes * kept + _SPARE_BYTES,
        free_bytes=shutil.disk_usage(folder).free,
    )


def _micro_batches(config: RunConfig, world: World, device: torch.device) -> int:
    """The fewest equal pieces of a process's share that respect `micro_tokens`."""
    most = config.train.micro_tokens or (16_384 if device.type == "cpu" else 65_536)
    own = config.batch_tokens // config.model.max_seq_len // world.size
    for pieces in range(1, own + 1):
        if own % pieces == 0 and own // pieces * config.model.max_seq_len <= most:
            return pieces
    return own


def check_disk(plan: Plan, folder: Path) -> str | None:
    """A warning when the plan takes most of the free disk, None when there is plenty.

    Raises:
        InputError: the plan needs more than there is.
    """
    needed, free = plan.disk_bytes / 2**20, plan.free_bytes / 2**20
    if plan.disk_bytes > plan.free_bytes:
        raise InputError(
            f"{folder}: the run needs {needed:,.0f} MiB of disk and {free:,.0f} MiB are free; "
            "free some, lower output.keep_last or raise output.keep_every"
        )
    if plan.free_bytes - plan.disk_bytes < 0.1 * shutil.disk_usage(folder).total:
        return f"{folder}: less than 10 % of the disk will be free when this run has written its checkpoints"
    return None


def describe(config: RunConfig, plan: Plan, budget: Budget, facts: dict[str, Any]) -> list[str]:
    """The plan as lines for a person."""

    def when(every: int) -> str:
        return f"every {every} steps and at the end" if every else "at the end"

    n_tokens = facts["n_tokens"]
    params = (
        f"{budget.parameters:,} stored, {budget.non_embedding_parameters:,} without token tables "
        f"({budget.embedding_parameters:,}), {budget.executed_parameters:,} executed a token"
    )
    return [
        f"parameters   {params}",
        f"cost         {budget.flops_per_token / 1e6:,.1f} MFLOP a token forward, "
        f"{budget.cache_bytes_per_token:,} bytes of cache a token",
        f"data         {config.corpus}: {n_tokens['train']:,} tokens to train on, {n_tokens['val']:,} held out",
        f"steps        {config.steps:,} × {config.batch_tokens:,} tokens = {plan.tokens:,} ({plan.epochs:.2f} epochs), "
        f"{plan.n_sequences} sequences of {plan.seq_len}" + (f" in {plan.n_micro} parts" if plan.n_micro > 1 else ""),
        f"evaluate     {when(config.eval_every)}; sample {when(config.sample_every)}",
        f"checkpoint   {when(config.checkpoint_every)}; the last {config.output.keep_last} and the best are kept; "
        f"{plan.disk_bytes / 2**20:,.0f} MiB of {plan.free_bytes / 2**20:,.0f} MiB free disk",
    ]
