"""`homunculi skills`: what it prints, what it refuses, and that it goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from homunculi.experiments.skills import battery
from homunculi.tasks import registry

Cli = Callable[..., Any]
SMALL = ("task=parity,copy", "parity.length=8", "copy.tokens=8", "steps=2", "rows=2", "eval_rows=8", "width=16")


@pytest.fixture(autouse=True)
def causal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(battery, "certificate_of", lambda *given: {"causal": True, "key": "k"})
    monkeypatch.setattr(battery, "Battery", in_this_process(battery.Battery))


def in_this_process(made: Any) -> Any:
    """Batteries that start no processes."""
    return lambda **given: made(**(given | {"at_once": 0}))


def test_scores_are_one_json_object(cli: Cli, tmp_path: Path) -> None:
    done = cli(
        "skills",
        "gpt",
        "loop=recursive:small",
        *SMALL,
        "--quick",
        "--match",
        "none",
        "--results",
        str(tmp_path),
        "--json",
    )
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert [(one["architecture"], one["task"]) for one in found["scores"]] == [
        (side, task) for task in ("parity", "copy") for side in ("gpt", "loop")
    ]
    for key in ("score", "low", "high", "n", "chance", "ceiling"):
        assert all(isinstance(one[key], (int, float)) for one in found["scores"])
    assert (tmp_path / "report.html").exists()


def test_the_table_names_architectures_tasks_and_the_grid(cli: Cli, tmp_path: Path) -> None:
    done = cli(
        "skills", "gpt", "one=gpt;model.n_blocks=1", *SMALL, "--quick", "--match", "none", "--results", str(tmp_path)
    )
    assert done.code == 0, done.err
    assert all(word in done.out for word in ("gpt", "one", "parity", "copy", "chance", "one setting", "report.html"))
    assert "8 of 8 cells done" in done.err


def test_settings_of_the_model_hold_for_all_or_for_one_side(cli: Cli, tmp_path: Path) -> None:
    words = ("gpt", "flat=gpt;model.activation=gelu", "model.tied=false", "--match", "none", "--json")
    done = cli("skills", *words, *SMALL, "--quick", "--results", str(tmp_path))
    assert done.code == 0, done.err
    models = {one["name"]: one["model"] for one in json.loads(done.out)["architectures"]}
    assert models["gpt"] | {"activation": "gelu"} == models["flat"]
    assert models["gpt"]["tied"] is False


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), ["name at least one"]),
        (("gtp", "task=copy"), ["gtp", "did you mean gpt"]),
        (("gpt", "gpt", "task=copy"), ["two sides", "gpt"]),
        (("gpt", "task=recal"), ["recal", "did you mean recall"]),
        (("gpt", "task=recall", "pairs=64", "length=64"), ["recall.pairs", "length"]),
        (("gpt", "task=recall", "vocabulary=1"), ["recall.vocabulary", "1"]),
        (("gpt", "task=copy", "tokenz=3"), ["tokenz", "no such dial"]),
        (("gpt", "task=copy", "copy.tokens=many"), ["copy.tokens", "many"]),
        (("gpt", "task=copy", "seeds=0"), ["seeds", "0"]),
        (("gpt", "task=copy", "steps=few"), ["steps", "few"]),
        (("gpt", "task=copy", "lrs=high"), ["lrs", "high"]),
        (("gpt", "task=copy", "--match", "size"), ["--match", "size", "state"]),
        (("gpt;lr=3", "task=copy"), ["lr=3", "model"]),
        (("gpt;model.n_headz=3", "task=copy"), ["n_headz"]),
        (("gpt", "task=copy", "--devices", "7,x"), ["device"]),
        (("gpt", "task=nowhere.py"), ["nowhere.py", "no such task file"]),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    cli: Cli, tmp_path: Path, words: tuple[str, ...], said: list[str]
) -> None:
    done = cli("skills", *words, "--results", str(tmp_path))
    assert done.code == 2
    assert "Traceback" not in done.err
    assert all(word in done.err.strip().splitlines()[-1] for word in said), done.err
    assert not (tmp_path / "skills.json").exists()


BRACKETS = """
import numpy as np
from homunculi.tasks.registry import Dial, Examples, task

@task(name="[/bold]", title="Last", question="[/] ?", source="here", dials={"length": Dial(4, (4, 8), 1, 8, "")},
      swept="length", vocabulary=lambda **_: 5, length=lambda length, **_: length, chance=lambda **_: 0.2,
      ceiling=lambda **_: 1.0)
def generate(rng, n_rows, *, split, length):
    ids_BT = rng.integers(5, size=(n_rows, length))
    return Examples(ids_BT, ids_BT, np.ones(ids_BT.shape, bool))
"""


def test_the_name_of_a_task_is_text_and_no_markup(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTERED", dict(registry._REGISTERED))
    (tmp_path / "own.py").write_text(BRACKETS)
    small = ("steps=2", "rows=2", "eval_rows=8", "width=16", "--quick", "--match", "none", "--results", str(tmp_path))
    done = cli("skills", "gpt", f"task={tmp_path / 'own.py'}", *small)
    assert done.code == 0, done.err
    assert "[/bold]" in done.out


def test_what_is_given_twice_is_refused(cli: Cli) -> None:
    done = cli("skills", "gpt", "task=copy", "task=sort", "--quick")
    assert done.code == 2
    assert "task: is given twice, copy and sort" in done.err


def test_the_verb_for_reports_takes_the_folder_of_a_battery(cli: Cli, tmp_path: Path) -> None:
    scores = [{"architecture": "gpt", "task": "copy", "score": 0.5, "low": 0.4, "high": 0.6, "n": 3}]
    named = {"architectures": [{"name": "gpt"}], "tasks": [{"name": "copy"}]}
    (tmp_path / "skills.json").write_text(json.dumps({"scores": scores} | named))
    assert cli("report", str(tmp_path), "--out", str(tmp_path / "page.html")).code == 0
    assert "seeds: 3" in (tmp_path / "page.html").read_text()
    assert not (tmp_path / "report.html").exists()
    refused = cli("report", str(tmp_path), "--figures", str(tmp_path / "out"))
    assert refused.code == 2 and "--figures" in refused.err
