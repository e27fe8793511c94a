"""What links need is kept whole, survives, and goes when nobody used it: in a folder and in an S3-compatible store."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from interp import Unsuitable, settings, storage, store
from interp.storage import DAY, HOUR, S3, Away, Folder, Shared, Storage, sweep
from tests import s3

KEY = "parts/ab/" + "ab" * 32
SNAPSHOT = "snapshots/ab/abcdefghij2345672345.json"


def configure(monkeypatch: pytest.MonkeyPatch, **changed: Any) -> None:
    monkeypatch.setattr(settings, "SETTINGS", dataclasses.replace(settings.SETTINGS, **changed))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[s3.Server]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.SECRET)
    with s3.serving() as found:
        yield found


@dataclasses.dataclass
class Kept:
    """A storage that can be opened again, as another process does, and whose entries can be made older."""

    open: Callable[[], Storage]
    age: Callable[[str, float], None]


@pytest.fixture(params=["folder", "s3"])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Kept:
    if request.param == "s3":
        server: s3.Server = request.getfixturevalue("server")
        return Kept(lambda: S3(server.url), server.age)

    def age(key: str, seconds: float) -> None:
        at = (tmp_path / key).stat().st_mtime - seconds
        os.utime(tmp_path / key, (at, at))

    return Kept(lambda: Folder(tmp_path), age)


def keys(of: Storage) -> set[str]:
    return {each.key for each in of.entries()}


# ------------------------------------------------------------------------------------------------------------- keeping


def test_what_was_put_is_there_for_everyone_until_it_is_deleted(kept: Kept) -> None:
    mine, other = kept.open(), kept.open()
    assert mine.get(KEY) is None and not mine.use(KEY) and not keys(mine)
    data = bytes(range(256)) * 5000
    before = time.time()
    mine.put(KEY, data)
    mine.put(SNAPSHOT, b"")
    assert other.get(KEY) == data and other.use(KEY) and other.get(SNAPSHOT) == b""
    entries = {each.key: each for each in other.entries()}
    assert entries[KEY].size == len(data) and entries[SNAPSHOT].size == 0
    assert all(before - 2 < each.used < time.time() + 2 for each in entries.values())
    assert [each.key for each in other.entries("snapshots/")] == [SNAPSHOT]
    other.put(KEY, b"other")
    assert mine.get(KEY) == b"other"
    assert mine.delete(KEY) and mine.delete(KEY) and other.get(KEY) is None and keys(other) == {SNAPSHOT}


@pytest.mark.parametrize(
    "key",
    ["", "parts", "/etc/passwd", "parts/../../x", "parts/..", "parts/a/./b", "Parts/a", "parts/a b", "parts//a",
     "parts/a/", "parts/" + "a" * 81, "a/b/c/d/e", "parts/a\n", "parts/a\0", "parts/.lock", "parts/é", "parts/a.b.c",
     "..", "parts\\a"],
)  # fmt: skip
def test_what_is_no_key_reaches_no_store(kept: Kept, key: str) -> None:
    of = kept.open()
    for call in (of.get, of.use, of.delete, lambda key: of.put(key, b"x"), lambda key: of.delete(key, 0.0)):
        with pytest.raises(ValueError):
            call(key)
    assert not keys(of)


def test_many_who_put_and_read_the_same_see_all_or_nothing(kept: Kept) -> None:
    data, wrong, stop = b"0123456789" * 20_000, [], threading.Event()

    def read() -> None:
        of = kept.open()
        while not stop.is_set():
            if (found := of.get(KEY)) not in (None, data):
                wrong.append(found)

    def write() -> None:
        of = kept.open()
        for _ in range(3):
            of.put(KEY, data)
            if of.get(KEY) != data or not of.use(KEY):
                wrong.append("gone")

    readers, writers = ([threading.Thread(target=each) for _ in range(3)] for each in (read, write))
    for thread in (*readers, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    for thread in readers:
        thread.join()
    assert not wrong and keys(kept.open()) == {KEY}


def test_a_folder_has_its_bytes_on_disk_before_their_name_and_both_before_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(handle: int) -> None:
        done.append("sync " + Path(os.readlink(f"/proc/self/fd/{handle}")).suffix)
        fsync(handle)

    def named(old: str, new: Path) -> None:
        done.append("name")
        replace(old, new)

    monkeypatch.setattr(storage.os, "fsync", synced)
    monkeypatch.setattr(storage.os, "replace", named)
    of = Folder(tmp_path / "new")
    of.put(KEY, b"data")
    assert (
        done[-3:] == ["sync .new", "name", "sync "] and done[:-3] == ["sync "] * 3
    )  # each new folder in the one above


def test_only_files_of_killed_writers_are_tidied_away_and_only_old_ones(tmp_path: Path) -> None:
    of = Folder(tmp_path)
    of.put(KEY, b"data")
    folder = (tmp_path / KEY).parent
    for name, age in (("tmpold.new", 2 * HOUR), ("tmpyoung.new", 60.0)):
        (folder / name).write_bytes(b"half")
        os.utime(folder / name, (time.time() - age,) * 2)
    assert keys(of) == {KEY}
    sweep(of, 0, 0)
    assert sorted(os.listdir(folder)) == [KEY.rsplit("/", 1)[1], "tmpyoung.new"]


def test_a_folder_that_can_only_be_read_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of = Folder(tmp_path)
    of.put(KEY, b"data")
    os.utime(tmp_path / KEY, (1e9, 1e9))

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "no")

    monkeypatch.setattr(storage.os, "utime", refuse)
    monkeypatch.setattr(storage.os, "open", refuse)
    assert of.get(KEY) == b"data" and of.use(KEY)
    monkeypatch.setattr(storage.tempfile, "NamedTemporaryFile", refuse)
    with pytest.raises(Away, match="refuses"):
        of.put(KEY, b"more")


# ------------------------------------------------------------------------------------------------------------ sweeping


def test_what_nobody_used_for_long_goes_and_reading_is_a_use(kept: Kept) -> None:
    of = kept.open()
    names = [f"blobs/aa/{n}" for n in range(4)]
    for name in names:
        of.put(name, b"data")
        kept.age(name, 10 * DAY)
    assert kept.open().get(names[0]) == b"data" and kept.open().use(names[1])
    kept.age(names[0], 3 * DAY)
    assert sweep(of, 0, 5) == 8 and keys(of) == set(names[:2])
    assert sweep(of, 0, 2) == 4 and keys(of) == {names[1]} and of.get(names[1]) == b"data"
    assert sweep(of, 0, 0) == 4


def test_the_least_recently_used_go_until_the_rest_fits_and_the_last_hour_stays(kept: Kept) -> None:
    of = kept.open()
    for n, hours in enumerate((9, 3, 7, 0.5, 5)):
        of.put(f"blobs/aa/{n}", bytes(100))
        kept.age(f"blobs/aa/{n}", hours * HOUR)
    assert sweep(of, 300, 0) == 300 and keys(of) == {"blobs/aa/1", "blobs/aa/3", "blobs/aa/4"}
    assert sweep(of, 300, 0) == 300
    assert sweep(of, 1, 0) == 100 and keys(of) == {"blobs/aa/3"}
    assert sweep(of, 1, 1e-9) == 100


def test_a_snapshot_goes_before_what_it_names(kept: Kept) -> None:
    of = kept.open()
    for key, minutes in ((SNAPSHOT, 600), (KEY, 610)):  # its parts were put first
        of.put(key, bytes(100))
        kept.age(key, minutes * 60)
    assert sweep(of, 150, 0) == 100 and keys(of) == {KEY}


def test_several_sweep_at_once(kept: Kept) -> None:
    for n in range(12):
        kept.open().put(f"blobs/aa/{n}", bytes(10))
        kept.age(f"blobs/aa/{n}", (2 + n) * HOUR)
    left: list[int] = []
    threads = [threading.Thread(target=lambda: left.append(sweep(kept.open(), 50, 0))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(left) == 3 and min(left) <= 120
    assert sweep(kept.open(), 50, 0) == 50 and keys(kept.open()) == {f"blobs/aa/{n}" for n in range(5)}


def test_what_is_used_between_the_listing_and_the_deletion_stays(kept: Kept) -> None:
    of = kept.open()
    of.put(KEY, b"data")
    kept.age(KEY, 5 * HOUR)
    (listed,) = of.entries()
    for use in (lambda: kept.open().use(KEY), lambda: kept.open().get(KEY), lambda: kept.open().put(KEY, b"data")):
        use()
        assert not of.delete(KEY, listed.used) and of.get(KEY) == b"data"
        kept.age(KEY, 5 * HOUR)
        (listed,) = of.entries()
    assert of.delete(KEY, listed.used) and not keys(of)


@pytest.mark.parametrize("moment", ["PUT doomed", "GET doomed", "DELETE data", "DELETE doomed"])
@pytest.mark.parametrize("how", ["put", "use"])
def test_what_is_put_in_the_middle_of_a_deletion_in_s3_is_there_afterwards(
    server: s3.Server, moment: str, how: str
) -> None:
    sweeper, writer = S3(server.url), S3(server.url)
    sweeper.put(KEY, b"data")
    server.age(KEY, 5 * HOUR)
    (listed,) = sweeper.entries()
    threads: list[threading.Thread] = []
    there: list[bool] = []

    def write() -> None:
        if how == "put":
            writer.put(KEY, b"data")
        there.append(writer.use(KEY) if how == "use" else True)

    def fault(method: str, path: str) -> str:
        # a listing has no path; the first one is the look before the deletion is announced
        doomed = "GET doomed" if any("/doomed-" in each for each in server.objects) else ""
        if not threads and moment in (f"{method} {path.rsplit('/', 1)[-1].partition('-')[0]}", doomed):
            threads.append(threading.Thread(target=write))
            threads[0].start()
            end = time.monotonic() + 0.5
            while time.monotonic() < end and not (server.objects.get(f"some/prefix/{KEY}/used") or there):
                time.sleep(0.01)
        return ""

    server.fault = fault
    gone = sweeper.delete(KEY, listed.used)
    threads[0].join()
    server.fault = lambda method, path: ""
    assert len(there) == 1
    if there[0]:  # confirmed: it is there
        assert S3(server.url).get(KEY) == b"data"
    else:
        assert how == "use" and gone and not keys(sweeper)
    assert not any("/doomed-" in path for path in server.objects)


# --------------------------------------------------------------------------------------------------------------- quota


def test_a_full_store_drops_what_is_old_and_refuses_where_all_is_new(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(monkeypatch, shared_bytes=1000, shared_days=0.0)
    of = Shared(kept.open())
    for n in range(5):
        of.put(f"blobs/aa/{n}", bytes(200))
    with pytest.raises(Away, match=r"full.*nothing was lost"):
        of.put("blobs/aa/new", bytes(200))
    assert len(keys(of)) == 5
    kept.age("blobs/aa/3", 3 * HOUR)
    other = Shared(kept.open())  # which has not swept just now
    other.put("blobs/aa/new", bytes(200))
    assert keys(of) == {"blobs/aa/0", "blobs/aa/1", "blobs/aa/2", "blobs/aa/4", "blobs/aa/new"}


def test_what_other_processes_put_counts(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(monkeypatch, shared_bytes=1000, shared_days=0.0)
    mine, other = Shared(kept.open()), Shared(kept.open())
    mine.put("blobs/aa/0", bytes(100))
    for n in range(1, 9):
        other.put(f"blobs/aa/{n}", bytes(100))
    mine.put("blobs/aa/9", bytes(100))
    with pytest.raises(Away):
        mine.put("blobs/aa/10", bytes(100))


def test_the_storage_of_the_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: s3.Server) -> None:
    monkeypatch.setenv("ACTISCOPE_STORE", str(tmp_path / "one"))
    first = storage.shared()
    assert storage.shared() is first and first.inner.path == tmp_path / "one" / "shared"  # type: ignore[attr-defined]
    monkeypatch.setenv("ACTISCOPE_STORE", str(tmp_path / "two"))
    assert storage.shared() is not first
    configure(monkeypatch, shared=server.url)
    storage.shared().put(KEY, b"data")
    assert storage.shared().get(KEY) == b"data"
    assert list(server.objects) == [f"some/prefix/{KEY}/data"]
    for wrong in ("s3://", "s3:///x", "s3://bucket?secret=1"):
        with pytest.raises(Unsuitable, match="s3://bucket/prefix"):
            S3(wrong)


# ----------------------------------------------------------------------------------------------------------------- S3


def test_many_entries_come_in_pages(server: s3.Server) -> None:
    server.objects |= {f"some/prefix/blobs/aa/{n}/data": (b"1234", 1e9 + n) for n in range(2345)}
    server.objects |= {f"some/prefix/blobs/aa/{n}/used": (b"", 2e9 + n) for n in range(0, 2345, 3)}
    server.objects["some/other/blobs/aa/x/data"] = b"1234", 1e9
    found = {each.key: each for each in S3(server.url).entries()}
    assert len(found) == 2345 and len(server.requests) == 4 and sum(each.size for each in found.values()) == 4 * 2345
    assert found["blobs/aa/3"].used == 2e9 + 3 and found["blobs/aa/4"].used == 1e9 + 4


def test_a_request_that_fails_is_tried_once_more(server: s3.Server) -> None:
    of = S3(server.url)
    for fault in ("500", "reset", "cut"):
        of.put(KEY, b"data" * 100)
        server.requests.clear()
        left = [fault]
        server.fault = lambda method, path, left=left: left.pop() if left and path.endswith("data") else ""  # type: ignore[misc]
        assert of.get(KEY) == b"data" * 100
        assert [method for method, _ in server.requests] == ["GET", "GET"]
        server.fault = lambda method, path: ""


@pytest.mark.parametrize(
    "fault, sentence",
    [("500", "can't be reached"), ("507", "is full"), ("reset", "can't be reached"), ("cut", "can't be")],
)
def test_a_store_that_fails_says_so_and_is_left_alone_for_a_while(
    server: s3.Server, fault: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = S3(server.url)
    of.put(KEY, b"data" * 100)
    counted = sum(storage.counts.values())
    for call in (lambda: of.get(KEY), lambda: of.put(KEY, b"x" * 50), lambda: list(of.entries()), lambda: of.use(KEY)):
        server.fault = lambda method, path: fault
        of._down = 0.0
        begun = time.monotonic()
        with pytest.raises(Away, match=sentence):
            call()
        assert time.monotonic() - begun < 2
        server.requests.clear()
        server.fault = lambda method, path: ""
        if fault != "507":
            with pytest.raises(Away):
                call()
            assert not server.requests
    assert sum(storage.counts.values()) > counted
    of._down = 0.0
    assert of.get(KEY) in (b"data" * 100, b"x" * 50)


def test_a_store_that_knows_another_secret_or_bucket_refuses(
    server: s3.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = S3(server.url)
    right.put(KEY, b"data")
    assert not server.refused
    for call in (lambda of: of.get(KEY), lambda of: of.put(KEY, b"x"), lambda of: of.use(KEY)):
        with pytest.raises(Away, match="refuses"):
            call(S3(server.url.replace(s3.BUCKET, "another")))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    for call in (lambda of: of.get(KEY), lambda of: of.put(KEY, b"x"), lambda of: of.use(KEY)):
        with pytest.raises(Away, match="refuses"):
            call(S3(server.url))
    assert server.refused == ["another signature"] * 3 and right.get(KEY) == b"data"


# ------------------------------------------------------------------------------------------------------ of this machine


def test_the_least_recently_used_fits_go_and_those_of_the_last_hour_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACTISCOPE_STORE", str(tmp_path))
    paths = [tmp_path / "directions" / f"{n:064}.safetensors" for n in range(3)]
    paths += [tmp_path / "saes" / f"{n:016}" / "sae_weights.safetensors" for n in range(2)]
    paths += [tmp_path / "numbers" / "aa" / ("a" * 64), tmp_path / "blobs" / "aa" / ("a" * 64)]
    for n, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(100))
        at = time.time() - (20 - n) * HOUR
        for each in (path, *([path.parent] if "saes" in path.parts else [])):
            os.utime(each, (time.time(), at))  # somebody had a look, which is no use
    store.mark(paths[0])
    assert storage.sweep_local(0) == storage.sweep_local(600) == 600
    assert storage.sweep_local(350) == 300
    assert [each.exists() for each in paths] == [True, False, False, False, True, True, True]
    store.mark(tmp_path / "saes" / f"{1:016}")
    os.utime(tmp_path / "used" / "saes" / f"{1:016}", (1e9, 1e9))
    assert storage.sweep_local(1) == 100 and paths[0].exists() and paths[-1].exists()
    assert not (tmp_path / "saes" / f"{1:016}").exists()


def test_the_sweep_runs_in_the_background_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACTISCOPE_STORE", str(tmp_path))
    done, hold = threading.Event(), threading.Event()
    real = storage.time.sleep

    def local(most: int) -> int:
        done.set()
        return 0

    def sleep(seconds: float) -> None:
        if threading.current_thread().name == "a sweep":
            if done.is_set():
                raise StopIteration
            hold.wait(10)
            seconds = 0
        real(seconds)

    def sweepers() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "a sweep"]

    def tend(real: Callable[[], None] = storage._tend) -> None:
        with suppress(StopIteration):
            real()

    monkeypatch.setattr(storage, "SWEEPER", "a sweep")
    monkeypatch.setattr(storage, "_tend", tend)
    configure(monkeypatch, hosted=True, shared_days=1.0)
    monkeypatch.setattr(storage, "sweep_local", local)
    monkeypatch.setattr(storage.time, "sleep", sleep)
    storage.shared().put(KEY, b"data")
    os.utime(tmp_path / "shared" / KEY, (1e9, 1e9))
    for _ in range(3):
        storage.tended()
    (thread,) = sweepers()
    hold.set()
    thread.join(10)
    assert done.is_set() and not sweepers() and not keys(storage.shared())
