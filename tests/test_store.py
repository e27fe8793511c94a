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


def test_blobs_are_found_by_their_hash(folder: Path) -> None:
    digest = store.keep_blob(b"data")
    assert store.blob(digest) == b"data" and store.keep_blob(b"data") == digest and len(files(folder)) == 1
    assert store.blob("ab" * 32) is None


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
    assert store.blob(digest) is None
    with pytest.raises(ValueError):
        store.artefact(digest, lambda: {"a": np.zeros(1)})
    with pytest.raises(ValueError):
        store.blob_key(digest)
    assert not files(folder)


def test_arrays_come_back_as_they_were_and_are_made_once(folder: Path) -> None:
    arrays = {"values": np.array([1.5, np.nan, -np.inf]), "edges": np.zeros((0, 2), int), "flags": np.array([True])}
    store.artefact(DIGEST, lambda: arrays)
    found = store.artefact(DIGEST, lambda: {"values": np.zeros(9)})
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert np.array_equal(found[name], array, equal_nan=array.dtype.kind == "f")
        assert found[name].dtype == array.dtype and found[name].flags.writeable
    assert store.used(folder / "numbers" / "ab" / DIGEST) > time.time() - 60


def test_damaged_arrays_are_made_again(folder: Path) -> None:
    arrays = {"values": np.arange(100.0), "more": np.arange(3)}
    whole = store.packed(arrays)
    path = folder / "numbers" / "ab" / DIGEST
    path.parent.mkdir(parents=True)
    damaged = [whole[:end] for end in range(0, len(whole), 7)] + [b"\x80\x04\x95 pickles are not opened"]
    for data in damaged:
        path.write_bytes(data)
        assert store.artefact(DIGEST, lambda: {"made": np.ones(1)})["made"] == 1
        assert path.read_bytes() == store.packed({"made": np.ones(1)})


def test_no_flipped_bit_gives_other_numbers() -> None:
    arrays = {"values": np.arange(100.0), "more": np.arange(3)}
    whole = store.packed(arrays)
    for position in range(0, len(whole), 5):
        bad = bytearray(whole)
        bad[position] ^= 0xFF
        try:
            found = store.unpacked(bytes(bad), 2**20)  # a flipped bit may hit a date, or a name
        except Unsuitable:
            continue
        assert {each.tobytes() for each in found.values()} == {each.tobytes() for each in arrays.values()}


def test_objects_are_not_kept(folder: Path) -> None:
    with pytest.raises(ValueError):
        store.artefact(DIGEST, lambda: {"values": np.array([{}], object)})
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
    path = folder / "blobs" / digest[:2] / digest
    path.parent.mkdir(parents=True)
    path.write_bytes(b"data")
    assert store.blob(digest) == b"data"
    path.write_bytes(b"date")
    assert store.blob(digest) is None


def test_a_store_that_is_away_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    digest = store.keep_blob(b"data")

    def away(*_: object) -> None:
        raise storage.Away

    monkeypatch.setattr(storage.Folder, "get", away)
    for call in (lambda: store.blob(digest), lambda: store.keep_blob(b"other")):
        with pytest.raises(storage.Away):
            call()


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
