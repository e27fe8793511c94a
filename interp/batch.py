"""Large work in shards: run here, in processes or on Ray, to the same numbers; what was cut off goes on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import weakref
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TextIO

import numpy as np
import torch
from safetensors.numpy import load

from interp import Unsuitable, hooks, progress, store
from interp._executors import Executor, Inline, Pool, Ray
from interp.model import Model

On = Literal["inline", "pool", "ray"]
Arrays = dict[str, np.ndarray]
MANIFEST = "manifest.jsonl"
_EXECUTOR: ContextVar[Executor | None] = ContextVar("executor", default=None)


class Job(Protocol):
    """Work that can be cut into shards: a frozen dataclass of plain values that can be pickled, from a module.

    A worker gets the job as it was pickled after `shards()`: what that found out, in a cached_property, goes with it.
    """

    @property
    def key(self) -> str:
        """A sha256 of all that the numbers depend on: the digests of model and data, settings, version, seed."""

    @property
    def name(self) -> str:
        """What is being done, for people; the label of the progress."""

    def shards(self) -> int:
        """Into how many shards it is cut, whatever runs them. Called once, by whoever runs the job."""

    def shard(self, number: int) -> Arrays:
        """The numbers of one shard, which depend on nothing but the job and `number`: randomness comes from a generator
        of its own, seeded by both. It runs on the unchanged model; an Unsuitable from here reaches the caller."""

    def joined(self, parts: Iterator[Arrays]) -> Any:
        """What the job returns, from all shards in order. They are read one at a time, so it keeps what it needs."""


def run(job: Job, on: On | None = None, workers: int | None = None, keep: bool | str | Path = False) -> Any:
    """Run the shards of a job that are not there yet, and join them.

    Every finished shard lies on the disk with its sha256 in a manifest, before the next is asked for: whatever is
    cancelled, killed or loses power, the same call goes on with the rest, and a shard that was damaged is done again.
    Each runs on one torch thread in "pool" and "ray", to the same bits; so it does "inline" after
    `torch.set_num_threads(1)`.

    Args:
        on: "inline": here, one after another. "pool": in processes of this machine. "ray": in those of Ray, started
            on this machine or found by $RAY_ADDRESS (needs requirements-scale.txt; never use it in the app's process).
            None: what `executor` says, otherwise inline.
        workers: how many at once; as many as there are cores unless given.
        keep: a folder in which the shards (NNNNN.safetensors) and manifest.jsonl stay; True: in the store's, which is
            otherwise deleted when they are joined.

    Returns:
        What `job.joined` returns.

    Raises:
        Unsuitable: what the job raised; a worker that ended in the same shard three times; a folder of another job.
    """
    folder = store.folder() / "batch" / job.key if isinstance(keep, bool) else Path(keep).expanduser()
    with ExitStack() as stack:
        stack.enter_context(_held(folder))
        total = job.shards()
        kept = stack.enter_context(closing(_Kept(folder, job, total)))
        missing = [number for number in range(total) if not kept.holds(number)]
        made = _EXECUTOR.get() if on is None else None
        if made is None:
            made = stack.enter_context(closing(_executor(on or "inline", workers)))

        def written() -> Generator[None]:
            with closing(made.results(job, missing)) as results:
                for number, data in results:
                    kept.add(number, data)
                    yield  # written before a cancel is looked at

        with closing(written()) as steps:
            for _ in progress.track(steps, job.name, len(missing)):
                pass
        with hooks.alone():
            value = job.joined(kept.parts())
        if keep is False:
            shutil.rmtree(folder)
        return value


@contextmanager
def executor(on: On = "inline", workers: int | None = None) -> Iterator[None]:
    """Let `run` in this block, wherever it is called, run jobs there; workers stay for the next job."""
    with closing(_executor(on, workers)) as made:
        token = _EXECUTOR.set(made)
        try:
            yield
        finally:
            _EXECUTOR.reset(token)


def elsewhere() -> bool:
    """Whether `run` would send jobs to other processes: then it is worth cutting work into shards."""
    return not isinstance(_EXECUTOR.get(), Inline | None)


def _executor(on: str, workers: int | None) -> Executor:
    kinds: dict[str, type[Executor]] = {"inline": Inline, "pool": Pool, "ray": Ray}
    if on not in kinds:
        raise Unsuitable(f"Work runs inline, in a pool or on ray, not on {on[:40]!r}.")
    if workers is not None and not 1 <= workers <= 10_000:
        raise Unsuitable(f"The workers are a number from 1, not {workers}.")
    return kinds[on](workers)


# ------------------------------------------------------------------------------------------------------- on the disk


class _Kept:
    """The shards of a job that lie in a folder, with their sums in its manifest."""

    def __init__(self, folder: Path, job: Job, total: int) -> None:
        self.folder, self.total = folder, total
        path = folder / MANIFEST
        lines = []
        for line in path.read_bytes().split(b"\n") if path.exists() else ():
            try:
                lines.append(json.loads(line))
            except ValueError:  # cut off while it was written
                continue
        if not lines and any(folder.glob("*.safetensors")):
            raise Unsuitable(f"{folder.name} holds files of something else; choose another folder.")
        if lines and lines[0].get("key") != job.key:
            raise Unsuitable(f"{folder.name} holds the shards of another job; choose another folder.")
        self.sums = {int(line["shard"]): str(line["sha256"]) for line in lines if "shard" in line}
        torn = path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n")
        self.file: TextIO = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed by close)
        if torn:
            self.file.write("\n")
        if not lines:
            self._append({"key": job.key, "name": job.name, "shards": total})

    def close(self) -> None:
        self.file.close()

    def _append(self, line: dict[str, Any]) -> None:
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()
        os.fsync(self.file.fileno())

    def path(self, number: int) -> Path:
        return self.folder / f"{number:05d}.safetensors"

    def holds(self, number: int) -> bool:
        """Whether that shard is there, as it was written."""
        progress.check()
        try:
            with open(self.path(number), "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == self.sums.get(number)
        except FileNotFoundError:
            return False

    def add(self, number: int, data: bytes) -> None:
        path = self.path(number)
        new = path.with_suffix(".new")
        with open(new, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
        self.sums[number] = hashlib.sha256(data).hexdigest()
        self._append({"shard": number, "file": path.name, "bytes": len(data), "sha256": self.sums[number]})

    def parts(self) -> Iterator[Arrays]:
        for number in range(self.total):
            progress.check()
            yield load(self.path(number).read_bytes())


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """One run in a folder at a time, of this process or another; whoever comes meanwhile waits."""
    try:
        import fcntl
    except ImportError:  # Windows
        folder.mkdir(parents=True, exist_ok=True)
        yield
        return
    path = folder / "lock"
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError, BlockingIOError), ExitStack() as stack:
            file = stack.enter_context(open(path, "w"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):  # else the run before deleted it meanwhile
                held = stack.pop_all()
                break
        progress.check()
        time.sleep(0.1)
    with held:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------- models of workers


@dataclass(frozen=True)
class Origin:
    """Where a model comes from: what a job holds in its place, so that another process can load the same one."""

    name: str
    digest: str
    device: str = "cpu"
    dtype: str = "float32"

    @staticmethod
    def of(model: Model) -> Origin:
        """Of a model from `zoo.load`; one that was made otherwise can only be found again in this process."""
        from interp import zoo

        with zoo._lock:
            keys = [key for key, each in zoo._alive.items() if each is model]
        if keys:
            name, device, dtype = keys[0]
            return Origin(name, model.digest, device, dtype.removeprefix("torch."))
        _here[model.digest] = model
        return Origin("", model.digest)

    def load(self) -> Any:
        """The model.

        Raises:
            Unsuitable: it can't be loaded here, or has changed.
        """
        from interp import zoo

        if not self.name:
            return _here[self.digest]
        model = zoo.load(self.name, self.device, getattr(torch, self.dtype))
        if model.digest != self.digest:
            raise Unsuitable(f"{model.name} has changed since this work was begun; begin it anew.")
        return model

    def __getstate__(self) -> dict[str, Any]:
        if not self.name:  # said before any worker is started
            raise Unsuitable("A model made in memory can't be sent to workers; save it, and load it by zoo.load.")
        return self.__dict__


_here: weakref.WeakValueDictionary[str, Model] = weakref.WeakValueDictionary()
