"""Checkpoints: whole or not there, checked by hash when read, few kept.

A checkpoint is a folder ``checkpoints/step-00000500`` with config.json, model.safetensors, optimizer.safetensors,
perhaps average.safetensors, and state.json, which holds the SHA-256 of each of the others and is written last.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from homunculi.errors import InputError
from homunculi.files import sync_folder
from homunculi.models.files import load_weights, read_weights, save_model
from homunculi.train.optim import load_optimizer_tensors, optimizer_tensors
from homunculi.train.step import Updater

_NAME = re.compile(r"step-(\d{8})")


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands after a step: all that must survive a restart beside tensors.

    Attributes:
        step: updates done.
        stream_hash: hash of all batches so far.
        seconds: training time so far.
        last: the metrics of that step, so that its line can still be written after a crash during evaluation.
    """

    step: int = 0
    stream_hash: str = "0" * 64
    seconds: float = 0.0
    last: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(folder: Path, updater: Updater, progress: Progress) -> Path:
    """Write the checkpoint of `progress.step` under `folder` and return it. An existing whole one is left alone.

    Raises:
        OSError: the disk is full or not writable; nothing half-written is left under a checkpoint's name.
    """
    target = folder / f"step-{progress.step:08d}"
    if target.is_dir():
        return target
    temporary = folder / f".{target.name}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        save_model(updater.model, temporary)
        state = optimizer_tensors(updater.model, updater.optimizers)
        save_file({k: t.contiguous() for k, t in state.items()}, temporary / "optimizer.safetensors")
        if updater.average is not None:
            save_file(updater.average, temporary / "average.safetensors")
        hashes = {path.name: file_hash(path) for path in sorted(temporary.iterdir())}
        (temporary / "state.json").write_text(json.dumps(asdict(progress) | {"files": hashes}) + "\n")
        for path in temporary.iterdir():
            _sync(path)
        sync_folder(temporary)
        os.replace(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(folder)
    return target


def file_hash(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def checkpoints(folder: Path) -> dict[int, Path]:
    """Step → checkpoint, ascending."""
    found = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        match = _NAME.fullmatch(path.name)
        if match and path.is_dir():
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def verify(checkpoint: Path) -> Progress:
    """The progress recorded in a checkpoint all of whose files are as they were written.

    Raises:
        InputError: a file is missing or changed.
    """
    try:
        state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
        hashes = state.pop("files")
        progress = Progress(**state)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{checkpoint}: state.json is missing or damaged") from error
    for name, expected in hashes.items():
        path = checkpoint / name
        if not path.is_file() or file_hash(path) != expected:
            raise InputError(f"{path}: truncated or changed since it was written")
    return progress


def latest_whole(folder: Path, on_damage: Callable[[str], None]) -> tuple[Path, Progress] | None:
    """The latest checkpoint that verifies. Damaged later ones are set aside under another name and reported."""
    for temporary in folder.glob(".step-*.tmp"):
        shutil.rmtree(temporary, ignore_errors=True)
    for path in reversed(checkpoints(folder).values()):
        try:
            return path, verify(path)
        except InputError as error:
            aside = path.with_name(f"damaged-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            on_damage(f"{error}; set aside as {aside.name}, the checkpoint before it is used")
    return None


def restore(checkpoint: Path, updater: Updater) -> None:
    """Load weights, optimiser state and mean of the weights into `updater`.

    Raises:
        InputError: the checkpoint belongs to another configuration.
    """
    weights = checkpoint / "model.safetensors"
    load_weights(updater.model, read_weights(weights), str(weights))
    state = checkpoint / "optimizer.safetensors"
    load_optimizer_tensors(updater.model, updater.optimizers, read_weights(state), str(state))
    if updater.average is not None:
        for name, tensor in read_weights(checkpoint / "average.safetensors").items():
            updater.average[name].copy_(tensor)


def retain(folder: Path, keep_last: int, keep_every: int, val_losses: dict[int, float]) -> list[int]:
    """Delete all checkpoints but the latest few, the best by validation loss and each multiple of `keep_every`.

    Returns the steps deleted.
    """
    present = checkpoints(folder)
    scored = {step: val_losses[step] for step in present if step in val_losses}
    kept = set(list(present)[-keep_last:])
    if scored:
        kept.add(min(scored, key=lambda step: (scored[step], step)))
    if keep_every:
        kept |= {step for step in present if step % keep_every == 0}
    gone = [step for step in present if step not in kept]
    for step in gone:
        doomed = folder / f".step-{step:08d}.deleted.tmp"
        present[step].rename(doomed)
        shutil.rmtree(doomed)
    return gone


def weights_for_use(checkpoint: Path) -> dict[str, Tensor]:
    """The weights that evaluation uses: the running mean where one was kept, else the weights themselves."""
    weights = read_weights(checkpoint / "model.safetensors")
    average = checkpoint / "average.safetensors"
    return weights | read_weights(average) if average.is_file() else weights
