"""The table of claims: every verdict computed now, from what is stored or counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from homunculi.errors import InputError
from homunculi.experiments.claims import store
from homunculi.experiments.claims.entry import Claim
from homunculi.experiments.claims.evidence import NOT_RUN, Evidence, Finding, Json, first_look
from homunculi.runs.directory import runs_root

DEFAULT = Path("benchmarks") / "claims"


@dataclass(frozen=True, slots=True)
class Row:
    """A claim with its finding, and where it was found.

    Attributes:
        size, common: what its stored result was run at; empty where there is none.
        devices: of its runs.
        notes: what a reader should know of the runs, beside the verdict.
    """

    claim: Claim
    finding: Finding
    size: str = ""
    common: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_json(self) -> Json:
        """What ``--json`` prints of it."""
        claim, finding = self.claim, self.finding
        decided: Json = {"id": claim.id, "verdict": finding.verdict, "difference": finding.difference}
        decided |= {"low": finding.low, "high": finding.high, "n": finding.n, "unit": finding.unit}
        decided |= {"figures": dict(finding.figures)}
        said = {"system": claim.system, "claim": claim.claim, "claimed": claim.figure, "check": claim.check}
        said |= {"control": claim.control, "reason": finding.reason, "beyond": claim.beyond, "needs": claim.needs}
        return (
            decided
            | said
            | {"size": self.size, "common": list(self.common), "devices": list(self.devices)}
            | {"notes": list(self.notes)}
        )


def results_folder(given: Path | None) -> Path:
    """Where results are kept: the folder that is named, else benchmarks/claims if it is here, else one beside runs."""
    if given is not None:
        return given
    return DEFAULT if DEFAULT.is_dir() else runs_root() / "claims"


def rows(claims: Sequence[Claim], folder: Path) -> list[Row]:
    """A row for each.

    Raises:
        InputError: a stored result is damaged.
    """
    return [row(claim, folder) for claim in claims]


def row(claim: Claim, folder: Path) -> Row:
    """Judge one claim by what is stored of it, and put beside the finding what its record shows.

    Raises:
        InputError: its stored result is damaged; a damaged record shows nothing.
    """
    found = _judged(claim, folder)
    more = claim.shown(folder) if claim.shown else {}
    return replace(found, finding=replace(found.finding, figures={**found.finding.figures, **more}))


def _judged(claim: Claim, folder: Path) -> Row:
    if claim.rule is None:
        return Row(claim, Finding(NOT_RUN, f"needs {claim.needs}"))
    if claim.count is not None:
        return Row(claim, claim.rule(Evidence({}, claim.count(folder))))
    stored = store.read(folder, claim.id)
    if stored is None:
        return Row(claim, Finding(NOT_RUN, f"homunculi claims {claim.id}: {claim.cost()}"))
    devices = dict.fromkeys(str(one.get("device", "")) for one in [*stored["provenance"], *_taken(stored)])
    finding = judge(claim, stored, folder)  # first: it refuses what is damaged
    return Row(claim, finding, stored["size"], tuple(stored["common"]), tuple(devices), tuple(_notes(stored)))


def _taken(stored: Json) -> list[Json]:
    """Where runs come from that another claim's result had."""
    return [run["taken"] for part in stored["parts"].values() for run in part["runs"] if "taken" in run]


def _notes(stored: Json) -> list[str]:
    parts = store.evidence_of(stored).parts.values()
    n_left_out = sum(part.n_left_out for part in parts)
    codes = {one.get("code") for one in stored["provenance"] if one.get("code")}
    found = {
        "learning rates were not tuned": any(part.touched and not part.stored["factors"] for part in parts),
        f"runs left out, for other batches, another text or too few steps: {n_left_out}": n_left_out > 0,
        f"runs taken from other claims: {len(_taken(stored))}": bool(_taken(stored)),
        f"runs of {len(codes)} versions of the code": len(codes) > 1,
    }
    return [note for note, holds in found.items() if holds]


def judge(claim: Claim, stored: Json, folder: Path) -> Finding:
    """The verdict that follows from a stored result, whatever the file says of it.

    Raises:
        InputError: something in the file is not as it was written.
    """
    if claim.rule is None:
        return Finding(NOT_RUN, f"needs {claim.needs}")
    try:
        evidence = store.evidence_of(stored)
        if not any(part.touched for part in evidence.parts.values()):
            cost = claim.cost(stored["size"])
            return Finding(NOT_RUN, f"no run has ended yet; homunculi claims {claim.id}: {cost}")
        return first_look(claim.rule(evidence))
    except (InputError, LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        where = store.path_of(folder, claim.id)
        said = " ".join(str(error).split())[:120]
        raise InputError(f"{where}: is damaged ({type(error).__name__}: {said}); restore it from a copy") from None
