"""The server as strangers meet it: a real one on this machine, with tiny limits."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from websockets.sync.client import ClientConnection, connect

from tests.browser.harness import ROOT, Server, idle, launch

SECRET = "SECRET-4711 everything"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    limits = {"HOSTED": "1", "VISITORS": "2", "ADDRESS_RATE": "50", "METRICS_TOKEN": "t0ken", "UPLOAD_BYTES": "1MB"}
    env = {name if name == "HOSTED" else f"ACTISCOPE_{name}": value for name, value in limits.items()}
    env |= {"PYTHONPATH": str(ROOT), "STREAMLIT_LOGGER_HIDE_WELCOME_MESSAGE": "true"}
    with Server(Path(__file__).with_name("small.py"), env) as running:
        eventually(lambda: get(running, "/readyz")[0] == 200)
        yield running


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with launch() as browser:
        yield browser


def get(server: Server, path: str, method: str = "GET", data: bytes | None = None, **headers: str) -> Any:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(server.address + path, data, names, method=method)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.headers, answer.read().decode(errors="replace")
    except urllib.error.HTTPError as answer:
        return answer.code, answer.headers, answer.read().decode(errors="replace")


def eventually(true: Any, seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.05)


def visit(server: Server) -> ClientConnection:
    return connect(server.address.replace("http", "ws") + "/_stcore/stream", subprotocols=["streamlit"])  # type: ignore[list-item]


def sessions(server: Server) -> float:
    return metrics(server)["actiscope_sessions", ()]


def metrics(server: Server) -> dict[Any, float]:
    text = get(server, "/metrics")[2]
    families = text_string_to_metric_families(text)
    return {
        (each.name, tuple(sorted(each.labels.items()))): each.value for family in families for each in family.samples
    }


def test_every_answer_has_the_headers_and_none_names_the_server(server: Server) -> None:
    for path in ("/", "/healthz", "/favicon.png", "/_stcore/health", "/nothing/static/x"):
        _, headers, _ = get(server, path)
        policy = headers["content-security-policy"]
        for part in (
            "default-src 'self'",
            "object-src 'none'",
            "base-uri 'none'",
            "connect-src 'self'",
            "script-src 'self'",
        ):
            assert part in policy, path
        assert "unsafe-eval" not in policy.replace("wasm-unsafe-eval", "") and "script-src 'self' 'unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "strict-origin"
        assert "camera=()" in headers["permissions-policy"]
        assert headers["server"] is None and headers["strict-transport-security"] is None
    assert get(server, "/healthz", x_forwarded_proto="https")[1]["strict-transport-security"]


def test_ready_says_so(server: Server) -> None:
    status, _, body = get(server, "/readyz")
    assert (status, json.loads(body)) == (200, {"ready": True, "reasons": []})


def test_metrics_are_open_metrics_for_those_near_or_with_the_token(server: Server) -> None:
    found = metrics(server)
    assert found["actiscope_requests_total", (("path", "/readyz"), ("status", "200"))] >= 1
    assert found["process_resident_memory_bytes", ()] > 2**20
    assert get(server, "/metrics", x_forwarded_for="203.0.113.7")[0] == 403
    assert get(server, "/metrics", x_forwarded_for="203.0.113.7", authorization="Bearer wrong")[0] == 403
    assert get(server, "/metrics", x_forwarded_for="203.0.113.7", authorization="Bearer t0ken")[0] == 200


def test_an_upload_is_stopped_at_the_limit_and_streamlit_says_the_same_one(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), 20) as sender:  # is answered before it sends the rest
        sender.sendall(
            b"PUT /_stcore/upload_file/a/b HTTP/1.1\r\nHost: x\r\nContent-Length: 2000000\r\n\r\n" + b"x" * 1000
        )
        assert sender.recv(12).endswith(b" 413")
    assert get(server, "/_stcore/upload_file/a/b", "PUT", b"x" * 500_000)[0] == 403, "only the token is missing"


def test_a_connection_that_never_says_what_it_wants_is_ended(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), 10) as slow:
        slow.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX-")
        slow.settimeout(10)
        assert slow.recv(10) == b""


@pytest.mark.browser
def test_a_full_house_lets_in_whoever_waits_and_keeps_whoever_reloads(server: Server, chromium: Browser) -> None:
    with chromium.new_context() as mine, chromium.new_context() as other, visit(server) as first:
        page, waiting = mine.new_page(), other.new_page()
        page.goto(server.address)
        idle(page)
        answer = waiting.goto(server.address + "/?x=1")
        assert answer is not None and answer.status == 503
        expect(waiting.get_by_role("heading")).to_have_text("Actiscope is full right now")
        page.reload()
        idle(page)
        expect(page.get_by_label("Text")).to_be_visible()
        first.close()
        expect(waiting.get_by_label("Text")).to_be_visible(timeout=30_000)


@pytest.mark.slow
@pytest.mark.browser
def test_a_page_whose_place_was_taken_while_it_was_away_meets_the_full_house(server: Server, chromium: Browser) -> None:
    away = """const real = window.WebSocket; window.sockets = []; window.away = false;
    window.WebSocket = class extends real { constructor(url, protocols) {
      super(window.away ? url.replace('stream', 'nowhere') : url, protocols); window.sockets.push(this); } };"""
    eventually(lambda: sessions(server) == 0)
    with chromium.new_context() as context:
        page = context.new_page()
        page.add_init_script(away)
        page.goto(server.address)
        idle(page)
        page.evaluate("window.away = true; window.sockets.forEach(each => each.close())")
        eventually(lambda: sessions(server) == 0)
        with visit(server), visit(server):
            page.evaluate("window.away = false")
            expect(page.get_by_role("heading")).to_have_text("Actiscope is full right now", timeout=30_000)


@pytest.mark.browser
def test_nothing_that_a_visitor_typed_is_in_the_log_and_the_number_on_the_page_is(
    server: Server, chromium: Browser
) -> None:
    eventually(lambda: sessions(server) == 0)
    with chromium.new_context() as context:
        page = context.new_page()
        page.goto(f"{server.address}/?q=SECRET-in-the-link")
        idle(page)
        page.get_by_label("Text").fill(SECRET)
        page.get_by_label("Text").press("Enter")
        shown = page.get_by_text("through a fault of Actiscope's")
        expect(shown).to_be_visible()
        number = re.search(r"number: ([0-9a-f]{8})", shown.inner_text())
        assert number and "SECRET" not in shown.inner_text()
    assert get(server, "/fails")[0] == 500
    get(server, "/SECRET-page?SECRET", user_agent="SECRET-agent", x_forwarded_for="198.51.100.77")
    hashes = r'"event": "request".*"visitor": "(\w+)"'
    eventually(lambda: "RuntimeError" in server.log() and len(set(re.findall(hashes, server.log()))) == 2)
    log = server.log()
    assert "SECRET" not in log and "198.51.100.77" not in log and "127.0.0.1" not in log
    lines = [json.loads(line) for line in log.splitlines() if line.strip()]
    failed = next(line for line in lines if line.get("id") == number[1])
    assert failed["error"] == "KeyError" and failed["causes"] == ["ValueError"]
    assert any("small.py" in frame for frame in failed["frames"])
    loggers = {line["log"] for line in lines}
    assert {"actiscope", "elsewhere", "py.warnings", "uvicorn.error", "asyncio"} <= loggers
    assert "uvicorn.access" not in loggers
    events = [line.get("event") for line in lines]
    assert {"A thread failed", "A value", "request", "session", "started", "warm"} <= set(events)
    requests = [line for line in lines if line.get("event") == "request"]
    assert {"/", "other"} <= {line["path"] for line in requests}


def test_at_the_end_nobody_new_comes_in_and_then_it_ends(server: Server) -> None:
    os.kill(server.process.pid, signal.SIGTERM)
    eventually(lambda: get(server, "/readyz")[0] == 503, 5)
    assert json.loads(get(server, "/readyz")[2])["reasons"] == ["closing"]
    assert "restarted" in get(server, "/", accept="text/html")[2]
    with visit(server) as refused:
        assert refused.recv(timeout=5)
        with pytest.raises(Exception, match="1013"):
            refused.recv(timeout=5)
    assert server.process.wait(15) == -signal.SIGTERM
    assert "ended" in [json.loads(line).get("event") for line in server.log().splitlines()]
