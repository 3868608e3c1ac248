"""The page of a comparison: complete, whole in every state of the comparison, and inert to what the file says."""

from __future__ import annotations

import copy
import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from homunculi.errors import InputError
from homunculi.report.comparison import MORE_STYLE, render_comparison, write_comparison_report
from homunculi.report.comparison_record import Record, read_pair, signed
from homunculi.report.differences import dots, learning_curves, over_training, probability
from homunculi.report.markup import inert
from homunculi.report.style import SCRIPT, STYLE
from tests.report.comparison_example import SIDES, example

TAGS = """
html head meta link title style body main script section h1 h2 h3 h4 p b i nav dl dt dd div small span bdi code pre
table thead tbody tr th td ul li details summary figure figcaption strong output input label footer svg desc g line
polyline path text a
"""
HOSTILE = [
    "</title></style></script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"\' onmouseover=\'alert(1)" x="',
    "javascript:alert(1)",
    "\u202egnp.exe\u202c \u2066x",
    "../../../etc/passwd",
    "a\ud800b пример 例 🧠",
]


class Reader(HTMLParser):
    """Collects elements and texts, and checks that every element is closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("input", "meta", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).replace("\u2212", "-").split())


def checked(raw: dict[str, Any]) -> Reader:
    """The page of `raw`: our tags, style and script alone, no address but relative ones, every id once, no NaN."""
    page = render_comparison(Record(raw))
    reader = Reader(page)
    assert {tag for tag, _ in reader.elements} <= set(TAGS.split())
    assert page.count("<script") == 1 and f"<script>{SCRIPT}</script>" in page
    assert page.count("<style") == 1 and f"<style>{STYLE}{MORE_STYLE}</style>" in page
    for tag, attributes in reader.elements:
        for name, value in attributes.items():
            assert not name.startswith("on") and name not in ("src", "srcset", "style", "action"), (tag, name)
            assert name != "href" or (value or "").startswith(("#", "./", "data:,")), value
            assert name not in ("d", "points", "x", "x1", "transform") or not re.search("nan|inf", value or ""), value
    ids = [attributes["id"] for _, attributes in reader.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    return reader


def changed(**fields: Any) -> dict[str, Any]:
    return example(n_seeds=3, n_points=8) | fields


def shapes(markup: str | None, tag: str) -> list[ElementTree.Element]:
    assert markup
    closed = re.sub("<input[^>]*>", "", markup)
    return list(ElementTree.fromstring(f"<div>{closed}</div>").iter(tag))


def test_the_report_lies_beside_its_record_and_needs_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "comparison.json").write_text(json.dumps(example()), encoding="utf-8")
    path = write_comparison_report(tmp_path)
    assert path == tmp_path / "report.html"
    page = path.read_text(encoding="utf-8")
    assert "http://" not in page and "https://" not in page
    assert "url(" not in MORE_STYLE and "@import" not in MORE_STYLE
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["comparison.json", "report.html"]


def test_a_folder_without_a_record_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no comparison\.json"):
        write_comparison_report(tmp_path)


@pytest.mark.parametrize("content", ["{", "[1]", '"x"', "\udcff", "[" * 100_000])
def test_a_damaged_record_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "comparison.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=r"comparison\.json: .*restore it from a copy"):
        write_comparison_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_the_verdicts_stand_first_with_interval_seeds_and_p() -> None:
    pair = example()["pairs"][0] | {"difference": -0.0221, "low": -0.0279, "high": -0.0162, "verdict": "better"}
    text = checked(changed(pairs=[pair])).text
    sentence = (
        "recursive is better than gpt: -0.0221 bits per byte (-1.2 %); 95 % interval -0.0279 to -0.0162, "
        "5 paired seeds, p < 0.001, corrected for all pairs = 0.002."
    )
    assert sentence in text
    assert text.index(sentence) < text.index("Learning curves")
    assert "No difference shown is not equality" not in text


def test_no_difference_shown_is_not_called_equality() -> None:
    pair = example()["pairs"][0] | {"verdict": "no difference shown", "p": 0.31, "adjusted_p": 0.31}
    text = checked(changed(pairs=[pair])).text
    assert "No difference shown, recursive against gpt: " in text
    assert "p = 0.31." in text
    assert "No difference shown is not equality" in text


def test_few_seeds_are_called_no_claim() -> None:
    words = "With fewer than 5 seeds this is a first look and no claim."
    assert words in checked(example(n_seeds=3)).text
    assert words not in checked(example(n_seeds=5)).text
    assert "99 % interval" in checked(changed(level=0.99)).text


def test_the_page_shows_everything_the_record_holds() -> None:
    text = checked(changed(data={"spec": "stories", "data_hash": "9d0b8f2c66a1"})).text
    shown = (
        "matched in parameters, tokens|3 seeds|complete: 12 runs|parameters stored|parameters executed for a token|"
        "of these, without token tables|FLOPs a token, forward|bytes of cache a token|9,830,400|7,680|"
        "model.d_mlp=528|0.016|×2|✓ chosen|kneser-ney 3|2.250|unigram cache|4.310|token edits|3.1e-06|0.0001|"
        "✓ causal, 2 of 2 checks passed|The end, said mor.|3f2a9c1d|2.13.0|2026-03-04 05:06:07 UTC|9d0b8f2c66a1|"
        "config.model.n_blocks|b 5.20 M, a 6.10 M|loss 2.6, ×0.85|b never|bits per byte|tokens (million)|"
        "With each seed all sides saw the same batches"
    )
    for words in shown.split("|"):
        assert words in text, words


def test_results_are_in_order_with_refused_sides_and_count_models_last() -> None:
    raw = changed(refused=[{"run": "recursive", "reason": "not causal: token edits 3e-01 (limit 1e-05)"}])
    text = checked(raw).text
    table = text[text.index("lowest to highest seed") : text.index("Learning curves", text.index("tokens/s"))]
    names = re.findall(r"gpt|recursive|mor|homunculi|kneser", table)
    assert names[:4] == ["gpt", "mor", "homunculi", "recursive"] and names[-1] == "kneser"
    assert "Refused, not ranked: recursive: not causal: token edits 3e-01 (limit 1e-05)" in text
    assert {curve.name for curve in Record(raw).curves()} == {"gpt", "mor", "homunculi"}


def test_a_side_that_is_not_causal_is_not_ranked_even_where_nobody_refused_it() -> None:
    raw = changed()
    raw["sides"][3]["certificate"] = {"causal": False, "checks": [{"name": "token edits", "passed": False}]}
    assert Record(raw).ranked == ["gpt", "recursive", "mor"]
    assert "Refused, not ranked: homunculi: not causal" in checked(raw).text
    assert "✗ not causal, 0 of 1 checks passed" in checked(raw).text


def test_a_refused_run_counts_nowhere() -> None:
    raw = changed(refused=[{"run": "runs/mor-s1", "side": "mor", "seed": 1, "reason": "other batches"}])
    whole, rest = Record(changed()), Record(raw)
    assert len(rest.ends_of("mor", "val_bpb")) == 2 and len(whole.ends_of("mor", "val_bpb")) == 3
    assert rest.missing() == {}


def test_different_batches_are_told() -> None:
    raw = changed()
    raw["runs"][4]["stream"] = "something else"
    text = checked(raw).text
    assert "Not the same batches: the sides saw different ones with seed 1." in text
    assert "their hashes agree" not in text


def test_curves_are_means_with_the_lowest_and_highest_seed() -> None:
    (curve, *_) = Record(example(n_seeds=3)).curves()
    lines = np.array([run["val_bpb"] for run in example(n_seeds=3)["runs"] if run["side"] == "gpt"])
    rows = np.array(curve.rows)
    np.testing.assert_allclose(rows[:, 1], lines.mean(axis=0))
    np.testing.assert_allclose(rows[:, 2:], np.stack([lines.min(axis=0), lines.max(axis=0)], axis=1))


def test_a_mean_is_over_the_same_runs_at_every_point() -> None:
    raw = changed()
    for key in ("tokens", "val_bpb", "val_loss"):
        raw["runs"][1][key] = raw["runs"][1][key][:3]
    (curve, *_) = Record(raw).curves()
    assert (curve.n_runs, curve.n_expected, len(curve.rows)) == (2, 3, 9)
    assert curve.rows[0][1] == pytest.approx(np.mean([raw["runs"][i]["val_bpb"][0] for i in (0, 2)]))
    assert Record(raw).mean_of("gpt") == pytest.approx(np.mean([raw["runs"][i]["val_bpb"][-1] for i in (0, 2)]))
    assert "gpt: 2 of 3 runs" in checked(raw).text


def test_a_band_is_drawn_from_its_lowest_to_its_highest_value() -> None:
    drawing = shapes(learning_curves(Record(example()).curves()[:1], [], "bits per byte"), "g")
    (bands, line) = (drawing[0], drawing[1])
    assert "faint" in bands.get("class", "") and "marked" in line.get("class", "")
    edge = [float(pair.split(",")[1]) for pair in next(bands.iter("polyline")).get("points", "").split()]
    middle = [float(pair.split(",")[1]) for pair in next(line.iter("polyline")).get("points", "").split()]
    upper, lower = edge[: len(middle)], edge[len(middle) :][::-1]
    assert all(top <= at <= low for top, at, low in zip(upper, middle, lower, strict=True))
    assert any(low - top > 2 for top, low in zip(upper, lower, strict=True))


def test_views_need_no_script_and_a_log_scale_is_offered_where_it_shows_more() -> None:
    reader = checked(example())
    keys = [attributes["id"] for tag, attributes in reader.elements if tag == "input"]
    assert keys == ["by-tokens", "by-log", "by-late", "by-flops"]
    for key in ("tokens", "log", "late", "flops"):
        assert f"#by-{key}:checked ~ .figures .over-{key}" in STYLE + MORE_STYLE
    assert "bits per byte, log scale" in reader.text
    flat = example()
    for run in flat["runs"]:
        run["val_bpb"] = [2.0 + value / 100 for value in run["val_bpb"]]
    flat["sides"][0]["budget"] = None
    assert [a["id"] for tag, a in checked(flat).elements if tag == "input"] == ["by-tokens", "by-late"]


def test_counted_models_beyond_the_frame_are_named_instead_of_drawn() -> None:
    groups = [a.get("data-name") for tag, a in checked(example()).elements if tag == "g"]
    assert "kneser-ney 3" in groups
    assert "Beyond the frame: unigram cache 4.310." in checked(example()).text


def test_each_pair_has_a_dot_a_seed_a_bar_and_zero() -> None:
    record = Record(example())
    paths = [path.get("class", "") for path in shapes(dots(record.pairs), "path")]
    assert sum("dot" in name for name in paths) == 2 * 6 * 5
    assert sum("bar" in name for name in paths) == sum("mean" in name for name in paths) == 2 * 6
    zeros = [line for line in shapes(dots(record.pairs), "line") if line.get("class") == "zero"]
    assert len(zeros) == 2 * 6 and len({line.get("x1") for line in zeros}) == 2


def test_dots_stand_where_their_differences_are() -> None:
    pair = read_pair({"difference": 0.0, "low": -1.0, "high": 1.0, "differences": [-1.0, 0.0, 1.0]}, "val/bpb")
    first = shapes(dots([pair]), "svg")[0]
    spots = [
        re.match(r"M([-\d.]+) ", path.get("d", "")) for path in first.iter("path") if "dot" in path.get("class", "")
    ]
    left, middle, right = (float(spot[1]) for spot in spots if spot)
    assert middle - left == pytest.approx(right - middle, abs=0.1) and right - left > 300


def test_a_pair_far_from_the_others_has_its_own_axis() -> None:
    near = [
        read_pair({"a": "x", "b": str(k), "difference": 0.001 * k, "differences": [0.001 * k]}, "m") for k in (1, 2)
    ]
    far = read_pair({"a": "x", "b": "far", "difference": 0.7, "differences": [0.7]}, "m")
    assert len(shapes(dots(near), "figure")) == 1
    assert len(shapes(dots([near[0], far, near[1]]), "figure")) == 2
    assert "an axis of their own" in (dots([far, *near]) or "")


def test_the_difference_over_training_has_a_band_and_a_zero_line() -> None:
    (drawing, *_) = shapes(over_training(Record(example()).pairs), "svg")
    classes = [group.get("class") for group in drawing.iter("g")]
    assert classes == ["c0 faint", "c7 faint", "c0 marked"]


def test_a_comparison_that_has_just_begun() -> None:
    raw = changed(runs=[], pairs=[], tuning=[], baselines=[])
    for side in raw["sides"]:
        side["certificate"] = side["lr"] = None
    text = checked(raw).text
    assert "unfinished: 0 runs so far, 12 to come: gpt, seed 0, 1, 2; recursive, seed 0, 1, 2;" in text
    assert "No verdict yet." in text and "gpt: not certified yet" in text


def test_runs_to_come_and_runs_that_failed_are_told() -> None:
    raw = changed()
    failed = raw["runs"].pop()
    raw["runs"].pop(0)
    raw["failed"] = [
        {"side": failed["side"], "seed": failed["seed"], "run": failed["run"], "state": "diverged", "reason": "step 7"}
    ]
    text = checked(raw).text
    assert "unfinished: 10 runs so far, 1 to come: gpt, seed 0" in text
    assert "homunculi, seed 2, did not end: diverged, step 7" in text


def test_one_seed_has_no_interval() -> None:
    pair = {"a": "gpt", "b": "mor", "difference": 0.01, "low": None, "high": None, "n": 1, "p": None, "verdict": None}
    text = checked(changed(pairs=[pair | {"differences": [0.01]}])).text
    assert "No verdict, mor against gpt: +0.0100 bits per byte (+0.5 %); no interval, 1 paired seed." in text


def test_zero_variance_and_the_null_comparison() -> None:
    pair = {"a": "gpt", "b": "gpt-2", "difference": 0.0, "low": 0.0, "high": 0.0, "n": 5, "p": 1.0}
    points = [{"tokens": k, "difference": 0.0, "low": 0.0, "high": 0.0} for k in range(3)]
    extra = {"differences": [0.0] * 5, "points": points, "verdict": "no difference shown", "area": pair}
    text = checked(changed(pairs=[pair | extra])).text
    assert "gpt-2 against gpt: 0.000 bits per byte; 95 % interval 0.000 to 0.000" in text


def test_ten_sides_keep_their_looks_apart() -> None:
    raw = example({f"variant {place}": 0.01 * place for place in range(10)}, n_seeds=2, n_points=6)
    groups = [a for tag, a in checked(raw).elements if tag == "g" and (a.get("data-name") or "").startswith("variant")]
    looks = {(a["data-name"], a["class"], a.get("stroke-dasharray")) for a in groups}
    assert len(looks) == 10 and len({look[1:] for look in looks}) == 10
    assert not any("c7" in (a["class"] or "") for a in groups)


@pytest.mark.parametrize("hostile", HOSTILE)
def test_texts_of_the_file_are_inert(hostile: str) -> None:
    raw = json.loads(json.dumps(example(n_seeds=2, n_points=4)).replace('"gpt"', json.dumps(hostile)))
    raw |= {"match": [hostile], "provenance": {hostile: hostile, "command": hostile}, "metric": hostile}
    raw["refused"] = [{"run": hostile + "x", "reason": hostile}]
    raw["failed"] = [{"side": hostile, "seed": hostile, "run": hostile, "state": hostile, "reason": hostile}]
    raw["baselines"].append({"name": hostile, hostile.replace("/", "_"): 2.0})
    raw["pairs"][0] |= {"verdict": hostile, "metric": hostile, "area": {"verdict": hostile}}
    raw["sides"][0] |= {"recipe": hostile, "changes": {hostile: hostile}, "ratios": {hostile: 1.0}, "lr": hostile}
    raw["sides"][0]["certificate"] = {"causal": hostile, "checks": [{"name": hostile, "value": hostile}]}
    for run in raw["runs"]:
        run |= {"run": hostile, "sample": hostile, "stream": hostile, hostile.replace("/", "_"): run["val_bpb"]}
    reader = checked(raw)
    assert re.sub(r"\s+", " ", inert(hostile)) in reader.text


def test_run_folders_outside_the_comparison_get_no_link() -> None:
    raw = changed()
    for run, folder in zip(raw["runs"], ["../x", "/abs", "a\\b", "runs/a b&c", "x/../../y", ""], strict=False):
        run["run"] = folder
    hrefs = [a["href"] or "" for tag, a in checked(raw).elements if tag == "a" and (a["href"] or "").startswith("./")]
    assert hrefs[0] == "./runs/a%20b%26c/report.html"
    assert len(hrefs) == len(raw["runs"]) - 5


@pytest.mark.parametrize("value", [None, "text", -1, 1e308, 10**400, [], {}, [None], float("nan")])
def test_any_value_in_any_place_leaves_a_page(value: Any) -> None:
    whole = example({"a": 0.0, "b": 0.1}, n_seeds=2, n_points=3)
    lists = {key: list(whole[key][0]) for key in ("sides", "tuning", "runs", "baselines", "pairs")}
    for key in whole:
        checked(whole | {key: value})
    for place in range(max(map(len, lists.values()))):
        raw = copy.deepcopy(whole)
        for key, fields in lists.items():
            for entry in raw[key]:
                entry[fields[place % len(fields)]] = value
        checked(raw)
    raw = copy.deepcopy(whole)
    for key, field in (("pairs", "points"), ("runs", "tokens"), ("runs", "val_bpb"), ("pairs", "differences")):
        raw[key][0][field] = [value] * 4
    checked(raw)
    checked({"format": 1, "seeds": value})


def test_huge_and_negative_numbers_are_drawn() -> None:
    raw = changed()
    for place, run in enumerate(raw["runs"]):
        run["val_bpb"] = [(-1) ** k * 1e299 / (place + 1) for k in range(9)]
        run["tokens"] = [k * 1e290 for k in range(9)]
    for side in raw["sides"]:
        side["budget"]["flops_per_token"] = 1e200
    raw["pairs"][0] |= {"difference": -1e299, "low": -2e299, "high": 2e299, "differences": [1e299, -1e299]}
    checked(raw)


def test_commands_to_run_it_again_are_quoted_for_a_shell() -> None:
    text = checked(raw := changed()).text
    recipes = " ".join(f"homunculi_recipes.{name}:{name}" for name in SIDES)
    assert f"homunculi compare {recipes} steps=2400 batch_tokens=4096 --match parameters,tokens --seeds 3" in text
    assert "homunculi_recipes.mor:mor steps=2400 batch_tokens=4096 model.d_mlp=536 lr=0.016 seed=0" in text
    raw["sides"][0]["recipe"] = "my file.py:x; echo"
    assert "'my file.py:x; echo'" in checked(raw).text
    raw["provenance"]["command"] = "homunculi compare a b"
    assert "homunculi compare a b" in checked(raw).text


def test_a_rate_at_the_edge_of_what_was_tried_is_told() -> None:
    assert "Chosen at the edge of what was tried, so a better rate may lie beyond: mor." in checked(changed()).text


def test_another_format_is_told() -> None:
    assert "comparison.json has format 2, this page knows 1" in checked(changed(format=2)).text


def test_differences_show_as_many_decimals_as_their_interval_supports() -> None:
    pair = read_pair({"difference": -0.012345, "low": -0.0149, "high": -0.0098}, "val/bpb")
    assert (pair.written("difference"), pair.interval()) == ("\u22120.0123", "\u22120.0149\u00a0to\u00a0\u22120.0098")
    assert signed(-0.00001, 3) == "0.000"
    assert signed(2.5e7, 1) == "+2.5e+07" and signed(None, 2) == "–"
    assert (probability(0.0004), probability(0.04321), probability(0.5)) == ("<\u00a00.001", "0.043", "0.50")
