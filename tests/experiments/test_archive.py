"""What a run's folder says of what the run will come to."""

from __future__ import annotations

from pathlib import Path

from homunculi.experiments.archive import read_key, write_key
from homunculi.runs.directory import INFO


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
