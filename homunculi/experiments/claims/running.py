"""Running claims: a claim's comparisons, by way of `homunculi.experiments.compare`, and what is kept of them."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from homunculi.errors import InputError, Stopped
from homunculi.experiments.claims import store, table
from homunculi.experiments.claims.entry import Claim, Plan, Side
from homunculi.experiments.claims.evidence import CLAIM_SEEDS, Json
from homunculi.experiments.compare import Request, Wanted, certify_sides, compare
from homunculi.experiments.comparison import RECORD, Comparison, read
from homunculi.experiments.comparison import Side as CertifiedSide
from homunculi.experiments.execution import Reporter
from homunculi.experiments.fleet import Launch, launch_here
from homunculi.runs.directory import runs_root

_FROM = "from-"  # and the first seed: folders of runs that take up where a stored result ends

Resolve = Callable[[list[str]], list[Wanted]]  # words as `homunculi compare` takes them → sides
Beside = Callable[[Comparison, Path, Reporter], Json]  # what `Claim.beside` holds


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What somebody wants to have run.

    Attributes:
        size: of the claim's sizes. common: assignments of all sides.
        sides: names; empty: all. The first side of a plan is always among them.
        seeds: how many, from `first_seed` on.
        factors: of learning rates to try; empty: none; None: three. Rates that the stored result has are not looked for
            again unless factors are named.
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


def run(asked: Asked, resolve: Resolve, reporter: Reporter, launch: Launch = launch_here) -> Ran:
    """Run what a claim asks for and put it into its stored result, one comparison after the other.

    A claim that trains nothing, or that needs something first, is left as it is.

    Raises:
        InputError: the claim has no such size or side, the stored result follows another plan, or as `compare`.
        Stopped: a signal asked for it; what has ended is stored.
    """
    claim = asked.claim
    if not claim.runnable:
        return Ran(store.read(asked.results, claim.id) if claim.rule and not claim.count else None)
    _check(asked)
    ran = Ran(store.read(asked.results, claim.id))
    _merged(asked, {})  # another plan is refused before anything is trained
    for plan in asked.plans:
        if not _left(asked, plan, ran.stored):
            reporter.message(f"{claim.id}: the stored result has all that is asked of {plan.name}")
            continue
        comparison = _compare(asked, plan, ran, resolve, reporter, launch)
        ran.comparisons.append(comparison)
        _keep(asked, ran, plan, comparison)
    _measure_beside(asked, ran, reporter)
    return ran


def certify(asked: Asked, resolve: Resolve, reporter: Reporter) -> list[tuple[str, CertifiedSide]]:
    """All sides of a claim with their certificates, which are kept for its runs; a claim that trains nothing has none.

    Raises:
        InputError: as `run`.
    """
    if not asked.claim.runnable:
        return []
    _check(asked)
    found = []
    for plan in asked.plans:
        sides = resolve(_words(asked, plan, asked.first_seed, {}))
        request = Request(sides=sides, match=plan.match, device=asked.device)
        within = "" if len(asked.plans) == 1 else f"{plan.name} "
        found += [(f"{within}{side.name}", side) for side in certify_sides(request, reporter)]
    return found


def _check(asked: Asked) -> None:
    claim = asked.claim
    if asked.at not in claim.sizes:
        raise InputError(f"size: {claim.id} runs at {', '.join(claim.sizes)}, not at {asked.size}")
    names = {name for plan in asked.plans for name in plan.names}
    if unknown := [name for name in asked.sides if name not in names]:
        raise InputError(f"--sides: {claim.id} has no side {unknown[0]}; it has {', '.join(sorted(names))}")
    if asked.first_seed < 0:
        raise InputError(f"--first-seed: {asked.first_seed} is below 0")


def _chosen(asked: Asked, plan: Plan) -> list[Side]:
    """The first side, which the others are matched to, and those that are asked for."""
    sides = plan.parsed
    return [side for i, side in enumerate(sides) if not i or not asked.sides or side.name in asked.sides]


def _stored_part(stored: Json | None, plan: Plan) -> Json:
    return {} if stored is None else stored["parts"].get(plan.name, {})


def _left(asked: Asked, plan: Plan, stored: Json | None) -> range:
    """Seeds from the first one that some side lacks on, at least two; empty where none is missing."""
    have = {(run["side"], run["seed"]) for run in _stored_part(stored, plan).get("runs", [])}
    wanted = asked.seeds_asked
    missing = [seed for seed in wanted if any((side.name, seed) not in have for side in _chosen(asked, plan))]
    if not missing or asked.seeds < 2:  # too few are refused by the comparison itself
        return wanted if missing else range(0)
    return range(min(missing[0], wanted[-2]), wanted.stop)


def _rates(asked: Asked, plan: Plan, stored: Json | None) -> dict[str, float]:
    """Learning rates that the stored result has found, if it has one for every side."""
    known = {side["name"]: side["lr"] for side in _stored_part(stored, plan).get("sides", []) if side["lr"]}
    chosen = [side.name for side in _chosen(asked, plan)]
    return {name: known[name] for name in chosen} if not asked.factors and known.keys() >= set(chosen) else {}


def _compare(asked: Asked, plan: Plan, ran: Ran, resolve: Resolve, reporter: Reporter, launch: Launch) -> Comparison:
    """Carry out one comparison; where it is stopped, keep what has ended."""
    folder, seeds, factors = _folder(asked, plan), asked.seeds_asked, asked.factors
    rates = {} if (folder / RECORD).exists() else _rates(asked, plan, ran.stored)
    if rates:
        reporter.message(f"{asked.claim.id}: learning rates are those of the stored result")
        folder, seeds = _continued(folder, _left(asked, plan, ran.stored))
        factors = ()
    request = Request(
        sides=resolve(_words(asked, plan, seeds.start, rates)),
        seeds=len(seeds),
        match=plan.match,
        factors=factors,
        at_once=asked.at_once,
        device=asked.device,
        baselines=asked.baselines,
        folder=folder,
        command=asked.command,
    )
    try:
        return compare(request, reporter, launch)
    except Stopped:
        if (folder / RECORD).exists():
            _keep(asked, ran, plan, read(folder))
        raise


def _continued(folder: Path, left: range) -> tuple[Path, range]:
    """Where seeds beyond the stored ones are run: in a folder that has begun with them, else in one of their own."""
    names = [path.parent.name.removeprefix(_FROM) for path in folder.glob(f"{_FROM}*/{RECORD}")]
    begun = [int(name) for name in names if name.isdecimal()]
    start = max([seed for seed in begun if seed <= left.start], default=left.start)
    return folder / f"{_FROM}{start}", range(start, left.stop)


def _words(asked: Asked, plan: Plan, first_seed: int, rates: Mapping[str, float]) -> list[str]:
    """What would be typed after `homunculi compare`."""
    seeds = [f"seed={first_seed}", f"data_seed={first_seed}"] if first_seed else []
    sides = _chosen(asked, plan)
    named = [side.word(*([f"lr={rates[side.name]!r}"] if side.name in rates else [])) for side in sides]
    return [*named, *plan.common, *asked.common, *seeds]


def _folder(asked: Asked, plan: Plan) -> Path:
    """Of a comparison: the same for the same request, whatever the number of seeds."""
    asked_for = [asked.at, asked.common, sorted(asked.sides), asked.first_seed, asked.factors]
    key = hashlib.sha256(json.dumps(asked_for).encode()).hexdigest()[:6]
    folder = asked.folder or runs_root() / f"claim-{asked.claim.id}-{asked.at}-{key}"
    return folder if len(asked.plans) == 1 else folder / plan.name


def _merged(asked: Asked, parts: Json, measured: Json | None = None) -> Json:
    """What is stored by now, which another process may have added to, with something new."""
    old = store.read(asked.results, asked.claim.id)
    new = store.result(asked.claim.id, asked.at, asked.kept_common, parts, measured)
    return new if old is None else store.merge(old, new, str(store.path_of(asked.results, asked.claim.id)))


def _keep(asked: Asked, ran: Ran, plan: Plan, comparison: Comparison) -> None:
    """Put a comparison into the stored result, with the verdict as it now is."""
    part = store.condense(comparison)
    known = {(run["side"], run["seed"]) for run in _stored_part(ran.stored, plan).get("runs", [])}
    new = [[run["side"], run["seed"]] for run in part["runs"] if (run["side"], run["seed"]) not in known]
    together = _merged(asked, {plan.name: part})
    if new or not together["provenance"]:
        together["provenance"].append(store.origin(comparison.provenance, asked.command, new))
    _write(asked, ran, together)


def _write(asked: Asked, ran: Ran, stored: Json) -> None:
    ran.stored = stored
    store.write(asked.results, stored, table.judge(asked.claim, stored, asked.results))


def _measure_beside(asked: Asked, ran: Ran, reporter: Reporter) -> None:
    """Measurements that the result does not have yet, of the first comparison, which may be of an earlier call."""
    measured = ran.stored["measured"] if ran.stored else {}
    lacking = {name: measure for name, measure in asked.claim.beside.items() if name not in measured}
    folder = ran.comparisons[0].folder if ran.comparisons else _folder(asked, asked.plans[0])
    if lacking and not (folder / RECORD).exists():
        reporter.message(f"{asked.claim.id}: {', '.join(lacking)} is not measured, the runs are not in {folder}")
        return
    for name, measure in lacking.items():
        comparison = read(folder)
        if len(comparison.ranked) > 1:
            _write(asked, ran, _merged(asked, {}, {name: measure(comparison, folder, reporter)}))


# Comparisons that exist already.


def keep_folder(claim: Claim, folder: Path, results: Path) -> Json:
    """Condense a finished comparison, or a folder with one for each part, into the claim's stored result.

    Raises:
        InputError: there is no comparison, or it is not what the claim asks for.
    """
    names = dict.fromkeys(plan.name for plans in claim.sizes.values() for plan in plans)
    folders = [folder] if (folder / RECORD).exists() else [folder / n for n in names if (folder / n / RECORD).exists()]
    if not folders:
        read(folder)  # says that there is none
    ran = Ran(store.read(results, claim.id))
    for one in folders:
        comparison = read(one)
        size, plan, common = fitting(claim, comparison)
        asked = Asked(claim=claim, results=results, size=size, common=tuple(common), seeds=len(comparison.seeds))
        _keep(asked, ran, plan, comparison)
    return ran.stored or {}


def fitting(claim: Claim, comparison: Comparison) -> tuple[str, Plan, list[str]]:
    """The size and plan of a claim that a comparison followed, and the assignments that it gave to all sides.

    Raises:
        InputError: it followed none; the message says how it differs from the nearest one.
    """
    misfits: list[str] = []
    for size, plans in claim.sizes.items():
        for plan in plans:
            common, misfit = _common(plan, comparison)
            if not misfit:
                return size, plan, common
            misfits.append(misfit)
    told = max(misfits, key=lambda misfit: not misfit.startswith("recipe"), default="the claim trains nothing")
    raise InputError(f"{comparison.folder}: is no comparison of {claim.id}: {told}")


def _common(plan: Plan, comparison: Comparison) -> tuple[list[str], str]:
    """What a comparison assigns to all sides beyond the plan, and how it differs from the plan."""
    known = {side.name: side for side in plan.parsed}
    if sorted(comparison.match) != sorted(plan.match):
        return [], f"it matches {', '.join(comparison.match)} and not {', '.join(plan.match)}"
    if comparison.sides[0].name != plan.names[0]:
        return [], f"its first side is {comparison.sides[0].name} and not {plan.names[0]}"
    found: list[list[str]] = []
    for side in comparison.sides:
        if side.name not in known:
            return [], f"it has a side {side.name}; the claim has {', '.join(known)}"
        wanted, given = known[side.name], store.without_own(side.assignments)
        if side.recipe != wanted.recipe:
            return [], f"recipe of {side.name} is {side.recipe} and not {wanted.recipe}"
        start = [*plan.common]
        shared = given[: len(given) - len(wanted.own)]
        if given[len(shared) :] != list(wanted.own) or shared[: len(start)] != start:
            return [], f"{side.name} is not {wanted.word()}"
        found.append(shared[len(start) :])
    if any(shared != found[0] for shared in found):
        return [], "its sides have different assignments beside those of the claim"
    return found[0], ""
