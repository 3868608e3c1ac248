"""The page asks for the table of claims again when something that it shows has changed, and not otherwise."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from homunculi.web.claims_table import ClaimsTable

ASKED = "from pathlib import Path; n = len(list(Path('.').glob('asked-*'))); Path(f'asked-{n}').touch(); "
COMMAND = [sys.executable, "-c", ASKED + """print('{"claims": [{"id": %d}]}' % n)"""]


@pytest.mark.parametrize(
    "changed", ["runs/claims/a.json", "runs/results/a.json", "benchmarks/claims/a.json", "benchmarks/results/a.json"]
)
def test_a_new_result_or_record_is_asked_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str) -> None:
    monkeypatch.chdir(tmp_path)
    table = ClaimsTable(tmp_path / "runs", COMMAND)
    assert table.rows() == table.rows() == [{"id": 0}]
    path = tmp_path / changed
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    assert table.rows() == table.rows() == [{"id": 1}]
