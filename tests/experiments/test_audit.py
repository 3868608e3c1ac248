"""The audit of toy families: verdicts, limits, what it remembers. This file is their source: names, versions, build.

Legend: B batch, T positions, D width, V vocabulary.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from homunculi.errors import InputError
from homunculi.experiments.audit import ROWS, WHOLE, Limits, audit
from homunculi.experiments.audit_family import COLUMNS, ask, examine
from tests.cli.conftest import run_cli

SOURCE = "tests.experiments.test_audit"
VOCAB, CONTEXT, D = 11, 12, 6
NAMES = ["honest", "peeks", "forgets", "raises", "talks", "hangs", "dies", "hungry"]
ROOM = Limits(seconds=100, memory=1.5)


class Sums(nn.Module):
    """Every position adds up what came before; the sum is what it remembers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(VOCAB, D)
        self.out = nn.Linear(D, VOCAB)

    def forward(self, ids_BT: Tensor, memory: dict[str, Any] | None = None) -> Tensor:
        x_BTD = self.embed(ids_BT).cumsum(1)
        if memory is not None:
            x_BTD = x_BTD + memory.get("sum", 0.0)
            memory["sum"] = x_BTD[:, -1:]
        return self.out(x_BTD.tanh())


class Peeks(Sums):
    def forward(self, ids_BT: Tensor, memory: dict[str, Any] | None = None) -> Tensor:
        return super().forward(ids_BT) + self.embed(ids_BT).mean((1, 2), keepdim=True)


class Forgets(Sums):
    """Its cache holds something, and reads nothing of it."""

    def forward(self, ids_BT: Tensor, memory: dict[str, Any] | None = None) -> Tensor:
        if memory is not None:
            memory["something"] = 1
        return super().forward(ids_BT)

    def generate(self, ids_BT: Tensor, n_tokens: int) -> tuple[Tensor, Tensor]:
        """Without the cache, so it is right."""
        for _ in range(n_tokens):
            ids_BT = torch.cat([ids_BT, self(ids_BT)[:, -1:].argmax(-1)], dim=1)
        return ids_BT, self(ids_BT)[:, -n_tokens - 1 : -1]


class Narrow(Sums):
    """Knows no float64, as grouped products of experts do."""

    def forward(self, ids_BT: Tensor, memory: dict[str, Any] | None = None) -> Tensor:
        if self.out.weight.dtype != torch.float32:
            raise RuntimeError("expected float32")
        return super().forward(ids_BT, memory)


@dataclass(frozen=True)
class Toy:
    model: nn.Module
    made: str = "Toy"
    vocab_size: int = VOCAB
    context: int = CONTEXT
    notes: tuple[str, ...] = ()
    causes: Mapping[str, str] = field(default_factory=dict)
    exact: Callable[[], nn.Module] | None = None
    alternative: tuple[str, Callable[[], nn.Module]] | None = None


def names() -> list[str]:
    return sorted(NAMES)


def versions() -> dict[str, str]:
    return {"toys": os.environ.get("TOYS_VERSION", "1")}


def build(name: str) -> Toy:
    if name == "raises":
        raise ValueError("no \x1b[31mred\x1b[0m family\nsecond line")
    if name == "talks":
        print('{"causal": "what a family prints"}', flush=True)
    if name == "hangs":
        time.sleep(60)
    if name == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "hungry":
        bytearray(2**31)
    return Toy({"peeks": Peeks, "forgets": Forgets}.get(name, Sums)())


def row_of(found: dict[str, Any], name: str) -> dict[str, Any]:
    return {row["family"]: row for row in found["families"]}[name]


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder and the result of an audit of all toys but one, under a limit that one of them does not keep."""
    folder = tmp_path_factory.mktemp("audit")
    return folder, audit(SOURCE, [name for name in names() if name != "hangs"], folder, at_once=2, limits=ROOM)


def test_each_family_gets_the_verdicts_it_deserves(survey: tuple[Path, dict[str, Any]]) -> None:
    _, found = survey
    assert [row_of(found, "honest")[column] for column in COLUMNS] == [True] * 4
    assert row_of(found, "peeks")["causal"] is False
    assert "moves the logits of position" in row_of(found, "peeks")["note"]
    forgets = row_of(found, "forgets")
    assert (forgets["causal"], forgets["cached_equals_full"]) == (True, False)
    assert "from position 5 on" in forgets["note"]
    assert "generate() equals the full forward" in forgets["note"]
    assert found["counts"]["causal"] == {"yes": 3, "no": 1, "not asked": 3}


def test_what_a_family_prints_is_not_its_answer(survey: tuple[Path, dict[str, Any]]) -> None:
    assert row_of(survey[1], "talks")["causal"] is True


def test_a_family_that_fails_says_why_in_one_inert_line(survey: tuple[Path, dict[str, Any]]) -> None:
    row = row_of(survey[1], "raises")
    assert [row[column] for column in COLUMNS] == [None] * 4
    assert row["note"].startswith("ValueError: no ")
    assert "second line" not in row["note"]
    assert row["note"].isprintable()


def test_a_family_is_held_to_its_memory_and_its_own_process(survey: tuple[Path, dict[str, Any]]) -> None:
    _, found = survey
    assert row_of(found, "hungry")["note"] == "needs more than 1.5 GiB"
    assert row_of(found, "dies")["note"] == "its process ended by signal 9"


def test_the_folder_holds_every_row_and_the_whole(survey: tuple[Path, dict[str, Any]]) -> None:
    folder, found = survey
    lines = [json.loads(line) for line in (folder / ROWS).read_text().splitlines()]
    assert sorted(line["family"] for line in lines) == [row["family"] for row in found["families"]]
    assert len(lines) == len(NAMES) - 1
    assert json.loads((folder / WHOLE).read_text()) == found


def test_a_family_is_held_to_its_time_and_asked_again_where_it_may_take_more(tmp_path: Path) -> None:
    asked: list[float] = []
    for seconds in (0.5, 0.5, 1.0):  # the second finds what the first has learned
        found = audit(
            SOURCE, ["hangs"], tmp_path, limits=Limits(seconds), report=lambda row, *_: asked.append(row["seconds"])
        )
        assert row_of(found, "hangs")["causal"] is None
    assert row_of(found, "hangs")["note"] == "took more than 1 s"
    assert len(asked) == 2


def test_what_is_known_is_not_asked_again(
    survey: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = (survey[0] / ROWS).read_text().splitlines()
    kept = [line for line in lines if json.loads(line)["family"] not in ("honest", "peeks")]
    (tmp_path / ROWS).write_text("\n".join([*kept, lines[0][:40]]))  # two missing, and a line cut short
    asked: list[str] = []

    def report(row: dict[str, Any], done: int, of: int) -> None:
        asked.append(row["family"])
        assert done <= of

    wanted = ["honest", "forgets", "raises", "hungry"]
    found = audit(SOURCE, wanted, tmp_path, limits=ROOM, report=report)
    assert asked == ["honest"]
    assert [row["family"] for row in found["families"]] == wanted
    monkeypatch.setenv("TOYS_VERSION", "2")
    found = audit(SOURCE, ["raises"], tmp_path, limits=ROOM, report=report)
    assert json.loads((tmp_path / WHOLE).read_text()) == found, "rows of other versions stay apart"
    audit(SOURCE, ["raises"], tmp_path, limits=ROOM, report=report, again=True)
    assert asked == ["honest", "raises", "raises"]


def test_an_unknown_family_is_named_with_those_near(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^honset: .*did you mean honest\?$"):
        audit(SOURCE, ["honset"], tmp_path)
    with pytest.raises(InputError, match="there are 8"):
        audit(SOURCE, ["\x1b[31mzzzzzz"], tmp_path)


def test_results_are_not_written_into_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="not a folder"):
        audit(SOURCE, ["honest"], tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_family_without_float64_is_asked_in_an_equal_form_that_has_it() -> None:
    found = examine(Toy(Narrow(), exact=Sums))
    assert found["causal"] is True
    assert found["cached_equals_full"] is True
    assert "in float64" in found["note"]
    assert "cannot run" not in found["note"]
    assert examine(Toy(Narrow(), exact=Peeks))["causal"] is False, "both forms must be causal"
    for without in (None, lambda: 1 / 0):
        found = examine(Toy(Narrow(), exact=without))
        assert (found["causal"], found["cached_equals_full"]) == (True, True)
        assert "cannot run in float64" in found["note"]


def test_causes_and_other_settings_are_told_where_they_explain_something() -> None:
    causes = {"causal": "it pools", "batch_independent": "it mixes rows"}
    note = examine(Toy(Peeks(), causes=causes, alternative=("pools=False", Sums)))["note"]
    assert note.startswith("it pools; with pools=False: causal, cached equals full; a change from position")
    assert "rows" not in note
    assert examine(Toy(Sums(), causes=causes, alternative=("pools=False", Peeks)))["note"] == ""


def test_a_model_that_remembers_nothing_has_no_verdict_on_its_cache() -> None:
    class NoCache(Sums):
        def forward(self, ids_BT: Tensor, memory: dict[str, Any] | None = None) -> Tensor:
            return super().forward(ids_BT)

    answers = ask(NoCache(), VOCAB, CONTEXT)
    assert answers.verdicts["cached_equals_full"] is None
    assert "keeps no cache" in answers.notes


def test_a_cache_that_fails_leaves_the_word_to_generation() -> None:
    class Breaks(Forgets):
        def forward(self, ids_BT: Tensor, memory: dict[str, Any] | None = None) -> Tensor:
            if memory:
                raise RuntimeError("sizes differ")
            return super().forward(ids_BT, memory)

    answers = ask(Breaks(), VOCAB, CONTEXT)
    assert answers.verdicts["cached_equals_full"] is True
    assert answers.notes[:2] == [
        "a call with its cache fails (RuntimeError: sizes differ)",
        "generate() equals the full forward",
    ]


@pytest.fixture
def toys_for_the_verb(monkeypatch: pytest.MonkeyPatch) -> None:
    from homunculi.cli import audit as verb

    monkeypatch.setattr(verb, "SOURCE", SOURCE)


def test_the_verb_prints_one_line_a_family_and_exits_with_0(
    survey: tuple[Path, dict[str, Any]], toys_for_the_verb: None, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["audit", "peeks", "raises", "honest", "--out", survey[0], "--seconds", "100", "--memory", "1.5"]
    done = run_cli(capsys, *words)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert [line.split()[:2] for line in lines[1:4]] == [["peeks", "NO"], ["raises", "–"], ["honest", "yes"]]
    assert "\x1b" not in done.out
    assert "causal: yes 1, no 1, not asked 1" in lines
    found = json.loads(run_cli(capsys, *words, "--json").out)
    assert [row["family"] for row in found["families"]] == ["peeks", "raises", "honest"]
    assert found["toys"] == "1"


def test_without_transformers_one_line_names_the_extra(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "transformers", None)
    done = run_cli(capsys, "audit", "--out", tmp_path / "out")
    assert done.code == 2
    assert done.err.strip() == "homunculi: transformers is not installed: pip install 'homunculi[hf]' brings it"
    assert not (tmp_path / "out").exists()


def test_an_unknown_family_ends_the_verb_with_2(
    toys_for_the_verb: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    done = run_cli(capsys, "audit", "honset", "--out", tmp_path)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "did you mean honest?" in done.err
