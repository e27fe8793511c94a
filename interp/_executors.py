"""Where shards run: here, in processes of this machine, or on Ray. Each gives back (number, bytes) as they are done."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import signal
import tempfile
import threading
import traceback
from collections import Counter, deque
from collections.abc import Generator, Sequence
from contextlib import suppress
from multiprocessing import connection
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.numpy import save

from interp import Unsuitable, hooks, progress

Results = Generator[tuple[int, bytes]]
TRIES = 3
"""How often a shard is begun whose worker ends."""
STOREROOM = 256 * 2**20
"""Bytes that a Ray of one's own keeps of results in memory; more goes to the disk."""


class Executor(Protocol):
    """Runs shards of jobs, until it is closed."""

    def __init__(self, workers: int | None) -> None: ...

    def results(self, job: Any, numbers: Sequence[int]) -> Results:
        """The shards of these numbers as safetensors bytes, in the order in which they are done."""

    def close(self) -> None:
        """End its workers."""


def computed(job: Any, number: int) -> bytes:
    """The bytes of one shard, on the unchanged model."""
    with hooks.alone():
        arrays = job.shard(number)
    # safetensors writes the memory as it lies, whatever the strides are
    return save({name: np.asarray(each, order="C") for name, each in sorted(arrays.items())})


class Inline:
    """In this thread, one after another."""

    def __init__(self, workers: int | None) -> None:
        pass

    def results(self, job: Any, numbers: Sequence[int]) -> Results:
        for number in numbers:
            yield number, computed(job, number)

    def close(self) -> None:
        pass


# ---------------------------------------------------------------------------------------------------------- processes


class _Worker:
    """A process with a pipe to it, and the shard that it is at."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), name="shards")
        self.process.start()
        theirs.close()  # or its end would not be noticed
        self.number: int | None = None
        self.told: str | None = None

    def begin(self, job: Any, pickled: bytes, number: int) -> None:
        self.number = number
        with suppress(OSError):  # it has ended, which `results` will notice
            self.pipe.send((None if self.told == job.key else pickled, number))
        self.told = job.key

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


class Pool:
    """In processes of this machine, one torch thread in each; one that ends is replaced, and its shard begun again.

    `concurrent.futures` gives up all that is running when one process dies, and does not say in which shard it did.
    """

    def __init__(self, workers: int | None) -> None:
        self.size = (
            workers or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()) or os.cpu_count() or 1
        )
        self.workers: list[_Worker] = []

    def results(self, job: Any, numbers: Sequence[int]) -> Results:
        waiting, tries = deque(numbers), Counter[int]()
        pickled = pickle.dumps(job) if numbers else b""
        try:
            while waiting or any(each.number is not None for each in self.workers):
                for worker in self.workers:
                    if waiting and worker.number is None:
                        worker.begin(job, pickled, waiting.popleft())
                while waiting and len(self.workers) < self.size:
                    self.workers.append(_Worker())
                    self.workers[-1].begin(job, pickled, waiting.popleft())
                ready = connection.wait([each.pipe for each in self.workers if each.number is not None], 0.1)
                progress.check()
                for worker in [each for each in self.workers if each.pipe in ready]:
                    number = worker.number
                    assert number is not None
                    try:
                        result = worker.pipe.recv()
                    except (EOFError, OSError):
                        worker.end()
                        self.workers.remove(worker)
                        tries[number] += 1
                        if tries[number] == TRIES:
                            raise Unsuitable(_ended(job, number, worker.process.exitcode)) from None
                        waiting.appendleft(number)
                        continue
                    worker.number = None
                    if isinstance(result, Exception):
                        worker.told = None  # it may not have got as far as the job
                        raise result
                    yield number, result
        finally:
            for worker in [each for each in self.workers if each.number is not None]:  # nobody waits for what it does
                worker.end()
                self.workers.remove(worker)

    def close(self) -> None:
        for worker in self.workers:
            worker.end()
        self.workers.clear()


def _ended(job: Any, number: int, code: int | None) -> str:
    return (
        f"Shard {number} of {job.name} ended its process {TRIES} times"
        + ("" if code is None else f" (exit code {code})")
        + "; if memory ran out, use fewer workers."
    )


def _serve(pipe: Any) -> None:
    """What a worker does: shards, until its driver ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver gets it too, and ends this
    threading.Thread(target=_follow, daemon=True).start()
    torch.set_num_threads(1)
    job: Any = None
    while True:
        try:
            pickled, number = pipe.recv()
        except EOFError:
            return
        result: bytes | Exception
        try:
            job = job if pickled is None else pickle.loads(pickled)
            result = computed(job, number)
        except Exception as problem:
            result = _portable(problem)
        pipe.send(result)


def _follow() -> None:
    """End with the driver, even in the middle of a shard and if the driver was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _portable(problem: Exception) -> Exception:
    """The same exception if it can be sent, with where it was raised."""
    text = "".join(traceback.format_exception(problem))
    try:
        pickle.loads(pickle.dumps(problem))
    except Exception:  # whatever its constructor makes of it
        return RuntimeError(text)
    if not isinstance(problem, Unsuitable):
        problem.add_note(text)
    return problem


# ---------------------------------------------------------------------------------------------------------------- Ray


class Ray:
    """On Ray: the cluster at $RAY_ADDRESS, or one of this machine that ends with this."""

    def __init__(self, workers: int | None) -> None:
        try:
            import ray
        except ImportError:
            raise Unsuitable("Ray is not installed; pip install -r requirements-scale.txt.") from None
        self.ray, self.workers = ray, workers
        self.own: str | None = None

    def _start(self) -> None:
        if self.ray.is_initialized():
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        paths = [str(Path(__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        passed = {name: value for name, value in os.environ.items() if name.startswith("ACTISCOPE_")}
        passed |= {name: os.environ[name] for name in ("HF_HOME", "HF_HUB_OFFLINE") if name in os.environ}
        options: dict[str, Any] = {
            "runtime_env": {"env_vars": passed | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}},
            "log_to_driver": False, "logging_level": "ERROR",
        }  # fmt: skip
        if address := os.environ.get("RAY_ADDRESS"):
            options["address"] = address
        else:
            # sockets lie in it, whose paths are at most 107 characters
            self.own = tempfile.mkdtemp(prefix="ray", dir="/tmp" if os.path.isdir("/tmp") else None)
            options |= {"num_cpus": self.workers, "include_dashboard": False, "object_store_memory": STOREROOM}
            options |= {"_temp_dir": self.own}
        self.ray.init(**options)

    def results(self, job: Any, numbers: Sequence[int]) -> Results:
        if not numbers:
            return
        self._start()
        ray = self.ray
        task = ray.remote(num_cpus=1, max_retries=TRIES - 1)(_alone)
        shared = ray.put(job)
        waiting, running = deque(numbers), dict[Any, int]()
        try:
            size = self.workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
            while waiting or running:
                while waiting and len(running) < size:
                    number = waiting.popleft()
                    running[task.remote(shared, number)] = number
                ready, _ = ray.wait(list(running), timeout=0.1)
                progress.check()
                for each in ready:
                    number = running.pop(each)
                    try:
                        yield number, ray.get(each)
                    except ray.exceptions.RayTaskError as problem:
                        if isinstance(problem.cause, Exception):
                            raise problem.cause from None
                        raise
                    except ray.exceptions.RayError:
                        raise Unsuitable(_ended(job, number, None)) from None
        finally:
            for each in running:
                ray.cancel(each)  # by force it kills the process, in which Ray may have begun the next task meanwhile

    def close(self) -> None:
        if self.own is not None:
            self.ray.shutdown()
            shutil.rmtree(self.own, ignore_errors=True)
            self.own = None


def _alone(job: Any, number: int) -> bytes:
    torch.set_num_threads(1)
    try:
        return computed(job, number)
    except Exception as problem:
        raise _portable(problem) from None
