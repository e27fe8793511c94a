"""The log: as text on a laptop; on a server of strangers one JSON object per line, with nothing that a visitor typed.

An exception's message, a warning's text, the values in a log line may all hold a visitor's words, in our code and in
everyone else's. So of a record only its template is written, of an exception its type and where it was. What may be
told stands in the record's `fields`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import secrets
import sys
import threading
import time
import traceback
from datetime import UTC, date, datetime
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import streamlit as st
import streamlit.logger
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from streamlit import config

from interp import settings
from pages.server import address, metrics

ROOT = Path(__file__).resolve().parents[2]
FRAMES = 30
OURS = ("actiscope", "uvicorn")
"""Loggers whose lines without values are literals."""
NOISE = {"Uncaught app execution"}
"""What `failed` says better."""

STREAMLIT = {"health", "host-config", "stream", "upload_file", "metrics", "bidi-components"}

_log = logging.getLogger("actiscope")


class Json(logging.Formatter):
    """A record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "log": record.name,
        }
        if record.args or record.name.startswith(OURS):
            line["event"] = str(record.msg).removesuffix(": %s")
        else:
            line["from"] = _short(record.pathname, record.lineno, record.funcName)
        line |= getattr(record, "fields", {})
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            line |= described(error)
        return json.dumps(line, ensure_ascii=True, default=str)


def described(error: BaseException) -> dict[str, Any]:
    """An exception without its words: its type, those it came from, and the way to it."""
    causes, each = [], error
    while (each := each.__cause__ or each.__context__) is not None and len(causes) < 5:  # type: ignore[assignment]
        causes.append(type(each).__name__)
    frames = traceback.extract_tb(error.__traceback__)[-FRAMES:]
    found = {
        "error": type(error).__name__,
        "frames": [_short(frame.filename, frame.lineno, frame.name) for frame in frames],
    }
    return found | ({"causes": causes} if causes else {})


def _short(path: str, line: int | None, function: str | None) -> str:
    path = re.sub(r".*/(?:site-packages|lib/python3\.\d+)/", "", path).removeprefix(f"{ROOT}/")
    return f"{path}:{line} {function}"


def start() -> None:
    """Bring every logger under the JSON lines, Streamlit's and uvicorn's too, if the settings ask for them."""
    if settings.SETTINGS.logs != "json":
        return
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(Json())
    handler.addFilter(lambda record: record.msg not in NOISE)

    def alone(logger: logging.Logger) -> None:
        logger.handlers = [handler] if logger.name != "uvicorn.access" else []  # with a handler it would speak

    config.set_option("logger.enableRich", False)  # it prints tracebacks past every logger
    streamlit.logger.setup_formatter = alone  # each of Streamlit's loggers gets its handler by this, also later ones
    for logger in logging.Logger.manager.loggerDict.values():
        if isinstance(logger, logging.Logger) and (logger.handlers or not logger.propagate):
            alone(logger)
    alone(logging.getLogger())
    _log.setLevel(logging.INFO)
    logging.captureWarnings(True)
    sys.excepthook = lambda kind, error, trace: _log.critical("Uncaught", exc_info=(kind, error, trace))
    threading.excepthook = lambda failed: _log.error(
        "A thread failed", exc_info=(failed.exc_type, failed.exc_value or failed.exc_type(), failed.exc_traceback)
    )


def event(name: str, **fields: Any) -> None:
    """A line that is no fault. `name` and the keys are literals; the values hold nothing that a visitor typed."""
    if settings.SETTINGS.logs == "json":
        _log.info(name, extra={"fields": fields})


def failed(error: Exception) -> bool:
    """A run of a page failed: the visitor gets a sentence with a number, and the log has the number."""
    number = secrets.token_hex(4)
    metrics.count("errors", where="page", type=type(error).__name__)
    as_json = settings.SETTINGS.logs == "json"
    _log.error("A page failed: %s", number, exc_info=error if as_json else None, extra={"fields": {"id": number}})
    st.error(
        f"This failed through a fault of Actiscope's. If you report it, give this number: {number}. "
        "Your link still holds what you had set up.",
        icon=":material/error:",
    )
    return True


def job(experiment: Any, outcome: str, seconds: float) -> None:
    """A line for a long run: its method, its model if it is one of ours or of the list, and how it ended."""
    if settings.SETTINGS.logs == "json":
        from interp import zoo

        listed = {each.strip() for each in settings.SETTINGS.hub.split(",")}
        model = experiment.model if experiment.model in zoo.shelf() or experiment.model in listed else "other"
        event("job", method=experiment.lens.method, model=model, outcome=outcome, seconds=round(seconds, 2))


def hashed(who: str) -> str:
    """An address for the log: tells visitors apart for a day, and nobody, we neither, gets the address back."""
    return hashlib.blake2b(who.encode(), key=_salt(date.today()), digest_size=6).hexdigest() if who else ""


@lru_cache(1)
def _salt(day: date) -> bytes:
    return secrets.token_bytes(16)


def kind(path: str) -> str:
    """A path without what a visitor wrote or may keep to himself: a page, or the part that names a route."""
    first, _, rest = path.lstrip("/").partition("/")
    if first == "_stcore":
        second = rest.partition("/")[0]
        return f"/_stcore/{second}" if second in STREAMLIT else "/_stcore"
    return f"/{first}" if first in _known() else "other"


@cache
def _known() -> frozenset[str]:
    pages = {path.stem for path in (ROOT / "pages").glob("*.py")}
    return frozenset(pages | {"", "s", "media", "static", "healthz", "readyz", "metrics", "favicon.png"})


class Requests:
    """The middleware that sees everything: a line for each request and session, and their counts."""

    quiet = ("/static", "/favicon.png", "/healthz", "/readyz", "/metrics", "/_stcore/health", "/_stcore/host-config")

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.base = (config.get_option("server.baseUrlPath") or "").strip("/")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        began, status = time.perf_counter(), 0
        path = kind(scope["path"].lstrip("/").removeprefix(self.base))

        async def seen(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "websocket.accept":
                status = status or 101
            elif message["type"] == "websocket.close":
                status = message.get("code", 1000)
            await send(message)

        try:
            await self.app(scope, receive, seen)
        except Exception as error:
            metrics.count("errors", where="server", type=type(error).__name__)
            raise
        finally:
            seconds = time.perf_counter() - began
            is_session = scope["type"] == "websocket"
            if not is_session:
                metrics.count("requests", path=path, status=str(status))
            if settings.SETTINGS.logs == "json" and path not in self.quiet:
                fields = {"path": path, "status": status, "seconds": round(seconds, 3)}
                if not is_session:
                    fields["method"] = scope["method"] if scope["method"].isalpha() else "other"
                event("session" if is_session else "request", **fields, visitor=hashed(address.of(scope)))
