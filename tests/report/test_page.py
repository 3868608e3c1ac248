"""The page: whole in every state of a run, self-contained, and inert to what files say."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from homunculi.errors import InputError
from homunculi.report import page, sections
from homunculi.report.markup import Html, element, inert, join
from homunculi.report.page import render, write_report
from homunculi.report.snapshot import take
from homunculi.report.style import SCRIPT, STYLE
from homunculi.runs.directory import RunDirectory, claim, open_run

Make = Callable[..., RunDirectory]
VOID = {"input", "meta", "link", "br"}
TAGS = """
html head meta link title style body main script section h1 h2 h3 p a b i nav dl dt dd div small span bdi code pre table
thead tbody tr th td ul li details summary figure figcaption strong output input label footer svg desc g line polyline
path rect text
"""
HOSTILE = [
    "</title></style></script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"\' onmouseover=\'alert(1)" x="',
    "javascript:alert(1)",
    "&lt;b&gt; &amp; <!-- --> ]]>",
    "\u202egnp.exe\u202c \u2066x",
    "\x1b[31mred\x07\x9b",
    "пример 例 🧠 \u0301",
]


class Reader(HTMLParser):
    """Collects elements and checks that every one is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def attributes(self, name: str) -> list[str]:
        return [attrs[name] or "" for _, attrs in self.elements if name in attrs]


def check_self_contained(text: str) -> Reader:
    """Only our tags, one script (ours), no handler attributes, no address but data: and relative ones."""
    reader = Reader(text)
    assert {tag for tag, _ in reader.elements} <= set(TAGS.split())
    assert text.count("<script") == 1 and f"<script>{SCRIPT}</script>" in text
    assert text.count("<style") == 1 and f"<style>{STYLE}</style>" in text
    for tag, attrs in reader.elements:
        for name, value in attrs.items():
            assert not name.startswith("on"), (tag, name)
            assert name not in ("src", "srcset", "style", "action", "xlink:href"), (tag, name)
            if name == "href":
                assert (value or "").startswith(("#", "./", "data:,")), value
    ids = reader.attributes("id")
    assert len(set(ids)) == len(ids)
    return reader


def test_the_page_asks_nothing_of_a_network(make_run: Make) -> None:
    text = write_report(make_run()).read_text(encoding="utf-8")
    check_self_contained(text)
    assert "http://" not in text and "https://" not in text
    assert "url(" not in STYLE and "@import" not in STYLE and "@font-face" not in STYLE
    assert not re.search(r"fetch|XMLHttp|import|WebSocket|sendBeacon|eval|innerHTML", SCRIPT)


def test_the_policy_lets_only_our_script_run(make_run: Make) -> None:
    text = render([make_run()])
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    (policy,) = [a["content"] for t, a in Reader(text).elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy
    assert "unsafe-inline" not in policy.split("script-src")[1]


def test_the_page_shows_what_a_reader_looks_for(make_run: Make) -> None:
    text = re.sub(r"\s+", " ", check_self_contained(render([make_run()])).text)
    shown = (
        "tiny gpt done at step 40 of 40 1.592 0.531 5.24 M 41 k 20 s 5,242,112 4,717,824 524,288 9,437,184 12,288 "
        "18.9 M n_heads changed 3f2a9c1d with local changes 9d0b8f2c66a1 feedbeef01 17 23 2.13.0 cpu: x86 "
        "token edits ✓ passed the disk is nearly full control/gain_mean metrics.jsonl"
    )
    for word in shown.split():
        assert word in text, word


def test_curves_are_reachable_over_steps_tokens_and_flops_without_a_script(make_run: Make) -> None:
    reader = check_self_contained(render([make_run()]))
    radios = [attrs for tag, attrs in reader.elements if tag == "input"]
    assert [radio["id"] for radio in radios] == ["by-steps", "by-tokens", "by-flops"]
    assert [radio["id"] for radio in radios if "checked" in radio] == ["by-steps"]
    for name in ("steps", "tokens", "flops"):
        assert f"#by-{name}:checked ~ .figures .over-{name}" in STYLE
    titles = " ".join(reader.texts)
    for figure in ("Loss", "Bits per byte", "Learning rate", "Throughput", "Waiting for data", "Gradient norm"):
        for axis in ("steps", "tokens", "training FLOPs"):
            assert f"{figure} over {axis}" in titles


def test_samples_come_latest_first_with_the_prompt_set_apart(make_run: Make) -> None:
    text = render([make_run()])
    assert text.index("step 40</h3>") < text.index("<summary>step 20</summary>")
    assert "<b>Once</b> there was" in text
    assert "<b>Once</b> upon" in text


@pytest.mark.parametrize("hostile", HOSTILE)
def test_texts_from_files_are_inert(make_run: Make, hostile: str) -> None:
    run = make_run(
        name=hostile,
        architecture=hostile,
        config={hostile: hostile, "model": {hostile: [hostile]}},
        overrides=[f"{hostile}=1"],
        provenance={"git_commit": hostile, hostile: hostile},
        data={hostile: {hostile: hostile}},
        budget={"parameters": hostile, hostile: hostile},
        certificate={"causal": hostile, "checks": [{"name": hostile, "passed": hostile, "value": hostile}]},
    )
    run.log_metrics({"step": 41, hostile: 1.0, "nonfinite": [hostile]})
    run.log_event(hostile, step=41, **{"a": hostile, hostile: hostile})
    run.log_sample({"step": 41, "prompt": hostile, "text": hostile, "temperature": hostile, "seed": hostile})
    run.write_status(state="failed", reason=hostile, host=hostile)
    (run.path / "notes <b>&'\".txt").write_text("x")
    for text in (render([run]), render([run, claim_other(run)], beside=run.path.parent)):
        reader = check_self_contained(text)
        assert inert(hostile) in reader.text
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)


def claim_other(run: RunDirectory) -> RunDirectory:
    other = claim(run.path.parent / "other <i>&\"'")
    other.write_info({"config": {}})
    return other


def test_lone_surrogates_and_huge_numbers_do_not_stop_the_page(make_run: Make) -> None:
    run = make_run(name="a\ud800b", budget={"parameters": 10**30})
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 41, "tokens": ' + "9" * 400 + ', "train/loss": 1e308, "val/loss": -1e308}\n')
    assert "a\ufffdb" in write_report(run).read_text(encoding="utf-8")


def test_a_run_that_goes_on(make_run: Make) -> None:
    run = make_run()
    run.write_status(state="running")
    text = check_self_contained(render([run])).text
    assert "running at step 40 of 40" in text
    assert "last sign of life" in text


def test_a_crashed_run_with_a_torn_last_line(make_run: Make) -> None:
    run = make_run()
    run.write_status(state="running", pid=2**22 - 3)
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step":41,"train/lo')
    text = check_self_contained(render([run])).text
    assert "crashed at step 40 of 40: stopped without a word; it can be resumed" in text
    assert "damaged" not in text


def test_a_damaged_line_is_told(make_run: Make) -> None:
    run = make_run()
    with (run.path / "events.jsonl").open("ab") as file:
        file.write(b"garbage\n{}\n")
    assert "events.jsonl: line 4 is damaged and was left out" in check_self_contained(render([run])).text


def test_a_run_without_anything_yet(tmp_path: Path) -> None:
    run = claim(tmp_path / "r")
    run.write_info({"config": {}})
    text = check_self_contained(render([run])).text
    assert "preparing, no step yet" in text
    assert "Nothing logged yet." in text


def test_values_that_were_not_finite_are_told_and_marked(make_run: Make) -> None:
    run = make_run()
    run.log_metrics({"step": 41, "tokens": 41 * 1024, "train/loss": float("nan"), "train/grad_norm": float("inf")})
    run.write_status(state="diverged", reason="train/loss is nan at step 41")
    text = render([run])
    reader = check_self_contained(text)
    assert "Not finite at step 41: train/grad_norm, train/loss." in reader.text
    assert "train/loss is nan at step 41" in reader.text
    assert 'class="broken"' in text
    drawn = [reader.attributes(name) for name in ("points", "transform", "x", "y", "x1", "y1", "x2", "y2", "data-y")]
    assert sum(map(len, drawn)) > 100
    assert not re.search("nan|inf", str(drawn))


def test_a_run_whose_first_value_is_not_finite(tmp_path: Path) -> None:
    run = claim(tmp_path / "r")
    run.write_info({"config": {}})
    run.log_metrics({"step": 1, "train/loss": float("nan"), "val/loss": float("inf"), "lr": None})
    check_self_contained(render([run]))


@pytest.mark.parametrize("content", ["", "{", "[1]", "null"])
def test_a_run_json_that_cannot_be_read_is_told(make_run: Make, content: str) -> None:
    run = make_run()
    (run.path / "run.json").write_text(content)
    text = check_self_contained(write_report(open_run(run.path)).read_text()).text
    assert "run.json cannot be used" in text
    assert "tiny-0a1b2c" in text


@pytest.mark.parametrize("wrong", [None, 5, "text", [1, [2]], {"x": {"y": None}}, True])
def test_fields_of_the_wrong_kind_do_not_stop_the_page(make_run: Make, wrong: Any) -> None:
    sound = make_run("sound")
    run = make_run(**dict.fromkeys(sound.info(), wrong))
    status = dict.fromkeys(("state", "step", "steps", "tokens", "time", "started", "reason", "exit_code"), wrong)
    (run.path / "status.json").write_text(json.dumps(status))
    for name in ("metrics", "events", "samples"):
        with (run.path / f"{name}.jsonl").open("a") as file:
            keys = [
                *sound.metrics()[0],
                "time",
                "kind",
                "text",
                "prompt",
                "temperature",
                "seed",
                "nonfinite",
                "stream_hash",
            ]
            keys.remove("step")
            file.write(json.dumps({"step": 41, **dict.fromkeys(keys, wrong)}) + "\n")
            file.write(json.dumps(dict.fromkeys(["step", *keys], wrong)) + "\n")
    check_self_contained(render([run]))
    check_self_contained(render([run, run]))


def test_a_certificate_that_failed_is_not_overlooked(make_run: Make) -> None:
    checks = [{"name": "token edits", "passed": False, "value": 0.5, "limit": 1e-5}]
    text = check_self_contained(render([make_run(certificate={"causal": False, "checks": checks})])).text
    assert "Not causal: its losses must not be ranked" in text
    assert "✗ failed" in text


LEAKS = {
    "mode": "evaluation",
    "context": 64,
    "summary": "every position sees the next one",
    "pairs": [{"reader": 3, "source": 4, "difference": 0.25}],
    "n_pairs": 63,
    "n_sources": 63,
    "cell": 16,
    "cells": [[0.25, 1e-3, 0.0, None], [None, 1e-9, 0.5, 0.0], [None, None, 0.5, 0.5], [None, None, None, 0.5]],
}


def test_who_sees_what_is_drawn(make_run: Make) -> None:
    reader = check_self_contained(render([make_run(certificate={"causal": False, "checks": [], "leaks": [LEAKS]})]))
    assert "Looks ahead in evaluation, in rows of 64 tokens" in reader.text
    assert "every position sees the next one" in reader.text and "of 63 that leak" in reader.text
    squares = [attrs.get("class") for tag, attrs in reader.elements if tag == "rect" and attrs.get("x") != "1"]
    kinds = {kind: squares.count(kind) for kind in squares}
    assert kinds == {"strong": 5, "middle": 1, "weak": 1, "none": 2, "unasked": 1}  # nothing left of the diagonal
    assert "leaks" not in [attrs.get("class") for _, attrs in Reader(render([make_run("b")])).elements]


@pytest.mark.parametrize("field", ["mode", "context", "summary", "pairs", "n_pairs", "cell", "cells"])
@pytest.mark.parametrize("wrong", [None, "<b>x", -1, [], [["a"]], {"a": 1}, float("nan")])
def test_a_damaged_map_of_leaks_leaves_the_page_whole(make_run: Make, field: str, wrong: Any) -> None:
    run = make_run(certificate={"causal": False, "leaks": [LEAKS | {field: wrong}]})
    assert "What it says" in check_self_contained(render([run])).text


def test_files_are_linked_relatively(make_run: Make, tmp_path: Path) -> None:
    run = make_run("a b#?-000001")
    (run.path / "javascript:alert(1)").write_text("")
    links = Reader(render([run])).attributes("href")
    assert {"./metrics.jsonl", "./run.json", "./javascript%3Aalert%281%29"} <= set(links)
    linked = Reader(render([run], beside=tmp_path / "pages")).attributes("href")
    assert "./../a%20b%23%3F-000001/metrics.jsonl" in linked
    assert str(tmp_path) not in render([run])


def test_several_runs_share_axes_and_show_what_differs(make_run: Make) -> None:
    a = make_run("a-000001")
    b = make_run("b-000002", config={"steps": 40, "lr": 0.009})
    text = render([a, b])
    reader = check_self_contained(text)
    named = [attrs["data-name"] for tag, attrs in reader.elements if tag == "g" and attrs.get("data-name")]
    assert set(named) == {"a-000001", "b-000002"}
    assert {"config.lr", "0.003", "0.009"} <= set(reader.texts)
    assert "config.steps" not in reader.texts
    assert not any(link.startswith("./") for link in reader.attributes("href"))
    assert "./b-000002/metrics.jsonl" in Reader(render([a, b], beside=a.path.parent)).attributes("href")


def test_runs_with_equal_folder_names_are_told_apart_and_doubles_shown_once(make_run: Make) -> None:
    a, b = make_run("first/run"), make_run("second/run")
    texts = check_self_contained(render([a, b, a])).texts
    assert "2 runs" in texts
    assert {"first/run", "second/run"} <= set(texts)
    assert "done at step 40 of 40" in "".join(Reader(render([a, a])).texts)


def test_a_report_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="at least one run"):
        render([])


def test_a_report_is_replaced_whole(make_run: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run()
    path = write_report(run)
    first = path.read_text()

    def fail(*arguments: object, **named: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(page, "render", fail)
    with pytest.raises(OSError):
        write_report(run)
    assert path.read_text() == first
    assert path == run.path / "report.html"


def test_a_long_run_gives_a_page_of_bounded_size(tmp_path: Path) -> None:
    run = claim(tmp_path / "r")
    run.write_info({"config": {}})
    lines = [
        json.dumps({"step": s, "tokens": s, "flops": s, "train/loss": 2 + (s * 7919 % 100) / 99}) for s in range(20_000)
    ]
    (run.path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (run.path / "samples.jsonl").write_text(
        "\n".join(json.dumps({"step": s, "text": "x" * 50_000}) for s in range(5)) + "\n"
    )
    (run.path / "events.jsonl").write_text(
        "\n".join(json.dumps({"kind": "warning", "step": s}) for s in range(9000)) + "\n"
    )
    text = render([run])
    check_self_contained(text)
    assert len(text) < 800_000
    assert "44,000 more characters in samples.jsonl" in text


def test_markup_escapes_everything_that_is_not_markup() -> None:
    made = element("p", "<b>", element("i", "&"), None, 5, class_='"x"', title=None, hidden=True)
    assert made == '<p class="&quot;x&quot;" hidden>&lt;b&gt;<i>&amp;</i>5</p>'
    assert join(["<", Html("<br>")]) == "&lt;<br>"
    assert element("p", made + "<b>") == element("p", str(made) + "<b>")


def test_the_tiles_name_the_best_evaluation_where_it_is_not_the_last(make_run: Make) -> None:
    run = make_run()
    run.log_metrics({"step": 41, "val/loss": 9.0})
    assert "nats per token, step 41; lowest 1.692 at 40" in str(sections.tiles(take(run)))
