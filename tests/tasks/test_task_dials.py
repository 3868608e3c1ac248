"""Dials that cannot be are refused in one line; tasks are found by name and by path."""

from __future__ import annotations

import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from homunculi.errors import InputError
from homunculi.tasks import registry
from homunculi.tasks.registry import Dial, Examples, task

ALL = (
    *("add", "agreement", "compositional_recall", "compression", "copy", "dyck", "entity_tracking", "forgetting"),
    *("fuzzy_recall", "hidden_markov", "memorisation", "modular_addition", "modular_arithmetic", "name_recall"),
    *("nested_brackets", "noisy_recall", "parity", "pointer_chasing", "recall", "reverse", "s5", "selective_copy"),
    "sort",
)

IMPOSSIBLE: list[tuple[str, dict[str, Any], str]] = [
    ("recall", {"pairs": 17}, "recall.pairs: 17 pairs and their repeats need length=68; length is 64"),
    ("recall", {"pairs": 16, "vocabulary": 16}, "recall.vocabulary: 16 pairs need 32 keys and values; it is 16"),
    ("fuzzy_recall", {"pairs": 20}, "fuzzy_recall.vocabulary: 20 pairs need 40 tokens; it is 32"),
    (
        "noisy_recall",
        {"pairs": 15, "noise": 0.8},
        "noisy_recall.pairs: 15 leaves no repeats: length=64 at noise=0.8 has room for 6",
    ),
    (
        "noisy_recall",
        {"pairs": 20, "length": 96},
        "noisy_recall.vocabulary: 20 pairs need 40 keys and values; it is 32",
    ),
    ("compositional_recall", {"hops": 6}, "compositional_recall.hops: 6 hops need pairs=7 or more; pairs is 6"),
    ("compositional_recall", {"pairs": 33}, "compositional_recall.vocabulary: 33 pairs need 33 tokens; it is 32"),
    ("forgetting", {"pairs": 17}, "forgetting.vocabulary: 17 pairs need 34 keys and values; it is 32"),
    ("modular_addition", {"prime": 91}, "modular_addition.prime: 91 is no prime; 97 is"),
    ("agreement", {"distractors": 5}, "agreement.distractors: 5 distractors need distance=15 or more; distance is 12"),
    ("name_recall", {"distractors": 16}, "name_recall.distractors: 16 need people=17 or more, not 16"),
    ("pointer_chasing", {"steps": 9}, "pointer_chasing.steps: 9 steps need arrows=10 or more; arrows is 9"),
    ("pointer_chasing", {"arrows": 17}, "pointer_chasing.vocabulary: 17 arrows need 17 tokens; it is 16"),
    ("recall", {"piars": 2}, "recall.piars: no such dial; did you mean pairs?"),
    ("parity", {"depth": 2}, "parity.depth: no such dial; it has length"),
    ("parity", {"length": "long"}, "parity.length: 'long' is no whole number"),
    ("parity", {"length": 8.5}, "parity.length: 8.5 is no whole number"),
    ("parity", {"length": float("inf")}, "parity.length: inf is no whole number"),
    ("parity", {"length": None}, "parity.length: None is no whole number"),
    ("parity", {"length": 7}, "parity.length: 7 must lie in 8…4096"),
    ("noisy_recall", {"noise": float("nan")}, "noisy_recall.noise: nan must lie in 0.0…0.95"),
    ("noisy_recall", {"noise": "much"}, "noisy_recall.noise: 'much' is no number"),
]


@pytest.mark.parametrize(("name", "dials", "message"), IMPOSSIBLE)
def test_impossible_dials_are_refused_by_one_line(name: str, dials: dict[str, Any], message: str) -> None:
    for refuse in (
        lambda: registry.settings(registry.get(name), dials),
        lambda: registry.get(name).generate(np.random.default_rng(0), 2, split="train", **dials),
    ):
        with pytest.raises(InputError) as refused:
            refuse()
        assert str(refused.value).startswith(message) and "\n" not in str(refused.value)


def test_settings_are_all_dials_read_from_text_too() -> None:
    found = registry.settings(registry.get("noisy_recall"), {"pairs": "3", "noise": "0.5"})
    assert found == {"noise": 0.5, "pairs": 3, "length": 64, "vocabulary": 32}
    assert isinstance(found["pairs"], int) and isinstance(found["noise"], float)


def test_a_split_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match="recall: split is 'val'; write one of train, valid, test"):
        registry.get("recall").generate(np.random.default_rng(0), 2, split="val")


def test_all_tasks_are_found_by_name() -> None:
    assert set(ALL) <= set(registry.names())
    for name in ALL:
        found = registry.get(name)
        assert found.name == name and found.title and found.source and found.question.endswith("?")
        assert len(set(found.dials[found.swept].values)) >= 3


def test_the_quick_battery_takes_the_first_and_the_middle_value() -> None:
    assert Dial(4, (1, 2, 4, 8), 1, 8, "").quick == (1, 4)
    assert Dial(4, (4,), 1, 8, "").quick == (4,)
    assert Dial(4, (1, 2, 4, 8), 1, 8, "", quick=(2,)).quick == (2,)


def test_an_unknown_task_is_refused_with_near_names() -> None:
    with pytest.raises(InputError, match=r"^recal: no such task; did you mean recall\?$"):
        registry.get("recal")
    with pytest.raises(InputError, match=r"^zzz: no such task; there are add, .*or give path/file\.py$"):
        registry.get("zzz")


OWN = """
import numpy as np
from homunculi.tasks.registry import Dial, Examples, task

@task(name="NAME", title="Last", question="What was it?", source="here", dials={"length": Dial(4, (2, 4, 8), 1, 8, "")},
      swept="length", vocabulary=lambda **_: 5, length=lambda length, **_: length, chance=lambda **_: 0.2,
      ceiling=lambda **_: 1.0)
def generate(rng, n_rows, *, split, length):
    ids_BT = rng.integers(5, size=(n_rows, length))
    return Examples(ids_BT, ids_BT, np.ones(ids_BT.shape, bool))
"""


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it."""
    registry.names()
    monkeypatch.setattr(registry, "_REGISTERED", dict(registry._REGISTERED))
    monkeypatch.setattr(registry, "_FILES", {})


def written(folder: Path, text: str, name: str = "mine.py") -> str:
    (folder / name).write_text(textwrap.dedent(text), encoding="utf-8")
    return str(folder / name)


def test_a_task_in_a_file_works_by_its_path(registered: None, tmp_path: Path) -> None:
    path = written(tmp_path, OWN.replace("NAME", "last"))
    found = registry.get(path)
    assert found is registry.get(path) is registry.get(path + ":last") and "last" in registry.names()
    rows = found.generate(np.random.default_rng(0), 3, split="test")
    assert rows.ids_BT.shape == (3, 4) and registry.ngram_ceiling(found, {}) == 1.0


def test_files_without_one_task_are_refused_in_one_line(registered: None, tmp_path: Path) -> None:
    two = written(tmp_path, OWN.replace("NAME", "one") + OWN.replace("NAME", "two"), "two.py")
    assert registry.get(two + ":two").name == "two"
    for path, message in (
        (two, f"{two}: has the tasks one, two; write {two}:one"),
        (two + ":three", f"{two}: has the tasks one, two; write {two}:one"),
        (str(tmp_path / "none.py"), f"{tmp_path / 'none.py'}: no such task file"),
        (written(tmp_path, "", "empty.py"), "registers no task; put @task(...) over its generator"),
        (written(tmp_path, "def (", "broken.py"), "cannot be imported: SyntaxError"),
        (written(tmp_path, "raise SystemExit(3)", "leaving.py"), "cannot be imported: SystemExit: 3"),
        (written(tmp_path, "1 / 0", "failing.py"), "cannot be imported: ZeroDivisionError: division by zero"),
        (written(tmp_path, OWN.replace("NAME", "recall"), "taken.py"), "task 'recall' is registered twice"),
        (written(tmp_path, OWN.replace("NAME", "ok") + "1 / 0", "late.py"), "ZeroDivisionError"),
    ):
        with pytest.raises(InputError) as refused:
            registry.get(path)
        assert message in str(refused.value) and "\n" not in str(refused.value)
    assert "ok" not in registry.names() and registry.get("recall").generate.__module__ == "homunculi.tasks.recall"


def test_contradictions_of_an_author_are_refused(registered: None) -> None:
    def nothing(rng: np.random.Generator, n_rows: int, **_: Any) -> Examples:
        raise AssertionError("not called")

    scores = {"vocabulary": len, "length": len, "chance": len, "ceiling": len}
    about = {"name": "odd", "title": "", "question": "", "source": "", **scores}
    dials = {"n": Dial(2, (1, 2), 1, 4, "")}
    for wrong, message in (
        ({"dials": dials, "swept": "m"}, "swept is 'm', which is no dial"),
        ({"dials": dials, "swept": "n", "beyond": {"n": (2,)}}, "both trained and beyond"),
        ({"dials": dials, "swept": "n", "beyond": {"n": (5,)}}, "leaves its range"),
    ):
        with pytest.raises(ValueError, match=message):
            task(**about, **wrong)(nothing)
    with pytest.raises(ValueError, match=r"5 is outside 1…4"):
        Dial(5, (1, 2), 1, 4, "")


def test_a_task_that_counts_nothing_is_refused_where_two_tokens_are_counted() -> None:
    parity = registry.get("parity")

    def uncounted(rng: np.random.Generator, n_rows: int, **given: Any) -> Examples:
        rows = parity.generate(rng, n_rows, **given)
        return replace(rows, counted_BT=np.zeros_like(rows.counted_BT))

    with pytest.raises(InputError, match="parity: counts no position"):
        registry.ngram_ceiling(replace(parity, generate=uncounted, ngram=None), {})


def test_only_harder_dials_that_go_together_lie_beyond_training() -> None:
    chasing, parity = registry.get("pointer_chasing"), registry.get("parity")
    assert [value for _, value, _ in registry.harder(chasing, registry.settings(chasing, {}))] == [6, 8]
    assert [value for _, value, _ in registry.harder(chasing, registry.settings(chasing, {"arrows": 7}))] == [6]
    ((name, value, dials),) = registry.harder(parity, {"length": 64})
    assert (name, value, dials) == ("length", 128, {"length": 128})
