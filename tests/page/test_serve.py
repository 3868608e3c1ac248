"""The verb that opens the page, and what it brings along."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from homunculi.web.server import STATIC, listen
from tests.page.runs_made import made_run

ROOT = Path(__file__).resolve().parents[2]
OURS = sorted(path for path in STATIC.iterdir() if path.suffix in (".js", ".html", ".css"))


def serve(*words: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    command = [sys.executable, "-m", "homunculi", "serve", *words]
    return subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": "."}
    )


def test_it_prints_its_address_answers_there_and_ends_on_interrupt(packages: None, tmp_path: Path) -> None:
    made_run(tmp_path / "one", step=5)
    process = serve("--port", "0", "--runs", str(tmp_path), "--json")
    try:
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        assert said["url"] == f"http://127.0.0.1:{said['port']}/#token={said['token']}"
        with urllib.request.urlopen(f"http://127.0.0.1:{said['port']}/api/runs", timeout=20) as answer:
            assert [run["key"] for run in json.load(answer)["runs"]] == ["one"]
        with socket.socket() as other, pytest.raises(OSError):
            other.settimeout(0.5)
            other.connect(("127.0.0.2", said["port"]))  # another name of this machine, where nothing listens
    finally:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 0 and "Traceback" not in errors


@pytest.mark.parametrize(
    ("words", "said"),
    [(("--runs", "no/such"), "no/such: is no folder"), (("--port", "99999"), "port"), (("--host", "0.0.0.0"), "host")],
)
def test_bad_input_is_one_line(packages: None, words: tuple[str, ...], said: str) -> None:
    process = serve(*words)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 2 and said in errors and len(errors.splitlines()) == 1


def test_a_port_that_is_taken_is_named(packages: None, tmp_path: Path) -> None:
    with listen(0) as taken:
        process = serve("--runs", str(tmp_path), "--port", str(taken.getsockname()[1]))
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 2 and "choose another, or 0 for a free one" in errors


def test_an_answer_s_body_does_not_wait_for_its_head_to_be_received() -> None:
    async def ask() -> int:
        told: asyncio.Queue[int] = asyncio.Queue()

        async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            taken = writer.get_extra_info("socket")
            told.put_nowait(taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        opened = listen(0)
        async with await asyncio.start_server(answer, sock=opened):
            _, writer = await asyncio.open_connection(*opened.getsockname())
            at_once = await asyncio.wait_for(told.get(), 20)
            writer.close()
        return at_once

    assert asyncio.run(ask())


def test_the_page_loads_neither_torch_nor_a_server_before_it_serves() -> None:
    code = (
        "import sys, homunculi.web.server, homunculi.web.comparing\n"
        "print([m for m in ('torch', 'starlette', 'uvicorn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.name)
def test_files_of_the_page_make_no_markup_of_text_and_name_no_other_host(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    acting = (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "Function(",
        "srcdoc",
        "onclick=",
    )
    assert not [word for word in (*acting, "http://", "https://", "//cdn") if word in text]
    assert len(text.splitlines()) <= 400


def test_what_others_wrote_lies_with_its_licence() -> None:
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    for path in (STATIC / "vendor").iterdir():
        assert f"homunculi/web/static/vendor/{path.name}" in notice
    assert "plotly.js (cartesian - minified) v4.1.1" in (STATIC / "vendor/plotly-cartesian.min.js").read_text()[:100]
    assert "MIT License" in (STATIC / "vendor/plotly-LICENSE.txt").read_text(encoding="utf-8")
