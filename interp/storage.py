"""Where shared links and what they need are kept: a folder or an S3-compatible store, bounded and swept by last use."""

from __future__ import annotations

import errno
import logging
import os
import random
import re
import secrets
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar
from urllib.parse import parse_qsl, urlsplit

from interp import Unsuitable, settings, store

KEY = re.compile(r"[a-z]{1,20}(/[A-Za-z0-9_-]{1,80}){1,3}(\.[a-z]{1,10})?")
"""What a key may be: folders and a name with at most one ending. No dots besides, nothing absolute."""
FIRST = "snapshots/"
"""What names others by their keys; swept before them, so that what is left is whole."""
HOUR, DAY = 3600.0, 86400.0
MARK = 900.0
"""A use is noted at most so often, in seconds."""
MARGIN = 2 * MARK
"""What a snapshot names was used at least when it was, within so many seconds."""
EVERY = 600.0
"""Seconds between two sweeps of a process."""
LOCAL = ("transport", "directions", "tasks", "indexes", "saes", "numbers")
"""The folders of the store that hold fits: they can be made again, or come back with a link that needs them."""
TEMPORARY, SWEEPER = ".new", "sweep"
TIMEOUT, PAUSE = 2.4, 5.0
"""Seconds for one request to an S3 store; and for which it isn't asked again after one that failed."""
OBJECTS = ("data", "used")
DOOMED = 60.0
"""Seconds after which nobody waits for a sweep that announced a deletion."""
T = TypeVar("T")

counts: Counter[str] = Counter()
"""How often the store could not be used, and why: full, slow, unreachable, refused; and what was swept, in entries."""


class Away(Unsuitable):
    """The store can't be reached, is full, or takes too long; nothing that was confirmed is lost."""

    def __init__(self, why: str = "unreachable") -> None:
        counts[why] += 1
        super().__init__(_SENTENCES[why])


_SENTENCES = {
    "full": "The store for shared links is full; nothing was lost, try again later or use the long link.",
    "slow": "The store for shared links takes too long to answer; nothing was lost, try again in a minute.",
    "unreachable": "The store for shared links can't be reached; nothing was lost, try again in a minute.",
    "refused": "The store for shared links refuses this server; nothing was lost, ask who runs it.",
}


@dataclass(frozen=True)
class Entry:
    """What is kept under a key: its size in bytes, and when it was put or last used, within `MARK` seconds."""

    key: str
    size: int
    used: float


class Storage(Protocol):
    """Bytes by key. Every method may raise `Away`, and ValueError for what is no key."""

    def get(self, key: str) -> bytes | None:
        """The bytes of a key, whole, or None. Notes the use where that is to be had."""

    def use(self, key: str) -> bool:
        """Note a use: from then on a sweep leaves it alone for an hour. False where nothing is kept under that key."""

    def put(self, key: str, data: bytes) -> None:
        """Keep bytes, all or nothing; when it returns they outlive the process, the power, and a sweep for an hour."""

    def delete(self, key: str, unused_since: float = float("inf")) -> bool:
        """Delete what was not used since then, unless another does; False where it was used."""

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """What is kept under keys that begin so."""

    def tidy(self) -> None:
        """Remove what processes that were killed have left behind, after an hour."""


class Folder:
    """A folder of this machine, or one that several mount. The time of a file is that of its last use."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser().absolute()

    def get(self, key: str) -> bytes | None:
        try:
            with self._locked():
                file = open(self._at(key), "rb")  # noqa: SIM115  (read outside the lock)
                _note(file)
            with file:
                return file.read() if os.fstat(file.fileno()).st_size <= _most() else None
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as problem:
            raise _away(problem) from None

    def use(self, key: str) -> bool:
        try:
            with self._locked(), open(self._at(key), "rb") as file:
                _note(file)
            return True
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as problem:
            raise _away(problem) from None

    def put(self, key: str, data: bytes) -> None:
        path = self._at(key)
        try:
            self._make(path.parent)
            with tempfile.NamedTemporaryFile(dir=path.parent, suffix=TEMPORARY, delete=False) as file:
                try:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                    with self._locked():
                        os.replace(file.name, path)
                except BaseException:
                    with suppress(OSError):
                        os.unlink(file.name)
                    raise
            _settle(path.parent)
        except OSError as problem:
            raise _away(problem) from None

    def delete(self, key: str, unused_since: float = float("inf")) -> bool:
        path = self._at(key)
        try:
            with self._locked(alone=True):
                if path.stat().st_mtime > unused_since:
                    return False
                path.unlink()
            return True
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError as problem:
            raise _away(problem) from None

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        for path in self._files():
            key = path.relative_to(self.path).as_posix()
            if key.startswith(prefix) and KEY.fullmatch(key) and path.suffix != TEMPORARY:
                with suppress(FileNotFoundError):
                    found = path.stat()
                    yield Entry(key, found.st_size, found.st_mtime)

    def tidy(self) -> None:
        for path in self._files():
            if path.suffix == TEMPORARY:
                with suppress(OSError):
                    if path.stat().st_mtime < time.time() - HOUR:
                        path.unlink()

    def _files(self) -> Iterator[Path]:
        for folder, _, names in os.walk(self.path):
            yield from (Path(folder, name) for name in names)

    def _at(self, key: str) -> Path:
        return self.path / _checked(key)

    def _make(self, folder: Path) -> None:
        """Make a folder that outlives the power."""
        if not folder.is_dir():
            self._make(folder.parent)
            folder.mkdir(exist_ok=True)
            _settle(folder.parent)

    @contextmanager
    def _locked(self, alone: bool = False) -> Iterator[None]:
        """While a sweep looks at a file once more and deletes it, nobody notes a use of it or puts it anew."""
        try:
            import fcntl
        except ImportError:  # Windows, where a file that is open can't be deleted
            yield
            return
        how = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
        try:
            lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as problem:
            if problem.errno not in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT):
                raise
            yield  # nobody can write here; who only reads needs no lock
            return
        try:
            end = time.monotonic() + 2
            while True:
                try:
                    fcntl.flock(lock, how | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > end:
                        raise Away("slow") from None
                    time.sleep(0.002)
            yield
        finally:
            os.close(lock)


class S3:
    """A bucket of an S3-compatible store: `s3://bucket/prefix?endpoint=https://...&region=...`.

    Credentials come from the usual variables (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, or a role),
    and so do AWS_ENDPOINT_URL and AWS_REGION where the address does not name them.

    Under KEY lie the objects KEY/data; KEY/used, empty, put anew when a use is noted; and KEY/doomed-..., while a sweep
    takes a last look. Who puts or notes a use looks for that one afterwards, and waits for the sweep to end: a store
    without locks would else delete what was just confirmed. Of several sweeps each leaves it to the others.
    """

    def __init__(self, url: str) -> None:
        """Raises Unsuitable where the address can't be read, or the client is not installed."""
        try:
            import obstore
            from obstore.store import S3Store
        except ImportError:
            raise Unsuitable("Links are kept in an S3 store here, for which `pip install obstore` is needed.") from None
        place = urlsplit(url)
        more = dict(parse_qsl(place.query))
        if place.scheme != "s3" or not place.netloc or more.keys() - {"endpoint", "region"}:
            raise Unsuitable("A store is named s3://bucket/prefix?endpoint=https://...&region=..., or is a folder.")
        endpoint = more.get("endpoint") or os.environ.get("AWS_ENDPOINT_URL", "")
        region = more.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        self._do: Any = obstore
        self._bucket = S3Store(
            place.netloc,
            prefix=place.path.strip("/") or None,
            region=region or "us-east-1",
            disable_bulk_delete=True,  # asks for one more kind of request, which not every store knows
            client_options={
                "connect_timeout": "2s", "timeout": timedelta(seconds=TIMEOUT), "allow_http": endpoint.startswith("http://"),
            },
            # tried again where an error came at once, so that two requests take less than 5 s
            retry_config={
                "max_retries": 1, "retry_timeout": timedelta(seconds=0.5),
                "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=0.2), "base": 2},
            },
            config={"endpoint": endpoint} if endpoint else {},
        )  # fmt: skip
        self._noted: dict[str, float] = {}
        self._down = 0.0

    def get(self, key: str) -> bytes | None:
        path = f"{_checked(key)}/data"

        def whole() -> tuple[bytes, datetime]:
            found = self._do.get(self._bucket, path)
            if found.meta["size"] > _most():
                raise FileNotFoundError
            data = found.bytes().to_bytes()
            if len(data) != found.meta["size"]:
                raise OSError("cut off")
            return data, found.meta["last_modified"]

        try:
            data, put = self._ask(whole)
        except FileNotFoundError as problem:
            if "NoSuchBucket" in str(problem):
                raise Away("refused") from None
            return None
        if time.time() - max(put.timestamp(), self._noted.get(key, 0.0)) > MARK:
            with suppress(Away):  # what was asked for is here
                self.use(key)
        return data

    def use(self, key: str) -> bool:
        found = self._look(_checked(key))
        if "data" in found and (found.keys() - OBJECTS or time.time() - self._used(found) > MARK):
            self._put(f"{key}/used", b"")
            found = self._settled(key)
        if "data" not in found:
            return False
        if len(self._noted) > 10_000:
            self._noted.clear()
        self._noted[key] = self._used(found)
        return True

    def put(self, key: str, data: bytes) -> None:
        _checked(key)
        end = time.monotonic() + TIMEOUT
        while time.monotonic() < end:
            self._put(f"{key}/data", data)
            if time.monotonic() < end and "data" in self._settled(key):
                return
        raise Away("slow")

    def delete(self, key: str, unused_since: float = float("inf")) -> bool:
        _checked(key)
        if unused_since < float("inf"):
            begun, mine = time.monotonic(), f"doomed-{secrets.token_hex(8)}"
            if self._used(found := self._look(key)) > unused_since:
                return False
            if found.keys() - OBJECTS:  # another sweep is at it; if that ends badly the next one does it
                return True
            self._put(f"{key}/{mine}", b"")
            found = self._look(key)
            unused, alone = self._used(found) <= unused_since, not found.keys() - {*OBJECTS, mine}
            # who took long to get here may find that nobody waits for it any longer
            now = unused and alone and time.monotonic() - begun < DOOMED / 2
            for name in (*OBJECTS, mine) if now else (mine,):
                self._remove(f"{key}/{name}")
            return unused
        for name in OBJECTS:
            self._remove(f"{key}/{name}")
        return True

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        found: dict[str, list[Any]] = {}
        for each in self._list(prefix.rsplit("/", 1)[0] if "/" in prefix else ""):
            key, _, name = each["path"].rpartition("/")
            if key.startswith(prefix) and KEY.fullmatch(key) and name in OBJECTS:
                found.setdefault(key, []).append((name, each["size"], each["last_modified"].timestamp()))
        for key, objects in found.items():
            sizes = [size for name, size, _ in objects if name == "data"]
            yield Entry(key, sum(sizes), max(at for *_, at in objects))

    def tidy(self) -> None:
        for each in list(self._list("")):
            if "/doomed-" in each["path"] and each["last_modified"].timestamp() < time.time() - HOUR:
                self._remove(each["path"])

    def _settled(self, key: str) -> dict[str, float]:
        """What is under a key, once no sweep is about to delete it."""
        end = time.monotonic() + 2
        while True:
            found = self._look(key)
            if not any(time.time() - at < DOOMED for name, at in found.items() if name not in OBJECTS):
                return found
            if time.monotonic() > end:
                raise Away("slow")
            time.sleep(0.05)

    def _used(self, found: dict[str, float]) -> float:
        return max((at for name, at in found.items() if name in OBJECTS), default=0.0)

    def _look(self, key: str) -> dict[str, float]:
        """When each object under a key was put: of one moment, which several requests would not be."""
        found = self._list(_checked(key))
        return {each["path"].removeprefix(f"{key}/"): each["last_modified"].timestamp() for each in found}

    def _list(self, prefix: str) -> list[Any]:
        begun = time.monotonic()
        try:
            return self._ask(lambda: self._do.list(self._bucket, prefix or None, chunk_size=1000).collect())
        except FileNotFoundError:  # the bucket
            raise Away("refused") from None
        finally:
            if prefix.count("/") > 1 and time.monotonic() - begun > 1:
                self._down = time.monotonic() + PAUSE  # one answer may take so long, but not ten in a row

    def _put(self, path: str, data: bytes) -> None:
        try:
            self._ask(lambda: self._do.put(self._bucket, path, data, use_multipart=False))
        except FileNotFoundError:
            raise Away("refused") from None

    def _remove(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self._ask(lambda: self._do.delete(self._bucket, path))

    def _ask(self, call: Callable[[], T]) -> T:
        """Do one request. After one that failed nobody waits for another for a few seconds.

        Raises:
            Away; FileNotFoundError.
        """
        if time.monotonic() < self._down:
            raise Away("unreachable")
        try:
            return call()
        except FileNotFoundError:
            raise
        except (self._do.exceptions.BaseError, OSError) as problem:
            text = str(problem).lower()
            if isinstance(problem, PermissionError) or any(each in text for each in (" 401", " 403", " 404")):
                raise Away("refused") from None
            if any(each in text for each in (" 507", "quotaexceeded", "storagefull")):
                raise Away("full") from None
            self._down = time.monotonic() + PAUSE
            raise Away("slow" if "kind: timeout" in text else "unreachable") from None


def _note(file: IO[bytes]) -> None:
    if os.fstat(file.fileno()).st_mtime < time.time() - MARK:
        with suppress(OSError):  # a folder that can only be read
            os.utime(file.fileno())


def _settle(folder: Path) -> None:
    """See to it that the names in a folder outlive the power."""
    if os.name == "nt":  # there a folder can't be opened
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _away(problem: OSError) -> Away:
    if isinstance(problem, TimeoutError):
        return Away("slow")
    if problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return Away("full")
    return Away("refused" if problem.errno in (errno.EACCES, errno.EPERM, errno.EROFS) else "unreachable")


def _most() -> int:
    """Bytes of what may be read in one piece, whoever put it there."""
    return max(settings.SETTINGS.shared_each, 64 * settings.MB)


def _checked(key: str) -> str:
    if not KEY.fullmatch(key):
        raise ValueError(f"{key[:80]!r} is no key of a store")
    return key


# ------------------------------------------------------------------------------------------------------------- the one


class Shared:
    """A storage with the quota and the expiry of the settings."""

    def __init__(self, inner: Storage) -> None:
        self.inner = inner
        self._lock, self._sweeping = threading.Lock(), threading.Lock()
        self._held: int | None = None
        self._added, self._swept = 0, 0.0

    def get(self, key: str) -> bytes | None:
        return self.inner.get(key)

    def use(self, key: str) -> bool:
        return self.inner.use(key)

    def put(self, key: str, data: bytes) -> None:
        """As of any storage; Away where what was used lately leaves no room."""
        if (most := settings.SETTINGS.shared_bytes) and not self._fits(len(data), most):
            raise Away("full")
        self.inner.put(key, data)
        with self._lock:
            self._added += len(data)

    def delete(self, key: str, unused_since: float = float("inf")) -> bool:
        return self.inner.delete(key, unused_since)

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        return self.inner.entries(prefix)

    def tidy(self) -> None:
        self.inner.tidy()

    def sweep(self, room: int = 0) -> None:
        """Drop what is expired, and the least recently used until the rest fits with `room` to spare."""
        most = settings.SETTINGS.shared_bytes
        with self._sweeping:
            before = self._added
            left = sweep(self.inner, max(most - room, 1) if most else 0, settings.SETTINGS.shared_days)
            with self._lock:
                self._held, self._added, self._swept = left, self._added - before, time.monotonic()

    def _fits(self, size: int, most: int) -> bool:
        if self._held is None or self._added > most // 50:  # other processes put, too
            self.sweep(size)
        if self._taken() + size > most and time.monotonic() - self._swept > 5:
            self.sweep(most // 20 + size)
        return self._taken() + size <= most

    def _taken(self) -> int:
        return (self._held or 0) + self._added


def shared() -> Shared:
    """The storage of the settings: a folder or s3://...; the folder `shared` of the store where none is named."""
    return _opened(settings.SETTINGS.shared or str(store.folder() / "shared"))


@lru_cache(16)
def _opened(where: str) -> Shared:
    return Shared(S3(where) if where.startswith("s3://") else Folder(where))


# ------------------------------------------------------------------------------------------------------------ sweeping


def sweep(storage: Storage, most: int, days: float) -> int:
    """Drop what nobody used for `days`, then the least recently used until `most` bytes are left; 0 is "no limit".

    What was put or used in the last hour stays. Several may sweep at once.

    Returns:
        The bytes that are left.

    Raises:
        Away: the storage can't be used.
    """
    now = time.time()
    storage.tidy()
    found = sorted(storage.entries(), key=lambda each: (_due(each), each.key))
    left = sum(each.size for each in found)
    for each in found:
        expired = days and _due(each) < now - days * DAY
        if not expired and not (most and left > most):
            break
        if each.used < now - HOUR - MARK and storage.delete(each.key, each.used):
            left -= each.size
            counts["swept"] += 1
    return left


def _due(entry: Entry) -> float:
    """When it was used, for the order in which things go: a snapshot goes before what it names."""
    return entry.used + (0 if entry.key.startswith(FIRST) else MARGIN)


def sweep_local(most: int) -> int:
    """Drop the least recently used fits of this machine until `most` bytes are left; those of the last hour stay.

    Returns:
        The bytes that are left.
    """
    paths = [path for kind in LOCAL for path in _fits_of(store.folder() / kind)]
    sizes = {path: _size(path) for path in paths}
    left = sum(sizes.values())
    for path in sorted(paths, key=store.used):
        if not most or left <= most:
            break
        if store.used(path) < time.time() - HOUR:
            gone = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")
            with suppress(OSError):
                os.replace(path, gone)  # at once, also where it is a folder
                shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
                store.unmark(path)
                left -= sizes[path]
                counts["swept"] += 1
    return left


def _fits_of(folder: Path) -> list[Path]:
    if folder.name == "numbers":
        return list(folder.glob("*/*"))
    return list(folder.glob("*"))


def _size(path: Path) -> int:
    with suppress(OSError):
        return sum(each.stat().st_size for each in (path.iterdir() if path.is_dir() else (path,)))
    return 0


def tended() -> None:
    """Sweep from now on, every ten minutes, in the background of this process; asked for again it does nothing."""
    with _tending:
        if not any(thread.name == SWEEPER and thread.is_alive() for thread in threading.enumerate()):
            threading.Thread(target=_tend, name=SWEEPER, daemon=True).start()


_tending = threading.Lock()


def _tend() -> None:
    while True:
        time.sleep(EVERY * random.uniform(0.5, 1))  # replicas that start together don't sweep together
        try:
            shared().sweep()
            if settings.SETTINGS.hosted:
                sweep_local(settings.SETTINGS.local_bytes)
        except Away as problem:
            logging.getLogger(__name__).warning("no sweep: %s", problem)
        except Exception:
            logging.getLogger(__name__).exception("the sweep failed")
