"""The next batches, prepared on a thread while the device works. Legend: B sequences, T context."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from homunculi.text.batches import Batches, StreamHash
from homunculi.train.distributed import World


@dataclass(frozen=True, slots=True)
class Fed:
    """What one update reads.

    Attributes:
        step: counted from 1.
        micro_batches: tensors (B, T + 1) of this process, on the host.
        stream_hash: hash of all global batches up to and with this one (empty on processes that do not write).
    """

    step: int
    micro_batches: list[Tensor]
    stream_hash: str


class Feed:
    """Batches of the steps after `first`, up to `last`. A step's batch depends on its number alone.

    Attributes:
        waited: seconds the consumer has waited for data.
    """

    def __init__(
        self, batches: Batches, first: int, last: int, world: World, n_micro: int, stream_hash: str, pin: bool
    ) -> None:
        self.batches, self.world, self.n_micro, self.pin = batches, world, n_micro, pin
        self.waited = 0.0
        self._ready: queue.Queue[Fed | BaseException | None] = queue.Queue(maxsize=2)
        self._stopped = threading.Event()
        args = (first, last, StreamHash(stream_hash))
        self._thread = threading.Thread(target=self._fill, args=args, daemon=True, name="feed")
        self._thread.start()

    def __iter__(self) -> Iterator[Fed]:
        while True:
            start = time.perf_counter()
            fed = self._ready.get()
            self.waited += time.perf_counter() - start
            if isinstance(fed, BaseException):
                raise fed
            if fed is None:
                return
            yield fed

    def close(self) -> None:
        """Stop the thread; unread batches are dropped."""
        self._stopped.set()
        while self._thread.is_alive():
            with contextlib.suppress(queue.Empty):
                self._ready.get(timeout=0.05)

    def _fill(self, first: int, last: int, stream: StreamHash) -> None:
        try:
            for step in range(first + 1, last + 1):
                if self._stopped.is_set():
                    return
                self._ready.put(self._prepare(step, stream))
            self._ready.put(None)
        except BaseException as error:  # handed to the consumer, which raises it
            self._ready.put(error)

    def _prepare(self, step: int, stream: StreamHash) -> Fed:
        if self.world.writes:
            rows = self.batches.at(step - 1)
            stream.update(rows)
            share = len(rows) // self.world.size
            rows = rows[self.world.rank * share : (self.world.rank + 1) * share]
        else:
            rows = self.batches.at(step - 1, self.world.rank, self.world.size)
        ids = torch.from_numpy(rows)
        if self.pin:
            ids = ids.pin_memory()
        return Fed(step, list(ids.chunk(self.n_micro)), stream.hexdigest())
