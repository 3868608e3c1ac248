"""The page on instruments: its code runs, and reads what a run wrote."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from homunculi.instruments import registry
from homunculi.instruments.observation import Observation
from homunculi.instruments.observing import look
from homunculi.instruments.registry import instrument
from homunculi.models import build
from homunculi.runs.measures import Measurement, Stored, write_measurement

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "instruments.md").read_text(encoding="utf-8")
BLOCKS = [textwrap.dedent(block) for block in re.findall(r"(?:^    .*\n|^\n(?=    ))+", TEXT, re.MULTILINE)]


def block(start: str) -> str:
    (found,) = [text for text in BLOCKS if text.lstrip().startswith(start)]
    return found


def test_measurements_read_with_numpy_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for step in (4, 500):
        values = {"update_ratio": np.array(0.5 / step), "n": np.arange(6).reshape(2, 3), "yes": np.array([True, False])}
        found = Measurement(values, {"n": ("a", "b"), "yes": ("a",)})
        write_measurement(Path("RUN"), Stored("updates", "table", "Updates", "What?", step, 1, found))
    names: dict[str, Any] = {}
    exec(block("import json, pathlib"), names)
    exec(block("import numpy"), names)
    assert names["course"] == [(4, 0.125), (500, pytest.approx(0.001))]
    arrays = names["arrays"]
    assert arrays["n"].tolist() == [[0, 1, 2], [3, 4, 5]] and arrays["yes"].tolist() == [True, False]
    assert arrays["update_ratio"].shape == () and float(arrays["update_ratio"]) == pytest.approx(0.001)


def test_the_example_is_an_instrument(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"instrument": instrument, "Observation": Observation, "Measurement": Measurement, "np": np}

    def load() -> None:
        exec(block("@instrument("), known | {"__name__": "my_package.loudness"})

    registry.names()
    monkeypatch.setattr(registry, "_REGISTERED", dict(registry._REGISTERED))
    monkeypatch.setattr(registry, "entry_points", lambda group: [SimpleNamespace(load=load)])
    assert "loudness" in registry.names()
    torch.manual_seed(0)
    model = build("gpt", vocab_size=20, d_model=16, n_blocks=2, n_heads=2, max_seq_len=8)
    found = look(model, torch.zeros(1, 8, dtype=torch.long), ["loudness"])["loudness"]
    assert found.labels["step"] == ("0", "1") and (found.values["rms"] > 0).all()
