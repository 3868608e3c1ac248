"""What a comparison does: certify each side, tune its learning rate, train its runs, let count models read the same.

Each step looks first at what is there already, and writes down what it finds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from homunculi.errors import InputError
from homunculi.evals.ngrams import baselines, distinct_rows
from homunculi.experiments import tuning
from homunculi.experiments.archive import EMPTY, Archive, key_of_run, read_key
from homunculi.experiments.certifying import Certified, certificate_of
from homunculi.experiments.comparison import Comparison, Json, Side, read_run, run_path
from homunculi.experiments.fleet import Batch, Job, JobState
from homunculi.experiments.side_by_side import Work
from homunculi.experiments.slots import threads_env
from homunculi.runs.directory import INFO, RunDirectory, state_of
from homunculi.settings import changed, override
from homunculi.text.batches import Batches, validation_windows
from homunculi.text.shards import TokenisedText
from homunculi.text.tokenizers import byte_lengths
from homunculi.train.config import RunConfig, config_from_json

BASELINE_TOKENS = 30_000_000


class Reporter(Protocol):
    """Where a comparison speaks to a person while it goes."""

    def plan(self, lines: list[str]) -> None: ...

    def message(self, text: str) -> None: ...

    def progress(self, states: list[JobState]) -> None: ...


@dataclass(frozen=True, slots=True)
class Planned:
    """A side that is about to be run.

    Attributes:
        config: of its runs but for seed and learning rate; the vocabulary as the recipe leaves it.
        whole: the same with the tokenizer's vocabulary.
    """

    side: Side
    config: RunConfig
    whole: RunConfig

    @property
    def tokens(self) -> int:
        """Of one run."""
        return self.config.steps * self.config.batch_tokens

    @property
    def shape(self) -> tuple[int, int, int]:
        """Runs of equal shape and seed read the same batches."""
        return self.config.steps, self.config.batch_tokens, self.config.model.max_seq_len

    @property
    def certified(self) -> Certified:
        """What its certificate is about."""
        return Certified(self.whole.model, self.whole.train.interventions)

    def is_twin(self, other: Planned) -> bool:
        """Whether both are the same but for the seed."""
        return replace(self.config, seed=0) == replace(other.config, seed=0)

    def run_words(self, seed: int) -> list[str]:
        """Assignments of the run of a seed."""
        seeds = [f"seed={self.config.seed + seed}", f"data_seed={self.config.data_seed + seed}"]
        return [*self._words(), f"lr={self.side.lr or self.config.lr!r}", *seeds]

    def trial_words(self, lr: float) -> list[str]:
        """Assignments of a trial of a learning rate."""
        steps = max(1, round(self.config.steps * tuning.STEPS_FRAC))
        seeds = [f"seed={self.config.seed + tuning.SEED}", f"data_seed={self.config.data_seed + tuning.SEED}"]
        never = [f"{name}_every=0" for name in ("eval", "sample", "checkpoint")]
        return [*self._words(), f"steps={steps}", *never, f"lr={lr!r}", *seeds]

    def _words(self) -> list[str]:
        changes = [f"{key}={value}" for key, value in self.side.changes.items()]
        return [*self.side.assignments, *changes, *self.side.added]

    def configured(self, words: Sequence[str]) -> RunConfig:
        """What a run with these assignments holds in its run.json."""
        return override(self.config, words)


@dataclass(slots=True)
class Execution:
    """A comparison being carried out.

    Attributes:
        planned: all sides, refused ones too.
        archive: of results that were made elsewhere and are taken from there.
        entries: finished runs by side and seed, whether they may be ranked or not.
    """

    comparison: Comparison
    planned: Sequence[Planned]
    devices: Sequence[str]
    at_once: int
    reporter: Reporter
    archive: Archive = EMPTY
    entries: dict[tuple[str, int], Json] = field(default_factory=dict)

    @property
    def ranked(self) -> list[Planned]:
        return [planned for planned in self.planned if planned.side.ranked]

    def look(self) -> None:
        """Read the runs that have ended already.

        Raises:
            InputError: a folder holds a run of something else.
        """
        for planned in self.planned:
            for seed in self.comparison.seeds if planned.side.lr is not None else []:
                job = self._job(run_path(planned.side.name, seed), planned, planned.run_words(seed))
                if (job.folder / INFO).exists() and state_of(RunDirectory(job.folder)) == "done":
                    self._keep(planned, seed)
        self._settle_refusals()

    # Certificates.

    def certify(self) -> Work[None]:
        """Certify each configuration once, as it is and with the code as it is; others may go on after each."""
        known = {side.certificate["key"]: side.certificate for side in self.comparison.sides if side.certificate}
        for planned in self.planned:
            side = planned.side
            side.certificate = certificate_of(planned.certified, side.name, self.reporter.message, known)
            known[side.certificate["key"]] = side.certificate
            self._settle_refusals()
            self.comparison.write()
            if side.refusal:
                self.reporter.message(f"{side.name} is refused: {side.refusal}")
            yield Batch(jobs=[], at_once=self.at_once, devices=self.devices)

    # Learning rates.

    def tune(self) -> Work[None]:
        """Find the learning rate of each side that has none; the same grid for all, whatever it takes."""
        comparison, todo = self.comparison, [planned for planned in self.ranked if planned.side.lr is None]
        settled = {entry["factor"] for entry in comparison.tuning if self._is_settled(entry["side"])}
        grid = sorted(settled) or list(comparison.factors)
        if not grid:
            for planned in todo:
                planned.side.lr = planned.config.lr
        if not todo or not grid:
            return
        trials = yield from self._try(grid, todo)
        for _ in range(0 if settled else tuning.EXTENSIONS):
            wider = tuning.extended(grid, trials)
            if wider == grid:
                break
            grid = wider
            trials = yield from self._try(grid, todo)
        for planned in todo:
            factor = tuning.best_factor(trials[planned.side.name])
            planned.side.lr = tuning.rate(planned.config.lr, 1.0 if factor is None else factor)
            if note := tuning.note_of(planned.side.name, grid, trials[planned.side.name]):
                self.reporter.message(note)
        comparison.write()

    def _is_settled(self, name: str) -> bool:
        side = self.comparison.side(name)
        return side is not None and side.lr is not None

    def _try(self, grid: Sequence[float], todo: Sequence[Planned]) -> Work[dict[str, dict[float, float | None]]]:
        """Train a trial of each rate, once for sides that are the same, and return the loss of each."""
        jobs: dict[tuple[str, float], Job] = {}
        for planned in todo:
            for factor in grid:
                lr = tuning.rate(planned.config.lr, factor)
                relative = f"tuning/{self._leader(planned).side.name}-lr{lr:g}"
                jobs[planned.side.name, factor] = self._job(relative, planned, planned.trial_words(lr))
        once = {job.folder: job for job in jobs.values()}
        others = [x for x in self.comparison.tuning if x["side"] not in {planned.side.name for planned in todo}]

        def note(state: JobState) -> None:
            self._tell_failure(state)
            ended[state.job.folder] = self._trial_end(state.job)
            if state.state in ("done", "diverged"):  # what failed for other reasons is tried again
                made_here = (state.job.folder / INFO).exists()
                keys[state.job.folder] = {"key": read_key(state.job.folder) if made_here else state.job.key}
            self.comparison.tuning = others + [one for one in map(trial, jobs) if one is not None]

        def trial(which: tuple[str, float]) -> Json | None:
            (name, factor), job = which, jobs[which]
            if job.folder not in ended:
                return None
            lr = tuning.rate(next(p.config.lr for p in todo if p.side.name == name), factor)
            relative = job.folder.relative_to(self.comparison.folder).as_posix()
            return tuning.entry(name, lr, factor, relative, ended[job.folder]) | keys.get(job.folder, {})

        ended: dict[Path, Json | None] = {}
        keys: dict[Path, Json] = {}
        self.reporter.message(f"learning rates: {len(once)} trials")
        yield from self._run(list(once.values()), note)
        found: dict[str, dict[float, float | None]] = {}
        for name, factor in jobs:
            found.setdefault(name, {})[factor] = (trial((name, factor)) or {}).get("val_bpb")
        return found

    def _trial_end(self, job: Job) -> Json | None:
        """The last evaluated line of a trial, also of one that was made elsewhere."""
        if (job.folder / INFO).exists():
            return _last_evaluation(job.folder)
        kept = self.archive.find(job.key)
        if kept is None or kept.get("val_bpb") is None:
            return None
        return {"val/bpb": kept["val_bpb"], "val/loss": kept["val_loss"], "tokens": kept["tokens"]}

    def _tell_failure(self, state: JobState) -> None:
        if state.state in ("failed", "diverged"):
            self.reporter.message(f"{state.job.folder} {state.state}: {state.message}")

    def _leader(self, planned: Planned) -> Planned:
        """The first side that is the same as this one."""
        return next(other for other in self.planned if other.is_twin(planned))

    # Runs.

    def train(self) -> Work[None]:
        """Train what is left, seed by seed, so that early results are pairs."""
        jobs, owners = [], {}
        for seed in self.comparison.seeds:
            for planned in self.ranked:
                job = self._job(run_path(planned.side.name, seed), planned, planned.run_words(seed))
                owners[job.folder] = (planned, seed)
                jobs.append(job)
        self.comparison.failed = []
        yield from self._run(jobs, lambda state: self._record(state, *owners[state.job.folder]))

    def _job(self, relative: str, planned: Planned, words: list[str]) -> Job:
        """A job whose folder is new, or holds a run of exactly this configuration.

        A side that is the same as one before it is trained for itself: two runs of one recipe are a control.

        Raises:
            InputError: it holds another one.
        """
        folder = self.comparison.folder / relative
        if (folder / INFO).exists():
            there = config_from_json(RunDirectory(folder).info().get("config") or {})
            differing = changed(there, planned.configured(words))
            for name, (wanted, found) in differing.items():
                if name != "device":
                    raise InputError(
                        f"{folder}: was trained with {name}={found}, this comparison needs {wanted}; move it away, or "
                        "use another --folder"
                    )
        key = self._key(planned, words) if self._leader(planned) is planned else ""
        return Job(Path(relative).name, planned.side.recipe, tuple(words), folder, key)

    def _key(self, planned: Planned, words: Sequence[str]) -> str:
        kind = self.devices[0].partition(":")[0]
        return key_of_run(override(planned.whole, words), str(self.comparison.data.get("data_hash")), kind)

    def _run(self, jobs: list[Job], on_end: Callable[[JobState], None]) -> Work[None]:
        seen: set[Path] = set()

        def report(states: list[JobState]) -> None:
            ended = [state for state in states if state.over and state.job.folder not in seen]
            for state in ended:
                seen.add(state.job.folder)
                on_end(state)
            if ended:
                self._settle_refusals()
                self.comparison.write()
                self.archive.keep(self.comparison)
            self.reporter.progress(states)

        def taken(job: Job) -> bool:
            return not (job.folder / INFO).exists() and self.archive.find(job.key) is not None

        env = threads_env(self.devices, self.at_once)
        yield Batch(jobs=jobs, at_once=self.at_once, devices=self.devices, report=report, extra_env=env, taken=taken)

    def _record(self, state: JobState, planned: Planned, seed: int) -> None:
        name, comparison = planned.side.name, self.comparison
        failure: Json = {"side": name, "seed": seed, "run": run_path(name, seed), "state": state.state}
        if state.state == "done":
            if self._keep(planned, seed):
                return
            failure["state"] = "diverged"
            state.message = "its last validation loss is not finite"
        if failure["state"] != "stopped":
            comparison.failed.append(failure | {"reason": state.message})

    def _keep(self, planned: Planned, seed: int) -> bool:
        """Read a finished run, or take it from where it was made before; False if it has no loss at its end."""
        name, path = planned.side.name, run_path(planned.side.name, seed)
        key = self._key(planned, planned.run_words(seed))
        if (self.comparison.folder / path / INFO).exists():
            entry = read_run(self.comparison.folder, name, seed) | {"key": read_key(self.comparison.folder / path)}
        else:
            own = {"side": name, "seed": seed, "run": path, "parameters": planned.side.budget["parameters"]}
            entry = {"sample": ""} | (self.archive.find(key) or {"tokens": []}) | own
        whole = bool(entry["tokens"]) and entry["tokens"][-1] == planned.tokens
        if whole:
            self.entries[name, seed] = entry
        return whole

    def _settle_refusals(self) -> None:
        """Rank the runs whose batches are those of the first side's run of the same seed."""
        comparison, ranked = self.comparison, self.ranked
        comparison.refused = [
            {"run": side.name, "side": side.name, "reason": side.refusal} for side in comparison.sides if side.refusal
        ]
        comparison.runs = []
        for seed in comparison.seeds:
            for planned in ranked:
                entry = self.entries.get((planned.side.name, seed))
                if entry is None:
                    continue
                others = [o for o in ranked if (o.side.name, seed) in self.entries and o.shape == planned.shape]
                first = self.entries[others[0].side.name, seed]
                reason = _strange(entry, first, comparison.data.get("data_hash"))
                if reason:
                    refused = {"run": entry["run"], "side": planned.side.name, "seed": seed, "reason": reason}
                    comparison.refused.append(refused)
                else:
                    comparison.runs.append(entry)

    # Count models.

    def measure_baselines(self, text: TokenisedText, *, always: bool) -> None:
        """Let count models read the tokens of the first side's first run, and judge them on the same windows."""
        n_tokens = text.facts["n_tokens"]["train"]
        if self.comparison.baselines or (n_tokens > BASELINE_TOKENS and not always):
            return
        config = self.ranked[0].whole
        seq_len = config.model.max_seq_len
        self.reporter.message("count models of the same text")
        order = config.data_seed + self.comparison.seeds[0]
        batches = Batches(text, seq_len=seq_len, n_sequences=config.batch_tokens // seq_len, seed=order)
        windows = validation_windows(text.val, seq_len, config.train.eval_tokens or None)
        lengths = byte_lengths(text.tokenizer)
        try:
            found = baselines(text, windows, lengths, rows=distinct_rows(batches, config.steps))
        except InputError as error:
            self.reporter.message(f"no count models: {error}")
            return
        self.comparison.baselines = found
        self.comparison.write()


def _strange(entry: Json, first: Json, data_hash: str | None) -> str:
    """Why a run may not stand beside the first side's; empty where it may."""
    if entry["stream"] is None:
        return "it recorded no hash of its batches, so nothing proves that they are the same"
    if entry["data_hash"] != data_hash:
        return "it read another text than this comparison: the corpus changed between runs"
    if entry["stream"] != first["stream"]:
        return f"its batches are not those of {first['run']}: the corpus or the code changed between runs"
    return ""


def _last_evaluation(folder: Path) -> Json | None:
    """The last evaluated line of a trial; None where it did not end."""
    run = RunDirectory(folder)
    if state_of(run) != "done":
        return None
    lines = run.metrics()
    return lines[-1] if lines and lines[-1].get("val/bpb") is not None else None
