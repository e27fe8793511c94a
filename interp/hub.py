"""Repositories of Hugging Face: what is in them before anything is downloaded, and their files, checked, on this disk.

Files lie in the cache of huggingface_hub, where its other users find them. They are brought here by our own requests
through its client, because the client itself neither goes on with a download that broke off nor looks at digests. What
was brought by us is written down in the store (`hub/`), so that only that is ever deleted to make room.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar

from interp import Unsuitable, progress, settings, store
from interp.progress import Cancelled, Progress

T = TypeVar("T")
REPOSITORY = re.compile(r"[A-Za-z0-9_.-]{1,96}(/[A-Za-z0-9_.-]{1,96})?")
REVISION = re.compile(r"[A-Za-z0-9_.-]{1,96}(/[A-Za-z0-9_.-]{1,96})*")
COMMIT = re.compile("[0-9a-f]{40}")
DIGEST = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")
SPARE = 2**28
"""Bytes of the disk that a download leaves free."""
ANSWER = 30.0
"""Seconds in which the hub has to say what is in a repository."""
SLOWEST, PATIENCE = 1000, 60.0
"""Bytes a second, on average over so many seconds, below which a download is given up."""
RETRIES = 3
"""How often a download is taken up again without a byte having come."""
BUSY = 600.0
"""Seconds after its last use in which nothing is deleted: it may be being read, here or in another process."""


class Away(Unsuitable):
    """Hugging Face can't be asked."""


class File(NamedTuple):
    """A file of a repository: its bytes, and their sha256, or git's sha1 of small ones."""

    size: int
    digest: str


@dataclass(frozen=True)
class Listing:
    """What a revision is at one commit. revision: as it was asked for, "" for the default branch."""

    repository: str
    revision: str
    commit: str
    files: Mapping[str, File]
    licence: str = ""
    gated: bool = False

    @property
    def name(self) -> str:
        """owner/name@commit, which stands for the same files for ever."""
        return f"{self.repository}@{self.commit}"

    @property
    def folder(self) -> Path:
        """Where its files lie in the cache, once they are fetched."""
        return _folder(self.repository) / "snapshots" / self.commit

    def here(self, files: Iterable[str]) -> bool:
        """Whether all of these have been fetched."""
        return all(_size(self.folder / each) == self.files[each].size for each in files)


@dataclass(frozen=True)
class Kept:
    """Something on this disk that was downloaded: its name, its bytes, when it was used last, how to delete it."""

    name: str
    bytes: int
    used: float
    drop: Callable[[], None] = field(repr=False)


HELD: list[Callable[[], Iterable[str]]] = []
"""Functions that tell which owner/name@commit are in memory; these are not deleted."""
KEPT: list[Callable[[], Iterable[Kept]]] = []
"""Functions that tell what else was made of downloads."""
_listings: OrderedDict[str, Listing] = OrderedDict()
_using: Counter[str] = Counter()
_lock = threading.Lock()
_slots = threading.BoundedSemaphore(2)


def split(name: str) -> tuple[str, str]:
    """owner/name and the revision, "" if none is given.

    Raises:
        Unsuitable: it is no id; nobody is asked, and no folder is looked into.
    """
    repository, at, revision = name.partition("@")
    if (
        not REPOSITORY.fullmatch(repository)
        or ".." in name
        or "--" in repository
        or any(part.startswith((".", "-")) or part.endswith((".", "-")) for part in repository.split("/"))
        or (at and not REVISION.fullmatch(revision))
    ):
        raise Unsuitable(f"{name[:80]!r} is no Hugging Face id; write owner/name, or owner/name@revision.")
    return repository, revision


def offered() -> list[str] | None:
    """The ids that settings.hub names, or None where all may be downloaded."""
    found = [each.strip() for each in settings.SETTINGS.hub.split(",") if each.strip()]
    return None if "*" in found else found


def permitted(repository: str, revision: str) -> str:
    """The revision to take: the one asked for, or the one that the settings name where none is.

    A commit is one of an offered branch if it was fetched before, or if the branch's history has it: pull requests,
    which strangers make, are not.

    Raises:
        Unsuitable: the settings don't let it be downloaded here.
    """
    names = offered()
    if names is None:
        return revision
    mine = [split(each)[1] or "main" for each in names if split(each)[0] == repository]
    if not mine:
        raise Unsuitable(f"This server does not offer {repository}; choose from what the Models page lists.")
    if (revision or mine[0]) in mine:
        return revision or mine[0]
    if COMMIT.fullmatch(revision) and (
        _listing(repository, revision) or any(_in_history(repository, revision, each) for each in mine)
    ):
        return revision
    raise Unsuitable(f"This server offers {repository} at {mine[0][:12]}, not at {revision[:12]}; take that one.")


def token(repository: str) -> bool | None:
    """What the client is told of tokens: on a server for strangers its own is for the repositories listed by name."""
    if not settings.SETTINGS.hosted:
        return None
    names = [each.strip().partition("@")[0] for each in settings.SETTINGS.hub.split(",")]
    return None if repository in names else False


def listing(repository: str, revision: str = "") -> Listing:
    """What a revision is now; of a commit, or where the hub can't be asked, what was written down at the last fetch.

    Raises:
        Unsuitable: there is no such repository or revision, or it may not be had. Away: the hub can't be asked.
    """
    repository, revision = split(f"{repository}@{revision}" if revision else repository)
    revision = permitted(repository, revision)
    known = _listing(repository, revision)
    if known is None:
        try:
            known = _ask(repository, revision)
        except Away:
            known = _last(repository, revision)
            if known is None:
                raise
        with _lock:
            _listings[known.name] = known
            while len(_listings) > 50:
                _listings.popitem(last=False)
    if known.gated and token(repository) is False:
        raise Unsuitable(_gated(repository))
    return known


def _listing(repository: str, commit: str) -> Listing | None:
    """What is known of a commit."""
    return _listings.get(f"{repository}@{commit}") or (COMMIT.fullmatch(commit) and _record(repository, commit)) or None


def fetch(label: str, found: Listing, files: Iterable[str]) -> Path:
    """Bring files of a listing here, unless they are, and return the folder that is the repository at that commit.

    Every byte is checked against the digest that the listing gives, and those that are here already too. What broke
    off, or was stopped, goes on where it ended. Reports bytes to `interp.progress`, and stops where that says so.

    Raises:
        Unsuitable: the disk is full, the download breaks off, or what comes is not what was promised.
        interp.progress.Cancelled: stopped meanwhile.
    """
    wanted = {each: found.files[each] for each in files}
    _using[found.name] += 1
    try:
        missing = {each: file for each, file in wanted.items() if not _sound(found.folder / each, file)}
        if missing:
            with _slot(), _sentences(found.repository, found.revision):
                make_room(sum(file.size for file in missing.values()), found.repository)
                _write_record(found, missing)
                _followed(label, missing, lambda done, stop: _bring(found, missing, done, stop))
        with suppress(OSError):
            os.utime(_record_path(found.repository, found.commit))
    finally:
        _using[found.name] -= 1
    return found.folder


@contextmanager
def _slot() -> Iterator[None]:
    while not _slots.acquire(timeout=0.1):
        progress.check()
    try:
        yield
    finally:
        _slots.release()


# ------------------------------------------------------------------------------------------------------ what is there


def _ask(repository: str, revision: str) -> Listing:
    from huggingface_hub import HfApi

    with _sentences(repository, revision):
        info = _within(
            ANSWER,
            lambda: HfApi().model_info(
                repository, revision=revision or None, files_metadata=True, timeout=10, token=token(repository)
            ),
        )
        files = {}
        for each in info.siblings or []:
            size, digest = (each.lfs.size, each.lfs.sha256) if each.lfs else (each.size, each.blob_id)
            if _plain(each.rfilename) and isinstance(size, int) and size >= 0 and DIGEST.fullmatch(str(digest)):
                files[each.rfilename] = File(size, str(digest))
        commit = str(info.sha)
        if not COMMIT.fullmatch(commit):
            raise ValueError("no commit")
    card: Any = info.card_data
    licence = card.get("license") if card is not None else None
    tags = [each.removeprefix("license:") for each in info.tags or [] if str(each).startswith("license:")]
    words = licence if isinstance(licence, str) else next(iter(tags), "")
    return Listing(repository, revision, commit, files, words[:60], bool(info.gated))


def _in_history(repository: str, commit: str, branch: str) -> bool:
    from huggingface_hub import HfApi

    if COMMIT.fullmatch(branch):
        return False
    with _sentences(repository, branch):
        found = _within(ANSWER, lambda: HfApi().list_repo_commits(repository, revision=branch, token=token(repository)))
    return any(each.commit_id == commit for each in found)


def _plain(name: str) -> bool:
    """Whether a file's name leads nowhere else."""
    return (
        0 < len(name) < 400
        and str(PurePosixPath(name)) == name
        and not name.startswith("/")
        and ".." not in name.split("/")
        and not re.search(r"[\\:\x00-\x1f]", name)
    )


def _within(seconds: float, work: Callable[[], T]) -> T:
    """What `work` gives, from a thread that nobody waits for longer than this, or after a cancel."""
    found: list[T] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            found.append(work())
        except BaseException as problem:  # for whoever waits
            raised.append(problem)

    thread, until = threading.Thread(target=run, daemon=True), time.monotonic() + seconds
    thread.start()
    while thread.is_alive():
        thread.join(0.05)
        progress.check()
        if time.monotonic() > until:
            raise TimeoutError("no answer")
    if raised:
        raise raised[0]
    return found[0]


@contextmanager
def _sentences(repository: str, revision: str) -> Iterator[None]:
    """Say in a sentence what the client raises."""
    from huggingface_hub.errors import (
        DisabledRepoError,
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        HTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except Unsuitable:
        raise
    except GatedRepoError:
        raise Unsuitable(_gated(repository)) from None
    except DisabledRepoError:
        raise Unsuitable(f"Hugging Face has taken {repository} down; choose another.") from None
    except RevisionNotFoundError:
        what = f"branch, tag or commit {revision!r}" if revision else "files yet"
        raise Unsuitable(f"{repository} has no {what}; its page on huggingface.co lists what it has.") from None
    except (RepositoryNotFoundError, HFValidationError):
        private = "" if settings.SETTINGS.hosted else ", or log in with its owner's token (hf auth login)"
        raise Unsuitable(
            f"Hugging Face has no repository {repository!r} that is open to all; look at the spelling{private}."
        ) from None
    except EntryNotFoundError:
        raise Unsuitable(f"{repository} is no longer all there; ask again.") from None
    except (HTTPError, OSError, ValueError, LookupError, TypeError, AttributeError) as problem:
        if isinstance(problem, OSError) and problem.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Unsuitable("The disk here is full; free some of it and ask again: the download goes on.") from None
        if isinstance(problem, OSError) and _of_the_disk(problem):
            raise Unsuitable(f"{repository} can't be kept on the disk here ({problem.strerror}).") from None
        raise Away(f"{repository} can't be fetched: {_trouble(problem)}") from None


def _gated(repository: str) -> str:
    if settings.SETTINGS.hosted:
        return f"{repository} is gated: its owner lets in whom they choose, which this server can't do for you."
    return (
        f"{repository} is gated: accept its conditions on huggingface.co, and let this machine in with your token "
        "(hf auth login)."
    )


def _trouble(problem: BaseException) -> str:
    status = getattr(getattr(problem, "response", None), "status_code", None)
    if status in (401, 403):
        return f"Hugging Face does not let this machine in ({status}); look at the repository's page."
    if status == 429:
        return "Hugging Face has had too many requests from here (429); try again in some minutes."
    if status:
        return f"Hugging Face answers with an error ({status}); try again later."
    if isinstance(problem, _Odd):
        return str(problem)
    return f"Hugging Face can't be reached from here ({type(problem).__name__}); try again with a connection."


class _Odd(ValueError):
    """What comes is not what was promised; the text is the end of a sentence."""


# ----------------------------------------------------------------------------------------------------- downloading


def _followed(label: str, files: Mapping[str, File], work: Callable[[list[int], threading.Event], None]) -> None:
    """Do it in a thread, because a request waits where nobody could stop it; report the bytes that have come."""
    done, stop, began = [0], threading.Event(), time.monotonic()
    total, raised = max(1, sum(file.size for file in files.values())), []

    def run() -> None:
        try:
            work(done, stop)
        except BaseException as problem:  # for whoever waits
            raised.append(problem)

    thread = threading.Thread(target=run, daemon=True, name="download")
    thread.start()
    try:
        while True:
            thread.join(0.05)
            progress._tell(Progress(label, min(done[0], total), total, time.monotonic() - began))
            if not thread.is_alive():
                break
    finally:
        stop.set()
    if raised:
        raise raised[0]


def _bring(found: Listing, files: Mapping[str, File], done: list[int], stop: threading.Event) -> None:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    headers = build_hf_headers(token=token(found.repository)) | {"Accept-Encoding": "identity"}
    repository = _folder(found.repository)
    for name, file in files.items():
        blob = repository / "blobs" / file.digest
        part = blob.with_name(f"{file.digest}.actiscope.incomplete")
        blob.parent.mkdir(parents=True, exist_ok=True)
        with _locked(repository.parent / ".locks" / repository.name / f"{file.digest}.lock", stop):
            if not _sound(blob, file):
                _stream(hf_hub_url(found.repository, name, revision=found.commit), headers, part, file, done, stop)
                if _digest(part, file) != file.digest:
                    part.unlink()
                    raise _Odd(f"{name} came damaged; ask again.")
                os.replace(part, blob)
                _seen[_state(blob)] = file.digest
            else:
                done[0] += file.size
            _point(found.folder / name, blob)
    if not COMMIT.fullmatch(found.revision):
        with suppress(OSError):  # of a branch whose name is a folder of another's
            store._write(repository / "refs" / (found.revision or "main"), found.commit.encode())


def _point(path: Path, blob: Path) -> None:
    """Let a file of the commit be that blob."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    try:
        path.symlink_to(os.path.relpath(blob, path.parent))
    except OSError:  # a file system without links
        shutil.copyfile(blob, path)


def _stream(url: str, headers: dict[str, str], part: Path, file: File, done: list[int], stop: threading.Event) -> None:
    """Bring a file's bytes, but those that are here from an earlier try; go on where the line breaks."""
    from huggingface_hub.errors import HTTPError

    tries, before, pace = 0, done[0], [time.monotonic(), _size(part) or 0]
    while (here := _size(part)) != file.size:
        if here and here > file.size:
            part.unlink()
        done[0] = before + (_size(part) or 0)
        problem: Exception | None = None
        try:
            for have in _more(url, headers, part, file, stop):
                done[0] = before + have
                if (now := time.monotonic()) - pace[0] > PATIENCE:
                    if 0 <= have - pace[1] < SLOWEST * PATIENCE:
                        raise _Odd("it comes too slowly; ask again to go on.")
                    pace = [now, have]
        except (HTTPError, OSError) as reason:
            problem, status = reason, getattr(getattr(reason, "response", None), "status_code", None)
            if status == 416:
                part.unlink(missing_ok=True)
            elif status not in (None, 408, 429, 500, 502, 503, 504) or _of_the_disk(reason):
                raise
            elif status is None:
                problem = None
        tries = 0 if (_size(part) or 0) > (here or 0) else tries + 1
        if tries > RETRIES:
            raise problem or _Odd("its download broke off; ask again to go on.")
        stop.wait(0.2 * tries)
    done[0] = before + file.size


def _more(url: str, headers: dict[str, str], part: Path, file: File, stop: threading.Event) -> Iterator[int]:
    """One request for what is missing of a file; yields how much there is."""
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import hf_raise_for_status

    if stop.is_set():
        raise Cancelled("Stopped.")
    have = _size(part) or 0
    asked = headers | ({"Range": f"bytes={have}-"} if have else {})
    with get_session().stream("GET", url, headers=asked, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as answer:
        hf_raise_for_status(answer)
        if answer.status_code != 206:  # all of it, whatever was asked for
            have = 0
        with part.open("ab" if have else "wb") as out:
            for chunk in answer.iter_raw():
                if stop.is_set():
                    raise Cancelled("Stopped.")
                have += len(chunk)
                if have > file.size:
                    part.unlink()
                    raise _Odd("more bytes come than it has; ask again.")
                out.write(chunk)
                yield have


def _of_the_disk(problem: BaseException) -> bool:
    connection = isinstance(problem, ConnectionError | TimeoutError)
    return isinstance(problem, OSError) and problem.errno is not None and not connection


@contextmanager
def _locked(path: Path, stop: threading.Event) -> Iterator[None]:
    """One process and thread at a time for a blob; the client's own downloads of it wait too."""
    from filelock import Timeout
    from huggingface_hub.utils import WeakFileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        if stop.is_set():
            raise Cancelled("Stopped.")
        with ExitStack() as stack:
            try:
                stack.enter_context(WeakFileLock(path, timeout=0.2))
            except Timeout:
                continue
            yield
            return


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


_seen: dict[tuple[str, int, int], str] = {}


def _sound(path: Path, file: File) -> bool:
    """Whether it is here, whole and unchanged; it is read once in a process for that."""
    if _size(path) != file.size:
        return False
    if _seen.get(state := _state(path)) != file.digest:
        if _digest(path, file) != file.digest:
            return False
        _seen[state] = file.digest
    return True


def _state(path: Path) -> tuple[str, int, int]:
    state = path.stat()
    return str(path.resolve()), state.st_size, state.st_mtime_ns


def _digest(path: Path, file: File) -> str:
    """What the hub calls a file's content: sha256, or git's sha1 of a blob."""
    hasher = hashlib.sha256() if len(file.digest) == 64 else hashlib.sha1(usedforsecurity=False)
    if len(file.digest) == 40:
        hasher.update(f"blob {file.size}\0".encode())
    with path.open("rb") as data:
        while chunk := data.read(2**20):
            hasher.update(chunk)
    return hasher.hexdigest()


# ------------------------------------------------------------------------------------------------------ what is here


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _folder(repository: str) -> Path:
    return _cache() / "--".join(["models", *repository.split("/")])


def _record_path(repository: str, commit: str) -> Path:
    return store.folder() / "hub" / f"{store.key_of(str(_cache()), repository, commit)[:32]}.json"


def _write_record(found: Listing, missing: Iterable[str]) -> None:
    """Say before a download what will be ours to delete, and what the commit holds."""
    path = _record_path(found.repository, found.commit)
    with _lock:
        ours = {*_read(path).get("ours", []), *missing}
        store._write(path, json.dumps(asdict(found) | {"ours": sorted(ours)}).encode())


def _read(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_bytes())
        return read if isinstance(read, dict) else {}
    except (OSError, ValueError):
        return {}


def _record(repository: str, commit: str) -> Listing | None:
    """What was written down of a commit."""
    read = _read(_record_path(repository, commit))
    read.pop("ours", None)
    try:
        files = {name: File(*file) for name, file in read.pop("files").items()}
        return Listing(**read, files=files)
    except (KeyError, TypeError, AttributeError):
        return None


def _last(repository: str, revision: str) -> Listing | None:
    """What a revision was when it was fetched last, by us or by another user of the cache."""
    commit = revision
    if not COMMIT.fullmatch(revision):
        try:
            commit = (_folder(repository) / "refs" / (revision or "main")).read_text().strip()
        except OSError:
            return None
    if (known := _record(repository, commit)) or not COMMIT.fullmatch(commit):
        return known
    snapshot = _folder(repository) / "snapshots" / commit
    files = {}
    for path in snapshot.rglob("*") if snapshot.is_dir() else []:
        digest = path.resolve().name
        if path.is_file() and DIGEST.fullmatch(digest):  # the client names a blob by it
            files[path.relative_to(snapshot).as_posix()] = File(path.stat().st_size, digest)
    return Listing(repository, revision, commit, files) if files else None


def kept() -> list[Kept]:
    """What Actiscope has downloaded and is still here, the longest unused first."""
    found = []
    folder = store.folder() / "hub"
    for path in folder.glob("*.json") if folder.is_dir() else []:
        read = _read(path)
        listed = _record(str(read.get("repository")), str(read.get("commit")))
        if listed is None or path != _record_path(listed.repository, listed.commit):  # of another cache
            continue
        ours = [each for each in read.get("ours", []) if each in listed.files]
        size = sum(_size(listed.folder / each) or 0 for each in ours)
        others = [each for each in listed.folder.rglob("*") if each.is_file()] if size else []
        if size and {each.relative_to(listed.folder).as_posix() for each in others} <= set(ours):
            found.append(Kept(listed.name, size, path.stat().st_mtime, partial(_drop, path, listed)))
    found += [each for source in KEPT for each in source()]
    return sorted(found, key=lambda each: each.used)


def _drop(path: Path, found: Listing) -> None:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    with suppress(CacheNotFound, OSError):
        scan = scan_cache_dir(_cache())
        mine = frozenset(each for each in scan.repos if each.repo_path == _folder(found.repository))  # not a copy of it
        replace(scan, repos=mine).delete_revisions(found.commit).execute()
    path.unlink(missing_ok=True)


def in_use(name: str) -> bool:
    """Whether something kept is being fetched here, or in memory."""
    return bool(_using[name]) or any(name in held() for held in HELD)


def make_room(bytes: int, what: str) -> None:
    """Delete the longest unused downloads until there is room for so many bytes, on the disk and under the limit.

    Raises:
        Unsuitable: there is none even so.
    """
    limit, cache = settings.SETTINGS.hub_bytes, _cache()
    cache.mkdir(parents=True, exist_ok=True)
    for left in cache.glob("models--*/blobs/*.actiscope.incomplete"):  # nobody went on with it for a week
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > 7 * 86400:
                left.unlink()
    here = kept()
    total = sum(each.bytes for each in here)
    for each in here:
        if shutil.disk_usage(cache).free >= bytes + SPARE and (not limit or total + bytes <= limit):
            break
        if time.time() - each.used >= BUSY and not in_use(each.name):
            each.drop()
            total -= each.bytes
    if limit and total + bytes > limit:
        raise Unsuitable(
            f"{what} needs {said(bytes)} of disk, and {said(limit)} is what downloads may take here; the rest is in "
            "use. Try again later, or take a smaller one."
        )
    if (free := shutil.disk_usage(cache).free) < bytes + SPARE:
        raise Unsuitable(f"{what} needs {said(bytes)} of disk, and {said(max(0, free - SPARE))} is free here.")


def said(bytes: float) -> str:
    """A size in words: 1.2 GB."""
    for unit, size in (("GB", 2**30), ("MB", 2**20), ("KB", 2**10)):
        if bytes >= size:
            return f"{bytes / size:.1f} {unit}" if bytes < 10 * size else f"{bytes / size:,.0f} {unit}"
    return f"{bytes:.0f} bytes"
