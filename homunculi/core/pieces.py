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

import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

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


class Recorder(Protocol):
    """What makes recordings."""

    def watch(self, piece: Callable[[], Result]) -> tuple[Result, bool]:
        """Run a piece; its result, and whether it can be recorded."""

    def record(self, piece: Callable[[], Any]) -> Recording:
        """Record a piece without running it.

        Raises:
            RuntimeError: it cannot be recorded after all.
        """


class Pieces:
    """The recordings of the steps of one cache.

    A piece is known by the keys of the pieces before it and its own. It runs as it is when it is met first, is recorded
    when it is met again after recorded pieces, and replayed from then on. A piece that cannot be recorded ends all
    recording; it runs as it is.
    """

    def __init__(self) -> None:
        self._recorder: Recorder | None = None
        self._found: dict[tuple[Hashable, ...], Recording] = {}
        self._met: set[tuple[Hashable, ...]] = set()
        self._path: tuple[Hashable, ...] = ()
        self._stepping = self._still = False

    @property
    def records(self) -> bool:
        """Whether this step is recorded: its shapes must depend on keys alone."""
        return self._stepping and self._recorder is not None

    def record(self, recorder: Recorder) -> None:
        """From now on record steps."""
        self._recorder = recorder

    def forget(self) -> None:
        """Give up all recordings, and with them what they keep: they refer to the cache that they belong to."""
        self._recorder = None
        self._found.clear()

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
            self._still = False  # what follows has arguments that no replay will fill
            return self._meet(path, lambda: piece(*given))
        found.replay()
        return found.result

    def _meet(self, path: tuple[Hashable, ...], piece: Callable[[], Result]) -> Result:
        if path in self._met or self._recorder is None:
            return piece()
        self._met.add(path)
        result, recordable = self._recorder.watch(piece)
        if not recordable:
            self._recorder = None
        return result

    def _try(self, piece: Callable[[], Any]) -> Recording | None:
        assert self._recorder is not None
        try:
            return self._recorder.record(piece)
        except RuntimeError:
            self._recorder = None
            return None


class GraphRecorder:
    """Records pieces as CUDA graphs that share their memory."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)
        with torch.cuda.device(device):
            self._pool = torch.cuda.graph_pool_handle()

    def watch(self, piece: Callable[[], Result]) -> tuple[Result, bool]:
        """See `Recorder`. What waits for the device cannot be recorded, and a recording that fails spoils the device's
        generator of random numbers: so it is asked first."""
        mode = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                result = piece()
            finally:
                torch.cuda.set_sync_debug_mode(mode)
        waited = [one for one in said if "called a synchronizing" in str(one.message)]
        for one in said:
            if one not in waited and "debug mode" not in str(one.message):
                warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
        return result, not waited

    def record(self, piece: Callable[[], Any]) -> Recording:
        """See `Recorder`."""
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream), warnings.catch_warnings():  # a stream brings its device
            warnings.simplefilter("ignore")  # a piece without any work is a graph like another
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
