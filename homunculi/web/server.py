"""The server of the page: routes over Starlette, bound to the loopback address. Files are read off the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from homunculi.errors import HomunculiError, InputError, optional
from homunculi.web import asked, comparing, guard, reading
from homunculi.web.claims_table import ClaimsTable
from homunculi.web.columns import Shelf
from homunculi.web.desk_client import DeskClient, DeskFailed
from homunculi.web.panels import Panels
from homunculi.web.project import Project, Refused

EXTRA = "web"
STATIC = Path(__file__).parent / "static"
_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_FILE_KINDS = {".html": "text/html", ".json": "application/json"}

Request = Any
Response = Any
App = Callable[[Any, Any, Any], Awaitable[None]]


@dataclass
class Page:
    """All that answers: a folder of runs, the desk, the claims, the token that allows acting, and the port."""

    project: Project
    port: int
    token: str = field(default_factory=guard.new_token)
    desk: DeskClient = field(default_factory=DeskClient)
    claims: ClaimsTable | None = None

    def __post_init__(self) -> None:
        self.shelf, self.panels = Shelf(), Panels(self.project)
        self.claims = self.claims or ClaimsTable(self.project.root)

    @property
    def address(self) -> str:
        """The address to open; what follows the # never leaves the browser."""
        return f"http://{guard.HOST}:{self.port}/#token={self.token}"


def build_app(page: Page) -> App:
    """The page as an ASGI application.

    Raises:
        InputError: Starlette is not installed.
    """
    applications, routing = optional("starlette.applications", EXTRA), optional("starlette.routing", EXTRA)
    reads = {
        "page": lambda request: _about(page, request),
        "runs": lambda request: {"runs": page.project.runs()},
        "run": lambda request: reading.head(page.project, page.shelf, _run(request)),
        "curves": lambda request: _curves(page, request),
        "samples": lambda request: reading.samples(page.project, _run(request)),
        "events": lambda request: reading.events(page.project, _run(request)),
        "instruments": lambda request: page.panels.instruments(_run(request)),
        "measurement": lambda request: _measurement(page, request),
        "scalars": lambda request: page.panels.scalars(_run(request), _word(request, "instrument")),
        "compare": lambda request: _compare(page, request),
        "claims": lambda request: {"claims": page.claims.rows() if page.claims else []},
    }
    route = routing.Route
    routes = [route(f"/api/{name}", _answering(read)) for name, read in reads.items()]
    routes += [route(f"/api/{do}", _desk_route(page, do), methods=["POST"]) for do in ("scan", "signals", "sample")]
    routes += [route("/api/file", _answering_file(page)), route("/", _static("index.html"))]
    names = [path.relative_to(STATIC).as_posix() for path in STATIC.rglob("*") if path.suffix in _KINDS]
    routes += [route(f"/static/{name}", _static(name)) for name in names]
    return _guarded(applications.Starlette(routes=routes), page.port)


def listen(port: int) -> socket.socket:
    """A socket on the loopback address; port 0 takes a free one.

    Raises:
        InputError: the port is taken or not allowed.
    """
    # The protocol is named because the event loop sends at once only where it is: else an answer's body waits 40 ms.
    opened = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((guard.HOST, port))
        opened.listen(128)
    except (OSError, OverflowError) as error:
        opened.close()
        raise InputError(f"--port {port}: cannot be used ({error}); choose another, or 0 for a free one") from None
    return opened


def serve(page: Page, opened: socket.socket) -> None:
    """Answer until interrupted. Ends the desk afterwards.

    Raises:
        InputError: Starlette or uvicorn is not installed.
    """
    uvicorn = optional("uvicorn", EXTRA)
    settings = {"log_level": "warning", "access_log": False, "server_header": False, "lifespan": "off"}
    config = uvicorn.Config(build_app(page), timeout_graceful_shutdown=2, **settings)
    try:
        uvicorn.Server(config).run(sockets=[opened])
    finally:
        page.desk.close()
        opened.close()


# Requests and answers.


def _guarded(app: App, port: int) -> App:
    """Refuse what is not ours before anything else looks at it, and put the headers of safety on every answer."""

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return

        async def send_marked(message: Any) -> None:
            if message["type"] == "http.response.start":
                own = {name for name, _ in message["headers"]}
                more = [(name.encode(), value.encode()) for name, value in guard.HEADERS.items()]
                message = message | {"headers": [*message["headers"], *(one for one in more if one[0] not in own)]}
            await send(message)

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if why := guard.refusal(headers, port):
            await _error(why, 403)(scope, receive, send_marked)
        else:
            await app(scope, receive, send_marked)

    return answer


def _json(value: Any, status: int = 200) -> Response:
    """ASCII JSON: names of files may hold what UTF-8 cannot. What is not finite, as a file may have it, is null."""
    responses = optional("starlette.responses", EXTRA)
    try:
        text = json.dumps(value, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(value), allow_nan=False)
    return responses.Response(text, status, media_type="application/json")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _error(words: str, status: int) -> Response:
    return _json({"error": " ".join(words.split())}, status)


def _failed(error: Exception) -> Response:
    if isinstance(error, Refused):
        return _error(str(error), 404)
    if isinstance(error, InputError):
        return _error(str(error), 400)
    if isinstance(error, OSError):
        return _error(f"a file cannot be read ({error.strerror})", 500)
    return _error(str(error), 502)


def _answering(read: Callable[[Request], Any]) -> Callable[[Request], Response]:
    """A route that reads. It is no coroutine, so that it runs in a thread."""

    def answer(request: Request) -> Response:
        try:
            return _json(read(request))
        except (HomunculiError, OSError) as error:
            return _failed(error)

    return answer


def _static(name: str) -> Callable[[Request], Response]:
    def answer(request: Request) -> Response:
        path = STATIC / name
        responses = optional("starlette.responses", EXTRA)
        kind = f"{_KINDS[path.suffix]}; charset=utf-8"
        about = path.stat()
        mark = f'"{about.st_mtime_ns:x}-{about.st_size:x}"'
        headers = {"cache-control": "no-cache", "etag": mark}
        if request.headers.get("if-none-match") == mark:
            return responses.Response(None, 304, headers=headers)
        return responses.Response(path.read_bytes(), headers=headers | {"content-type": kind})

    return answer


def _answering_file(page: Page) -> Callable[[Request], Response]:
    """A file of a run as it is: text, JSON, or its report without any right to act."""

    def answer(request: Request) -> Response:
        try:
            path = page.project.file(_run(request), _word(request, "name"))
        except HomunculiError as error:
            return _failed(error)
        kind = _FILE_KINDS.get(path.suffix, "text/plain")
        headers = {"content-type": f"{kind}; charset=utf-8", "content-security-policy": guard.FILE_POLICY}
        return optional("starlette.responses", EXTRA).FileResponse(path, headers=headers)

    return answer


def _about(page: Page, request: Request) -> dict[str, Any]:
    limits = {"text": guard.TEXT_LIMIT, "tokens": asked.MOST_TOKENS, "runs": comparing.MOST_RUNS}
    return {"folder": page.project.root.name, "acts": guard.may_act(request.headers, page.token), "limits": limits}


def _curves(page: Page, request: Request) -> dict[str, Any]:
    names = request.query_params.getlist("metric")
    return reading.curves(page.project, page.shelf, _run(request), names, request.query_params.get("axis", "step"))


def _measurement(page: Page, request: Request) -> dict[str, Any]:
    step = _word(request, "step")
    if not step.isdecimal() or len(step) > 12:
        raise InputError("step: a whole number is needed")
    return page.panels.measurement(_run(request), _word(request, "instrument"), int(step))


def _compare(page: Page, request: Request) -> dict[str, Any]:
    keys, axis = request.query_params.getlist("run"), request.query_params.get("axis", "step")
    return comparing.compared(page.project, page.shelf, keys, _word(request, "metric"), axis)


def _run(request: Request) -> str:
    return _word(request, "run")


def _word(request: Request, name: str) -> str:
    value = request.query_params.get(name)
    if not value:
        raise InputError(f"{name}: is needed")
    return str(value)


# The desk.


def _desk_route(page: Page, do: str) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        if not guard.may_act(request.headers, page.token):
            return _error("this needs the token: open the address that homunculi serve printed", 401)
        body = await _body(request)
        if body is None:
            return _error(f"the request is larger than {guard.BODY_LIMIT:,} bytes", 413)
        try:
            question = await asyncio.to_thread(asked.question, page.project, do, body)
        except (HomunculiError, OSError) as error:
            return _failed(error)
        responses = optional("starlette.responses", EXTRA)
        lines = _lines(page.desk, question)
        return responses.StreamingResponse(lines, media_type="application/x-ndjson")

    return answer


async def _body(request: Request) -> bytes | None:
    """The body, or None where it is longer than it may be; no more than that is kept."""
    taken = b""
    async for piece in request.stream():
        taken += piece
        if len(taken) > guard.BODY_LIMIT:
            return None
    return taken


async def _lines(desk: DeskClient, question: dict[str, Any]) -> AsyncIterator[bytes]:
    """The desk's lines as they come. When the browser goes away, so does the wish for the rest."""
    loop, given_up = asyncio.get_running_loop(), threading.Event()
    arrived: asyncio.Queue[bytes | None] = asyncio.Queue()

    def put(lines: Iterable[bytes | None]) -> None:
        for line in lines:
            with contextlib.suppress(RuntimeError):  # the page was closed meanwhile
                loop.call_soon_threadsafe(arrived.put_nowait, line)

    def talk() -> None:
        try:
            put(desk.stream(question, given_up))
        except DeskFailed as error:
            put([json.dumps({"error": str(error)}).encode() + b"\n"])
        finally:
            put([None])

    threading.Thread(target=talk, daemon=True).start()
    try:
        while (line := await arrived.get()) is not None:
            yield line
    finally:
        given_up.set()
