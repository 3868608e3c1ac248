"""One run as it stands at this moment, whatever state its files are in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from homunculi.errors import InputError
from homunculi.report.numbers import number
from homunculi.runs.clock import seconds_of, written_out
from homunculi.runs.directory import RunDirectory, state_of

_MEANING = {
    "preempted": "stopped by a signal after a checkpoint; it can be resumed",
    "diverged": "a loss or gradient stopped being finite",
    "crashed": "stopped without a word; it can be resumed",
    "unknown": "its status cannot be read",
}


@dataclass(frozen=True)
class Snapshot:
    """The files of a run, read once. `notes`: what was damaged and left out. `label`: short, and like no other's."""

    path: Path
    info: Mapping[str, Any]
    status: Mapping[str, Any]
    state: str
    metrics: list[dict[str, Any]]
    events: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    notes: tuple[str, ...]
    label: str

    @property
    def name(self) -> str:
        return str(self.info.get("name") or self.path.absolute().name)

    @property
    def folder(self) -> str:
        return self.path.absolute().name

    @property
    def architecture(self) -> str:
        return str(self.info.get("architecture") or "")

    def part(self, key: str) -> Mapping[str, Any]:
        """A nested object of run.json; empty where it is missing or something else."""
        value = self.info.get(key)
        return value if isinstance(value, Mapping) else {}

    def last(self, key: str) -> tuple[int, float] | None:
        """(step, value) of the last step that logged `key` with a finite value."""
        found = (
            (line["step"], value) for line in reversed(self.metrics) if (value := number(line.get(key))) is not None
        )
        return next(found, None)

    def lowest(self, key: str) -> tuple[int, float] | None:
        found = [(line["step"], value) for line in self.metrics if (value := number(line.get(key))) is not None]
        return min(found, key=lambda pair: pair[1]) if found else None

    def total(self, key: str) -> float | None:
        """A running total (`tokens`, `flops`, `seconds`): of the last step, or of the heartbeat where it is ahead."""
        known = [number(self.status.get(key)), (self.last(key) or (0, None))[1]]
        return max((value for value in known if value is not None), default=None)

    def steps(self) -> tuple[int, int | None]:
        """(steps done, steps planned)."""
        done = max(int(number(self.status.get("step")) or 0), self.metrics[-1]["step"] if self.metrics else 0)
        planned = number(self.status.get("steps")) or number(self.part("config").get("steps"))
        return done, None if planned is None else int(planned)

    def situation(self) -> str:
        """What the state means, the reason the run gave and, where it matters, when it was last heard of."""
        words = [self.status.get("reason") or _MEANING.get(self.state)]
        if self.state in ("crashed", "running"):
            beat = written_out(seconds_of(self.status.get("time")))
            words.append(f"last sign of life {beat}" if beat else None)
        return "; ".join(str(word) for word in words if word)

    def broken(self) -> list[tuple[int, str]]:
        """(step, key) of every logged value that was not finite."""
        pairs = []
        for line in self.metrics:
            keys = line.get("nonfinite")
            pairs += [(line["step"], str(key)) for key in keys] if isinstance(keys, list) else []
        return pairs


def take(run: RunDirectory) -> Snapshot:
    """Read everything the report shows of `run`."""
    notes: list[str] = []
    try:
        info = run.info()
    except InputError as error:
        info = {}
        notes.append(f"run.json cannot be used: {str(error).rpartition('run.json')[2].lstrip(': ')}")
    status, state = run.status(), state_of(run)
    metrics, events, samples = run.metrics(notes.append), run.events(notes.append), run.samples(notes.append)
    return Snapshot(run.path, info, status, state, metrics, events, samples, tuple(notes), run.path.absolute().name)


def take_all(runs: Sequence[RunDirectory]) -> list[Snapshot]:
    """Several runs, each once, labelled by as much of the end of its path as tells them apart."""
    distinct = list({run.path.resolve(): run for run in runs}.values())
    paths = [run.path.resolve().parts for run in distinct]
    labels = [parts[-1] for parts in paths]
    for count in range(2, max(map(len, paths), default=0) + 1):
        if len(set(labels)) == len(labels):
            break
        labels = ["/".join(parts[-count:]) for parts in paths]
    return [replace(take(run), label=label) for run, label in zip(distinct, labels, strict=True)]
