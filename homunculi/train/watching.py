"""Instruments while a model trains: they read a copy of its weights, on a thread of their own.

At a step that is due the training thread copies the weights (their running mean, where evaluation uses it) into a
second model, and goes on. A worker thread runs the probe batch through the copy, eagerly, hands what passed to the
instruments, and writes what they found into the run. On a GPU the copies lie on the same device, and the worker has a
stream of its own. A step that is due waits where no copy is idle: on a CPU there is one.

Training comes to the same bits with and without: nothing here draws a random number, or writes to the model.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property
from threading import Thread
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from homunculi.core.model import LanguageModel
from homunculi.instruments.observation import Observation, UpdateSeen
from homunculi.instruments.observing import measure, observe, store, suitable
from homunculi.instruments.registry import Instrument
from homunculi.runs.directory import RunDirectory
from homunculi.runs.measures import Stored, write_measurement
from homunculi.settings import to_json
from homunculi.text.shards import TokenisedText
from homunculi.text.tokenizers import byte_lengths
from homunculi.train.config import RunConfig
from homunculi.train.copies import Copies
from homunculi.train.step import Updater
from homunculi.train.watch_plan import described, is_watched, probe_of

_TRAINING, _WORKER = "perf/instruments_s", "perf/instruments_worker_s"

Named = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class _Trace:
    """Copies of what an update started from."""

    step: int
    lr: float
    gradients: Named
    before: Named
    factors: Named


@dataclass(frozen=True, slots=True)
class _Moment:
    """What the worker is given: a step, whose weights lie in the copy once `ready` has passed.

    Attributes:
        after: the weights themselves, where the copy holds their running mean.
    """

    step: int
    copy: LanguageModel
    trace: _Trace | None
    after: Named | None
    ready: torch.cuda.Event | None


class Unwatched:
    """Nothing is measured: asked for, or by a process that does not write."""

    def __init__(self, plan: list[str]) -> None:
        self.plan = plan
        self.costs: dict[str, float] = {}

    def look(self, step: int) -> None:
        """Nothing is measured."""

    def finish(self) -> None:
        """Nothing is under way."""

    def count_on(self, line: Mapping[str, Any]) -> None:
        """Nothing is counted."""

    def report(self, step: int) -> None:
        """Nothing is said."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing is held."""


class Watch:
    """The instruments of a run in the process that writes it. Methods are for the training thread.

    Args:
        instruments: those that suit the model.
        updater: whose model is watched; its weights are the first ones.
        on_message: told of each instrument that fails.

    Attributes:
        plan: what is measured and when, as lines for a person.
    """

    def __init__(
        self,
        config: RunConfig,
        run: RunDirectory,
        updater: Updater,
        text: TokenisedText,
        instruments: list[Instrument],
        on_message: Callable[[str], None],
    ) -> None:
        self.config, self.run, self.updater, self.text, self.on_message = config, run, updater, text, on_message
        self.instruments = list(instruments)
        self.plan = described(config, instruments)
        self.copies = Copies(updater.model, updater.device)
        self.first = {name: p.detach().to("cpu", copy=True) for name, p in updater.model.named_parameters()}
        settings = config.instruments
        self.ids_BT = probe_of(text, config.model.max_seq_len, settings.probe_tokens).to(updater.device)
        masks = config.text.document_mask  # the probe is read as training and evaluation read
        self.documents_BT = (self.ids_BT == text.tokenizer.eot_id).cumsum(1) if masks else None
        self.options = to_json(settings)
        self.n_measurements = 0
        self.seconds = {_TRAINING: 0.0, _WORKER: 0.0}
        self.processor_s = 0.0
        self._stream = torch.cuda.Stream(updater.device) if updater.device.type == "cuda" else None
        self._worker = ThreadPoolExecutor(1, "instruments", _compute_on_one_thread)
        self._under_way: deque[tuple[int, Future[None]]] = deque()
        self._held: deque[_Moment] = deque()
        self._trace: _Trace | None = None
        if self._reading("update"):
            updater.before_step = self._before_step

    # The training thread.

    def look(self, step: int) -> None:
        """Have the model measured as it is after `step`, if that is due; waits until a copy is idle."""
        if not is_watched(self.config, step):
            return
        with self._counted(_TRAINING):
            settled = self.updater.settled  # else nothing may compute beside what is compiled or captured
            if len(self._held) + len(self._under_way) >= self.copies.n:
                self._wait(self.copies.n - 1 if settled else 0)
            try:
                moment = self._copied(step)
            except Exception as error:  # a device without room for the copies
                self._leave_out(self.instruments, step, error)
                return
            self._held.append(moment)
            if settled:
                self._submit()
            if self.updater.device.type == "mps":  # which takes one thread at a time
                self._wait()

    def finish(self) -> None:
        """Wait until all that was asked for is written."""
        with self._counted(_TRAINING):
            self._wait()

    @property
    def costs(self) -> dict[str, float]:
        """Seconds so far in the training thread, and in the worker."""
        return {key: round(value, 4) for key, value in self.seconds.items()}

    def count_on(self, line: Mapping[str, Any]) -> None:
        """Go on counting from the metric line of the step from which a run goes on."""
        for key in self.seconds:
            self.seconds[key] += float(line.get(key) or 0.0)

    def report(self, step: int) -> None:
        """Write what was measured and what it took as an event."""
        self.finish()
        took = {key.removeprefix("perf/"): value for key, value in self.costs.items()}
        took["processor_s"] = round(self.processor_s, 4)  # of the worker since this process began
        about = {"names": [one.name for one in self.instruments], "measurements": self.n_measurements}
        self.run.log_event("instruments", step=step, **about, **took)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.updater.before_step = None
        self._submit()  # also of a run that ended badly
        self._worker.shutdown(wait=True)

    def _submit(self) -> None:
        """Give the worker what was held back while code was compiled or graphs were captured."""
        while self._held:
            moment = self._held.popleft()
            self._under_way.append((moment.step, self._worker.submit(self._work, moment)))

    def _wait(self, n_left: int = 0) -> None:
        """Until no more than that many measurements are under way, and none is held back."""
        self._submit()
        while len(self._under_way) > n_left:
            step, under_way = self._under_way.popleft()
            try:
                under_way.result()
            except Exception as error:  # of no single instrument
                self._leave_out(self.instruments, step, error)

    def _before_step(self, step: int, lr: float, factors: Named) -> None:
        """Copy what instruments of an update read, before clipping changes the gradients and the step the weights."""
        self._trace = None
        if not is_watched(self.config, step) or not self._reading("update"):
            return
        with self._counted(_TRAINING):
            parameters = dict(self.updater.model.named_parameters())
            try:
                gradients = {name: p.grad.detach().clone() for name, p in parameters.items() if p.grad is not None}
                before = _copies(parameters)
            except Exception as error:
                self._wait()
                self._leave_out(self._reading("update"), step, error)
                return
            self._trace = _Trace(step, lr, gradients, before, dict(factors))

    def _copied(self, step: int) -> _Moment:
        trace, self._trace = self._trace, None
        trace = trace if trace is not None and trace.step == step else None
        mine = self.copies.take()
        try:
            after = self._fill(mine, step, trace)
        except Exception:
            self.copies.give_back(mine)
            raise
        on_device = self._stream is not None
        ready = torch.cuda.current_stream(self.updater.device).record_event() if on_device else None
        return _Moment(step, mine, trace, after, ready)

    def _fill(self, mine: LanguageModel, step: int, trace: _Trace | None) -> Named | None:
        """Copy the weights, or their running mean; of a trace then the weights themselves as well."""
        model, average = self.updater.model, self.updater.average
        mine.before_update(max(1, step), self.config.steps)
        mine.load_state_dict(model.state_dict())
        if average is None:
            return None
        with torch.no_grad():
            for name, parameter in mine.named_parameters():
                parameter.copy_(average[name])
        return _copies(dict(model.named_parameters())) if trace is not None else None

    @contextmanager
    def _counted(self, key: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[key] += time.perf_counter() - started

    # The worker.

    def _work(self, moment: _Moment) -> None:
        processor = time.thread_time()
        try:
            with self._counted(_WORKER), self._beside(moment), torch.no_grad():
                self._measure_forward(moment)
                if moment.trace is not None:
                    self._measure_update(moment, moment.trace)
        finally:
            self.copies.give_back(moment.copy)
        self.processor_s += time.thread_time() - processor

    @contextmanager
    def _beside(self, moment: _Moment) -> Iterator[None]:
        """On a GPU: in the worker's stream, after the copies, and until all of it is done."""
        with torch.cuda.stream(self._stream) if self._stream is not None else nullcontext():
            if self._stream is not None and moment.ready is not None:
                self._stream.wait_event(moment.ready)
            yield
            if self._stream is not None:
                self._stream.synchronize()

    def _measure_forward(self, moment: _Moment) -> None:
        mine, step = self._reading("forward"), moment.step
        if not mine:
            return
        try:
            seen = self._observe(mine, moment)
        except Exception as error:
            self._leave_out(mine, step, error)
            return
        tokens = step * self.config.batch_tokens
        for one in mine:
            self._keep(one, step, lambda one=one: measure([one], seen, tokens).get(one.name))  # type: ignore[misc]

    def _observe(self, mine: list[Instrument], moment: _Moment) -> Observation:
        return observe(
            moment.copy,
            self.ids_BT,
            [pattern for one in mine for pattern in one.taps],
            self.documents_BT,
            step=moment.step,
            pieces=self._pieces,
            byte_lengths=self._byte_lengths,
            encode=self.text.tokenizer.encode,
            first=self.first,
            options=self.options,
        )

    def _measure_update(self, moment: _Moment, trace: _Trace) -> None:
        after = moment.after or {name: p.detach() for name, p in moment.copy.named_parameters()}
        factors = {name: float(factor) for name, factor in trace.factors.items()}
        seen = UpdateSeen(trace.step, trace.lr, trace.gradients, trace.before, after, factors)

        def found(one: Instrument) -> Stored | None:
            result = one.measure(seen)
            return None if result is None else store(one, result, trace.step, trace.step * self.config.batch_tokens)

        for one in self._reading("update"):
            self._keep(one, trace.step, lambda one=one: found(one))  # type: ignore[misc]

    def _keep(self, one: Instrument, step: int, find: Callable[[], Stored | None]) -> None:
        try:
            stored = find()
            if stored is not None:
                write_measurement(self.run.path, stored)
                self.n_measurements += 1
        except Exception as error:
            self._leave_out([one], step, error)

    def _leave_out(self, failed: list[Instrument], step: int, error: Exception) -> None:
        """Go on without them, and say why."""
        said = " ".join(str(error).replace(f"{self.run.path}/", "").split())  # a run holds no path of its machine
        reason = f"{type(error).__name__}: {said}"[:300]
        self.instruments = [one for one in self.instruments if one not in failed]
        for one in failed:
            self.on_message(f"instrument {one.name} is left out from step {step} on ({reason})")
            with suppress(OSError):  # a full disk: the loop's own writes report it
                self.run.log_event("instrument_failed", step=step, name=one.name, reason=reason)

    def _reading(self, what: str) -> list[Instrument]:
        return [one for one in self.instruments if one.reads == what]

    @cached_property
    def _pieces(self) -> tuple[str, ...]:
        tokenizer = self.text.tokenizer
        return tuple(tokenizer.token_bytes(i).decode("utf-8", "replace") for i in range(tokenizer.vocab_size))

    @cached_property
    def _byte_lengths(self) -> tuple[int, ...]:
        return tuple(byte_lengths(self.text.tokenizer).tolist())


def begin_watch(
    config: RunConfig, run: RunDirectory, updater: Updater, text: TokenisedText, on_message: Callable[[str], None]
) -> Watch | Unwatched:
    """The instruments of a run whose first step is yet to come, and whose model has its first weights.

    Raises:
        InputError: an instrument was asked for by a name that none has.
    """
    if config.instruments.watch == "off":
        return Unwatched(["instruments  off"])
    if not updater.world.writes:
        return Unwatched([])
    started = time.perf_counter()
    with _random_numbers_kept(updater.device):
        found = suitable(updater.model, config.instruments.names)
        if not found:
            return Unwatched(["instruments  none that suit this model"])
        watch = Watch(config, run, updater, text, found, on_message)
    watch.seconds[_TRAINING] += time.perf_counter() - started
    return watch


@contextmanager
def _random_numbers_kept(device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


def _copies(named: Mapping[str, Tensor]) -> Named:
    return {name: tensor.detach().clone() for name, tensor in named.items()}


def _compute_on_one_thread() -> None:
    """Leave the processor to training: this thread computes alone, threads that come later as before."""
    n_threads = torch.get_num_threads()
    if n_threads > 1:
        torch.set_num_threads(1)  # of this thread, and of all that begin from now on
        other = Thread(target=torch.set_num_threads, args=(n_threads,))
        other.start()
        other.join()
