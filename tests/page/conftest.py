"""A page over made runs: its application, and a server that a browser can open."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from homunculi.runs.directory import RunDirectory
from homunculi.web.claims_table import ClaimsTable
from homunculi.web.desk_client import DeskClient
from homunculi.web.project import Project
from homunculi.web.server import Page, build_app, listen
from tests.conftest import SKIPS
from tests.page.runs_made import made_project

HERE = Path(__file__).parent
FAKE_DESK = [sys.executable, str(HERE / "fake_desk.py")]
CLAIMS = [
    {"id": "one", "system": "a", "claim": "less is more", "verdict": "supported", "difference": -0.1, "low": -0.2}
    | {"high": -0.05, "n": 5, "unit": "bits/byte", "figures": {"a": [1, 0.5, 2]}, "reason": "it ends below"},
    {"id": "two", "system": "a", "claim": "<b>more</b>", "verdict": "not run", "difference": None, "low": None}
    | {"high": None, "n": None, "unit": "", "figures": {}, "reason": "nobody ran it"},
]
FAKE_CLAIMS = [sys.executable, "-c", f"print({json.dumps({'claims': CLAIMS})!r})"]
PORT = 8421


@pytest.fixture(scope="session")
def packages() -> None:
    if not all(find_spec(name) for name in ("starlette", "uvicorn", "httpx")):
        pytest.skip(SKIPS["page"])


@pytest.fixture(scope="session")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_project(tmp_path_factory.mktemp("pattern") / "runs")


@pytest.fixture
def project(pattern: Path, tmp_path: Path) -> Path:
    root = Path(shutil.copytree(pattern, tmp_path / "runs"))
    RunDirectory(root / "going").write_status()  # a fresh heartbeat
    return root


@pytest.fixture
def page(packages: None, project: Path) -> Iterator[Page]:
    yield from opened(project, PORT)


def opened(root: Path, port: int) -> Iterator[Page]:
    page = Page(Project(root), port, desk=DeskClient(FAKE_DESK), claims=ClaimsTable(root, FAKE_CLAIMS))
    yield page
    page.desk.close()


@pytest.fixture
def client(page: Page) -> Any:
    from starlette.testclient import TestClient

    return TestClient(build_app(page), base_url=f"http://127.0.0.1:{PORT}", raise_server_exceptions=False)


@pytest.fixture
def token(page: Page) -> dict[str, str]:
    return {"X-Homunculi-Token": page.token}


@pytest.fixture(scope="module")
def served(packages: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A page that answers on a port of its own, for a module."""
    import uvicorn

    root = made_project(tmp_path_factory.mktemp("served") / "runs")
    socket = listen(0)
    for page in opened(root, socket.getsockname()[1]):
        config = uvicorn.Config(build_app(page), log_level="error", lifespan="off", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]}, daemon=True)
        thread.start()
        yield page
        server.should_exit = True
        thread.join(5)
    socket.close()


def chromium() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = chromium()
    if path is None or find_spec("playwright") is None:
        pytest.skip(SKIPS["browser"])
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield started
        started.close()
