"""The commands of the README do what it says."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
SMALL = [
    "steps=2",
    "batch_tokens=256",
    "model.max_seq_len=64",
    "model.d_model=48",
    "eval_every=2",
    "train.eval_tokens=128",
    "output.sample_tokens=4",
    "device=cpu",
]


LONG = ("serve", "bench", "ablate", "scale", "audit")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def commands() -> list[list[str]]:
    lines = "".join(blocks("sh")).splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith("homunculi ")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text and a run called RUN."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "my_texts").mkdir()
    (folder / "my_texts" / "a.txt").write_text("A few words, again and again. " * 400)
    small = [*SMALL, "text.vocab_size=300", "text.val_frac=0.2"]
    run_here(folder, ["train", "text", "corpus=my_texts", *small, "--run", "RUN"])
    return folder


def run_here(folder: Path, words: list[str]) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder / "cache")}
    environment |= {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "homunculi", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_each_command_works(words: list[str], place: Path) -> None:
    extra = []
    if words[1] == "train":
        extra = [*SMALL, "text.vocab_size=300", *(["corpus=stories?n_documents=60"] if "text" not in words else [])]
        extra += ["text.val_frac=0.2"] if "text" in words else []
    elif words[1:3] == ["certify", "gpt"]:
        extra = ["n_blocks=2", "d_model=32", "n_heads=2", "max_seq_len=32"]
    elif words[1] == "compare":
        extra = [*SMALL, "corpus=stories?n_documents=60", "text.vocab_size=300", "--seeds", "2", "--no-tune"]
    elif words[1] in LONG:  # endless, minutes to hours, or an optional package: tests of their own run them on toys
        words = [*words[:2], "--help"]
    assert run_here(place, words[1:] + extra)


def test_the_python_example_works(place: Path) -> None:
    (code,) = blocks("python")
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=place,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        check=True,
    )
    assert done.stdout.strip() == "True"


@pytest.mark.parametrize("target", ["train", "test"])
def test_make_knows_the_first_two_commands(target: str) -> None:
    assert f"make {target}" in blocks("sh")[0]
    done = subprocess.run(["make", "-n", target], capture_output=True, text=True, cwd=ROOT, check=True)
    assert ("homunculi train quickstart" if target == "train" else "pytest") in done.stdout


def test_linked_files_exist() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", TEXT)
    assert links and not [link for link in links if not (ROOT / link).exists()]
