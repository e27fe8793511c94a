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

from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from streamlit import config
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

from interp import settings
from pages.server import address, metrics

TICKET = 30.0
"""Seconds within which the page that was just sent opens its session."""
SWAP = 3.0
"""Seconds that a reloaded page waits for the place of the one it replaces."""
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


class Seats:
    """Open sessions, in all and by address.

    A page that is sent out keeps a place for the session that it will open, its ticket: otherwise people would get a
    page and then no session. Whoever reloads gets the page though the house is full, for one place becomes free.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.open: Counter[str] = Counter()
        self.taken = 0
        self.tickets: deque[tuple[float, str]] = deque()
        self.held: Counter[str] = Counter()

    def admit(self, who: str) -> str:
        """A page is asked for: "" and a ticket, or why not."""
        limits = settings.SETTINGS
        if not limits.visitors and not limits.address_visitors:
            return ""
        while self.tickets and self.tickets[0][0] < self.clock():
            self._used(self.tickets.popleft())
        why = self._full(who, self.taken + len(self.tickets), self.open[who] + self.held[who])
        if why and self.open[who] <= self.held[who]:
            return why
        self.tickets.append((self.clock() + TICKET, who))
        self.held[who] += 1
        return ""

    async def take(self, who: str) -> str:
        """A session is opened: "" and its place, or why not."""
        mine = next((each for each in self.tickets if each[1] == who and each[0] >= self.clock()), None)
        if mine is None:
            why = self._full(who, self.taken + len(self.tickets), self.open[who] + self.held[who])
        else:
            until = self.clock() + SWAP
            while (why := self._full(who, self.taken, self.open[who])) and self.clock() < until:
                await asyncio.sleep(0.05)
            if mine in self.tickets:
                self.tickets.remove(mine)
                self._used(mine)
        if not why:
            self.open[who] += 1
            self.taken += 1
        return why

    def leave(self, who: str) -> None:
        self.taken -= 1
        self.open[who] -= 1
        if not self.open[who]:
            del self.open[who]

    def _used(self, ticket: tuple[float, str]) -> None:
        self.held[ticket[1]] -= 1
        if not self.held[ticket[1]]:
            del self.held[ticket[1]]

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
        if is_page and (why := "closing" if self.closing() else self.seats.admit(who)):
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
        who = address.of(scope)
        why = "closing" if self.closing() else "rate" if self.buckets.spend(who) else await self.seats.take(who)
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
            self.seats.leave(who)
            metrics.closed(time.monotonic() - began)


def _is_page(scope: Scope, path: str) -> bool:
    """Whether a browser goes to a page of the app, which will open a session."""
    if scope["method"] != "GET" or NO_PAGE.match(path):
        return False
    headers = dict(scope["headers"])
    wants = headers.get(b"sec-fetch-dest", b"")
    return wants in (b"document", b"iframe", b"frame") if wants else b"text/html" in headers.get(b"accept", b"")


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
    seconds = seconds or random.randint(8, 15)  # so that those who wait don't all come back at once
    status, headers = 429 if why == "rate" else 503, {"retry-after": str(seconds), "cache-control": "no-store"}
    if page:
        text = PAGE.substitute(title=escape(title), sentence=escape(sentence), seconds=max(seconds, 5))
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
