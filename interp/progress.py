"""Progress, cancellation and deadlines of long work, without knowing who shows them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


class Cancelled(Exception):
    """The work was stopped: by the person, because they moved on, or because its deadline passed."""


@dataclass(frozen=True)
class Progress:
    """How far the work is: `done` of `total` steps after `seconds`; `left` is the estimate of the seconds to come."""

    label: str
    done: int
    total: int
    seconds: float

    @property
    def left(self) -> float | None:
        """Seconds to come if the remaining steps are as slow as those done; None before the first."""
        return self.seconds / self.done * (self.total - self.done) if self.done else None


@dataclass
class Meter:
    """What a run has cost so far: forwards counted in examples, and backwards."""

    forwards: float = 0
    backwards: float = 0


@dataclass(frozen=True)
class _Watch:
    report: Callable[[Progress], None] | None = None
    cancel: threading.Event | None = None
    deadline: float | None = None
    pause: Callable[[], None] | None = None
    outer: _Watch | None = None


_WATCH: ContextVar[_Watch | None] = ContextVar("watch", default=None)
_METERS: ContextVar[tuple[Meter, ...]] = ContextVar("meters", default=())


@contextmanager
def watch(
    report: Callable[[Progress], None] | None = None,
    cancel: threading.Event | None = None,
    seconds: float | None = None,
    pause: Callable[[], None] | None = None,
) -> Iterator[None]:
    """Receive the progress of the work inside, let `cancel.set()` stop it, and stop it after `seconds`.

    `report` may raise to stop the work too. `pause` is called before every module of a forward, and may sleep there.
    Watches nest: an outer cancel, deadline or pause also holds inside.
    """
    deadline = None if seconds is None else time.monotonic() + seconds
    token = _WATCH.set(_Watch(report, cancel, deadline, pause, _WATCH.get()))
    try:
        yield
    finally:
        _WATCH.reset(token)


@contextmanager
def meter() -> Iterator[Meter]:
    """Count the forwards and backwards of the work inside."""
    mine = Meter()
    token = _METERS.set((*_METERS.get(), mine))
    try:
        yield mine
    finally:
        _METERS.reset(token)


def spent(forwards: float = 0, backwards: float = 0) -> None:
    """Add to every meter in force."""
    for each in _METERS.get():
        each.forwards += forwards
        each.backwards += backwards


def check() -> None:
    """Raise `Cancelled` if the work in this context should stop. Called before every module of a forward."""
    each = _WATCH.get()
    while each is not None:
        if each.pause is not None:
            each.pause()
        if each.cancel is not None and each.cancel.is_set():
            raise Cancelled("Stopped.")
        if each.deadline is not None and time.monotonic() > each.deadline:
            raise Cancelled("This took longer than allowed here; choose a cheaper setting.")
        each = each.outer


def track(steps: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Go through `steps`, reporting progress before each and at the end, and stopping where asked to.

    The body runs in the caller, so nothing here sets a context variable between two steps.
    """
    if total is None:
        total = len(steps)  # type: ignore[arg-type]
    start = time.monotonic()
    done = 0
    for step in steps:
        _tell(Progress(label, done, total, time.monotonic() - start))
        yield step
        done += 1
    _tell(Progress(label, done, total, time.monotonic() - start))


def _tell(progress: Progress) -> None:
    check()
    each = _WATCH.get()
    while each is not None:
        if each.report is not None:
            each.report(progress)
        each = each.outer


_alone: dict[str, tuple[threading.Lock, list[int]]] = {}
_alone_lock = threading.Lock()


@contextmanager
def alone(name: str) -> Iterator[None]:
    """One at a time for a name; whoever asks for the same meanwhile waits, and can be stopped."""
    with _alone_lock:
        lock, count = _alone.setdefault(name, (threading.Lock(), [0]))
        count[0] += 1
    try:
        while not lock.acquire(timeout=0.1):
            check()
        try:
            yield
        finally:
            lock.release()
    finally:
        with _alone_lock:
            count[0] -= 1
            if not count[0]:
                _alone.pop(name, None)
