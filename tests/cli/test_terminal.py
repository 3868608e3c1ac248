"""What a person sees on a real terminal."""

from __future__ import annotations

import os
import pty
import re
import sys
from pathlib import Path


def on_a_terminal(words: list[str]) -> tuple[int, str]:
    """Run the program on a pseudo-terminal: exit code and all that it showed."""
    child, terminal = pty.fork()
    if child == 0:
        settings = {"TERM": "xterm", "COLUMNS": "120", "OMP_NUM_THREADS": "1"}
        kept = {key: value for key, value in os.environ.items() if key not in ("CI", "NO_COLOR")}
        os.execve(sys.executable, [sys.executable, "-m", "homunculi", *words], kept | settings)
    shown = b""
    while True:
        try:
            part = os.read(terminal, 4096)
        except OSError:  # how the other end of a terminal says that it is closed
            part = b""
        if not part:
            break
        shown += part
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), shown.decode("utf-8", "replace")


def test_training_shows_one_line_that_is_updated(recipe: str, tmp_path: Path) -> None:
    code, shown = on_a_terminal(["train", recipe, "--run", str(tmp_path / "run")])
    assert code == 0, shown
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert re.search(r"step \d/8 .*loss \d", text), text
    assert "val " in text and "sample at step 4" in text
    assert "\x1b[2K" in shown, "the progress line is redrawn in place"
    assert text.strip().splitlines()[-1].endswith("run")
