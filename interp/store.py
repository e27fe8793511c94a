"""What is kept on disk, by content: uploads kept for links, results to compare with, artefacts of fits."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

DIGEST = re.compile(r"[0-9a-f]{64}")
_locks: dict[str, threading.Lock] = {}
_locks_lock = threading.Lock()


def folder() -> Path:
    """Where everything lies: $ACTISCOPE_STORE, or `.actiscope` in the home directory."""
    return Path(os.environ.get("ACTISCOPE_STORE") or Path.home() / ".actiscope")


def keep_blob(data: bytes) -> str:
    """Keep bytes and return the sha256 that finds them again."""
    digest = hashlib.sha256(data).hexdigest()
    if blob(digest) is None:  # absent, or damaged
        _write(_path("blobs", digest), data)
    return digest


def blob(digest: str) -> bytes | None:
    """The bytes of that sha256, or None where they are not kept (or not a sha256, or damaged)."""
    data = _read("blobs", digest)
    return data if data is not None and hashlib.sha256(data).hexdigest() == digest else None


def forget_blob(digest: str) -> None:
    """Delete a kept upload."""
    if DIGEST.fullmatch(digest):
        _path("blobs", digest).unlink(missing_ok=True)


def keep_numbers(digest: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Keep the numbers of the experiment of that digest, unless some are kept already: the first answer counts."""
    if numbers(digest) is None:  # absent, or damaged
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        _write(_path("numbers", digest), buffer.getvalue())


def numbers(digest: str) -> dict[str, np.ndarray] | None:
    """The kept numbers of that experiment, or None."""
    data = _read("numbers", digest)
    if data is None:
        return None
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return dict(arrays)
    except Exception:  # whatever a damaged archive makes zipfile, zlib and numpy raise, it is not kept
        return None


def artefact(key: str, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays of a fit by its key; made once, by whoever asks first, while others wait."""
    with _lock(key):
        found = numbers(key)
        if found is None:
            found = make()
            keep_numbers(key, found)
        return found


def key_of(*parts: Any) -> str:
    """sha256 of the canonical JSON of plain values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def digest_of(files: Iterable[Path]) -> str:
    """16 hex digits of the names and contents of these files; they are read again when size or time has changed."""
    return _digest(tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files))


@lru_cache(128)
def _digest(files: tuple[tuple[str, int, int], ...]) -> str:
    hasher = hashlib.sha256()
    for path, size, _ in files:
        hasher.update(f"{Path(path).name} {size} ".encode())
        with open(path, "rb") as file:
            hasher.update(hashlib.file_digest(file, "sha256").digest())
    return hasher.hexdigest()[:16]


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file so that a reader, and the next run, sees all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob("*.new"):  # by a run that was killed while it wrote
        with suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > 3600:
                left.unlink()
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        save_file({name: np.ascontiguousarray(each) for name, each in arrays.items()}, new, dict(metadata))
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def kept_arrays(kind: str, shelf: Path) -> list[tuple[Path, str]]:
    """The safetensors files of a kind and their names: those of a shelf by name, then the store's, newest first."""
    own = [path for path in (folder() / kind).glob("*.safetensors") if DIGEST.fullmatch(path.stem)]
    newest = sorted(own, key=lambda each: (-each.stat().st_mtime_ns, each.name))
    shown = [(path, f"{path.parent.name}/{path.stem}") for path in sorted(shelf.glob("*/*.safetensors"))]
    return shown + [(path, path.stem) for path in newest]


def _path(kind: str, digest: str) -> Path:
    if not DIGEST.fullmatch(digest):
        raise ValueError(f"{digest[:80]!r} is no sha256")
    return folder() / kind / digest[:2] / digest


def _read(kind: str, digest: str) -> bytes | None:
    try:
        return _path(kind, digest).read_bytes() if DIGEST.fullmatch(digest) else None
    except FileNotFoundError:
        return None


def _lock(key: str) -> threading.Lock:
    with _locks_lock:
        return _locks.setdefault(key, threading.Lock())


def _write(path: Path, data: bytes) -> None:
    """Write so that a reader sees all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        try:
            file.write(data)
            file.close()
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
