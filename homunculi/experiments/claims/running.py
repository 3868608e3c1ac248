"""Running claims: a claim's comparisons, by way of `homunculi.experiments.compare`, and what is kept of them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath

from homunculi.errors import InputError, Stopped
from homunculi.experiments.claims import store
from homunculi.experiments.claims.entry import Claim, Plan, Side
from homunculi.experiments.claims.evidence import Json
from homunculi.experiments.claims.keeping import Asked, Keeping, Ran, Shared, merged, stored_part, write
from homunculi.experiments.compare import Request, Wanted, certify_sides, comparing
from homunculi.experiments.comparison import RECORD, Comparison, read
from homunculi.experiments.comparison import Side as CertifiedSide
from homunculi.experiments.execution import Reporter
from homunculi.experiments.fleet import JobState, Launch
from homunculi.experiments.side_by_side import Work, side_by_side
from homunculi.runs.directory import runs_root
from homunculi.text.reading import ENDINGS

_WEIGHT = re.compile(r"@[\d.eE+-]+$")  # of a corpus in a mixture
_READS = "it reads"
_FROM = "from-"  # and the first seed: folders of runs that take up where a stored result ends

Resolve = Callable[[list[str]], list[Wanted]]  # words as `homunculi compare` takes them → sides
Beside = Callable[[Comparison, Path, Reporter], Json]  # what `Claim.beside` holds


def run(asked: Asked, resolve: Resolve, reporter: Reporter, launch: Launch | None = None) -> Ran:
    """`run_together` of one claim."""
    return run_together([asked], resolve, reporter, launch)[0]


def run_together(
    wishes: Sequence[Asked], resolve: Resolve, reporter: Reporter, launch: Launch | None = None
) -> list[Ran]:
    """Run what claims ask for and put it into their stored results as each run ends; all claims side by side.

    They share all places, and a run whose like is in any stored result is taken from there. A claim that trains
    nothing, or that needs something first, is left as it is.

    Raises:
        InputError: a claim has no such size or side, the stored result follows another plan, or as `compare`.
        Stopped: a signal asked for it; what has ended is stored.
    """
    for asked in wishes:
        if asked.claim.runnable:
            _check(asked)
            merged(asked, {})  # another plan is refused before anything is trained
    shared = {asked.results: Shared(asked.results) for asked in wishes}
    within = [reporter if len(wishes) == 1 else Within(reporter, asked.claim.id) for asked in wishes]
    works = [_work(asked, resolve, one, shared[asked.results]) for asked, one in zip(wishes, within, strict=True)]
    found = side_by_side(works, launch)
    for asked, ran, one in zip(wishes, found, within, strict=True):
        if asked.claim.runnable:
            _measure_beside(asked, ran, one)
    return found


def _work(asked: Asked, resolve: Resolve, reporter: Reporter, shared: Shared) -> Work[Ran]:
    """A claim's comparisons, one after the other."""
    claim = asked.claim
    if not claim.runnable:
        return Ran(store.read(asked.results, claim.id) if claim.rule and not claim.count else None)
    ran = Ran(store.read(asked.results, claim.id))
    for plan in asked.plans:
        if not _left(asked, plan, ran.stored):
            reporter.message(f"{claim.id}: the stored result has all that is asked of {plan.name}")
            continue
        keeping = Keeping(asked, plan, ran, shared)
        comparison = yield from _comparing(keeping, resolve, reporter)
        ran.comparisons.append(comparison)
        keeping.keep(comparison)
    return ran


class Within:
    """A reporter of one claim among several."""

    def __init__(self, reporter: Reporter, name: str) -> None:
        self.reporter, self.name = reporter, name

    def plan(self, lines: list[str]) -> None:
        self.reporter.plan(lines)

    def message(self, text: str) -> None:
        self.reporter.message(f"{self.name}: {text}")

    def progress(self, states: list[JobState]) -> None:
        self.reporter.progress(states)


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
    if asked.factors and any(plan.factors == () for plan in asked.plans):
        raise InputError(f"--tune: the sides of {claim.id} have the learning rates that it names; leave the option out")
    if asked.first_seed < 0:
        raise InputError(f"--first-seed: {asked.first_seed} is below 0")
    for plan in asked.plans:
        if other := _other_text(plan, asked.common):
            given, text = other
            fix = f"leave corpus out, or name a folder or file called {text}"
            raise InputError(f"corpus={given}: {claim.id} is about {text}; {fix}")


def _other_text(plan: Plan, common: Sequence[str]) -> tuple[str, str] | None:
    """The corpus that assignments name in place of the plan's text, and that text; None where they keep to it, or the
    plan names none. Data may lie anywhere, so it is told by the name of its folder or file alone."""
    wanted, given = _corpus(plan.common), _corpus(common)
    if wanted is None or given is None or _text_name(given).casefold() == _text_name(wanted).casefold():
        return None
    return given, _text_name(wanted)


def _corpus(assignments: Sequence[str]) -> str | None:
    """The last value that they give to `corpus`, which is the one that counts."""
    pairs = [word.partition("=") for word in assignments]
    return next((value for key, _, value in reversed(pairs) if key.strip() == "corpus"), None)


def _text_name(corpus: str) -> str:
    """Last part of its path or name without weight and ending; a mixture stays as it is."""
    if "," in corpus:
        return corpus
    if corpus.startswith("hf:"):
        corpus = corpus.split(":")[1]  # what follows is a part of that data set
    return ENDINGS.sub("", _WEIGHT.sub("", PurePath(corpus).name))


def _chosen(asked: Asked, plan: Plan) -> list[Side]:
    """The first side, which the others are matched to, and those that are asked for."""
    sides = plan.parsed
    return [side for i, side in enumerate(sides) if not i or not asked.sides or side.name in asked.sides]


def _left(asked: Asked, plan: Plan, stored: Json | None) -> range:
    """Seeds from the first one that some side lacks on, at least two; empty where none is missing."""
    have = {(run["side"], run["seed"]) for run in stored_part(stored, plan).get("runs", [])}
    wanted = asked.seeds_asked
    missing = [seed for seed in wanted if any((side.name, seed) not in have for side in _chosen(asked, plan))]
    if not missing or asked.seeds < 2:  # too few are refused by the comparison itself
        return wanted if missing else range(0)
    return range(min(missing[0], wanted[-2]), wanted.stop)


def _rates(asked: Asked, plan: Plan, stored: Json | None) -> dict[str, float]:
    """Learning rates that the stored result has found, if it has one for every side."""
    known = {side["name"]: side["lr"] for side in stored_part(stored, plan).get("sides", []) if side["lr"]}
    chosen = [side.name for side in _chosen(asked, plan)]
    return {name: known[name] for name in chosen} if not asked.factors_of(plan) and known.keys() >= set(chosen) else {}


def _comparing(keeping: Keeping, resolve: Resolve, reporter: Reporter) -> Work[Comparison]:
    """Carry out one comparison; where it is stopped, keep what has ended."""
    asked, plan, ran = keeping.asked, keeping.plan, keeping.ran
    folder, seeds, factors = _folder(asked, plan), asked.seeds_asked, asked.factors_of(plan)
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
        return (yield from comparing(request, reporter, keeping))
    except Stopped:
        if (folder / RECORD).exists():
            keeping.keep(read(folder))
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
    asked_for = [asked.at, asked.common, sorted(asked.sides), asked.first_seed, asked.factors_of(plan)]
    key = hashlib.sha256(json.dumps(asked_for).encode()).hexdigest()[:6]
    folder = asked.folder or runs_root() / f"claim-{asked.claim.id}-{asked.at}-{key}"
    return folder if len(asked.plans) == 1 else folder / plan.name


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
            write(asked, ran, merged(asked, {}, {name: measure(comparison, folder, reporter)}))


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
    ran, shared = Ran(store.read(results, claim.id)), Shared(results)
    for one in folders:
        comparison = read(one)
        size, plan, common = fitting(claim, comparison)
        asked = Asked(claim=claim, results=results, size=size, common=tuple(common), seeds=len(comparison.seeds))
        Keeping(asked, plan, ran, shared).keep(comparison)
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
    told = max(misfits, key=_nearness, default="the claim trains nothing")
    raise InputError(f"{comparison.folder}: is no comparison of {claim.id}: {told}")


def _nearness(misfit: str) -> tuple[bool, bool]:
    """Greater for a plan that a comparison comes nearer to: another text is found where all else fits."""
    return misfit.startswith(_READS), not misfit.startswith("recipe")


def _common(plan: Plan, comparison: Comparison) -> tuple[list[str], str]:
    """What a comparison assigns to all sides beyond the plan, and how it differs from the plan."""
    known = {side.name: side for side in plan.parsed}
    if plan.factors == () and comparison.factors:
        return [], "it tries learning rates, and the sides of the claim have those that they name"
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
    if other := _other_text(plan, found[0]):
        return [], f"{_READS} {other[0]} and not {other[1]}"
    return found[0], ""
