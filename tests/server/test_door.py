"""Who is let in: the middleware alone, in memory, with a clock that the test turns."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import pytest
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from streamlit.web.server.starlette.starlette_app_utils import generate_xsrf_token_string

from interp import settings
from pages.server import door
from pages.server.door import Buckets, Door, Seats

HTML = (b"accept", b"text/html,*/*")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def set(**values: Any) -> None:
        monkeypatch.setattr(settings, "SETTINGS", dataclasses.replace(settings.SETTINGS, **values))

    set(hosted=True, visitors=0, address_visitors=0, address_rate=0.0, held_bytes=0, proxies=0)
    return set


class House:
    """An app that says what it got, behind a door of its own."""

    def __init__(self, **options: Any) -> None:
        self.clock, self.calls, self.bodies = Clock(), 0, [b""]
        self.seats, self.buckets = Seats(self.clock), Buckets(self.clock)
        self.door = Door(self.app, self.seats, self.buckets, **options)

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        self.calls += 1
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            while (await receive())["type"] != "websocket.disconnect":
                await send({"type": "websocket.send", "bytes": b"seen"})
            return
        self.bodies.append(b"")
        if scope["method"] != "GET":
            while True:
                message = await receive()
                self.bodies[-1] += message.get("body", b"")
                if not message.get("more_body"):
                    break
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"in"})

    async def get(
        self,
        path: str = "/",
        peer: str = "203.0.113.7",
        method: str = "GET",
        headers: tuple[tuple[bytes, bytes], ...] = (HTML,),
        body: tuple[bytes, ...] = (b"",),
    ) -> tuple[int, dict[bytes, bytes], bytes]:
        sent: list[Any] = []
        parts = [{"type": "http.request", "body": part, "more_body": i < len(body) - 1} for i, part in enumerate(body)]

        async def receive() -> Any:
            return parts.pop(0) if parts else await asyncio.Event().wait()

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": list(headers)}
        await self.door(scope | {"client": (peer, 1)}, receive, send)
        return sent[0]["status"], dict(sent[0]["headers"]), b"".join(each.get("body", b"") for each in sent)

    def session(self, peer: str = "203.0.113.7", browser: bytes = b"") -> Session:
        return Session(self, peer, browser)


class Session:
    """A WebSocket, open until it is left."""

    def __init__(self, house: House, peer: str, browser: bytes) -> None:
        self.to_app: asyncio.Queue[Any] = asyncio.Queue()
        self.sent: asyncio.Queue[Any] = asyncio.Queue()
        headers = [cookie(browser)] if browser else []
        scope = {"type": "websocket", "path": "/_stcore/stream", "headers": headers, "client": (peer, 1)}
        self.to_app.put_nowait({"type": "websocket.connect"})
        self.task = asyncio.ensure_future(
            house.door(scope | {"subprotocols": ["streamlit"]}, self.to_app.get, self.sent.put)
        )

    async def says(self, number: int) -> list[Any]:
        return [await asyncio.wait_for(self.sent.get(), 5) for _ in range(number)]

    async def leave(self) -> None:
        self.to_app.put_nowait({"type": "websocket.disconnect"})
        await self.task


def cookie(browser: bytes) -> tuple[bytes, bytes]:
    return b"cookie", f"a=b; _streamlit_xsrf={generate_xsrf_token_string(browser, 1)}".encode()


def test_a_full_house_answers_with_a_page_that_tries_again_and_has_no_session(limit: Any) -> None:
    async def run() -> None:
        house = House()
        limit(visitors=1)
        assert (await house.get())[0] == 200
        first = house.session()
        assert (await first.says(1))[0]["type"] == "websocket.accept"
        status, headers, body = await house.get("/heatmaps")
        assert status == 503 and 5 <= int(headers[b"retry-after"]) <= 15
        assert b"full right now" in body and b'http-equiv="refresh"' in body and b"<script" not in body
        calls = house.calls
        second = house.session()
        accepted, told, closed = await second.says(3)
        assert accepted == {"type": "websocket.accept", "subprotocol": "streamlit"}
        assert ForwardMsg.FromString(told["bytes"]).WhichOneof("type") == "auth_redirect"
        assert (closed["type"], closed["code"]) == ("websocket.close", 1013)
        assert house.calls == calls, "no session was made"
        await first.leave()
        assert (await house.get())[0] == 200

    asyncio.run(run())


def test_a_page_that_was_sent_keeps_its_place_until_its_session_comes_or_too_late(limit: Any) -> None:
    async def run() -> None:
        house = House()
        limit(visitors=1)
        assert (await house.get(peer="192.0.2.1"))[0] == 200
        assert (await house.get(peer="192.0.2.2"))[0] == 503, "the place is kept for the first"
        assert (await house.session("192.0.2.2").says(3))[2]["code"] == 1013
        house.clock.now += door.TICKET + 1
        assert (await house.get(peer="192.0.2.2"))[0] == 200, "the first never opened its session"
        session = house.session("192.0.2.2")
        assert len(await session.says(1)) == 1
        assert not house.seats.tickets and not house.seats.held
        await session.leave()
        assert not house.seats.open and not house.seats.taken

    asyncio.run(run())


def test_whoever_reloads_gets_the_page_of_a_full_house_and_others_of_that_network_do_not(limit: Any) -> None:
    async def run() -> None:
        house = House()
        limit(visitors=1)
        old = house.session(browser=b"mine")
        await old.says(1)
        assert (await house.get(headers=(HTML, cookie(b"other"))))[0] == 503
        assert (await house.get(headers=(HTML, cookie(b"mine"))))[0] == 200
        new = house.session(browser=b"mine")  # browsers open it before the old one is quite gone
        await asyncio.sleep(0.1)
        assert new.sent.empty()
        await old.leave()
        assert (await new.says(1))[0]["type"] == "websocket.accept"
        await new.leave()

    asyncio.run(run())


def test_a_second_tab_of_a_full_house_does_not_go_round_in_circles(limit: Any, monkeypatch: Any) -> None:
    async def run() -> None:
        house = House()
        limit(visitors=1)
        monkeypatch.setattr(door, "SWAP", 0.0)
        first = house.session(browser=b"mine")
        await first.says(1)
        assert (await house.get(headers=(HTML, cookie(b"mine"))))[0] == 200
        assert (await house.session(browser=b"mine").says(3))[2]["code"] == 1013
        assert (await house.get(headers=(HTML, cookie(b"mine"))))[0] == 503
        house.clock.now += door.TICKET + 1
        assert (await house.get(headers=(HTML, cookie(b"mine"))))[0] == 200
        await first.leave()

    asyncio.run(run())


def test_one_network_has_its_share_of_sessions_and_no_more(limit: Any) -> None:
    async def run() -> None:
        house = House()
        limit(visitors=10, address_visitors=2)
        both = [house.session("192.0.2.1"), house.session("192.0.2.1")]
        for each in both:
            await each.says(1)
        status, _, body = await house.get(peer="192.0.2.1")
        assert status == 503 and b"close one" in body
        assert (await house.session("192.0.2.1").says(3))[2]["code"] == 1013
        assert (await house.get(peer="192.0.2.2"))[0] == 200
        for each in both:
            await each.leave()

    asyncio.run(run())


def test_requests_are_counted_by_address_over_a_minute_and_assets_are_not(limit: Any) -> None:
    async def run() -> None:
        house = House()
        limit(address_rate=0.1)  # six a minute
        assert [(await house.get("/_stcore/host-config"))[0] for _ in range(7)] == [200] * 6 + [429]
        status, headers, body = await house.get("/media/x.png", headers=())
        assert status == 429 and headers[b"retry-after"] == b"10" and not body.startswith(b"<")
        assert b"http-equiv" in (await house.get())[2], "a person gets a page"
        for path in ("/static/js/index.js", "/favicon.png", "/healthz", "/readyz", "/metrics"):
            assert (await house.get(path))[0] == 200, path
        assert (await house.get(peer="192.0.2.2"))[0] == 200
        house.clock.now += 10.5
        assert (await house.get("/media/x.png"))[0] == 200
        assert (await house.get("/media/x.png"))[0] == 429

    asyncio.run(run())


def test_messages_of_a_session_are_slowed_down_not_lost(limit: Any) -> None:
    async def run() -> None:
        house = House()
        limit(address_rate=0.2)  # twelve a minute, of which one opens the session
        house.buckets.clock = time.monotonic
        session = house.session()
        await session.says(1)
        for _ in range(12):
            session.to_app.put_nowait({"type": "websocket.receive", "bytes": b"x"})
        await session.says(11)
        limit(address_rate=20.0)  # and with more a second, the next one comes in time
        await asyncio.sleep(0.05)
        assert session.sent.empty(), "the twelfth waits"
        session.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await session.task
        assert not house.seats.taken

    asyncio.run(run())


def test_addresses_are_forgotten_so_that_the_table_stays_small(limit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(address_rate=1.0)
    monkeypatch.setattr(door, "TABLE", 100)
    buckets = Buckets(Clock())
    for number in range(1000):
        assert buckets.spend(f"192.0.2.{number}") == 0
    assert len(buckets.tokens) == 100


@pytest.mark.parametrize(
    ("path", "method", "body", "length", "status"),
    [
        ("/_stcore/upload_file/s/f", "PUT", (b"x" * 500, b"x" * 500), True, 200),
        ("/_stcore/upload_file/s/f", "PUT", (b"x" * 40_000,) * 3, True, 413),
        ("/_stcore/upload_file/s/f", "PUT", (b"x" * 40_000,) * 3, False, 413),  # the length is kept quiet
        ("/anything", "POST", (b"x" * 60_000,), True, 200),
        ("/anything", "POST", (b"x" * 40_000,) * 2, False, 413),
        ("/anything", "DELETE", (b"x" * 40_000,) * 2, True, 413),
    ],
)
def test_bodies_are_bounded_while_they_come(
    limit: Any, path: str, method: str, body: tuple[bytes, ...], length: bool, status: int
) -> None:
    async def run() -> None:
        house = House()
        limit(upload_bytes=1000)
        headers = ((b"content-length", str(sum(map(len, body))).encode()),) if length else ()
        found = await house.get(path, method=method, headers=headers, body=body)
        assert found[0] == status
        assert len(house.bodies[-1]) <= 1000 + door.BODY
        assert status != 200 or house.bodies[-1] == b"".join(body)

    asyncio.run(run())


def test_a_body_that_trickles_is_given_up(limit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        house = House()
        limit(upload_bytes=1000)
        monkeypatch.setattr(door, "PATIENCE", 0.1)
        monkeypatch.setattr(door, "PACE", 10**9)
        sent: list[Any] = []

        async def receive() -> Any:
            await asyncio.sleep(0.03)
            return {"type": "http.request", "body": b"x", "more_body": True}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/x", "query_string": b"", "headers": [], "client": ("", 0)}
        await asyncio.wait_for(house.door(scope, receive, send), 5)
        assert sent[0]["status"] == 408

    asyncio.run(run())


def test_a_request_of_endless_headers_is_refused_and_a_long_link_is_not(limit: Any) -> None:
    async def run() -> None:
        house = House()
        assert (await house.get(headers=(HTML, (b"x", b"y" * door.HEADERS))))[0] == 431
        assert (await house.get(headers=(HTML, (b"x", b"y" * 30_000))))[0] == 200

    asyncio.run(run())


def test_nobody_new_comes_in_while_the_server_closes(limit: Any) -> None:
    async def run() -> None:
        house = House(closing=lambda: True)
        status, _, body = await house.get()
        assert status == 503 and b"restarted" in body
        assert (await house.session().says(3))[2]["code"] == 1013
        assert (await house.get("/media/x.png", headers=()))[0] == 200, "those who are here get what they see"

    asyncio.run(run())


def test_uploads_that_are_held_are_bounded_in_all_and_by_session(limit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import streamlit.runtime as runtime
    from streamlit.runtime.memory_uploaded_file_manager import MemoryUploadedFileManager
    from streamlit.runtime.uploaded_file_manager import UploadedFileRec

    class Runtime:
        uploaded_file_mgr = MemoryUploadedFileManager("/")

    def hold(session: str, name: str, size: int) -> None:
        Runtime.uploaded_file_mgr.add_file(session, UploadedFileRec(name, name, "image/png", bytes(size)))

    monkeypatch.setattr(runtime, "get_instance", Runtime)
    limit(held_bytes=10_000, upload_bytes=1000)
    for number in range(4):
        hold("a", str(number), 1000)
    assert not door._held("a", 1) and door._held("b", 1000)
    for session in "bcdefg":
        hold(session, "0", 1000)
    assert not door._held("h", 1)


def test_on_a_laptop_the_door_costs_nothing_that_can_be_measured(
    monkeypatch: pytest.MonkeyPatch, record_property: Any
) -> None:
    monkeypatch.setattr(settings, "SETTINGS", settings.read({}))

    async def nothing(*_: Any) -> None:
        pass

    async def cost(app: Any, number: int = 2000) -> float:
        scope = {
            "type": "http",
            "method": "GET",
            "path": "/media/x.png",
            "query_string": b"",
            "client": ("127.0.0.1", 1),
        }
        scope["headers"] = [(b"host", b"localhost"), (b"accept", b"*/*"), (b"cookie", b"a=b"), (b"user-agent", b"x")]
        begun = time.thread_time()
        for _ in range(number):
            await app(scope, nothing, nothing)
        return (time.thread_time() - begun) / number

    async def run() -> float:
        return min([await cost(Door(nothing)) for _ in range(5)])

    spent = asyncio.run(run())
    record_property("microseconds", spent * 1e6)
    assert spent < 100e-6, f"{spent * 1e6:.1f} us a request"
