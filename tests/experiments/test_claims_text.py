"""A claim about one text is not run on another, certified for another, or given a comparison of another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from homunculi.errors import InputError
from homunculi.experiments.claims import running
from homunculi.experiments.claims.catalogue import find
from homunculi.experiments.claims.entry import Plan
from homunculi.experiments.claims.running import Asked, fitting, keep_folder
from homunculi.experiments.comparison import Comparison, Side
from tests.experiments.inside import Listener

CLAIM = "vocab-rank64"
SAME = (
    *("tinystories", "some/folder/tinystories", "/some/tinystories/", "tinystories.txt", "tinystories.jsonl.gz"),
    *("tinystories@8", "some/tinystories.txt@0.5", "TinyStories.parquet", "hf:somebody/TinyStories:en"),
)
OTHER = (
    *("a@8,b@17", "tinystories@8,childrens@17", "childrens,some/tinystories", "tinystories/part", "tinystories-2"),
    *("my-tinystories", "stories", "tinystories@new", "tinystories.old", "hf:tinystories/else", ""),
)


class Resolved(Exception):
    """The words were let through; what they ask for would be looked at next."""


def resolve(words: list[str]) -> Any:
    raise Resolved(words)


def run(asked: Asked) -> object:
    return running.run(asked, resolve, Listener())


def certify(asked: Asked) -> object:
    return running.certify(asked, resolve, Listener())


@pytest.mark.parametrize("way", [run, certify])
@pytest.mark.parametrize("corpus", OTHER)
def test_another_text_is_refused_in_one_line(corpus: str, way: Callable[[Asked], object], tmp_path: Path) -> None:
    asked = Asked(claim=find(CLAIM), results=tmp_path / "results", common=("steps=8", f"corpus={corpus}"))
    with pytest.raises(InputError) as refused:
        way(asked)
    fix = "leave corpus out, or name a folder or file called tinystories"
    assert str(refused.value) == f"corpus={corpus}: vocab-rank64 is about tinystories; {fix}"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("way", [run, certify])
@pytest.mark.parametrize("words", [(), *((f"corpus={corpus}",) for corpus in SAME)])
def test_the_text_may_lie_anywhere(words: tuple[str, ...], way: Callable[[Asked], object], tmp_path: Path) -> None:
    with pytest.raises(Resolved, match="corpus=tinystories"):
        way(Asked(claim=find(CLAIM), results=tmp_path, common=words, folder=tmp_path / "runs"))


def test_of_several_the_last_counts(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"claim": find(CLAIM), "results": tmp_path, "folder": tmp_path / "runs"}
    with pytest.raises(Resolved):
        run(Asked(**asked, common=("corpus=else", " corpus =tinystories")))
    with pytest.raises(InputError, match=r"^corpus=else: "):
        run(Asked(**asked, common=("corpus=tinystories", " corpus =else")))


def test_one_claim_on_another_text_keeps_all_that_are_asked_for_together_from_beginning(tmp_path: Path) -> None:
    wishes = [
        Asked(claim=find(name), results=tmp_path, common=("corpus=else",), folder=tmp_path / name)
        for name in ("vocab-rank8", CLAIM)
    ]
    with pytest.raises(InputError, match="vocab-rank64 is about tinystories"):
        running.run_together(wishes, resolve, Listener())


def test_a_claim_about_no_certain_text_takes_any(tmp_path: Path) -> None:
    asked = Asked(claim=find("vocab-rank8"), results=tmp_path, common=("corpus=a@8,b@17",), folder=tmp_path / "runs")
    with pytest.raises(Resolved, match="corpus=a@8,b@17"):
        run(asked)


# Comparisons that exist already.


def finished(plan: Plan, *more: str) -> Comparison:
    """A comparison that followed a plan, with further assignments of all sides."""
    sides = [
        Side(side.name, side.recipe, [*plan.common, *more, *side.own], {}, {}, {}, {}, lr=0.01) for side in plan.parsed
    ]
    return Comparison(Path("somewhere"), list(plan.match), [0, 1], [], sides)


@pytest.mark.parametrize(("claim", "size"), [(CLAIM, "medium"), ("ncn-perplexity", "full")])
def test_a_comparison_on_another_text_is_none_of_the_claim(claim: str, size: str) -> None:
    """Told so though other sizes of the claim have other sides."""
    (plan,) = find(claim).sizes[size]
    with pytest.raises(InputError, match=f"is no comparison of {claim}: it reads a@8,b@17 and not (?i:tinystories)$"):
        fitting(find(claim), finished(plan, "corpus=a@8,b@17", "steps=8"))
    more = ["corpus=some/tinystories", "steps=8"]
    assert fitting(find(claim), finished(plan, *more)) == (size, plan, more)


def test_nothing_is_stored_of_a_comparison_on_another_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (plan,) = find(CLAIM).sizes["medium"]
    monkeypatch.setattr(running, "read", lambda folder: finished(plan, "corpus=else"))
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / running.RECORD).touch()
    with pytest.raises(InputError, match="it reads else and not tinystories"):
        keep_folder(find(CLAIM), tmp_path / "runs", tmp_path / "results")
    assert not (tmp_path / "results").exists()
