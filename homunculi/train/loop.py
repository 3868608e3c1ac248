"""The training loop: update → checkpoint → evaluate → sample → write the line, and the same again after a crash.

What a step did is complete once its metric line is written; everything before that can be repeated without a trace,
because batches, dropout and samples are pure functions of the step.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from homunculi.errors import DIVERGED, HomunculiError, Stopped
from homunculi.instruments.registry import require
from homunculi.runs.directory import RunDirectory
from homunculi.text.batches import Batches
from homunculi.train.after import after_update, diverge, is_anything_due, is_due, line_of, stop
from homunculi.train.checkpoint import Progress
from homunculi.train.config import RunConfig
from homunculi.train.distributed import World, agreed_path, joined, wait_for_all, world_of_environment
from homunculi.train.feed import Fed, Feed
from homunculi.train.plan import make_plan
from homunculi.train.precision import resolve_device, set_switches
from homunculi.train.record import Heartbeat, Record, Silence
from homunculi.train.session import Reporter, Session, begin, build_model, check_context, prepare_text, with_vocabulary
from homunculi.train.signals import StopRequest, listening
from homunculi.train.step import PendingResult, Updater
from homunculi.train.watching import begin_watch


def train(config: RunConfig, run: RunDirectory, reporter: Reporter) -> dict[str, Any]:
    """Train, or go on training, the run in `run`, whose run.json holds `config`.

    Returns what `homunculi train --json` prints.

    Raises:
        InputError: configuration, data or disk cannot do what is asked.
        Diverged: a loss or gradient was not finite; the batch is kept and weights are those of before.
        Stopped: a signal asked for it; a checkpoint was written.
    """
    world = world_of_environment()
    device = resolve_device(config.device, world.local_rank)
    heartbeat = Heartbeat(run, config.steps) if world.writes else Silence()
    try:
        if config.instruments.watch == "on":  # by every process, before any waits for another
            require(config.instruments.names)
        with joined(world, device), listening() as stop_request:
            _train_joined(config, run, reporter, world, device, heartbeat, stop_request)
    except BaseException as error:
        _finish_badly(run, heartbeat, error)
        raise
    heartbeat.finish(state="done", step=config.steps, exit_code=0)
    return finished_summary(config, run) if world.writes else {}


def _train_joined(
    config: RunConfig,
    run: RunDirectory,
    reporter: Reporter,
    world: World,
    device: torch.device,
    heartbeat: Heartbeat | Silence,
    stop_request: StopRequest,
) -> None:
    run = RunDirectory(agreed_path(str(run.path), world))
    text = prepare_text(config, world, reporter)
    config = with_vocabulary(config, text.tokenizer.vocab_size)
    switches = set_switches(config)
    model = build_model(config, device)
    budget = model.budget(config.model.max_seq_len)
    plan = make_plan(config, budget, text.facts["n_tokens"]["train"], world, device, run.path)
    check_context(model, text, plan)

    def on_fallback(reason: str) -> None:
        reporter.message(f"compilation failed, going on without it ({reason})")
        if world.writes:
            run.log_event("compile", outcome="fell back to eager", reason=reason)

    separator = text.tokenizer.eot_id if config.text.document_mask else None
    updater = Updater(model, config, separator, world, device, on_fallback)
    with begin_watch(config, run, updater, text, reporter.message) as watch:  # while the weights are the first ones
        session = Session(
            config,
            run,
            world,
            device,
            text,
            plan,
            budget,
            updater,
            Record(run),
            heartbeat,
            reporter,
            stop_request,
            watch,
        )
        progress = begin(session, switches)
        watch.count_on(session.record.logged.get(progress.step, {}))
        with _fed(session, progress) as feed:
            progress = _steps(session, feed, progress)
            watch.report(progress.step)
            if world.writes:
                run.log_event("done", step=progress.step, stream_hash=progress.stream_hash)
    wait_for_all(world)


@contextmanager
def _fed(session: Session, progress: Progress) -> Iterator[Feed]:
    config, plan = session.config, session.plan
    batches = Batches(session.text, seq_len=plan.seq_len, n_sequences=plan.n_sequences, seed=config.data_seed)
    pin = session.device.type == "cuda"
    feed = Feed(batches, progress.step, config.steps, session.world, plan.n_micro, progress.stream_hash, pin)
    try:
        yield feed
    finally:
        feed.close()


class Pace:
    """Time spent in updates, evaluation and checkpoints left out."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._mark = (seconds, 0, 0.0)  # seconds, steps, seconds waited, at the last reading
        self._steps = 0
        self.start()

    def start(self) -> None:
        self._started = time.perf_counter()

    def stop(self) -> None:
        self.seconds += time.perf_counter() - self._started
        self._steps += 1

    def read(self, batch_tokens: int, waited: float) -> dict[str, float]:
        """Throughput since the last reading."""
        seconds, steps, waited_before = self._mark
        self._mark = (self.seconds, self._steps, waited)
        took = max(1e-9, self.seconds - seconds)
        return {
            "perf/tokens_per_s": (self._steps - steps) * batch_tokens / took,
            "perf/data_wait_frac": min(1.0, (waited - waited_before) / took),
        }


def _steps(session: Session, feed: Feed, progress: Progress) -> Progress:
    """All remaining updates, each followed by what is due.

    What an update measured is read after the next one has been handed to the device, unless it is needed before; so
    the device never waits for the host.
    """
    if progress.step:
        after_update(session, progress)
    else:
        session.watch.look(0)
    pace = Pace(progress.seconds)
    late: tuple[Fed, PendingResult] | None = None
    for fed in feed:
        ids = [part.to(session.device, non_blocking=True) for part in fed.micro_batches]
        pending = session.updater.update(fed.step, ids, bool(session.stop_request))
        stopping = False
        if late is not None:
            progress, stopping = _complete(session, feed, pace, *late)
        late = (fed, pending)
        # Whether to read now depends on nothing that differs between processes, so that all stop at the same step.
        if stopping or not session.updater.reads_late or is_anything_due(session.config, fed.step):
            progress, now_stopping = _complete(session, feed, pace, *late)
            late = None
            if stopping or now_stopping:
                stop(session, progress)
            after_update(session, progress)
            pace.start()
    return progress


def _complete(session: Session, feed: Feed, pace: Pace, fed: Fed, pending: PendingResult) -> tuple[Progress, bool]:
    """Read what an update measured: where the run stands after it, and whether some process was asked to stop."""
    result = pending.read()
    pace.stop()
    pace.start()
    if not result.finite:
        diverge(session, fed, result)
    line = line_of(session, fed.step, result)
    if is_due(fed.step, session.config.output.log_every, session.config.steps):
        line |= pace.read(session.config.batch_tokens, feed.waited) | {"seconds": round(pace.seconds, 3)}
    return Progress(fed.step, fed.stream_hash, pace.seconds, line), result.stop


def _finish_badly(run: RunDirectory, heartbeat: Heartbeat | Silence, error: BaseException) -> None:
    """Write how the run ended, as far as the disk allows."""
    code = getattr(error, "exit_code", 130 if isinstance(error, KeyboardInterrupt) else 1)
    state = "preempted" if isinstance(error, (Stopped, KeyboardInterrupt)) else "failed"
    state = "diverged" if code == DIVERGED else state
    try:
        heartbeat.finish(state=state, reason=str(error)[:1000] or type(error).__name__, exit_code=code)
        if isinstance(heartbeat, Heartbeat) and not isinstance(error, HomunculiError):
            run.log_event("failed", reason=f"{type(error).__name__}: {error}"[:1000])
    except OSError:
        return  # the disk is full: the error itself is still raised and printed


def finished_summary(config: RunConfig, run: RunDirectory) -> dict[str, Any]:
    """What a finished run came to, read from its folder: the object that `homunculi train --json` prints."""
    info, line = run.info(), run.logged_steps().get(config.steps, {})
    seconds = line.get("seconds") or 0.0
    done = [event for event in run.events() if event.get("kind") == "done"]
    return {
        "run": str(run.path),
        "architecture": info.get("architecture"),
        "parameters": info.get("budget", {}).get("parameters"),
        "steps": config.steps,
        "tokens": config.steps * config.batch_tokens,
        "train_loss": line.get("train/loss"),
        "val_loss": line.get("val/loss"),
        "val_bpb": line.get("val/bpb"),
        "tokens_per_s": config.steps * config.batch_tokens / seconds if seconds else None,
        "seconds": seconds,
        "instruments_s": line.get("perf/instruments_s"),
        "instruments_worker_s": line.get("perf/instruments_worker_s"),
        "stream_hash": done[-1].get("stream_hash") if done else None,
    }
