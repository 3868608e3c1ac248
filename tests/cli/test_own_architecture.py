"""An architecture that lives in a recipe file of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from homunculi.cli.recipes import load_recipe
from homunculi.errors import InputError

MINE = """
from dataclasses import dataclass
from homunculi.models import architecture
from homunculi.models.gpt import Config, GPT

@dataclass(frozen=True, kw_only=True, slots=True)
class Mine(Config):
    pass

@architecture("mine_from_a_file", Mine)
class MineModel(GPT):
    pass

def mine():
    from tiny import tiny
    from dataclasses import replace
    return replace(tiny(), model=Mine(d_model=16, n_blocks=1, n_heads=2, max_seq_len=32))
"""


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "homunculi", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)


def test_a_run_of_it_resumes_where_the_file_is_named_again(recipe: str, tmp_path: Path) -> None:
    folder = Path(recipe.rpartition(":")[0]).parent
    (folder / "mine.py").write_text(MINE)
    mine, where = f"{folder / 'mine.py'}:mine", tmp_path / "run"
    trained = run(folder, "train", mine, "steps=2", "--run", str(where))
    assert trained.returncode == 0, trained.stderr
    refused = run(folder, "resume", str(where))
    assert refused.returncode == 2
    assert "mine_from_a_file" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    resumed = run(folder, "resume", str(where), "--recipe", mine)
    assert resumed.returncode == 0, resumed.stderr
    assert "finished already" in resumed.stderr


def test_a_recipe_file_is_run_once(recipe: str, tmp_path: Path) -> None:
    counting = tmp_path / "counting.py"
    log = f"open({str(tmp_path / 'log')!r}, 'a').write('x')"
    counting.write_text(f"{log}\ndef first(): return 1\ndef second(): return 2\n")
    for name in ("first", "second"):
        with pytest.raises(InputError, match="returns a int"):
            load_recipe(f"{counting}:{name}")
    assert (tmp_path / "log").read_text() == "x"
