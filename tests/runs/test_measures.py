"""Measurements are whole or not there, and read back as they were written."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from homunculi.errors import InputError
from homunculi.runs.measures import (
    Measurement,
    Stored,
    companions,
    measured_instruments,
    measured_steps,
    read_measurement,
    write_measurement,
)


def stored(step: int = 500, name: str = "depth") -> Stored:
    found = Measurement(
        {"share": np.array([[0.25, np.nan]]), "mean": np.array(1.5), "taking": np.array([True, False])},
        {"share": ("pass", "token"), "taking": ("token",)},
        {"token": ("<b>a", "é")},
        {"mean": "passes"},
        ("of 2 tokens",),
    )
    return Stored(name, "heatmap", "Depth", "How deep?", step, 1024, found)


def test_a_measurement_reads_back_as_it_was_written(tmp_path: Path) -> None:
    for step in (16, 2, 500):
        write_measurement(tmp_path, stored(step))
    assert measured_instruments(tmp_path) == ["depth"]
    assert measured_steps(tmp_path, "depth") == [2, 16, 500]
    read = read_measurement(tmp_path, "depth", 500)
    np.testing.assert_array_equal(read.measurement.values["share"], np.float32([[0.25, np.nan]]))
    assert read.measurement.values["taking"].tolist() == [True, False]
    assert read.measurement.labels == {"token": ("<b>a", "é")}
    assert (read.step, read.tokens, read.view, read.measurement.notes) == (500, 1024, "heatmap", ("of 2 tokens",))


def test_arrays_without_their_words_are_no_measurement(tmp_path: Path) -> None:
    write_measurement(tmp_path, stored(4))
    (tmp_path / "measures/depth/step-00000004.json").unlink()
    assert measured_steps(tmp_path, "depth") == []
    with pytest.raises(InputError, match="no measurement of step 4"):
        read_measurement(tmp_path, "depth", 4)


def test_damage_is_told_with_the_file(tmp_path: Path) -> None:
    write_measurement(tmp_path, stored(4))
    (tmp_path / "measures/depth/step-00000004.safetensors").write_bytes(b"\x00")
    with pytest.raises(InputError, match=r"step-00000004\.safetensors: cannot be read"):
        read_measurement(tmp_path, "depth", 4)


def test_a_step_that_is_no_number_is_damage(tmp_path: Path) -> None:
    write_measurement(tmp_path, stored(4))
    path = tmp_path / "measures/depth/step-00000004.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokens": math.inf}))
    with pytest.raises(InputError, match="measure again"):
        read_measurement(tmp_path, "depth", 4)


def test_names_that_lead_out_of_the_folder_are_none(tmp_path: Path) -> None:
    assert measured_steps(tmp_path, "../../etc") == []
    with pytest.raises(InputError, match="no name"):
        read_measurement(tmp_path, "../depth", 4)
    with pytest.raises(ValueError, match="no name"):
        write_measurement(tmp_path, stored(4, "../depth"))


def test_an_interval_belongs_to_its_number_and_to_no_other() -> None:
    assert companions(["rho", "rho low", "rho high", "rho null sd", "half low"]) == {
        "rho": {"low": "rho low", "high": "rho high", "null sd": "rho null sd"},
        "half low": {},
    }
