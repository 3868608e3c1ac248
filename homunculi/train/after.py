"""What follows an update, in this order: copy for instruments, checkpoint, evaluation, sample, metric line, clean-up of
checkpoints.

An update is complete once its metric line is written; everything before that can be repeated without a trace.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from homunculi.errors import PREEMPTED, Diverged, Stopped
from homunculi.evals.generation import Sampling, continue_text
from homunculi.evals.loss import held_out_loss
from homunculi.text.batches import validation_windows
from homunculi.text.tokenizers import byte_lengths
from homunculi.train.checkpoint import Progress, retain, save_checkpoint
from homunculi.train.config import RunConfig
from homunculi.train.distributed import agreed_number, wait_for_all
from homunculi.train.feed import Fed
from homunculi.train.session import Session
from homunculi.train.step import StepResult, Updater
from homunculi.train.watch_plan import is_watched


def line_of(session: Session, step: int, result: StepResult) -> dict[str, Any]:
    tokens = step * session.config.batch_tokens
    return {
        "tokens": tokens,
        "flops": 3 * session.budget.flops_per_token * tokens,
        "train/loss": result.loss,
        "train/grad_norm": result.grad_norm,
        "lr": result.lr,
        **{f"aux/{name}": value for name, value in result.terms.items()},
        **{f"model/{name}": value for name, value in result.statistics.items()},
    }


def is_due(step: int, every: int, steps: int) -> bool:
    """Whether something of that period happens after `step`; at the last step everything does."""
    return step == steps or (every > 0 and step % every == 0)


def is_anything_due(config: RunConfig, step: int) -> bool:
    """Whether `after_update` has more to do after `step` than to show progress."""
    periods = (config.checkpoint_every, config.eval_every, config.sample_every, config.output.log_every)
    return is_watched(config, step) or any(is_due(step, every, config.steps) for every in periods)


def after_update(session: Session, progress: Progress) -> None:
    """What follows an update, in the order above."""
    val_loss = _after_update(session, progress) if session.world.writes else 0.0
    if is_due(progress.step, session.config.eval_every, session.config.steps):
        session.model.after_evaluation(agreed_number(val_loss, session.world, session.device))


def _after_update(session: Session, progress: Progress) -> float:
    """What the writing process does; returns the validation loss where there is one."""
    config, step = session.config, progress.step
    session.heartbeat.set(step=step, tokens=progress.last["tokens"])
    session.reporter.progress(step, config.steps, progress.last["train/loss"])
    folder = session.run.path / "checkpoints"
    saves = is_due(step, config.checkpoint_every, config.steps)
    evaluates = is_due(step, config.eval_every, config.steps)
    session.watch.look(step)
    if saves:
        session.watch.finish()  # a run that goes on from here does not measure again what came before
        _save(session, folder, progress)
    line = dict(progress.last)
    if evaluates:
        line |= _evaluate(session)
        session.run.log_event("evaluated", step=step, loss=line["val/loss"])
    if is_due(step, config.sample_every, config.steps) and not session.model.cacheless:
        _sample(session, step)
    if evaluates or is_due(step, config.output.log_every, config.steps):
        line |= session.watch.costs
        session.record.log(step, line)
        session.reporter.metrics({"step": step} | line, config.steps)
    if saves:
        gone = retain(folder, config.output.keep_last, config.output.keep_every, session.record.val_losses())
        if gone:
            session.run.log_event("checkpoints_deleted", step=step, steps=gone)
    return line.get("val/loss", 0.0)


def _save(session: Session, folder: Path, progress: Progress) -> None:
    new = not (folder / f"step-{progress.step:08d}").is_dir()
    saved = save_checkpoint(folder, session.updater, progress)
    if new:
        session.run.log_event("checkpoint", step=progress.step, path=f"checkpoints/{saved.name}")


@contextmanager
def _weights_for_use(updater: Updater) -> Iterator[None]:
    """The running mean of the weights in place of the weights, where one is kept."""
    if updater.average is None:
        yield
        return
    own = {name: p.detach().clone() for name, p in updater.model.named_parameters()}
    with torch.no_grad():
        for name, p in updater.model.named_parameters():
            p.copy_(updater.average[name])
    try:
        yield
    finally:
        with torch.no_grad():
            for name, p in updater.model.named_parameters():
                p.copy_(own[name])


def _evaluate(session: Session) -> dict[str, float]:
    lengths = byte_lengths(session.text.tokenizer)
    windows = validation_windows(session.text.val, session.plan.seq_len, session.config.train.eval_tokens or None)
    with _weights_for_use(session.updater):
        measured = held_out_loss(session.model, windows, lengths, separator=session.separator)
    return {"val/loss": measured.loss, "val/bpb": measured.bits_per_byte, "val/tokens": measured.n_tokens}


def _sample(session: Session, step: int) -> None:
    """Continue the fixed prompts; a sample that stands in the file already is not written again."""
    output, tokenizer = session.config.output, session.text.tokenizer
    written = {(line["step"], line["prompt"]) for line in session.run.samples()}
    for i, prompt in enumerate(output.prompts):
        if (step, prompt) in written:
            continue
        sampling = Sampling(temperature=output.temperature, seed=session.config.seed + i)
        with _weights_for_use(session.updater):
            text = continue_text(session.model, tokenizer, prompt, output.sample_tokens, sampling)
        fields = {"step": step, "prompt": prompt, "text": text, "temperature": output.temperature}
        session.run.log_sample(fields | {"seed": sampling.seed})
        session.reporter.sample(step, prompt, text)


def stop(session: Session, progress: Progress) -> NoReturn:
    """Save and leave, because a signal asked for it."""
    if session.world.writes:
        folder = session.run.path / "checkpoints"
        session.watch.look(progress.step)
        session.watch.finish()
        _save(session, folder, progress)
        session.heartbeat.set(step=progress.step, tokens=progress.last["tokens"])
        session.run.log_event("signal", step=progress.step, exit_code=session.stop_request.exit_code)
    wait_for_all(session.world)
    raise Stopped(f"stopped at step {progress.step} after a checkpoint", session.stop_request.exit_code or PREEMPTED)


def diverge(session: Session, fed: Fed, result: StepResult) -> NoReturn:
    """Keep the batch that broke the run, and leave before the weights change."""
    folder = session.run.path / "diverged"
    if session.world.writes:
        folder.mkdir(exist_ok=True)
        batch = torch.cat(fed.micro_batches).numpy().astype(np.uint32)
        np.save(folder / f"step-{fed.step:08d}-batch.npy", batch, allow_pickle=False)
        session.run.log_event(
            "diverged", step=fed.step, loss=str(result.loss), grad_norm=str(result.grad_norm), lr=result.lr
        )
    raise Diverged(
        f"step {fed.step}: loss {result.loss}, gradient norm {result.grad_norm}; stopped before the update. "
        f"The batch is in {folder.name}/, the last checkpoint is untouched; try a lower lr, or train.clip"
    )
