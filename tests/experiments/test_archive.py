"""What a run's folder says of what the run will come to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from homunculi.experiments.archive import key_of_run, read_key, write_key
from homunculi.models.gpt import Config
from homunculi.runs.directory import INFO
from homunculi.train.config import InstrumentsConfig, RunConfig


def test_a_run_has_the_key_that_it_was_begun_with_and_none_once_others_went_on_with_it(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert read_key(folder) == ""
    write_key(folder, "old")
    write_key(folder, "new")  # nothing was there yet but the note
    assert read_key(folder) == "new"
    (folder / INFO).write_text("{}")
    write_key(folder, "new")
    assert read_key(folder) == "new"
    write_key(folder, "other code")
    assert read_key(folder) == ""
    write_key(folder, "other code")
    assert read_key(folder) == ""


def test_a_run_of_which_nothing_was_noted_has_no_key(tmp_path: Path) -> None:
    (tmp_path / INFO).write_text("{}")
    write_key(tmp_path, "new")
    assert read_key(tmp_path) == ""


def test_what_is_measured_inside_changes_no_key() -> None:
    config = RunConfig(model=Config(vocab_size=16, d_model=16, n_blocks=1, n_heads=2, max_seq_len=8))
    watched = replace(config, instruments=InstrumentsConfig(watch="off", every=3))
    assert key_of_run(watched, "text", "cpu") == key_of_run(config, "text", "cpu")
    assert key_of_run(replace(config, lr=0.5), "text", "cpu") != key_of_run(config, "text", "cpu")
