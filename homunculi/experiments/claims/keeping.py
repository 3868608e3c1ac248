"""What is asked of a claim, and how its results are kept: as each run ends, and where every other claim finds them."""

from __future__ import annotations

import shlex
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from homunculi.errors import InputError
from homunculi.experiments.claims import store, table
from homunculi.experiments.claims.entry import Claim, Plan
from homunculi.experiments.claims.evidence import CLAIM_SEEDS, Json
from homunculi.experiments.comparison import Comparison
from homunculi.files import alone_in
from homunculi.runs import clock


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What somebody wants to have run.

    Attributes:
        size: of the claim's sizes. common: assignments of all sides.
        sides: names; empty: all. The first side of a plan is always among them.
        seeds: how many, from `first_seed` on.
        factors: of learning rates to try; empty: none; None: those of the plan. Rates that the stored result has are
            not looked for again unless factors are named.
        at_once, device, baselines: as in `compare.Request`.
        folder: of the runs; None: one that follows from what is asked.
        results: where the stored result lies.
    """

    claim: Claim
    results: Path
    size: str = ""
    common: tuple[str, ...] = ()
    sides: tuple[str, ...] = ()
    seeds: int = CLAIM_SEEDS
    first_seed: int = 0
    factors: tuple[float, ...] | None = None
    at_once: int = 0
    device: str = "auto"
    baselines: bool | None = None
    folder: Path | None = None

    @property
    def at(self) -> str:
        """The size, named or not."""
        return self.size or self.claim.default_size

    @property
    def plans(self) -> tuple[Plan, ...]:
        return self.claim.sizes[self.at]

    def factors_of(self, plan: Plan) -> tuple[float, ...] | None:
        """Factors that the sides of a plan try, as `compare.Request` takes them."""
        return plan.factors if self.factors is None else self.factors

    @property
    def seeds_asked(self) -> range:
        return range(self.first_seed, self.first_seed + self.seeds)

    @property
    def kept_common(self) -> list[str]:
        """Assignments of all sides that make the plan what it is."""
        return store.without_own(list(self.common))

    @property
    def command(self) -> str:
        words = ["homunculi", "claims", self.claim.id, f"size={self.at}", *self.common, "--seeds", str(self.seeds)]
        words += ["--first-seed", str(self.first_seed)] if self.first_seed else []
        return shlex.join(words + (["--sides", ",".join(self.sides)] if self.sides else []))


@dataclass(slots=True)
class Ran:
    """What became of a claim: its stored result, and the comparisons that were carried out."""

    stored: Json | None
    comparisons: list[Comparison] = field(default_factory=list)


class Shared:
    """Runs and trials of all results in a folder, by key, those that end now included."""

    def __init__(self, folder: Path) -> None:
        self.known: dict[str, Json] = {}
        for path in sorted(folder.glob("*.json")):
            with suppress(InputError):  # a damaged one is told of where its claim is asked for
                found = store.read(folder, path.stem)
                for part in (found or {"parts": {}})["parts"].values():
                    self.add(path.stem, part, _devices((found or {})["provenance"]))

    def add(self, claim_id: str, part: Json, devices: dict[tuple[str, int], str]) -> None:
        """Further ones, of a part of a claim's result.

        Args:
            devices: on which runs were made, by side and seed.
        """
        for trial in part["tuning"]:
            if trial.get("key"):
                self.known.setdefault(trial["key"], trial)
        for run in part["runs"]:
            if run.get("key"):
                device = devices.get((run["side"], run["seed"]), "")
                taken = run.get("taken") or {"id": claim_id, "device": device}
                self.known.setdefault(run["key"], run | {"taken": taken})


def _devices(provenance: list[Json]) -> dict[tuple[str, int], str]:
    return {(name, seed): str(one.get("device", "")) for one in provenance for name, seed in one.get("runs", [])}


class Keeping:
    """A comparison's archive: whatever ends is put into the claim's stored result at once."""

    def __init__(self, asked: Asked, plan: Plan, ran: Ran, shared: Shared) -> None:
        self.asked, self.plan, self.ran, self.shared = asked, plan, ran, shared
        self.date = clock.written_out(clock.now())
        self.before = {(run["side"], run["seed"]) for run in stored_part(ran.stored, plan).get("runs", [])}

    def find(self, key: str) -> Json | None:
        """A finished run or trial that some stored result has."""
        return self.shared.known.get(key) if key else None

    def keep(self, comparison: Comparison) -> None:
        """Put a comparison into the stored result, with the verdict as it now is.

        While it tries rates anew that the result has already, nothing is put there: they may come to others.
        """
        rated = {side["name"] for side in stored_part(self.ran.stored, self.plan).get("sides", []) if side["lr"]}
        if any(side.lr is None and side.name in rated for side in comparison.sides):
            return
        part = store.condense(comparison)
        own = [(str(run["side"]), int(run["seed"])) for run in part["runs"] if "taken" not in run]
        new = [one for one in own if one not in self.before]
        self.asked.results.mkdir(parents=True, exist_ok=True)
        with alone_in(self.asked.results):  # another process may be adding to the same claim
            together = merged(self.asked, {self.plan.name: part})
            self._note_origin(together["provenance"], comparison, new)
            write(self.asked, self.ran, together)
        device = str(comparison.provenance.get("device", ""))
        self.shared.add(self.asked.claim.id, part, dict.fromkeys(new, device))

    def _note_origin(self, provenance: list[Json], comparison: Comparison, new: list[tuple[str, int]]) -> None:
        """One entry for all that this call has added, and none for a call that added nothing."""
        made = [list(one) for one in new]
        entry = store.origin(comparison.provenance, self.asked.command, made, self.date)
        for one in provenance:
            if (one.get("date"), one.get("command")) == (self.date, self.asked.command):
                one["runs"] += [run for run in made if run not in one["runs"]]
                return
        if made or not provenance:
            provenance.append(entry)


def stored_part(stored: Json | None, plan: Plan) -> Json:
    """A part of a result; empty where there is none."""
    return {} if stored is None else stored["parts"].get(plan.name, {})


def merged(asked: Asked, parts: Json, measured: Json | None = None) -> Json:
    """What is stored by now, which another process may have added to, with something new."""
    old = store.read(asked.results, asked.claim.id)
    new = store.result(asked.claim.id, asked.at, asked.kept_common, parts, measured)
    return new if old is None else store.merge(old, new, str(store.path_of(asked.results, asked.claim.id)))


def write(asked: Asked, ran: Ran, stored: Json) -> None:
    """Put a result into its file, with its verdict."""
    ran.stored = stored
    store.write(asked.results, stored, table.judge(asked.claim, stored, asked.results))
