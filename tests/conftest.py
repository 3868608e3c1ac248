"""Shared by all tests: where data lies, a private cache, one thread, and the only place where tests are skipped."""

from __future__ import annotations

import gc
import os
import secrets
from importlib.util import find_spec
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

# Every reason a test of this suite may be skipped for. Nothing else is skipped.
SKIPS = {
    "matplotlib": "matplotlib is not installed: pip install 'homunculi[report]' brings it",
    "datasets": "datasets is not installed: pip install 'homunculi[data]' brings it",
    "transformers": "transformers is not installed: pip install 'homunculi[hf]' brings it",
    "page": "starlette, uvicorn or httpx is not installed: pip install 'homunculi[dev]' brings them",
    "browser": "no browser: pip install 'homunculi[dev]' and a chromium on the path (apt-get install chromium)",
    "triton": "no interpreter of kernels: install triton and set TRITON_INTERPRET=1",
    "data": "no data folder: set HOMUNCULI_DATA or put the corpora in ../shared/data",
    "parity": "no parity folder: set HOMUNCULI_PARITY or put the reference outputs in ../shared/parity",
}


def pytest_collection_finish() -> None:
    """What is imported by now stays: collections of garbage pass over it, which saves a tenth of all time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def private_environment(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep caches, certificates and runs of a test away from the person's own and from those of other tests."""
    folder = tmp_path_factory.getbasetemp() / "home"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(folder / "state"))
    monkeypatch.setenv("HOMUNCULI_CERTIFICATES", str(folder / "certificates" / secrets.token_hex(8)))
    monkeypatch.delenv("HOMUNCULI_RUNS", raising=False)
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of corpora: HOMUNCULI_DATA, or ../shared/data beside the checkout."""
    named = os.environ.get("HOMUNCULI_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(SKIPS["data"])
    return folder


@pytest.fixture(scope="session")
def parity_folder() -> Path:
    """The folder of reference outputs of original code: HOMUNCULI_PARITY, or ../shared/parity beside the checkout."""
    named = os.environ.get("HOMUNCULI_PARITY")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "parity"
    if not folder.is_dir():
        pytest.skip(SKIPS["parity"])
    return folder


@pytest.fixture
def triton_interpreter() -> None:
    """Kernels run on the CPU, slowly. Triton reads the variable when it is imported."""
    if find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip(SKIPS["triton"])
