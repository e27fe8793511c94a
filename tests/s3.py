"""A stand-in for an S3-compatible store, in memory: verifies every signature by itself, and fails where told to."""

from __future__ import annotations

import hashlib
import hmac
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit
from xml.sax.saxutils import escape

KEY_ID, SECRET, REGION, BUCKET = "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "eu-test-1", "links"


class Server(ThreadingHTTPServer):
    """Objects by path below the bucket, with the times they were put; `fault(method, path)` may say what goes wrong.

    fault returns "" (nothing), "slow" (no answer for 20 s), "500", "507", "reset" (the connection is closed) or "cut"
    (half of the body).
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, tuple[bytes, float]] = {}
        self.requests: list[tuple[str, str]] = []
        self.refused: list[str] = []
        self.fault: Callable[[str, str], str] = lambda method, path: ""
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"s3://{BUCKET}/some/prefix?endpoint=http://127.0.0.1:{self.server_port}&region={REGION}"

    def age(self, key: str, seconds: float) -> None:
        """Let what is under a key have been put and used so much earlier."""
        with self.lock:
            for path, (data, at) in self.objects.items():
                if path.startswith(f"some/prefix/{key}/"):
                    self.objects[path] = data, at - seconds

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gave up is no error."""


@contextmanager
def serving() -> Iterator[Server]:
    server = Server()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def _serve(self) -> None:
        place = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append((self.command, self.path))
        if problem := _misfit(self.command, place.path, place.query, self.headers, body):
            self.server.refused.append(problem)
            return self._answer(403, f"<Error><Code>SignatureDoesNotMatch</Code><Message>{problem}</Message></Error>")
        _, bucket, *rest = unquote(place.path).split("/", 2)
        path = rest[0] if rest else ""
        fault = self.server.fault(self.command, path)
        if fault == "slow":
            time.sleep(20)
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.close_connection = True
            return self.connection.close()
        if fault in ("500", "507"):
            return self._answer(int(fault), f"<Error><Code>{fault}</Code></Error>")
        if bucket != BUCKET:
            return self._answer(404, "<Error><Code>NoSuchBucket</Code></Error>")
        with self.server.lock:
            done = self._do(path, dict(parse_qsl(place.query, keep_blank_values=True)), body)
        self._answer(*done, cut=fault == "cut")

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _serve

    def _do(self, path: str, query: dict[str, str], body: bytes) -> tuple[int, Any, dict[str, str]]:
        objects = self.server.objects
        if self.command == "GET" and not path:
            return 200, _listing(objects, query), {}
        if self.command == "PUT":
            objects[path] = body, time.time()
            return 200, b"", {"ETag": _etag(body)}
        if self.command == "DELETE":
            objects.pop(path, None)
            return 204, b"", {}
        if self.command in ("GET", "HEAD") and path in objects:
            data, at = objects[path]
            stamp = datetime.fromtimestamp(at, UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
            head = {"ETag": _etag(data), "Last-Modified": stamp}
            start = (self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")
            if "Range" in self.headers:
                first, last = int(start[0]), min(int(start[1] or len(data)), len(data) - 1)
                head["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
                return 206, data[first : last + 1], head
            return 200, data, head
        if self.command in ("GET", "HEAD"):
            return 404, "<Error><Code>NoSuchKey</Code></Error>", {}
        return 501, "<Error><Code>NotImplemented</Code></Error>", {}

    def _answer(self, status: int, body: str | bytes, head: dict[str, str] | None = None, cut: bool = False) -> None:
        data = body.encode() if isinstance(body, str) else body
        self.send_response(status)
        for name, value in (head or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self.close_connection = True


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'


def _listing(objects: dict[str, tuple[bytes, float]], query: dict[str, str]) -> str:
    prefix, most = query.get("prefix", ""), int(query.get("max-keys", "1000"))
    after = query.get("continuation-token", query.get("start-after", ""))
    paths = sorted(path for path in objects if path.startswith(prefix) and path > after)
    page = "".join(
        f"<Contents><Key>{escape(path)}</Key><Size>{len(objects[path][0])}</Size><ETag>&quot;x&quot;</ETag><LastModified>"
        f"{datetime.fromtimestamp(objects[path][1], UTC).isoformat(timespec='milliseconds').replace('+00:00', 'Z')}"
        "</LastModified></Contents>"
        for path in paths[:most]
    )
    more = f"<NextContinuationToken>{escape(paths[most - 1])}</NextContinuationToken>" if len(paths) > most else ""
    return (
        f"<ListBucketResult><Name>{BUCKET}</Name><IsTruncated>{'true' if more else 'false'}</IsTruncated>"
        f"{more}{page}</ListBucketResult>"
    )


def _misfit(method: str, path: str, query: str, headers: Any, body: bytes) -> str:
    """Why a request is not signed by whom it says (AWS Signature Version 4), or nothing."""
    algorithm, _, rest = (headers.get("Authorization") or "").partition(" ")
    said = dict(part.strip().split("=", 1) for part in rest.split(",") if "=" in part)
    if algorithm != "AWS4-HMAC-SHA256" or said.keys() != {"Credential", "SignedHeaders", "Signature"}:
        return "no signature"
    key_id, day, region, service, end = said["Credential"].split("/")
    stamp, payload = headers.get("x-amz-date", ""), headers.get("x-amz-content-sha256", "")
    if (key_id, region, service, end) != (KEY_ID, REGION, "s3", "aws4_request"):
        return "another scope"
    if abs(datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp() - time.time()) > 900:
        return "another time"
    if payload != hashlib.sha256(body).hexdigest():
        return "another body"
    names = said["SignedHeaders"].split(";")
    if not {"host", "x-amz-date", "x-amz-content-sha256"} <= set(names):
        return "headers that matter are not signed"
    pairs = sorted((quote(k, safe="-_.~"), quote(v, safe="-_.~")) for k, v in parse_qsl(query, keep_blank_values=True))
    request = "\n".join((
        method, quote(unquote(path), safe="/-_.~"), "&".join(f"{k}={v}" for k, v in pairs),
        *(f"{name}:{' '.join(headers[name].split())}" for name in names), "", said["SignedHeaders"], payload,
    ))  # fmt: skip
    scope = f"{day}/{region}/{service}/{end}"
    text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    key = f"AWS4{SECRET}".encode()
    for part in (day, region, service, end):
        key = hmac.digest(key, part.encode(), "sha256")
    right = hmac.new(key, text.encode(), "sha256").hexdigest()
    return "" if hmac.compare_digest(right, said["Signature"]) else "another signature"
