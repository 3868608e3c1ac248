"""The page says what came when, in order, with numbers; and why some of it has no half-time."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from homunculi.report.page import render
from homunculi.runs.directory import RunDirectory, claim
from homunculi.runs.measures import Measurement, Stored, write_measurement
from tests.report.test_page import HOSTILE, Reader, check_self_contained

Make = Callable[..., RunDirectory]
STEPS = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512]


def planted(folder: Path, early: float = 6.0, late: float = 90.0, **info: object) -> RunDirectory:
    """A run with a number that turns at `early`, one that turns at `late`, and one that never does."""
    run = claim(folder)
    run.write_info({"config": {"seed": 0, "lr": 0.1}} | info)
    for step in STEPS:
        rises = [1 / (1 + (half / max(step, 1e-9)) ** 4) for half in (late, early)]
        run.log_metrics({"step": step, "tokens": 100 * step, "train/late": rises[0], "flat": 1.0})
        found = Measurement({"early": np.array(rises[1])})
        write_measurement(run.path, Stored("depth", "line", "Depth", "How deep?", step, 100 * step, found))
    run.write_status(state="done", step=512, steps=512)
    run.close()
    return run


def order(text: str) -> Reader:
    start = text.index('<section id="order">')
    return Reader(text[start : text.index("</section>", start) + 10])


def test_numbers_stand_in_the_order_of_their_half_times(tmp_path: Path) -> None:
    text = render([planted(tmp_path / "run")])
    check_self_contained(text)
    reader = order(text)
    words = [word for word in reader.texts if word.strip()]
    assert "What came when" in words
    early, late = words.index("depth/early"), words.index("train/late")
    assert early < late and float(words[early + 1]) == pytest.approx(6, rel=0.05)
    assert float(words[late + 1]) == pytest.approx(90, rel=0.05)
    assert float(words[late + 2].removesuffix("\u00a0k")) == pytest.approx(9, rel=0.05), "thousand tokens"
    assert f"depth/early: step {words[early + 1]}, between 4 and 8" in reader.text
    assert "so far" not in reader.text


def test_numbers_without_a_half_time_are_one_line_that_opens(tmp_path: Path) -> None:
    reader = order(render([planted(tmp_path / "run")]))
    assert sum(tag == "details" for tag, _ in reader.elements) == 1
    assert "1 number has no half-time" in reader.texts and "flat" in reader.texts
    assert "not more than 5 deviations" in reader.text


def test_dots_lie_by_the_logarithm_of_the_step(tmp_path: Path) -> None:
    reader = order(render([planted(tmp_path / "run")]))
    dots = [attrs["d"] or "" for tag, attrs in reader.elements if tag == "path" and attrs.get("class") == "dot c0"]
    early, late = (float(re.match(r"M([\d.]+)", path)[1]) + 4 for path in dots)  # type: ignore[index]
    share = (late - 12) / (early - 12)
    assert share == pytest.approx(np.log1p(90) / np.log1p(6), rel=0.06)


def test_a_run_with_little_to_follow_has_no_such_part(tmp_path: Path) -> None:
    run = claim(tmp_path / "short")
    run.write_info({})
    for step in range(4):
        run.log_metrics({"step": step, "train/loss": 1.0 / (step + 1)})
    run.close()
    assert 'id="order"' not in render([run])


def test_a_run_that_goes_on_says_so(tmp_path: Path) -> None:
    run = planted(tmp_path / "run")
    run.write_status(state="running", step=512, steps=9999)
    assert "Training has not ended" in order(render([run])).text


def test_seeds_of_one_recipe_are_taken_together_with_an_interval(tmp_path: Path) -> None:
    runs = [planted(tmp_path / f"a-s{i}", early=4 + 2 * i, config={"seed": i, "lr": 0.1}) for i in range(3)]
    runs.append(planted(tmp_path / "b", config={"seed": 0, "lr": 0.2}))
    text = render(runs)
    check_self_contained(text)
    reader = order(text)
    assert "a (3 seeds)" in reader.texts and "b" in reader.texts
    assert "geometric means over 3 runs" in reader.text and "measured steps on both sides" in reader.text


@pytest.mark.parametrize("hostile", HOSTILE)
def test_names_of_numbers_stay_words(hostile: str, make_run: Make) -> None:
    run = make_run()
    for step in range(41, 60):
        run.log_metrics({"step": step, hostile: float(step > 50)})
    text = render([run])
    check_self_contained(text)
    assert "<img" not in text and "\x1b" not in text


def test_numbers_beyond_reckoning_are_left_out(tmp_path: Path) -> None:
    run = planted(tmp_path / "run")
    lines = [{"step": step, "tokens": 10**400, "huge": 10**400 if step % 2 else 1e308} for step in STEPS]
    (run.path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    reader = order(render([run]))
    assert "depth/early" in reader.texts and "huge" not in reader.text
