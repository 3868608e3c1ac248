"""Decoding steps in pieces, which a GPU runs again from recordings.

A step for one token a row is hundreds of small kernels: the host needs longer to launch them than the GPU to run them.
Between two reads by the host, such as who takes part in a pass, a step does the same work on the same memory each time;
a CUDA graph records it once and launches it whole. What a piece returned when it was recorded lies in memory that each
replay fills anew, so later pieces, recorded after it, find their arguments there.

A model says where its pieces begin and end by calling them through `pieces(key, function, …)`. `function` may read and
write tensors and nothing else: no value of a tensor on the host, no change of a Python object that outlives it. Its
arguments are results of earlier pieces of the step, or the same objects in every step.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")

MOST = 512  # recordings of one cache; a path beyond them runs as it is


def at_once(key: Hashable, piece: Callable[..., Result], *given: Any) -> Result:
    """Run a piece where there is nothing to record."""
    return piece(*given)


@dataclass(frozen=True, slots=True)
class Recording:
    """One piece.

    Attributes:
        replay: does its work again.
        result: what it returned; its tensors are filled by each replay.
    """

    replay: Callable[[], None]
    result: Any


Recorder = Callable[[Callable[[], Any]], Recording]


class Pieces:
    """The recordings of the steps of one cache.

    A piece is known by the keys of the pieces before it and its own. It runs as it is when it is met first, is recorded
    when it is met again after recorded pieces, and replayed from then on. A piece that cannot be recorded ends all
    recording; it runs as it is.
    """

    def __init__(self) -> None:
        self._record: Recorder | None = None
        self._found: dict[tuple[Hashable, ...], Recording] = {}
        self._met: set[tuple[Hashable, ...]] = set()
        self._path: tuple[Hashable, ...] = ()
        self._stepping = self._still = False

    @property
    def records(self) -> bool:
        """Whether this step is recorded: its shapes must depend on keys alone."""
        return self._stepping and self._record is not None

    def record(self, recorder: Recorder) -> None:
        """From now on record steps."""
        self._record = recorder

    @contextmanager
    def step(self, recordable: bool) -> Iterator[None]:
        """One forward; `recordable`: of one token a row, to which nobody listens."""
        self._path, self._stepping, self._still = (), recordable, True
        try:
            yield
        finally:
            self._stepping = False

    def __call__(self, key: Hashable, piece: Callable[..., Result], *given: Any) -> Result:
        """The result of `piece(*given)`."""
        if not self.records:
            return piece(*given)
        path = self._path = (*self._path, key)
        if self._still and path in self._found:
            found = self._found[path]
        elif self._still and path in self._met and len(self._found) < MOST:
            recording = self._try(lambda: piece(*given))
            if recording is None:
                return piece(*given)
            found = self._found[path] = recording
        else:
            self._met.add(path)
            self._still = False  # what follows has arguments that no replay will fill
            return piece(*given)
        found.replay()
        return found.result

    def _try(self, piece: Callable[[], Any]) -> Recording | None:
        assert self._record is not None
        try:
            return self._record(piece)
        except RuntimeError:  # it reads on the host, or does what a graph cannot hold
            self._record = None
            return None


class GraphRecorder:
    """Records pieces as CUDA graphs that share their memory. A recorded piece has not run: replay it."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()

    def __call__(self, piece: Callable[[], Any]) -> Recording:
        """Record one piece.

        Raises:
            RuntimeError: it cannot be recorded.
        """
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                result = piece()
            except BaseException:
                with suppress(RuntimeError):
                    graph.capture_end()
                raise
            graph.capture_end()
        current.wait_stream(self._stream)
        return Recording(graph.replay, result)
