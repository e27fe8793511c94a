"""What is kept on disk: by content, whole or not at all, made once."""

from __future__ import annotations

import hashlib
import io
import os
import threading
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from interp import Unsuitable, storage, store

DIGEST = "ab" * 32


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("ACTISCOPE_STORE", str(tmp_path / "store"))
    return tmp_path / "store"


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]


def test_blobs_are_found_by_their_hash_until_forgotten(folder: Path) -> None:
    digest = store.keep_blob(b"data")
    assert store.blob(digest) == b"data" and store.keep_blob(b"data") == digest and len(files(folder)) == 1
    store.forget_blob(digest)
    store.forget_blob(digest)
    assert store.blob(digest) is None and not files(folder)


def test_damaged_blobs_are_not_given_out_and_can_be_kept_again(folder: Path) -> None:
    digest = store.keep_blob(b"data")
    for damage in (b"", b"dat", b"data!"):
        files(folder)[0].write_bytes(damage)
        assert store.blob(digest) is None
    assert store.keep_blob(b"data") == digest and store.blob(digest) == b"data"


@pytest.mark.parametrize(
    "digest", ["", "../../etc/passwd", "a" * 63, "A" * 64, "g" * 64, "a" * 64 + "\n", "a" * 65, "/" + "a" * 63]
)
def test_what_is_no_hash_finds_nothing_and_keeps_nothing(folder: Path, digest: str) -> None:
    assert store.blob(digest) is None and store.numbers(digest) is None
    store.forget_blob(digest)
    with pytest.raises(ValueError):
        store.keep_numbers(digest, {"a": np.zeros(1)})
    assert not files(folder)


def test_numbers_come_back_as_they_were_and_the_first_count() -> None:
    arrays = {"values": np.array([1.5, np.nan, -np.inf]), "edges": np.zeros((0, 2), int), "flags": np.array([True])}
    store.keep_numbers(DIGEST, arrays)
    store.keep_numbers(DIGEST, {"values": np.zeros(9)})
    found = store.numbers(DIGEST)
    assert found is not None and found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (
            np.array_equal(found[name], array, equal_nan=array.dtype.kind == "f") and found[name].dtype == array.dtype
        )


def test_damaged_numbers_are_as_if_not_kept(folder: Path) -> None:
    store.keep_numbers(DIGEST, {"values": np.arange(100.0), "more": np.arange(3)})
    path = files(folder)[0]
    whole = path.read_bytes()
    for end in range(0, len(whole), 7):
        path.write_bytes(whole[:end])
        assert store.numbers(DIGEST) is None
    for position in range(0, len(whole), 5):
        bad = bytearray(whole)
        bad[position] ^= 0xFF
        path.write_bytes(bad)
        found = store.numbers(DIGEST)  # a flipped bit may hit a date
        assert found is None or "values" not in found or np.array_equal(found["values"], np.arange(100.0))
    path.write_bytes(b"\x80\x04\x95 pickles are not opened")
    assert store.numbers(DIGEST) is None
    store.keep_numbers(DIGEST, {"values": np.arange(3)})
    assert store.numbers(DIGEST) is not None


def test_objects_are_not_kept(folder: Path) -> None:
    with pytest.raises(ValueError):
        store.keep_numbers(DIGEST, {"values": np.array([{}], object)})
    assert not files(folder)


def test_a_write_that_fails_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(store.os, "replace", fail)
    with pytest.raises(storage.Away, match="nothing was lost"):
        store.keep_blob(b"data")
    with pytest.raises(OSError, match="disk full"):
        store.artefact(DIGEST, lambda: {"a": np.ones(1)})
    assert not files(folder)


def test_what_an_older_version_kept_is_found(folder: Path) -> None:
    digest = hashlib.sha256(b"data").hexdigest()
    for kind, name, data in (("blobs", digest, b"data"), ("numbers", DIGEST, store.packed({"a": np.arange(3)}))):
        path = folder / kind / name[:2] / name
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
    assert store.blob(digest) == b"data" and np.array_equal(store.numbers(DIGEST)["a"], np.arange(3))
    store.keep_numbers(DIGEST, {"a": np.zeros(9)})
    assert len(store.numbers(DIGEST)["a"]) == 3
    store.forget_blob(digest)
    assert store.blob(digest) is None


def test_forgetting_leaves_what_a_snapshot_holds(folder: Path) -> None:
    digest = store.keep_blob(b"data")
    storage.shared().put(f"parts/{digest[:2]}/{digest}", b"data")
    store.forget_blob(digest)
    assert store.blob(digest) == b"data"


def test_numbers_of_an_unreachable_store_are_none_and_blobs_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    store.keep_numbers(DIGEST, {"a": np.ones(1)})
    digest = store.keep_blob(b"data")

    def away(*_: object) -> None:
        raise storage.Away

    monkeypatch.setattr(storage.Folder, "get", away)
    assert store.numbers(DIGEST) is None
    with pytest.raises(storage.Away):
        store.blob(digest)


def archive(name: str, head: dict[str, object], body: bytes, kind: int = zipfile.ZIP_DEFLATED) -> bytes:
    """An NPZ with one array that says what it likes about itself."""
    buffer, npy = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(npy, head)
    with zipfile.ZipFile(buffer, "w", kind) as file:
        file.writestr(f"{name}.npy", npy.getvalue() + body)
    return buffer.getvalue()


def test_an_archive_may_not_claim_more_than_it_is_allowed() -> None:
    floats = {"descr": "<f8", "fortran_order": False}
    assert np.array_equal(store.unpacked(archive("a", floats | {"shape": (4,)}, bytes(32)), 400)["a"], np.zeros(4))
    zeros = archive("a", floats | {"shape": (2**21,)}, bytes(2**24))
    assert len(zeros) < 2**15
    false = archive("a", floats | {"shape": (2**21,)}, bytes(2**24))
    false = false.replace((2**24 + 128).to_bytes(4, "little"), (160).to_bytes(4, "little"))
    hostile = (
        zeros,
        false,  # claims 160 bytes in its directory, and unpacks to more
        archive("a", floats | {"shape": (10**10,)}, bytes(32)),  # says it is of 80 GB
        archive("a", {"descr": "|O", "fortran_order": False, "shape": (4,)}, bytes(32)),
        archive("a", floats | {"shape": (4,)}, bytes(32), zipfile.ZIP_LZMA),
        archive("a", floats | {"shape": (-4,)}, bytes(32)),
        b"",
    )
    tracemalloc.start()
    try:
        for data in hostile:
            with pytest.raises(Unsuitable):
                store.unpacked(data, 2**20)
        assert store.unpacked(b"PK\x05\x06" + bytes(18), 2**20) == {}
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()


def test_equal_arrays_pack_to_equal_bytes() -> None:
    a, b = np.arange(6.0).reshape(2, 3), np.array(["x", "y"])
    assert store.packed({"a": a, "b": b}) == store.packed({"b": b.copy(), "a": np.ascontiguousarray(a)})
    found = store.unpacked(store.packed({"a": np.asfortranarray(a), "b": b, "c": np.float64(3)}), 2**20)
    assert np.array_equal(found["a"], a) and np.array_equal(found["b"], b) and found["c"].shape == ()


def test_a_use_is_noted_and_the_time_of_the_fit_stays(folder: Path) -> None:
    path = folder / "directions" / "x.safetensors"
    store.write_arrays(path, {"a": np.ones(1)}, {})
    os.utime(path, (1e9, 1e9))
    assert store.used(path) == 1e9
    store.mark(path)
    assert store.used(path) > time.time() - 5 and path.stat().st_mtime == 1e9
    store.mark(folder / "no.safetensors")
    assert store.used(folder / "no.safetensors") == 0


def test_readers_see_all_or_nothing() -> None:
    arrays = {"values": np.arange(50_000.0)}
    stop, wrong = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            found = store.numbers(DIGEST)
            if found is not None and not np.array_equal(found["values"], arrays["values"]):
                wrong.append(found)

    readers = [threading.Thread(target=read) for _ in range(3)]
    writers = [threading.Thread(target=store.keep_numbers, args=(DIGEST, arrays)) for _ in range(4)]
    for thread in (*readers, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    for thread in readers:
        thread.join()
    assert not wrong and store.numbers(DIGEST) is not None


def test_an_artefact_is_made_once_by_whoever_asks_first() -> None:
    made: list[int] = []

    def make() -> dict[str, np.ndarray]:
        made.append(1)
        time.sleep(0.05)
        return {"direction": np.arange(4.0)}

    results: list[dict[str, np.ndarray]] = []
    threads = [threading.Thread(target=lambda: results.append(store.artefact(DIGEST, make))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1 and len(results) == 8
    assert all(np.array_equal(each["direction"], np.arange(4.0)) for each in results)


def test_a_fit_that_fails_is_tried_again() -> None:
    def fail() -> dict[str, np.ndarray]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.artefact(DIGEST, fail)
    assert store.artefact(DIGEST, lambda: {"a": np.ones(1)})["a"] == 1


def test_keys_are_canonical() -> None:
    assert store.key_of("a", {"x": 1, "y": (1, 2)}) == store.key_of("a", {"y": [1, 2], "x": 1})
    assert store.key_of("a", 1) != store.key_of("a", 2) and store.DIGEST.fullmatch(store.key_of())
