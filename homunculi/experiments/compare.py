"""Comparing recipes: equal budgets, the same batches, certificates first, a learning rate tuned for each side.

`compare` plans, then does what is left to do. Every step leaves its result in the folder, so that a comparison may be
killed at any instant and asked for again. Seed s of a comparison adds s to each recipe's `seed` and `data_seed`, so
all sides read the same batches; a side's own `seed` shifts its initial weights alone.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from homunculi.errors import InputError, Stopped
from homunculi.experiments import tuning
from homunculi.experiments.archive import EMPTY, Archive
from homunculi.experiments.certifying import certificate_of, code_hash
from homunculi.experiments.comparison import RECORD, Comparison, Side, read
from homunculi.experiments.execution import Execution, Planned, Reporter
from homunculi.experiments.fleet import Launch
from homunculi.experiments.matching import Matched, check_comparable, matched
from homunculi.experiments.side_by_side import Work, side_by_side
from homunculi.experiments.skills.beside import measure_skills
from homunculi.experiments.slots import devices_for, slots
from homunculi.report.comparison import write_comparison_report
from homunculi.runs import clock
from homunculi.runs.directory import runs_root
from homunculi.settings import changed, override
from homunculi.text.shards import TokenisedText, prepare
from homunculi.train.config import RunConfig, config_from_json, config_to_json
from homunculi.train.interventions import check_interventions
from homunculi.train.provenance import provenance
from homunculi.train.session import with_vocabulary

DEFAULT_SEEDS = 5
DEFAULT_MATCH = ("parameters", "tokens")
EVALUATIONS, CHECKPOINTS = 8, 4
_MOST_SEEDS = 1000
_MACHINE = ("device",)  # settings that may differ when a comparison goes on elsewhere
_OWN = ("seed", "device")  # settings of a side beside those that matching lets differ


@dataclass(frozen=True, slots=True)
class Wanted:
    """A side as it is asked for: its recipe, what is assigned to it, and the configuration that both give."""

    name: str
    recipe: str
    assignments: tuple[str, ...]
    config: RunConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What somebody wants to know. None leaves a choice to the folder, or to the defaults where it is new.

    Attributes:
        sides: the first one is what the others are compared with.
        seeds: how many. match: any of parameters, flops, tokens.
        factors: of the learning rate, to be tried on each side; empty: every recipe keeps its own.
        at_once: processes on each device; 0 is automatic.
        skills: tasks that small models of all sides are scored at beside (`homunculi.experiments.skills`).
        baselines: whether count models read the same text; None: where it has at most 30 M tokens.
        folder: None: one under the root of runs that follows from the sides.
        command: kept in the record.
    """

    sides: Sequence[Wanted]
    seeds: int | None = None
    match: tuple[str, ...] | None = None
    factors: tuple[float, ...] | None = None
    at_once: int = 0
    device: str = "auto"
    baselines: bool | None = None
    skills: tuple[str, ...] = ()
    folder: Path | None = None
    command: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """All that is settled before the first run."""

    sides: list[Planned]
    text: TokenisedText
    match: list[str]
    factors: list[float]
    devices: list[str]
    at_once: int


def compare(request: Request, reporter: Reporter, launch: Launch | None = None) -> Comparison:
    """Plan a comparison, print the plan, and do what is left of it; `launch` starts the runs.

    Raises:
        InputError: sides that cannot be compared or matched, one seed, a folder of another comparison.
        Stopped: a signal asked for it; unfinished runs have a checkpoint.
    """
    return side_by_side([comparing(request, reporter)], launch)[0]


def comparing(request: Request, reporter: Reporter, archive: Archive = EMPTY) -> Work[Comparison]:
    """`compare` as a work that others may go on beside.

    Args:
        archive: of results that need not be made again.

    Raises:
        InputError: sides that cannot be compared or matched, one seed, a folder of another comparison.
        Stopped: a signal asked for it; unfinished runs have a checkpoint.
    """
    folder = request.folder
    old = read(folder) if folder is not None and (folder / RECORD).exists() else None
    _seeds(request.seeds, old)  # refused before anything is read
    plan = make_plan(request, reporter, old)
    folder = folder or default_folder(plan)
    with _alone_in(folder):
        old = read(folder) if (folder / RECORD).exists() else None
        comparison = _begun(request, plan, folder, _seeds(request.seeds, old), old)
        reporter.plan(describe(comparison, plan))
        if comparison.provenance.get("code") != code_hash():
            reporter.message("the code of the models has changed since this comparison began: runs may not be alike")
        try:
            execution = Execution(comparison, plan.sides, plan.devices, plan.at_once, reporter, archive)
            yield from _carry_out(execution, plan, request)
        except Stopped as stopped:
            raise Stopped(f"{stopped}; homunculi compare --folder {folder} goes on", stopped.exit_code) from stopped
        finally:
            with suppress(OSError, InputError):  # the results are in the record
                write_comparison_report(folder)
    return comparison


def _carry_out(execution: Execution, plan: Plan, request: Request) -> Work[None]:
    execution.look()
    execution.comparison.write()
    yield from execution.certify()
    if len(execution.comparison.ranked) < 2:
        execution.reporter.message("fewer than two sides may be ranked, so nothing is trained")
        return
    yield from execution.tune()
    yield from execution.train()
    if request.baselines is not False:
        execution.measure_baselines(plan.text, always=request.baselines is True)
    measure_skills(execution, request.skills)


def certify_sides(request: Request, reporter: Reporter) -> list[Side]:
    """The sides of a comparison with their certificates, those made now included; nothing is trained or begun.

    Certificates are kept for all later comparisons, see `homunculi.experiments.certifying`.

    Raises:
        InputError: as `compare`.
    """
    plan = make_plan(request, reporter)
    for planned in plan.sides:
        planned.side.certificate = certificate_of(planned.certified, planned.side.name, reporter.message)
    return [planned.side for planned in plan.sides]


def make_plan(request: Request, reporter: Reporter, old: Comparison | None = None) -> Plan:
    """Match the sides and find places for their runs; nothing is written.

    Raises:
        InputError: as `compare`.
    """
    wanted = list(request.sides)
    if len(wanted) < 2:
        raise InputError("compare: needs at least two recipes; name one twice to see what chance alone does")
    names = [side.name for side in wanted]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"{twice}: two sides have this name; write NAME=RECIPE with a name of its own for each")
    if empty := next((side.name for side in wanted if not side.config.corpus), None):
        raise InputError(f"corpus: {empty} needs a text; add corpus=PATH")
    match = tuple(request.match or (old.match if old else DEFAULT_MATCH))
    given = request.factors if request.factors is not None else (old.factors if old else tuning.FACTORS)
    factors = tuning.check_factors(given)
    device = _device_of(request.device, wanted)
    devices = devices_for(device)
    configs = [_at_own_cadence(side) for side in wanted]
    check_comparable(configs, _OWN)
    text = prepare(configs[0].corpus, configs[0].text, progress=reporter.message)
    n_tokens = text.tokenizer.vocab_size
    found = matched([with_vocabulary(config, n_tokens) for config in configs], match, also=_OWN)
    kind = [] if device == "auto" else [f"device={devices[0].partition(':')[0]}"]
    sides = [_planned(side, one, kind, n_tokens) for side, one in zip(wanted, found, strict=True)]
    for planned in sides:
        check_interventions(planned.whole.model, planned.whole.train.interventions)
    budgets = [one.budget for one in found]
    at_once = slots(request.at_once, devices, [side.whole for side in sides], budgets)
    return Plan(sides, text, list(match), factors, devices, at_once)


def _planned(wanted: Wanted, found: Matched, kind: list[str], vocab_size: int) -> Planned:
    """A side with its budget, evaluated and saved at even shares of its run, and not looked into, unless it was asked
    for otherwise."""
    shares = {
        "eval_every": math.ceil(found.config.steps / EVALUATIONS),
        "sample_every": 0,
        "checkpoint_every": math.ceil(found.config.steps / CHECKPOINTS),
        "output.keep_last": 1,
        "instruments.watch": "off",
    }
    given = _keys(wanted)
    added = [f"{key}={value}" for key, value in shares.items() if key not in given]
    added += [word for word in kind if word != f"device={wanted.config.device}"]
    config = override(wanted.config, [*found.assignments, *added])
    whole = with_vocabulary(config, vocab_size)
    side = Side(
        name=wanted.name,
        recipe=wanted.recipe,
        assignments=list(wanted.assignments),
        changes=dict(found.changes),
        added=added,
        config=config_to_json(whole),
        budget=found.budget.to_json(),
        ratios=dict(found.ratios),
    )
    return Planned(side, config, whole)


def _keys(wanted: Wanted) -> set[str]:
    """The settings that were assigned."""
    return {word.partition("=")[0].strip() for word in wanted.assignments}


def _at_own_cadence(wanted: Wanted) -> RunConfig:
    """Its configuration, but for when it evaluates: a recipe's own word does not count here, an assigned one does."""
    return wanted.config if "eval_every" in _keys(wanted) else replace(wanted.config, eval_every=0)


def _device_of(asked: str, wanted: Sequence[Wanted]) -> str:
    """The device of all runs: what was asked for, else what all sides name."""
    named = {side.config.device for side in wanted}
    if asked != "auto":
        return asked
    if len(named) > 1:
        raise InputError(f"device: sides name {' and '.join(sorted(named))}; set device to one value for all sides")
    return named.pop()


def _seeds(asked: int | None, old: Comparison | None) -> list[int]:
    n_old = len(old.seeds) if old else 0
    n = asked if asked is not None else n_old or DEFAULT_SEEDS
    if n < 2:
        raise InputError(
            f"--seeds: {n} shows no spread, so there is no interval; use 2 or more, and {DEFAULT_SEEDS} for a claim"
        )
    if n > _MOST_SEEDS:
        raise InputError(f"--seeds: {n} is more than {_MOST_SEEDS}")
    if n < n_old:
        raise InputError(f"--seeds: {n}, but {n_old} have begun here; use {n_old} or more, or another --folder")
    return list(range(n))


def default_folder(plan: Plan) -> Path:
    """A folder under the root of runs that follows from what is compared, so that the same command finds it again."""
    described = [[side.side.name, side.side.config] for side in plan.sides]
    key = json.dumps([described, plan.match, plan.factors], sort_keys=True)
    names = "-".join(side.side.name for side in plan.sides)[:60]
    return runs_root() / f"compare-{names}-{hashlib.sha256(key.encode()).hexdigest()[:6]}"


def _begun(request: Request, plan: Plan, folder: Path, seeds: list[int], old: Comparison | None) -> Comparison:
    """The comparison as planned, with what an earlier call found out."""
    sides = [planned.side for planned in plan.sides]
    facts = {key: plan.text.facts[key] for key in ("spec", "data_hash", "n_tokens")}
    if old is None:
        origin = provenance(torch.device(plan.devices[0])) | {"code": code_hash(), "command": request.command}
        return Comparison(folder, plan.match, seeds, plan.factors, sides, facts, clock.now(), origin)
    _check_same(old, plan, facts)
    for side in sides:
        if known := old.side(side.name):
            side.lr, side.certificate = known.lr, known.certificate
    origin = old.provenance | ({"command": request.command} if request.command else {})
    return replace(old, folder=folder, seeds=seeds, sides=sides, provenance=origin)


def _check_same(old: Comparison, plan: Plan, facts: dict[str, Any]) -> None:
    """Refuse to go on with another plan than the folder's; further seeds and sides are no other plan.

    Raises:
        InputError: names what differs.
    """
    fix = "use the old value, or another --folder"
    given: dict[str, tuple[list[Any], list[Any]]] = {
        "--match": (old.match, plan.match),
        "--tune": (old.factors, plan.factors),
    }
    for option, values in given.items():
        words = [",".join(sorted(map(str, value))) or "nothing" for value in values]
        if words[0] != words[1]:
            raise InputError(f"{old.folder}: was planned with {option} {words[0]} and now has {words[1]}; {fix}")
    if old.data.get("data_hash") != facts["data_hash"]:
        raise InputError(
            f"corpus: {facts['spec']} is not the text that {old.folder} began with; restore it, or use another --folder"
        )
    planned = {side.side.name: side for side in plan.sides}
    if plan.sides[0].side.name != old.sides[0].name:
        raise InputError(f"{old.folder}: compares with {old.sides[0].name}; name it first, or use another --folder")
    for side in old.sides:
        if side.name not in planned:
            raise InputError(f"{old.folder}: has a side {side.name}; name it again, or use another --folder")
        differing = changed(planned[side.name].whole, config_from_json(side.config))
        for name, (was, now) in differing.items():
            if name not in _MACHINE:
                raise InputError(f"{old.folder}: {side.name} was planned with {name}={was} and now has {now}; {fix}")


def describe(comparison: Comparison, plan: Plan) -> list[str]:
    """The plan as lines for a person; the first word of each is its label."""
    names = [side.name for side in comparison.sides]
    head = (
        "side",
        "stored",
        "beside tables",
        "ratio",
        "MFLOP/token",
        "run FLOPs",
        "steps",
        "tokens",
        "lr",
        "changed",
    )
    rows = [head, *(_row(planned) for planned in plan.sides)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    n_runs = len(names) * len(comparison.seeds)
    tokens = sum(planned.tokens for planned in plan.sides)
    shorter = len(names) * len(plan.factors)
    at_most = shorter + 2 * tuning.EXTENSIONS * len(names) if len(plan.factors) > 1 else shorter
    trials = f"; before, {shorter} to {at_most} of a quarter of the steps to find learning rates" if shorter else ""
    whole = len(comparison.seeds) * tokens + tuning.STEPS_FRAC * tokens * len(plan.factors)
    first = plan.sides[0]
    alike = [planned.side.name for planned in plan.sides[1:] if planned.is_twin(first)]
    null = [f"null        {', '.join(alike)} and {names[0]} are the same model: no difference is to be expected"]
    return [
        f"compare     {', '.join(names[1:])} with {names[0]}, equal {', '.join(plan.match)}",
        *table,
        *(null if alike else []),
        f"text        {comparison.data['spec']}: {comparison.data['n_tokens']['train']:,} tokens to train on",
        f"runs        {len(names)} sides × {len(comparison.seeds)} seeds = {n_runs}{trials}",
        f"tokens      about {whole / 1e6:,.1f} M in all",
        f"device      {', '.join(plan.devices)}; {plan.at_once} at once on each",
        f"folder      {comparison.folder}",
    ]


def _row(planned: Planned) -> tuple[str, ...]:
    side, config = planned.side, planned.whole
    return (
        side.name,
        f"{side.budget['parameters']:,}",
        f"{side.budget['non_embedding_parameters']:,}",
        f"{side.ratios['parameters']:.3f}",
        f"{side.budget['flops_per_token'] / 1e6:,.2f}",
        f"{side.ratios['flops']:.3f}",
        f"{config.steps:,}",
        f"{planned.tokens:,}",
        f"{config.lr:g}",
        " ".join(f"{key}={value}" for key, value in side.changes.items()) or "–",
    )


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Hold a folder against a second process that would do the same work in it.

    Raises:
        InputError: another process holds it, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise InputError(f"{folder}: cannot be the folder of a comparison ({error.strerror}); choose another") from None
    try:
        with suppress(ImportError):
            import fcntl

            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"{folder}: another process is working on it; wait for it, or stop it") from None
            except OSError:
                pass  # a file system without locks
        yield
    finally:
        os.close(handle)
