"""The table of claims, as `homunculi claims --json` gives it. Its own process: the page loads no model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from homunculi.errors import HomunculiError

STORED = Path("benchmarks") / "claims"
_LONGEST_S = 300


class ClaimsTable:
    """Asks once, and again only when stored results or records beside them have changed. Safe to ask from several
    threads.
    """

    def __init__(self, runs: Path, command: Sequence[str] | None = None) -> None:
        self._command = list(command) if command else [sys.executable, "-m", "homunculi", "claims", "--json"]
        self._runs = runs
        self._known: tuple[Any, list[dict[str, Any]]] | None = None
        self._lock = threading.Lock()

    def rows(self) -> list[dict[str, Any]]:
        """Every claim with its verdict and figures.

        Raises:
            HomunculiError: the process failed; what it said is the message.
        """
        with self._lock:
            stamp = self._stamp()
            if self._known is None or self._known[0] != stamp:
                self._known = (stamp, self._ask())
            return self._known[1]

    def _ask(self) -> list[dict[str, Any]]:
        environment = os.environ | {"HOMUNCULI_RUNS": str(self._runs), "NO_COLOR": "1"}
        try:
            done = subprocess.run(
                self._command, capture_output=True, text=True, env=environment, timeout=_LONGEST_S, check=False
            )
            found = json.loads(done.stdout)["claims"] if done.returncode == 0 else None
        except (OSError, ValueError, LookupError, TypeError, subprocess.TimeoutExpired) as error:
            raise HomunculiError(f"the table of claims cannot be made ({type(error).__name__})") from None
        if not isinstance(found, list):
            said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise HomunculiError(f"the table of claims cannot be made: {said[:300]}")
        return [row for row in found if isinstance(row, dict)]

    def _stamp(self) -> Any:
        found, places = [], (STORED.parent, self._runs)
        for folder in (place / name for place in places for name in ("claims", "results")):
            try:
                found += [(path.name, path.stat().st_mtime_ns) for path in sorted(folder.glob("*.json"))]
            except OSError:
                continue
        return found
