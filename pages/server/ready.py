"""From start to end of the server: warm before the first visitor, ready or not, and what is under way ends in peace."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import Message
from streamlit import config
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from streamlit.url_util import make_url_path

from interp import settings
from pages.server import logs
from pages.server.metrics import imported

VISITED = ("", "heatmaps", "pixels", "prompts", "circuits", "features", "transport", "steering", "methods", "models")
"""Pages that are run once before the first visitor comes."""
VISIT = 60.0
"""Seconds that such a run may take."""
STORE = 2.0
"""Seconds within which the shared store has to answer."""
FRESH = 5.0
"""Seconds that its answer holds."""
NOTICE = 2.0
"""Seconds that a load balancer gets to see that this server is closing, though nothing runs any more."""
HEADERS = 15.0
"""Seconds that a connection may take to say what it wants, and twice that at most."""
CONNECTIONS = 2000

_warm = False
_closing = False
_store: tuple[float, str] = (-FRESH, "")
_asking: asyncio.Future[str] | None = None


def closing() -> bool:
    """Whether nobody new is let in because the server was told to end."""
    return _closing


async def alive(request: Request) -> Response:
    """`/healthz`: the process answers."""
    return PlainTextResponse("ok\n")


async def answer(request: Request) -> Response:
    """`/readyz`: 200, or 503 and why no visitor should be sent here."""
    why = await reasons()
    return JSONResponse({"ready": not why, "reasons": why}, 503 if why else 200, {"cache-control": "no-store"})


async def reasons() -> list[str]:
    """Why no visitor should be sent here; nothing if one should."""
    why = []
    if settings.SETTINGS.hosted and not _warm:
        why.append("still warming up")
    if _closing:
        why.append("closing")
    if store := await _store_says():
        why.append(store)
    memory = imported("interp.memory")
    if memory is not None and memory.refusing():
        why.append("short of memory")
    return why


async def _store_says() -> str:
    """What is wrong with the shared store. It is asked at most every `FRESH` seconds, by one thread at a time."""
    global _store, _asking
    if time.monotonic() - _store[0] < FRESH:
        return _store[1]
    if _asking is None or _asking.done():
        _asking = asyncio.ensure_future(asyncio.to_thread(_ask_store))
    try:
        said = await asyncio.wait_for(asyncio.shield(_asking), STORE)
    except TimeoutError:
        said = "the shared store is slow"
    _store = (time.monotonic(), said)
    return said


def _ask_store() -> str:
    from interp import storage

    try:
        storage.shared().get("ready/store")
    except Exception as error:
        logs.event("store", **logs.described(error))
        return "the shared store does not answer"
    return ""


@asynccontextmanager
async def lifespan(app: Any) -> AsyncIterator[dict[str, Any]]:
    """What happens around serving. On a laptop nothing but the log's format."""
    logs.start()
    if not settings.SETTINGS.hosted:
        yield {}
        return
    server = _server()
    if server is not None:
        _tighten(server)
        _end_gently(server)
    tasks = [asyncio.create_task(_warm_up(app))]
    if server is not None:
        tasks.append(asyncio.create_task(_hang_up(server)))
    logs.event("started")
    try:
        yield {}
    finally:
        for task in tasks:
            task.cancel()
        logs.event("ended")


def _tend() -> None:
    """Have old links swept and memory watched from now on."""
    from interp import memory, storage

    storage.tended()
    memory.WATCHDOG.start()


async def _warm_up(app: Any) -> None:
    """Import what is slow, load the embedded models, and be the first visitor of every page."""
    global _warm
    began = time.monotonic()
    await asyncio.to_thread(_tend)
    for page in VISITED:
        try:
            await asyncio.wait_for(visit(app, page), VISIT)
        except Exception as error:
            logs.event("warm-up failed", page=page, **logs.described(error))
    _warm = True
    logs.event("warm", seconds=round(time.monotonic() - began, 1))


async def visit(app: Callable[..., Awaitable[None]], page: str) -> None:
    """Run a page as a visitor's browser would, until no work that it asked for is left; no network is used."""
    to_app: asyncio.Queue[Message] = asyncio.Queue()
    run: asyncio.Queue[None] = asyncio.Queue()

    async def send(message: Message) -> None:
        if message["type"] == "websocket.close":
            run.put_nowait(None)
        elif message["type"] == "websocket.send":
            seen = ForwardMsg.FromString(message["bytes"])
            if seen.WhichOneof("type") == "script_finished":
                run.put_nowait(None)

    path = make_url_path(config.get_option("server.baseUrlPath") or "", "_stcore/stream")
    scope = {
        "type": "websocket", "scheme": "ws", "path": path, "query_string": b"", "headers": [(b"host", b"localhost")],
        "client": ("127.0.0.1", 0), "server": ("localhost", 0), "subprotocols": ["streamlit"],
    }  # fmt: skip
    to_app.put_nowait({"type": "websocket.connect"})
    session = asyncio.create_task(app(scope, to_app.get, send))  # type: ignore[arg-type]
    try:
        while True:
            again = BackMsg()
            again.rerun_script.page_name = page
            to_app.put_nowait({"type": "websocket.receive", "bytes": again.SerializeToString()})
            await run.get()
            if session.done() or not _busy():
                break
            await asyncio.sleep(0.5)
    finally:
        to_app.put_nowait({"type": "websocket.disconnect", "code": 1000})
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(session, 5)


def _busy() -> bool:
    """Whether work is under way, or waits."""
    jobs = imported("pages.ui.jobs")
    counts = jobs.counts() if jobs is not None else {}
    return bool(counts.get("running", 0) + counts.get("waiting", 0))


def _server() -> Any:
    """The uvicorn server that we run in, or None. Streamlit makes it and keeps it to itself, but SIGTERM's handler is a
    method of it."""
    handler = signal.getsignal(signal.SIGTERM)
    found = getattr(handler, "__self__", None)
    return found if hasattr(found, "server_state") and hasattr(found, "config") else None


def _tighten(server: Any) -> None:
    """What Streamlit leaves at uvicorn's defaults and strangers should not meet."""
    server.config.encoded_headers = [each for each in server.config.encoded_headers if each[0].lower() != b"server"]
    server.config.limit_concurrency = server.config.limit_concurrency or CONNECTIONS
    server.config.timeout_graceful_shutdown = server.config.timeout_graceful_shutdown or 5


async def _hang_up(server: Any) -> None:
    """End connections that never say what they want: uvicorn gives them all the time in the world."""
    silent: dict[Any, Any] = {}
    while True:
        await asyncio.sleep(HEADERS)
        now = {
            each: each.cycle
            for each in server.server_state.connections
            if hasattr(each, "cycle") and (each.cycle is None or each.cycle.response_complete)
        }
        for connection, cycle in now.items():
            if connection in silent and silent[connection] is cycle:
                connection.transport.close()
        silent = now


def _end_gently(server: Any) -> None:
    """At SIGTERM let nobody new in, drop what waits, give what runs some seconds, and only then let uvicorn end."""
    loop = asyncio.get_running_loop()

    async def wait(number: int) -> None:
        drain = settings.SETTINGS.drain
        jobs = imported("pages.ui.jobs")
        notice = asyncio.create_task(asyncio.sleep(min(NOTICE, drain)))
        if jobs is not None:
            await asyncio.to_thread(jobs.close, seconds=drain)
        await notice
        server.handle_exit(number, None)

    def asked(number: int, frame: Any) -> None:
        global _closing
        if _closing:
            return server.handle_exit(number, frame)
        _closing = True
        logs.event("closing")
        loop.call_soon_threadsafe(lambda: tasks.append(loop.create_task(wait(number))))

    tasks: list[asyncio.Task[None]] = []
    signal.signal(signal.SIGTERM, asked)
