"""The report of a battery: told apart without colour, escaped, patient with what is missing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from homunculi.errors import InputError
from homunculi.report.plot import MARKERS
from homunculi.report.skills import Record, render_skills, write_skills_report

TASKS = ("copy", "recall", "sort")


def point(side: str, task: str, value: int, score: float) -> dict[str, Any]:
    known = {"architecture": side, "task": task, "dial": "length", "value": value, "chance": 0.1, "ceiling": 0.95}
    return known | {"score": score, "low": score - 0.1, "high": score + 0.1, "n": 3, "lr": 1e-3, "weight_decay": 0.0}


def record(sides: tuple[str, ...] = ("gpt", "ncn")) -> dict[str, Any]:
    points = [point(side, task, value, 0.5) for side in sides for task in TASKS for value in (8, 16, 32)]
    scores = [point(side, task, 0, 0.4 + 0.1 * i) for i, side in enumerate(sides) for task in TASKS]
    depth = {
        "architecture": sides[0],
        "task": "recall",
        "value": 8,
        "needed": [1, 2],
        "own": {"accuracy": 0.5, "by_needed": [0.625, 0.25]},
        "forced": [{"passes": n, "accuracy": 0.5, "by_needed": [0.5, 0.25 * n]} for n in (1, 2)],
        "chosen": {"by_needed": [1.5, 2.5], "rho": 0.75, "low": 0.5, "high": 1.0},
    }
    about = {
        "title": "T",
        "question": "Q?",
        "source": "S",
        "dial": "length",
        "dials": {"noise": 0.5},
        "ngram": [0.25, 0.75, 0.125],
    }
    return {
        "format": 1,
        "scores": scores,
        "points": points,
        "beyond": [point(side, "copy", 64, 0.125) | {"trained": 32} for side in sides],
        "depth": [depth],
        "tasks": [{"name": task} | about for task in TASKS],
        "architectures": [{"name": side, "parameters": 1000, "state_bytes": 64, "state_length": 8} for side in sides],
        "settings": {"seeds": 3, "lrs": [1e-3], "wds": [0.0], "frame": {"match": "parameters"}},
    }


def test_every_architecture_has_a_marker_of_its_own_in_the_radar_and_in_every_curve() -> None:
    page = render_skills(Record(record(("a", "b", "c"))))
    radar = re.search(r'<svg[^>]*class="radar".*?</svg>', page, re.DOTALL)
    assert radar is not None
    for marker in MARKERS[:3]:
        assert radar[0].count(f'd="{marker}"') == len(TASKS)
    dashes = re.findall(r'<g class="c\d marked"( stroke-dasharray="[^"]*")?', radar[0])
    assert len(set(dashes)) == 3
    for task in TASKS:
        figure = re.search(rf'<figure id="task-{task}".*?</figure>', page, re.DOTALL)
        assert figure is not None
        assert all(marker in figure[0] for marker in MARKERS[:3])
        assert all(f'data-name="{level}"' in figure[0] for level in ("chance", "ceiling"))


def test_what_was_measured_stands_on_the_page() -> None:
    page = render_skills(Record(record()))
    for words in (
        "0.500",
        "0.125",
        "rank correlation 0.75",
        "2.500",
        "two tokens",
        "0.375",
        "Q?",
        "nothing was selected",
        "1,000",
    ):
        assert words in page


def test_names_are_escaped() -> None:
    page = render_skills(Record(record(("<script>alert(1)</script>", "b"))))
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page


@pytest.mark.parametrize("key", list(record()))
def test_a_page_is_made_of_whatever_is_there(key: str) -> None:
    raw = record()
    for broken in (None, [], {}, "text", [{}], [3]):
        assert "<!doctype html>" in render_skills(Record(raw | {key: broken}))


def test_two_tasks_make_no_radar() -> None:
    raw = record()
    raw["tasks"] = raw["tasks"][:2]
    assert 'class="radar"' not in render_skills(Record(raw))


def test_a_folder_without_a_battery_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"skills\.json"):
        write_skills_report(tmp_path)
    (tmp_path / "skills.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        write_skills_report(tmp_path)
    (tmp_path / "skills.json").write_text(json.dumps(record()))
    assert write_skills_report(tmp_path).read_text().startswith("<!doctype html>")


def test_the_best_is_told_without_colour_and_every_score_tells_its_interval() -> None:
    page = render_skills(Record(record()))
    assert re.search(r'<strong title="[^"]*seeds: \d+">', page)
    assert "strong::after" in page and "position: sticky" in page


def test_a_size_that_is_not_equal_is_said_on_the_page() -> None:
    unequal = {"architecture": "a", "parameters": 9, "ratio": 1.2, "tasks": ["recall"]}
    page = render_skills(Record(record() | {"unequal": [unequal]}))
    assert "a has 9 parameters (1.200 times those of the others)" in page


def test_one_value_of_a_dial_is_no_curve_and_is_said_instead() -> None:
    quick = record()
    quick["points"] = [one for one in quick["points"] if one["value"] == 8 or one["task"] == "sort"]
    page = render_skills(Record(quick))
    figures = {task: re.search(rf'<figure id="task-{task}".*?</figure>', page, re.DOTALL) for task in TASKS}
    assert ["<svg" in figure[0] for figure in figures.values() if figure] == [False, False, True]
    assert figures["copy"] is not None and "length 8, noise 0.5" in figures["copy"][0]
    quick["points"] = [one for one in quick["points"] if one["value"] == 8]
    assert "so there is no curve" in render_skills(Record(quick)) and "so there is no curve" not in page


def test_many_names_are_no_title() -> None:
    many = tuple(f"side{i}" for i in range(7))
    page = render_skills(Record(record(many)))
    assert "<h1>7 architectures</h1>" in page and " · ".join(many) in page
    assert "<h1>gpt · ncn</h1>" in render_skills(Record(record()))
