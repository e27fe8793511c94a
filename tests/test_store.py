"""What is kept on disk: by content, whole or not at all, made once."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from interp import store

DIGEST = "ab" * 32


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("ACTISCOPE_STORE", str(tmp_path / "store"))
    return tmp_path / "store"


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


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
    with pytest.raises(OSError, match="disk full"):
        store.keep_blob(b"data")
    assert not files(folder)


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
