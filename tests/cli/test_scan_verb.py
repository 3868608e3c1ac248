"""`homunculi scan` leaves a page, numbers and, where they can be drawn, pictures; bad input is one line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from homunculi.runs.scans import read_scan


@pytest.fixture(autouse=True)
def without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without the extra."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)


def test_a_text_is_scanned_into_files_and_a_summary(cli: Callable[..., Any], finished: Path, tmp_path: Path) -> None:
    words = ("--text", "red one", "--instrument", "activation", "--change", "embed=scaled:0.5")
    done = cli("scan", finished, *words, "--out", tmp_path / "out", "--json")
    found = json.loads(done.out)
    assert done.code == 0 and found["tokens"] == 8 and found["changes"] == ["embed=scaled:0.5"]
    assert found["instruments"] == ["activation"] and "update" in found["panels"] and found["surprisal"] > 0
    scan = read_scan(Path(found["files"]["json"]))
    assert scan.text == "red one" and scan.step == found["step"] == 8
    assert "<title>" in Path(found["files"]["html"]).read_text(encoding="utf-8")
    assert "pip install 'homunculi[report]'" in done.err and set(found["files"]) == {"json", "html"}


def test_without_a_folder_it_goes_into_the_run_one_for_each_text(cli: Callable[..., Any], finished: Path) -> None:
    outs = [cli("scan", finished, "--text", text).out.splitlines() for text in ("one", "two", "one")]
    pages = [next(line for line in lines if line.endswith("scan.html")) for lines in outs]
    assert pages[0] == pages[2] != pages[1] and Path(pages[0]).is_relative_to(finished / "scans")
    assert outs[0][0].startswith("4 tokens, ")


def test_an_earlier_checkpoint_and_the_colours_of_another_scan(
    cli: Callable[..., Any], finished: Path, tmp_path: Path
) -> None:
    early, late = tmp_path / "early", tmp_path / "late"
    cli("scan", finished, "--text", "red one", "--step", 4, "--out", early)
    cli("scan", finished, "--text", "red one", "--out", late, "--like", early / "scan.json")
    first, second = (read_scan(folder / "scan.json") for folder in (early, late))
    assert (first.step, second.step) == (4, 8) and first.tokens != second.tokens
    assert [(p.low, p.high) for p in first.panels] == [(p.low, p.high) for p in second.panels]


def test_words_and_orders_give_averages_and_distances(cli: Callable[..., Any], finished: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "texts"
    corpus.mkdir()
    for i in range(12):
        (corpus / f"{i}.txt").write_text(f"fox ran far and hen sat {'abcdefghijkl'[i]}", encoding="utf-8")
    options = ("--around", "Fox,nobody", "--corpus", corpus, "--texts", 24, "--out", tmp_path / "out")
    done = cli("scan", finished, *options, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert done.code == 0 and found["n_texts"] == found["n_events"] == 12 and found["words"] == ["Fox", "nobody"]
    average = json.loads((tmp_path / "out" / "events.json").read_text())["average"]
    assert average["names"][0] == "surprisal" and len(average["event"][0]) == 17 and max(average["p"]) <= 1
    assert "12 events in 12 texts" in (tmp_path / "out" / "events.html").read_text(encoding="utf-8")
    assert cli("scan", finished, *options).out.startswith("12 events in 12 texts; signals that respond: ")
    only = cli("scan", finished, "--swap", "red fox sees blue hen", "--out", tmp_path, "--json")
    found = json.loads(only.out)
    assert only.code == 0 and found["orders"]["phasic"]["swapped"][0] > 0
    kept = json.loads((tmp_path / "events.json").read_text())
    assert kept["orders"]["pairs"][0]["swapped"] == "hen fox sees blue red" and kept["average"] is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "scan: give --text, or --around"),
        (("--text", "a", "--around", "but"), "scan: give --text, or --around"),
        (("--around", "but", "--low", 0), "--around and --swap take"),
        (("--text", ""), "text: is empty"),
        (("--text", "x" * 40), "40 tokens and the start are more than the 32"),
        (("--text", "a", "--change", "depth=2"), "change: depth=2: this model has no passes"),
        (("--text", "a", "--change", "embed=patched"), "there is no other text to patch from"),
        (("--text", "a", "--instrument", "sonar"), "sonar: no such instrument"),
        (("--text", "a", "--instrument", "updates"), "updates: reads an update of the weights"),
        (("--text", "a", "--patch-text", "b"), "patch_text: no change takes from it"),
        (("--text", "a", "--panel", "spin"), "spin: no such panel; there are update"),
        (("--text", "a", "--step", 5), "no checkpoint of step 5; there are"),
        (("--text", "a", "--like", "nowhere.json"), "nowhere.json: no such file"),
        (("--swap", "the of"), "swap: 'the of' has no two words"),
        (("--around", "but", "--corpus", "nowhere"), "nowhere"),
    ],
)
def test_bad_input_is_one_line(cli: Callable[..., Any], finished: Path, words: tuple[Any, ...], said: str) -> None:
    done = cli("scan", finished, *words)
    assert done.code == 2 and said in done.err and len(done.err.strip().splitlines()) == 1


def test_a_folder_that_cannot_be_made_is_named(cli: Callable[..., Any], finished: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = cli("scan", finished, "--text", "a", "--out", tmp_path / "file" / "out")
    assert done.code == 2 and "name another folder with --out" in done.err


def test_what_is_asked_otherwise_goes_into_a_folder_of_its_own(cli: Callable[..., Any], finished: Path) -> None:
    asked = [("--text", "one"), ("--text", "one", "--instrument", "activation"), ("--text", "one", "--low", -3)]
    pages = [json.loads(cli("scan", finished, *words, "--json").out)["files"]["html"] for words in asked]
    names = [Path(page).parent.name for page in pages]
    assert len(set(names)) == 3 and all(name.startswith("one-") for name in names)


def test_a_model_that_says_no_numbers_is_told_so(cli: Callable[..., Any], finished: Path, tmp_path: Path) -> None:
    words = ("--text", "red", "--change", "steps.*.resid_post=scaled:1e38", "--out", tmp_path)
    done = cli("scan", finished, *words)
    assert done.code == 0 and "nothing that the model said is a number" in done.out
    assert json.loads(cli("scan", finished, *words, "--json").out)["surprisal"] is None
