"""The page on tasks: its table is that of the registered tasks, its code runs."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from homunculi.tasks import registry
from homunculi.tasks.described import defaults, table

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8")
BLOCKS = [textwrap.dedent(block) for block in re.findall(r"(?:^    .*\n|^\n(?=    ))+", TEXT, re.MULTILINE)]


def test_the_table_is_what_the_tasks_say() -> None:
    own = [line for line in table().splitlines() if line.startswith("| `")]
    assert len(own) >= 23
    page = [line for line in TEXT.splitlines() if line.startswith("| `")]
    assert [line for line in own if line not in page] == [], "python -m homunculi.tasks.described prints the table anew"
    known = set(registry.names())
    assert {line.split("`")[1] for line in page} - {
        "ids_BT",
        "targets_BT",
        "counted_BT",
        "needed_BT",
        "best_BTV",
    } <= known


def test_the_examples_run(monkeypatch: pytest.MonkeyPatch) -> None:
    registry.names()
    monkeypatch.setattr(registry, "_REGISTERED", dict(registry._REGISTERED))
    names: dict[str, Any] = {"__name__": "own_task"}
    (use,) = [block for block in BLOCKS if "registry.settings" in block]
    exec(use, names)
    assert names["rows"].ids_BT.shape == (32, names["length"]) and names["rows"].ids_BT.max() < names["n_ids"]
    assert names["chance"] == names["two_tokens"] < names["best"]
    (own,) = [block for block in BLOCKS if "@task(" in block]
    exec(own, names)
    found = registry.get("first_token").generate(np.random.default_rng(0), 4, split="test")
    assert found.counted_BT.sum() == 4 and (found.targets_BT[:, -1] == found.ids_BT[:, 0]).all()


def test_defaults_are_told_with_the_dial_of_the_curve_first() -> None:
    assert defaults(registry.get("memorisation")) == "facts=1024 key_tokens=2 length=64"
    assert defaults(registry.get("modular_addition")) == "share=0.6 prime=53"
    assert defaults(registry.get("dyck")).startswith("depth=4 ")
