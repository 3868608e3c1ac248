"""A running loop's belongings, and how they are brought together before the first step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from homunculi.core.budget import Budget
from homunculi.core.model import LanguageModel
from homunculi.errors import InputError
from homunculi.models import get, name_of
from homunculi.runs.directory import RunDirectory
from homunculi.text.batches import Batches, validation_windows
from homunculi.text.shards import TokenisedText, prepare
from homunculi.train.checkpoint import Progress, latest_whole, restore
from homunculi.train.config import RunConfig
from homunculi.train.distributed import World, wait_for_all
from homunculi.train.interventions import describe_interventions, intervene
from homunculi.train.plan import Plan, check_disk, describe
from homunculi.train.precision import set_compute_dtype
from homunculi.train.provenance import provenance
from homunculi.train.record import Heartbeat, Record, Silence
from homunculi.train.signals import StopRequest
from homunculi.train.step import Updater
from homunculi.train.watching import Unwatched, Watch


class Reporter(Protocol):
    """Where a run speaks to a person while it goes."""

    def plan(self, lines: list[str]) -> None: ...

    def message(self, text: str) -> None: ...

    def metrics(self, line: dict[str, Any], steps: int) -> None: ...

    def sample(self, step: int, prompt: str, text: str) -> None: ...

    def progress(self, step: int, steps: int, loss: float) -> None: ...


@dataclass(slots=True)
class Session:
    """Everything a running loop holds."""

    config: RunConfig
    run: RunDirectory
    world: World
    device: torch.device
    text: TokenisedText
    plan: Plan
    budget: Budget
    updater: Updater
    record: Record
    heartbeat: Heartbeat | Silence
    reporter: Reporter
    stop_request: StopRequest
    watch: Watch | Unwatched

    @property
    def model(self) -> LanguageModel:
        return self.updater.model

    @property
    def separator(self) -> int | None:
        return self.text.tokenizer.eot_id if self.config.text.document_mask else None


def prepare_text(config: RunConfig, world: World, reporter: Reporter) -> TokenisedText:
    """Tokenise on the first process, then let the others find the shards."""
    if world.writes:
        text = prepare(config.corpus, config.text, progress=reporter.message)
        wait_for_all(world)
        return text
    wait_for_all(world)
    return prepare(config.corpus, config.text)


def with_vocabulary(config: RunConfig, vocab_size: int) -> RunConfig:
    """`config` with the tokenizer's vocabulary where the model leaves it open.

    Raises:
        InputError: the model's vocabulary is too small for the tokenizer's ids.
    """
    given = config.model.vocab_size
    if given and given < vocab_size:
        raise InputError(
            f"model.vocab_size: {given} is too small, the tokenizer has {vocab_size} tokens; "
            f"use model.vocab_size={vocab_size} or 0, or lower text.vocab_size"
        )
    return config if given else replace(config, model=replace(config.model, vocab_size=vocab_size))


def build_model(config: RunConfig, device: torch.device) -> LanguageModel:
    """The run's model with its initial weights, the same on every device."""
    torch.manual_seed(config.seed)
    model = get(name_of(config.model)).model_type(config.model).to(device)
    intervene(model, config.train.interventions)
    set_compute_dtype(model, config.precision)
    return model


def check_context(model: LanguageModel, text: TokenisedText, plan: Plan) -> None:
    """Fail before the first step if the corpus is shorter than one sequence."""
    Batches(text, seq_len=plan.seq_len, n_sequences=plan.n_sequences, seed=0)
    next(iter(validation_windows(text.val, plan.seq_len)))


def begin(session: Session, switches: dict[str, Any]) -> Progress:
    """Print the plan, write run.json's facts, and load the latest whole checkpoint if there is one."""
    config, run, reporter = session.config, session.run, session.reporter
    folder = run.path / "checkpoints"

    def on_damage(text: str) -> None:
        reporter.message(text)
        run.log_event("warning", text=text.replace(f"{run.path}/", ""))  # a run holds no path of its machine

    if session.world.writes:
        known = run.info().get("data", {}).get("data_hash")
        if known and known != session.text.facts["data_hash"]:
            raise InputError(
                f"{config.corpus}: the text is not what this run began with; restore it or start a new run"
            )
        warning = check_disk(session.plan, run.path)
        changed = describe_interventions(session.model, config.train.interventions)
        reporter.plan(
            [*describe(config, session.plan, session.budget, session.text.facts), *changed, *session.watch.plan]
        )
        if warning:
            on_damage(warning)
        session.text.tokenizer.save(run.path)
        run.write_info(run.info() | _facts(session, switches))
    wait_for_all(session.world)
    found = latest_whole(folder, on_damage) if session.world.writes else None
    wait_for_all(session.world)
    found = found if session.world.writes else latest_whole(folder, lambda text: None)
    progress = found[1] if found else Progress()
    if found:
        restore(found[0], session.updater)
    if session.world.writes:
        session.heartbeat.set(state="running", step=progress.step)
        began = bool(session.record.logged or found)
        run.log_event("resumed" if began else "started", step=progress.step)
        if began:
            reporter.message(f"going on from step {progress.step}")
    return progress


def _facts(session: Session, switches: dict[str, Any]) -> dict[str, Any]:
    return {
        "architecture": name_of(session.config.model),
        "data": session.text.facts,
        "budget": session.budget.to_json(),
        "plan": session.plan.to_json(),
        "provenance": provenance(session.device) | {"switches": switches, "processes": session.world.size},
        "seeds": {"seed": session.config.seed, "data_seed": session.config.data_seed},
        "schedule_of_blocks": [step.block for step in session.model.schedule],
        "compiled": session.updater.compiled,
    }
