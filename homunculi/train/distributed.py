"""More than one process: torchrun's environment, data-parallel wrapping, agreement. One process needs none of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True, slots=True)
class World:
    """The place of this process among all.

    Attributes:
        rank: from 0; rank 0 writes.
        size: number of processes.
        local_rank: rank on this machine, the index of its GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def writes(self) -> bool:
        return self.rank == 0


def world_of_environment() -> World:
    """The place that torchrun gave this process; without torchrun, the only one."""
    return World(
        rank=int(os.environ.get("RANK", "0")),
        size=int(os.environ.get("WORLD_SIZE", "1")),
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
    )


@contextmanager
def joined(world: World, device: torch.device) -> Iterator[None]:
    """Join the other processes for the duration of the block (gloo on CPUs, NCCL on GPUs)."""
    if world.size == 1:
        yield
        return
    if device.type == "cuda":
        dist.init_process_group("nccl", device_id=device)
    else:
        dist.init_process_group("gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def parallel(module: nn.Module, world: World, device: torch.device) -> nn.Module:
    """`module` with gradients averaged over processes; itself if there is one process."""
    if world.size == 1:
        return module
    return DistributedDataParallel(module, device_ids=[device.index] if device.type == "cuda" else None)


def total(values: Tensor, world: World) -> Tensor:
    """Sum over processes, the same bits on each."""
    if world.size > 1:
        dist.all_reduce(values)
    return values


def wait_for_all(world: World) -> None:
    if world.size > 1:
        dist.barrier()


def agreed_path(path: str, world: World) -> str:
    """The first process's path, on every process."""
    shared = [path]
    if world.size > 1:
        dist.broadcast_object_list(shared)
    return str(shared[0])


def agreed_number(number: float, world: World, device: torch.device) -> float:
    """The first process's number, on every process."""
    if world.size == 1:
        return number
    shared = torch.tensor(number, dtype=torch.float64, device=device)
    dist.broadcast(shared, src=0)
    return float(shared)
