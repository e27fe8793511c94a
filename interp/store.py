"""What is kept, by content: uploads for links, through `interp.storage`, and artefacts of fits, on this disk."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from interp import Unsuitable, progress, storage

DIGEST = re.compile(r"[0-9a-f]{64}")
LARGEST = 2**30
"""The arrays of a fit take less than this, unpacked."""


def folder() -> Path:
    """Where everything lies: $ACTISCOPE_STORE, or `.actiscope` in the home directory."""
    return Path(os.environ.get("ACTISCOPE_STORE") or Path.home() / ".actiscope")


def keep_blob(data: bytes) -> str:
    """Keep bytes where links find them, and return their sha256, by which they do.

    Raises:
        storage.Away: they can't be kept now.
    """
    digest = hashlib.sha256(data).hexdigest()
    kept, key = storage.shared(), blob_key(digest)
    if kept.get(key) != data or not kept.use(key):  # absent, or damaged
        kept.put(key, data)
    return digest


def blob(digest: str) -> bytes | None:
    """The bytes of that sha256, or None where they are not kept (or not a sha256, or damaged).

    Raises:
        storage.Away: the storage can't be reached.
    """
    if not DIGEST.fullmatch(digest):
        return None
    for data in (storage.shared().get(blob_key(digest)), _read("blobs", digest)):  # there before there was a storage
        if data is not None and hashlib.sha256(data).hexdigest() == digest:
            return data
    return None


def blob_key(digest: str) -> str:
    """Under which key of a storage the bytes of that sha256 are kept."""
    if not DIGEST.fullmatch(digest):
        raise ValueError(f"{digest[:80]!r} is no sha256")
    return f"blobs/{digest[:2]}/{digest}"


def packed(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Arrays as an NPZ file without pickles; equal arrays give equal bytes."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **{name: arrays[name] for name in sorted(arrays)})
    return buffer.getvalue()


def unpacked(data: bytes, most: int) -> dict[str, np.ndarray]:
    """The arrays of an NPZ file that nobody vouches for.

    Raises:
        Unsuitable: it is damaged, holds objects, or claims more than `most` bytes; seen before memory is spent on it.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            if len(members) > 200 or sum(each.file_size for each in members) > most:
                raise Unsuitable("The numbers kept with this link are larger than this server reads.")
            if any(each.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for each in members):
                raise ValueError  # others can ask for any amount of memory
            found = {}
            for each in members:
                with archive.open(each) as file:
                    version = np.lib.format.read_magic(file)
                    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                    shape, fortran, kind = read[version](file)
                    if kind.hasobject or math.prod(shape) * kind.itemsize != each.file_size - file.tell():
                        raise ValueError
                    flat = np.frombuffer(file.read(), kind)  # to its end, where zipfile compares the checksum
                    found[each.filename.removesuffix(".npy")] = flat.reshape(
                        shape, order="F" if fortran else "C"
                    ).copy()
            return found
    except Unsuitable:
        raise
    except Exception:  # whatever a damaged archive makes zipfile, zlib and numpy raise
        raise Unsuitable("The numbers kept with this link are damaged; make the link anew.") from None


def artefact(key: str, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays of a fit by its key, kept on this machine; made once, by whoever asks first, while others wait."""
    with progress.alone(key):
        try:
            found = unpacked(_read("numbers", key) or b"", LARGEST)
        except Unsuitable:  # absent, or damaged
            found = make()
            _write(_path("numbers", key), packed(found))
        mark(_path("numbers", key))
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


def mark(path: Path) -> None:
    """Note that a fit is used, so that a sweep leaves it alone; the times of its own files say when it was made."""
    if (beside := _beside(path)) is not None:
        with suppress(OSError):  # a full disk, or one that can only be read
            beside.parent.mkdir(parents=True, exist_ok=True)
            beside.touch()


def unmark(path: Path) -> None:
    """Forget when a fit was used, as it is gone."""
    if (beside := _beside(path)) is not None:
        beside.unlink(missing_ok=True)


def used(path: Path) -> float:
    """When a fit was made or last used; 0 where it is gone."""
    times = [0.0]
    for each in (path, _beside(path)):
        with suppress(FileNotFoundError):
            times.append(0.0 if each is None else each.stat().st_mtime)
    return max(times) if path.exists() else 0.0


def _beside(path: Path) -> Path | None:
    """The empty file whose time is that of the last use; None for what is of the shelf."""
    return folder() / "used" / path.parent.name / path.stem if folder() in path.parents else None


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
