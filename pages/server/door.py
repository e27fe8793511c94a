"""Who is let in: open sessions, requests and messages by address, the size and pace of bodies.

Every limit is of `interp.settings`, and 0 is "none": on a laptop a request passes with a handful of comparisons.
"""

from __future__ import annotations

import asyncio
import math
import random
import re
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from html import escape
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

from starlette.requests import cookie_parser
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from streamlit import config
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from streamlit.web.server.starlette.starlette_app_utils import decode_xsrf_token_string
from streamlit.web.server.starlette.starlette_server_config import XSRF_COOKIE_NAME

from interp import settings
from pages.server import address, metrics

TICKET = 30.0
"""Seconds within which the page that was just sent opens its session."""
SWAP = 3.0
"""Seconds that a reloaded page waits for the place of the one it replaces."""
RETRY = 8, 15
"""Seconds after which a waiting page tries again; between them, so that those who wait don't all come at once."""
MINUTE = 60.0
TABLE = 20_000
"""Addresses that are remembered."""
BODY = 64 * 2**10
"""Bytes of a request that uploads nothing, and what an upload has around its file."""
HEADERS = 48 * 2**10
"""Bytes of a request's line and headers; a live link holds a whole prompt."""
PATIENCE, PACE = 20.0, 20 * 2**10
"""Seconds that a body may take, and one more for each so many bytes allowed."""
OWN = ("/healthz", "/readyz", "/metrics")
ASSETS = re.compile(r"/(static/|favicon\.png$|manifest\.json$|component/|_stcore/bidi-components/)")
NO_PAGE = re.compile(r"/(_stcore|media|app/static|s)/|.*/_stcore/")
UPLOAD = re.compile(r"/_stcore/upload_file/([^/]+)/")

WHY = {
    "full": ("Actiscope is full right now", "As many people are looking into models here as this server can serve."),
    "address": (
        "Too many open pages",
        "Your network has as many pages open here as one network may: close one of them.",
    ),
    "rate": ("Too many requests", "Your network has asked for more in the last minute than one network may."),
    "closing": ("Actiscope is being restarted", "This server takes nobody new; in a moment another one does."),
}
PAGE = Template((Path(__file__).parents[2] / "assets" / "full.html").read_text())


class Ticket(NamedTuple):
    until: float
    who: str
    browser: bytes


def _less(counter: Counter[Any], key: Any) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]


class Seats:
    """Open sessions, in all and by address.

    A page that is sent out keeps a place for the session that it will open, its ticket: otherwise people would get a
    page and then no session. A browser that has a session gets the page though the house is full, for with a reload
    one place becomes free; if none does, the new session is refused, and for a while the page too.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.taken = 0
        self.open: Counter[str] = Counter()
        self.browsers: Counter[bytes] = Counter()
        self.tickets: deque[Ticket] = deque()
        self.held: Counter[str] = Counter()
        self.denied: dict[bytes, float] = {}

    def admit(self, who: str, browser: bytes = b"") -> str:
        """A page is asked for: "" and a ticket, or why not."""
        limits = settings.SETTINGS
        if not limits.visitors and not limits.address_visitors:
            return ""
        while self.tickets and self.tickets[0].until < self.clock():
            self._drop(self.tickets[0])
        why = self._full(who, self.taken + len(self.tickets), self.open[who] + self.held[who])
        if why and browser in self.browsers and self.denied.get(browser, 0.0) < self.clock():
            if mine := next((each for each in self.tickets if each.browser == browser), None):
                self._drop(mine)
        elif why:
            return why
        self.tickets.append(Ticket(self.clock() + TICKET, who, browser))
        self.held[who] += 1
        return ""

    async def take(self, who: str, browser: bytes = b"") -> str:
        """A session is opened: "" and its place, or why not."""
        mine = next((each for each in self.tickets if each.who == who and each.until >= self.clock()), None)
        if mine is None:
            why = self._full(who, self.taken + len(self.tickets), self.open[who] + self.held[who])
        else:
            until = self.clock() + SWAP
            while (why := self._full(who, self.taken, self.open[who])) and self.clock() < until:
                await asyncio.sleep(0.05)
            if mine in self.tickets:
                self._drop(mine)
        if not why:
            self.taken += 1
            self.open[who] += 1
            if browser:
                self.browsers[browser] += 1
        elif browser in self.browsers:
            now = self.clock()
            self.denied = {each: end for each, end in self.denied.items() if end > now} | {browser: now + TICKET}
        return why

    def leave(self, who: str, browser: bytes = b"") -> None:
        self.taken -= 1
        _less(self.open, who)
        if browser:
            _less(self.browsers, browser)

    def _drop(self, ticket: Ticket) -> None:
        self.tickets.remove(ticket)
        _less(self.held, ticket.who)

    def _full(self, who: str, taken: int, own: int) -> str:
        limits = settings.SETTINGS
        if limits.visitors and taken >= limits.visitors:
            return "full"
        return "address" if who and limits.address_visitors and own >= limits.address_visitors else ""


class Buckets:
    """A token bucket for each address: so many a second, a minute's worth at once."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.tokens: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def spend(self, who: str, debt: bool = False) -> float:
        """Take one, and the seconds until it is there; without `debt` it is only taken if that is none."""
        rate = settings.SETTINGS.address_rate
        if not rate:
            return 0.0
        now = self.clock()
        left, since = self.tokens.pop(who, (rate * MINUTE, now))
        left = min(rate * MINUTE, left + (now - since) * rate)
        wait = max(0.0, (1 - left) / rate)
        self.tokens[who] = (left if wait and not debt else left - 1, now)
        if len(self.tokens) > TABLE:
            self.tokens.popitem(last=False)
        return wait


SEATS, BUCKETS = Seats(), Buckets()


class Refused(Exception):
    """A body that is too large or too slow; carries the status."""


class Door:
    """The middleware. `closing` is asked before anybody new is let in."""

    def __init__(
        self,
        app: ASGIApp,
        seats: Seats = SEATS,
        buckets: Buckets = BUCKETS,
        closing: Callable[[], bool] = lambda: False,
    ) -> None:
        self.app, self.seats, self.buckets, self.closing = app, seats, buckets, closing
        self.base = "/" + base if (base := (config.get_option("server.baseUrlPath") or "").strip("/")) else ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._session(scope, receive, send)
        elif scope["type"] == "http":
            await self._request(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        limits = settings.SETTINGS
        path = scope["path"].removeprefix(self.base)
        if path in OWN or ASSETS.match(path):
            return await self.app(scope, receive, send)
        is_page = _is_page(scope, path)
        who = address.of(scope)
        if limits.hosted and _length(scope) > HEADERS:
            metrics.count("refused", reason="headers")
            return await PlainTextResponse("This request is too long.\n", 431)(scope, receive, send)
        if wait := self.buckets.spend(who):
            return await _refusal("rate", is_page, math.ceil(wait))(scope, receive, send)
        if is_page and (why := "closing" if self.closing() else self.seats.admit(who, _browser(scope))):
            return await _refusal(why, True)(scope, receive, send)
        if scope["method"] in ("GET", "HEAD", "OPTIONS") or not limits.hosted:
            return await self.app(scope, receive, send)
        await self._body(scope, receive, send, path)

    async def _body(self, scope: Scope, receive: Receive, send: Send, path: str) -> None:
        limits = settings.SETTINGS
        upload = UPLOAD.match(path) if scope["method"] in ("PUT", "POST") else None
        most = (limits.upload_bytes if upload else 0) + BODY
        until = time.monotonic() + PATIENCE + most / PACE
        begun, got, ended = False, 0, False

        async def counted() -> Message:
            nonlocal got, ended
            if ended:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), until - time.monotonic())
            except TimeoutError:
                raise Refused(408) from None
            got += len(message.get("body", b""))
            ended = not message.get("more_body", False)
            if got > most:
                raise Refused(413)
            return message

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            said = int(
                dict(scope["headers"]).get(b"content-length", b"0")
            )  # uvicorn has seen to it that it is a number
            if said > most:
                raise Refused(413)
            if upload and not _held(upload[1], said or most):
                raise Refused(507)
            await self.app(scope, counted, noted)
        except Refused as refused:
            status = refused.args[0]
            metrics.count("refused", reason={408: "slow", 413: "body", 507: "uploads"}[status])
            if not begun:
                sentence = {
                    408: "This came too slowly.",
                    413: "This is larger than what may be sent here.",
                    507: "There is no room for more uploaded files right now: close one, or try again later.",
                }[status]
                response = PlainTextResponse(sentence + "\n", 413 if status == 507 else status, {"connection": "close"})
                await response(scope, receive, send)

    async def _session(self, scope: Scope, receive: Receive, send: Send) -> None:
        who, browser = address.of(scope), _browser(scope)
        why = (
            "closing" if self.closing() else "rate" if self.buckets.spend(who) else await self.seats.take(who, browser)
        )
        if why:
            metrics.count("refused", reason=why)
            return await _turn_away(scope, receive, send)

        async def paced() -> Message:
            message = await receive()
            if message["type"] == "websocket.receive" and (wait := self.buckets.spend(who, debt=True)):
                metrics.count("refused", reason="paced")
                await asyncio.sleep(wait)
            return message

        began = time.monotonic()
        metrics.opened()
        try:
            await self.app(scope, paced if settings.SETTINGS.address_rate else receive, send)
        finally:
            self.seats.leave(who, browser)
            metrics.closed(time.monotonic() - began)


def _is_page(scope: Scope, path: str) -> bool:
    """Whether a browser goes to a page of the app, which will open a session."""
    if scope["method"] != "GET" or NO_PAGE.match(path):
        return False
    headers = dict(scope["headers"])
    wants = headers.get(b"sec-fetch-dest", b"")
    return wants in (b"document", b"iframe", b"frame") if wants else b"text/html" in headers.get(b"accept", b"")


def _browser(scope: Scope) -> bytes:
    """Which browser this is, by the token that Streamlit gives each; b"" if it has none yet."""
    cookies = next((value for name, value in scope["headers"] if name == b"cookie"), b"").decode("latin-1")
    token = cookie_parser(cookies).get(XSRF_COOKIE_NAME)
    return (decode_xsrf_token_string(token)[0] or b"") if token else b""


def _length(scope: Scope) -> int:
    line = len(scope.get("raw_path") or scope["path"]) + len(scope["query_string"])
    return line + sum(len(name) + len(value) + 4 for name, value in scope["headers"])


def _held(session: str, more: int) -> bool:
    """Whether the uploaded files that this process holds leave room for `more` bytes; a session has four files."""
    from streamlit.runtime import get_instance

    limits = settings.SETTINGS
    if not limits.held_bytes:
        return True
    stored = get_instance().uploaded_file_mgr.file_storage
    sizes = {name: sum(len(each.data) for each in list(files.values())) for name, files in list(stored.items())}
    return sum(sizes.values()) + more <= limits.held_bytes and sizes.get(session, 0) + more <= 4 * limits.upload_bytes


def _refusal(why: str, page: bool, seconds: int = 0) -> Response:
    metrics.count("refused", reason=why)
    title, sentence = WHY[why]
    seconds = seconds or random.randint(*RETRY)
    status, headers = 429 if why == "rate" else 503, {"retry-after": str(seconds), "cache-control": "no-store"}
    if page:
        text = PAGE.substitute(title=escape(title), sentence=escape(sentence), seconds=max(seconds, RETRY[0]))
        return HTMLResponse(text, status, headers)
    return PlainTextResponse(f"{title}. {sentence}\n", status, headers)


async def _turn_away(scope: Scope, receive: Receive, send: Send) -> None:
    """Refuse a session. The page that wanted it is sent to its own address, where it meets the page above: left alone,
    Streamlit's front end would show that it is connecting for ever."""
    await receive()
    protocol = next(iter(scope.get("subprotocols") or ()), None)
    await send({"type": "websocket.accept", "subprotocol": protocol})
    again = ForwardMsg()
    again.auth_redirect.url = ""
    await send({"type": "websocket.send", "bytes": again.SerializeToString()})
    await send({"type": "websocket.close", "code": 1013, "reason": "Try again later"})
