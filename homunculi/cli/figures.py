"""The files of `homunculi report --figures`: which figures there are, and what they are called."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from homunculi.errors import InputError, optional
from homunculi.files import write_atomic

if TYPE_CHECKING:
    from homunculi.report.snapshot import Snapshot
    from homunculi.runs.chronology import Curve
    from homunculi.runs.directory import RunDirectory
    from homunculi.runs.seeds import Group

Drawn = Iterator[tuple[str, dict[str, bytes] | None]]


def write_figures(opened: list[RunDirectory], folder: Path, step: int | None) -> list[Path]:
    """Write every figure of these runs, over those of the same name, and return the paths.

    Args:
        step: of the measurements; None: the latest of each instrument.

    Raises:
        InputError: matplotlib is not installed, the folder cannot be made, nothing was measured at `step`, or there is
            nothing to draw.
    """
    from homunculi.report.snapshot import take_all
    from homunculi.runs.chronology import curves_of
    from homunculi.runs.seeds import seed_groups

    optional("matplotlib", "report")
    taken = take_all(opened)
    _check_step(taken, step)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        words = f"{folder}: cannot be made ({error.strerror}); name another folder with --figures"
        raise InputError(words) from None
    stems = _stems([run.label for run in taken])
    groups = seed_groups([run.info for run in taken], [run.label for run in taken])
    curves = [curves_of(run.path) for run in taken]
    shared = stems[0] if len(taken) == 1 else "runs"
    written: list[Path] = []
    for drawn in (
        _of_all(taken, groups, curves, shared),
        *(_of_one(run, stem, step) for run, stem in zip(taken, stems, strict=True)),
    ):
        for name, figure in drawn:
            for kind, data in (figure or {}).items():
                written.append(folder / f"{name}.{kind}")
                write_atomic(written[-1], data)
    if not written:
        raise InputError(f"{', '.join(run.label for run in taken)}: nothing to draw yet; train longer")
    return written


def _check_step(taken: list[Snapshot], step: int | None) -> None:
    from homunculi.runs.measures import measured_instruments, measured_steps

    if step is None:
        return
    known = {at for run in taken for name in measured_instruments(run.path) for at in measured_steps(run.path, name)}
    if step not in known:
        listed = ", ".join(map(str, sorted(known))) or "none"
        raise InputError(f"--step {step}: nothing was measured then; steps with measurements: {listed}")


def _of_all(taken: list[Snapshot], groups: list[Group], curves: list[dict[str, Curve]], stem: str) -> Drawn:
    """Losses, what came when, and the numbers of every instrument over the steps."""
    from homunculi.interop.run_figures import draw_chronology, draw_losses, draw_scalars, scalars_of
    from homunculi.runs.chronology import chronology
    from homunculi.runs.measures import measured_instruments

    by_group = {group.name: [curves[place] for place in group.places] for group in groups}
    yield f"{stem}-loss", draw_losses(by_group)
    names = _stems([group.name for group in groups])
    for group, name in zip(groups, names, strict=True):
        own = stem if len(taken) == 1 else name
        folders = [taken[place].path for place in group.places]
        if any(curves[place] for place in group.places):
            yield f"{own}-chronology", draw_chronology(chronology(folders))
    instruments = {name for run in taken for name in measured_instruments(run.path)}
    for instrument, keys in scalars_of(by_group).items():
        if instrument in instruments:
            yield f"{stem}-{instrument}-over-steps", draw_scalars(by_group, keys, _units(taken, instrument))


def _units(taken: list[Snapshot], instrument: str) -> dict[str, str]:
    from homunculi.runs.measures import measured_steps, read_about

    found: dict[str, str] = {}
    for run in taken:
        for step in measured_steps(run.path, instrument)[-1:]:
            try:
                units = read_about(run.path, instrument, step).get("units")
            except InputError:
                continue
            found |= (
                {f"{instrument}/{key}": str(unit) for key, unit in units.items()} if isinstance(units, dict) else {}
            )
    return found


def _of_one(run: Snapshot, stem: str, step: int | None) -> Drawn:
    """Each instrument's measurement. A damaged one is named and left out."""
    from homunculi.interop.measured_figures import draw_measurement
    from homunculi.runs.measures import measured_instruments, measured_steps, read_measurement

    for instrument in measured_instruments(run.path):
        steps = measured_steps(run.path, instrument)
        at = steps[-1] if step is None else step
        if at not in steps:
            print(f"homunculi: {run.label}: {instrument} did not measure at step {at}", file=sys.stderr)
            continue
        try:
            stored = read_measurement(run.path, instrument, at)
        except InputError as error:
            print(f"homunculi: left out: {error}", file=sys.stderr)
            continue
        yield f"{stem}-{instrument}-{at}", draw_measurement(stored)


def _stems(labels: list[str]) -> list[str]:
    """Starts of file names, made of any text: letters, digits, dots and dashes, no two the same."""
    found = [re.sub(r"[^A-Za-z0-9._]+", "-", label).strip("-.")[:80] or "run" for label in labels]
    return [
        stem if found.count(stem) == 1 else f"{stem}-{hashlib.sha256(label.encode('utf-8', 'replace')).hexdigest()[:8]}"
        for stem, label in zip(found, labels, strict=True)
    ]
