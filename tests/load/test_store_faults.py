"""What was confirmed is there, whatever happens meanwhile: kill -9, full disks, stores that fail, sweeps."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interp import Missing, Unsuitable, snapshot, storage, store
from interp.experiment import Call, Experiment
from interp.results import Table
from interp.samples import Image, Prompt
from interp.storage import HOUR, Away
from tests import s3, tiny
from tests.test_storage import configure

KEEPER = """
import os, random, signal, sys, time
from tests.load.test_store_faults import keep_case
begun, draw = time.monotonic(), random.Random(int(sys.argv[1]))
keep_case(1), keep_case(2)  # so that models are loaded once
took = (time.monotonic() - begun) / 20
for each in range(int(sys.argv[2])):
    told, tell = os.pipe()
    child = os.fork()
    if not child:
        for number in range(1000 * each + 3, 1000 * each + 999):
            os.write(1, f"{keep_case(number)}\\n".encode())
            os.write(tell, b".")
    for _ in range(draw.randrange(4)):
        os.read(told, 1)
    time.sleep(draw.uniform(0, min(took, 0.05)))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(told), os.close(tell)
"""


@pytest.fixture(autouse=True)
def replica(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Makes this process that of another server, with the same storage."""

    def become(name: str) -> None:
        monkeypatch.setenv("ACTISCOPE_STORE", str(tmp_path / name))

    become("one")
    configure(monkeypatch, shared=str(tmp_path / "shared"))
    return become


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[s3.Server]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.SECRET)
    with s3.serving() as found:
        configure(monkeypatch, shared=found.url)
        yield found


def case(seed: int) -> tuple[Experiment, Table]:
    """An experiment with something that has to go along, a photo or a direction, and numbers that tell which it is."""
    result = Table(("a",), ("b",), np.random.default_rng(seed).random((20, 20)))
    if seed % 2:
        return Experiment("photos", Image.of(tiny.image(seed).picture), Call("grad_cam")), result
    key = f"{seed % 10:064x}"
    path = store.folder() / "directions" / f"{key}.safetensors"
    if not path.exists():
        shelf = Path(snapshot.directions.SHELF) / "stories" / "sentiment.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(f".{os.getpid()}").write_bytes(shelf.read_bytes())
        os.replace(path.with_suffix(f".{os.getpid()}"), path)
    steered = Experiment("stories", Prompt(f"Number {seed}"), Call("logit_lens"), (Call("steer", direction=key),))
    return steered, result


def keep_case(seed: int) -> str:
    experiment, result = case(seed)
    return snapshot.keep(experiment, result, {}, str(seed))


def whole(id: str) -> bool:
    """Whether a snapshot has all it needs, and is what it was made of."""
    found = snapshot.read(id)
    experiment, result = case(int(found.title))
    return found.experiment == experiment and snapshot.reproduced(found, result)


def snapshots() -> list[str]:
    return [each.key.rsplit("/", 1)[1].removesuffix(".json") for each in storage.shared().entries("snapshots/")]


def left_over(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(f"*{storage.TEMPORARY}")]


# ------------------------------------------------------------------------------------------------------------- kill -9


@pytest.mark.parametrize("rounds", [6, pytest.param(300, marks=pytest.mark.load)])
def test_what_was_confirmed_outlives_kill_9(rounds: int, replica: Callable[[str], None], tmp_path: Path) -> None:
    environment = os.environ | {"ACTISCOPE_SHARED": str(tmp_path / "shared")}
    done = subprocess.run(
        [sys.executable, "-c", KEEPER, "1", str(rounds)], capture_output=True, text=True, env=environment, timeout=280
    )
    confirmed = done.stdout.split()
    assert done.returncode == 0 and len(confirmed) >= rounds, done.stderr[-2000:]
    replica("two")
    there = snapshots()
    assert set(confirmed) <= set(there) and len(there) < len(confirmed) + rounds + 3
    assert all(whole(each) for each in there)
    # what was cut off is tidied away an hour later, and takes nothing with it
    for path in left_over(tmp_path / "shared"):
        os.utime(path, (time.time() - 2 * HOUR,) * 2)
    storage.shared().sweep()
    assert not left_over(tmp_path / "shared") and set(snapshots()) == set(there)


@pytest.mark.load
def test_servers_that_keep_read_and_sweep_at_once(tmp_path: Path, server: s3.Server) -> None:
    """Over S3, with a quota that is always full of old links: what is confirmed opens at once and for an hour."""
    stop, wrong, confirmed, draw = threading.Event(), list[str](), list[str](), random.Random(2)

    def run(work: Callable[[], None]) -> threading.Thread:
        def loop() -> None:
            while not stop.is_set():
                try:
                    work()
                except Away:
                    pass
                except Exception as problem:
                    wrong.append(repr(problem))

        thread = threading.Thread(target=loop)
        thread.start()
        return thread

    def keep() -> None:
        id = keep_case(draw.randrange(40))
        if not whole(id):
            wrong.append(id)
        confirmed.append(id)

    def age() -> None:
        with server.lock:
            paths = list(server.objects)
        for path in draw.sample(paths, min(5, len(paths))):
            if "/snapshots/" not in path and "doomed" not in path:
                server.age(path.removeprefix("some/prefix/").rsplit("/", 1)[0], 2 * HOUR)
        time.sleep(0.02)

    def sweep() -> None:
        storage.sweep(storage.S3(server.url), 20_000, 0)

    threads = [run(each) for each in (keep, keep, keep, sweep, sweep)]
    time.sleep(40)
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong and len(confirmed) > 20
    assert all(whole(each) for each in set(confirmed))


@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_reading_while_a_sweep_deletes(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    server: s3.Server | None = request.getfixturevalue("server") if kind == "s3" else None
    ids = [keep_case(seed) for seed in range(6)]
    answers: list[str] = []
    for each in storage.shared().entries():
        if server:
            server.age(each.key, 5 * HOUR)
        else:
            os.utime(tmp_path / "shared" / each.key, (time.time() - 5 * HOUR,) * 2)

    def read() -> None:
        for id in reversed(ids):
            try:
                answers.append("whole" if whole(id) else "wrong")
            except Missing:
                answers.append("missing")
            except Exception as problem:
                answers.append(repr(problem))

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    storage.sweep(storage.shared().inner, 1, 0)
    for thread in threads:
        thread.join()
    assert len(answers) == 12 and set(answers) <= {"whole", "missing"}


# ---------------------------------------------------------------------------------------------------------- full disks


def test_a_disk_that_is_really_full(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("not permitted to mount a small disk here")
    try:
        configure(monkeypatch, shared=str(disk / "shared"))
        kept: list[str] = []
        with pytest.raises(Away, match=r"is full; nothing was lost"):
            for seed in range(1, 400, 2):
                kept.append(keep_case(seed))
        assert kept and set(kept) <= set(snapshots()) and all(whole(each) for each in snapshots())
        assert not left_over(disk)
        for each in list(storage.shared().entries())[:10]:
            storage.shared().delete(each.key)
        assert whole(keep_case(2))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_no_space_at_each_write_in_turn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """mkdir, open, write, fsync and replace fail once each, at every place where they are called."""
    left = [-1]

    def failing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*given, **named)

        return call

    class File:
        def __init__(self, *given: Any, **named: Any) -> None:
            self.file = temporary(*given, **named)
            self.name = self.file.name
            self.write, self.flush, self.fileno = failing(self.file.write), failing(self.file.flush), self.file.fileno

        def __enter__(self) -> File:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

    temporary = storage.tempfile.NamedTemporaryFile
    case(1), case(2)
    refused = 0
    for number in range(1, 200):
        configure(monkeypatch, shared=str(tmp_path / f"shared-{number}"))
        seed = 1 + number % 2
        with monkeypatch.context() as patch:
            for name in ("mkdir", "open", "fsync", "replace"):
                patch.setattr(os, name, failing(getattr(os, name)))
            patch.setattr(storage.tempfile, "NamedTemporaryFile", failing(File))
            left[0] = number
            try:
                id = keep_case(seed)
            except Away as problem:
                refused += 1
                assert "nothing was lost" in str(problem)
                id = ""
            beyond = left[0] > 0
            left[0] = -1
        assert not left_over(tmp_path / f"shared-{number}")
        assert (not id or id in snapshots()) and all(whole(each) for each in snapshots())
        assert whole(keep_case(seed))
        if beyond:
            break
    assert beyond and refused > 20


# ------------------------------------------------------------------------------------------------------------------ S3


@pytest.mark.parametrize(
    "fault", ["reset", *(pytest.param(each, marks=pytest.mark.load) for each in ("500", "cut", "slow", "507"))]
)
def test_an_s3_store_that_fails_at_each_request_in_turn(
    fault: str, server: s3.Server, replica: Callable[[str], None]
) -> None:
    """From that request on: keeping says so within seconds; what has an id is whole once the store is back."""
    case(2)
    refused = 0
    for number in range(1, 60):
        seen = [0]

        def failing(method: str, path: str, number: int = number, seen: list[int] = seen) -> str:
            seen[0] += 1
            return fault if seen[0] >= number else ""

        seed = 1 + number % 2
        server.objects.clear()
        server.fault = failing
        storage._opened.cache_clear()
        begun = time.monotonic()
        id = ""
        try:
            id = keep_case(seed)
        except Away as problem:
            refused += 1
            assert str(problem).endswith(".") and "nothing was lost" in str(problem)
        assert time.monotonic() - begun < 6
        beyond = seen[0] < number
        server.fault = lambda method, path: ""
        storage._opened.cache_clear()
        assert (not id or id in snapshots()) and all(whole(each) for each in snapshots())
        assert whole(keep_case(seed))
        if beyond:
            break
    assert beyond and refused > 5


def test_a_store_that_is_slow_or_down_costs_seconds_once(server: s3.Server) -> None:
    id = keep_case(1)
    for fault in ("slow", "down"):
        storage._opened.cache_clear()
        server.fault = lambda method, path: "slow"
        if fault == "down":
            server.shutdown()
            server.server_close()
        begun = time.monotonic()
        with pytest.raises(Away, match="nothing was lost"):
            snapshot.read(id)
        assert time.monotonic() - begun < 5
        begun = time.monotonic()
        for call in (lambda: snapshot.read(id), lambda: snapshot.title(id), lambda: keep_case(3)):
            with pytest.raises(Away):
                call()
        assert time.monotonic() - begun < 2


def test_a_failure_while_reading_is_no_other_result(server: s3.Server, replica: Callable[[str], None]) -> None:
    ids = [keep_case(1), keep_case(2)]
    draw = random.Random(0)
    replica("two")
    answers: list[str] = []
    for _ in range(20):
        storage._opened.cache_clear()
        server.fault = lambda method, path: draw.choice(("", "", "", "500", "reset", "cut"))
        try:
            answers.append("whole" if whole(draw.choice(ids)) else "wrong")
        except Away:
            answers.append("away")
        except Unsuitable as problem:
            answers.append(str(problem))
    server.fault = lambda method, path: ""
    assert set(answers) == {"whole", "away"}
