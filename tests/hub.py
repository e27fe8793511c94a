"""A stand-in of Hugging Face's HTTP API: what it answers for repositories that are folders, and what can be wrong."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session

from interp import hub as real
from interp import sae, sae_hub, zoo

COMMITS = {"main": "0123456789abcdef0123456789abcdef01234567", "v1": "1" * 40}


@dataclass
class Ill:
    """What is wrong with a repository, or with its weights as they come."""

    info: int | str = 0
    """Status instead of the list of its files; "gated": listed, but files are not given; "private"; "stalled"."""
    status: list[int] = field(default_factory=list)
    """Statuses of the next requests for weights."""
    size: Any = None
    """What the list says a file has."""
    cut: list[int] = field(default_factory=list)
    """After so many bytes the next answers end."""
    stall: list[int] = field(default_factory=list)
    """After so many bytes the next answers go on no more."""
    pause: float = 0
    """Seconds before each 2 KB."""
    flip: bool = False
    more: bytes = b""
    length: list[int] = field(default_factory=list)
    """What the next answers say that they are long, which they are not."""
    whole: bool = False
    """Answers with all of a file, whatever range is asked for."""


class Hub:
    """`root`/owner/name is a repository; `old` holds what other commits of one are."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.ills: dict[str, Ill] = {}
        self.about: dict[str, Any] = {}
        self.commits = dict(COMMITS)
        self.history: list[str] = []
        self.old: dict[str, Path] = {}
        self.root = Path()
        self.let_go = threading.Event()

    @property
    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]

    @property
    def weights(self) -> list[str]:
        """What was asked of weights, but not where they lie."""
        return [path for path in self.paths if path.startswith("cdn/")]

    def folder(self, name: str, commit: str) -> Path:
        return self.old.get(commit, self.root / name)

    def move(self, name: str, to: Path, commit: str = "2" * 40) -> None:
        """Let the main branch be other files from now on."""
        before = self.root.parent / f"old-{self.commits['main']}"
        shutil.move(self.root / name, before)
        self.old[self.commits["main"]] = before
        self.history.append(self.commits["main"])
        shutil.move(to, self.root / name)
        self.commits["main"] = commit


def is_large(file: Path) -> bool:
    return file.suffix in (".safetensors", ".bin")


def digest(data: bytes, large: bool) -> str:
    return (hashlib.sha256(data) if large else hashlib.sha1(b"blob %d\0" % len(data) + data)).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None: ...

    def do_HEAD(self) -> None:
        self.do_GET(head=True)

    def do_GET(self, head: bool = False) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.hub.asked.append((path, {key.lower(): value for key, value in self.headers.items()}))
        if path.startswith("api/models/"):
            name, _, branch = path.removeprefix("api/models/").partition("/commits/")
            if branch:
                ids = [self.hub.commits[branch], *reversed(self.hub.history)] if branch in self.hub.commits else []
                found = [{"id": each, "title": "", "message": "", "date": "2026-01-01T00:00:00.000Z"} for each in ids]
                return self.answer(200, json.dumps([each | {"authors": []} for each in found]).encode())
            name, _, revision = name.partition("/revision/")
            return self.info(name, revision or "main")
        if path.startswith("cdn/"):
            _, commit, rest = path.split("/", 2)
            name, _, inside = rest.partition("/-/")
            return self.file(self.hub.folder(name, commit) / inside, commit, self.ill(name), head)
        name, _, rest = path.partition("/resolve/")
        revision, _, inside = rest.partition("/")
        commit = self.hub.commits.get(revision, revision)
        file = self.hub.folder(name, commit) / inside
        if self.ill(name).info == "gated":
            return self.answer(401, b"", {"X-Error-Code": "GatedRepo"})
        if not self.known(revision) or not file.is_file():
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMITS["main"]})
        if not is_large(file):
            return self.file(file, commit, Ill(), head)
        data = file.read_bytes()
        place = f"http://localhost:{self.server.server_port}/cdn/{commit}/{name}/-/{inside}"  # type: ignore[attr-defined]
        linked = {"X-Linked-Size": str(len(data)), "X-Linked-ETag": f'"{digest(data, True)}"'}
        return self.answer(302, b"", {"Location": place, "X-Repo-Commit": commit, **linked})

    def known(self, revision: str) -> bool:
        return revision in self.hub.commits or revision in (*self.hub.commits.values(), *self.hub.old)

    def ill(self, name: str) -> Ill:
        return self.hub.ills.get(name, Ill())

    def info(self, name: str, revision: str) -> None:
        ill, commit = self.ill(name), self.hub.commits.get(revision, revision)
        folder = self.hub.folder(name, commit)
        if ill.info == "stalled":
            self.hub.let_go.wait(20)
            return None
        if isinstance(ill.info, int) and ill.info:
            return self.answer(ill.info, b"{}")
        if not folder.is_dir() or ill.info == "private":
            return self.answer(401, b"{}", {"X-Error-Code": "RepoNotFound"})
        if not self.known(revision):
            return self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        files = []
        for each in sorted(folder.rglob("*")):
            if each.is_file():
                data = each.read_bytes()
                size = len(data) if ill.size is None or not is_large(each) else ill.size
                sha = digest(data, is_large(each))
                entry: dict[str, Any] = {"rfilename": each.relative_to(folder).as_posix(), "size": size}
                large = {"lfs": {"sha256": sha, "size": size, "pointerSize": 9}} if is_large(each) else {}
                files.append(entry | {"blobId": sha[:40]} | large)
        answer = {"id": name, "modelId": name, "sha": commit, "siblings": files, "tags": [], "gated": False}
        answer |= {"private": False, "downloads": 0, "cardData": {"license": "apache-2.0"}} | self.hub.about
        return self.answer(200, json.dumps(answer).encode())

    def file(self, file: Path, commit: str, ill: Ill, head: bool) -> None:
        data, status = file.read_bytes(), 200
        if ill.status and not head:
            return self.answer(ill.status.pop(0), b"")
        headers = {"X-Repo-Commit": commit, "ETag": f'"{digest(data, is_large(file))}"'}
        found = re.fullmatch(r"bytes=([0-9]+)-([0-9]*)", self.headers.get("Range", ""))
        if ill.flip:
            data = bytes([data[0] ^ 1]) + data[1:]
        if found and not ill.whole:
            data, status = data[int(found[1]) : int(found[2]) + 1 if found[2] else None], 206
        length = ill.length.pop(0) if ill.length and not head else len(data + ill.more)
        cut = ill.cut.pop(0) if ill.cut and not head else None
        stall = ill.stall.pop(0) if ill.stall and not head else None
        if cut is None and stall is None and not ill.pause:
            return self.answer(status, data + ill.more, headers, head, length)
        self.answer(status, b"", headers, True, length)
        step, end = 2048, min([each for each in (cut, stall) if each is not None], default=len(data))
        for at in range(0, min(len(data), end), step):
            time.sleep(ill.pause)
            try:
                self.wfile.write(data[at : min(at + step, end)])
            except OSError:
                self.hub.asked.append(("gone", {}))
                break
        if stall is not None:
            self.hub.let_go.wait(20)
        self.close_connection = True
        return None

    def answer(
        self,
        status: int,
        data: bytes,
        headers: dict[str, str] | None = None,
        head: bool = False,
        length: int | None = None,
    ) -> None:
        self.send_response(status)
        size = len(data) if length is None else length
        for key, value in ({"Content-Length": str(size)} | (headers or {})).items():
            self.send_header(key, value)
        if size != len(data) or head:
            self.send_header("Connection", "close")
        self.end_headers()
        if not head and self.command != "HEAD":
            self.wfile.write(data)


def environment(endpoint: str, tmp_path: Path) -> dict[str, str]:
    """What a process needs to take the stand-in for the hub, with a cache and a store of its own."""
    return {
        "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost",
        "ACTISCOPE_STORE": str(tmp_path / "store"),
    }  # fmt: skip


def serving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub to fetch from, with an empty cache and an empty store."""
    hub = Hub()
    hub.root = tmp_path / "hub"
    handler = type("Of", (Handler,), {"hub": hub})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    for key, value in environment(endpoint, tmp_path).items():
        monkeypatch.setenv(key, value)
    # the client read its settings from the environment when it was imported
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    restart(monkeypatch)
    close_session()
    yield hub
    hub.let_go.set()
    close_session()
    server.shutdown()
    server.server_close()


def restart(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a new process knows: nothing but what is on the disk."""
    for place, name in (
        (zoo, "_loaded"), (zoo, "_alive"), (zoo, "_pinned"), (zoo, "_refused"), (zoo, "_folders"), (real, "_listings"),
        (real, "_seen"), (sae_hub, "_FETCHED"),
    ):  # fmt: skip
        monkeypatch.setattr(place, name, type(getattr(place, name))())
    sae._loaded.clear()
