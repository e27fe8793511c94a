"""One fair queue for all computing that visitors ask for.

Short work takes a turn in the thread that asks, at most as many turns at once as there are cores. Long work is a `Run`,
done by a few workers. Both go by one rule:

    First goes whoever used the least computing lately: seconds of it count half after some time, what runs counts in
    full, and each second of waiting without being served counts as CREDIT seconds less. One visitor's own work goes in
    the order it was asked for.

So a flood of one visitor delays another by no more than what already runs, visitors who always want more get equal
shares of time, and nobody waits for ever: after used / CREDIT seconds no newcomer goes before. A run that several
visitors want is done once, is counted to them in equal parts, and has the best place of theirs.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar
from dataclasses import dataclass, field

from interp import Unsuitable, settings
from interp.progress import watch

SILENT = 6.0
"""Seconds after which a visitor who no longer asks for a run counts as gone."""
LATELY = 300.0
"""Seconds after which computing by long runs counts half; by short ones, a thirtieth of that."""
CREDIT = 0.1
"""What a second of waiting makes up for, in seconds of computing."""
OVERDUE = 2.0
"""Seconds after which short work that turns out to be long goes on as long work does, and gives its turn away."""
BREATH, NAP, LONGEST_NAP = 0.005, 3.0, 0.05
"""Long work looks around every so many seconds; where cores are short, it waits for short work to end, at most so many
times as long as it has worked since, and at most so many seconds at once. So it always gets a quarter of its time."""
IDLE = 5.0
"""Seconds after which a worker without work ends."""

_log = logging.getLogger("actiscope")
_serving: ContextVar[bool] = ContextVar("serving", default=False)


class Full(Unsuitable):
    """There is no place for this work now; the text says when to try again. reason: one word for what is counted."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True)
class Place:
    """How many runs go before one, and about how many seconds it is until it begins."""

    before: int
    seconds: float


@dataclass(eq=False, kw_only=True)
class Run:
    """Long work. It is dropped, or stopped, when everybody who wanted it has gone or gone silent.

    Args:
        cost: seconds expected. payers: on whose account each visitor's computing goes; themselves if left out.
        cancel: is set to stop it. reason: a sentence for the visitors where the server stopped it.
        left: seconds to come, once known.
    """

    cost: float = 1.0
    wanted: dict[str, float] = field(default_factory=dict)
    payers: dict[str, str] = field(default_factory=dict)
    cancel: threading.Event = field(default_factory=threading.Event)
    reason: str = ""
    left: float | None = None
    number: int = 0
    since: float = 0.0
    last: str = ""
    started: float | None = None
    breathed: float = 0.0
    napped: float = 0.0

    def work(self) -> None:
        """Do it. What it raises is logged and lost."""
        raise NotImplementedError

    def dropped(self) -> None:
        """It left the queue without having begun."""


@dataclass(eq=False)
class _Turn:
    wanted: dict[str, float]
    payer: str
    since: float
    granted: threading.Event = field(default_factory=threading.Event)
    started: float = 0.0
    late: bool = False
    breathed: float = 0.0
    napped: float = 0.0


@dataclass(frozen=True, order=True)
class _Planned:
    """A run in the forecast."""

    ends: float
    number: int
    cost: float
    wanted: dict[str, float]
    started: float


class Shares:
    """Seconds of computing that each visitor had lately; each counts half after `half` seconds."""

    def __init__(self, half: float) -> None:
        self.half = half
        self._used: dict[str, tuple[float, float]] = {}
        self._served: dict[str, float] = {}

    def copy(self) -> Shares:
        new = Shares(self.half)
        new._used, new._served = dict(self._used), dict(self._served)
        return new

    def used(self, visitor: str, now: float) -> float:
        seconds, at = self._used.get(visitor, (0.0, now))
        return seconds * 0.5 ** ((now - at) / self.half)

    def served(self, visitor: str) -> float:
        """When they last had some."""
        return self._served.get(visitor, -math.inf)

    def add(self, visitors: Iterable[str], seconds: float, now: float) -> None:
        visitors = list(visitors)
        for each in visitors:
            self._used[each] = (self.used(each, now) + seconds / len(visitors), now)
            self._served[each] = now
        if len(self._used) > 500:  # those whose share is as good as none
            gone = [each for each in self._used if self.used(each, now) < 0.01 and now - self._served[each] > 60]
            for each in gone:
                del self._used[each], self._served[each]


class Hours:
    """Seconds of computing in the hour that ends now, by account, forgotten minute by minute."""

    def __init__(self) -> None:
        self._minutes: dict[str, dict[int, float]] = {}

    def add(self, account: str, seconds: float, now: float) -> None:
        for name in list(self._minutes) if len(self._minutes) > 500 else [account]:
            kept = {at: used for at, used in self._minutes.pop(name, {}).items() if at > now // 60 - 60}
            if kept:
                self._minutes[name] = kept
        mine = self._minutes.setdefault(account, {})
        mine[int(now // 60)] = mine.get(int(now // 60), 0.0) + seconds

    def wait(self, account: str, most: float, now: float) -> float:
        """Seconds until less than `most` lies in the hour; 0 if so now."""
        kept = sorted((at, used) for at, used in self._minutes.get(account, {}).items() if at > now // 60 - 60)
        total, wait = sum(used for _, used in kept), 0.0
        for at, used in kept:
            if total < most:
                break
            total, wait = total - used, (at + 60) * 60 - now
        return wait


class Queue:
    """Turns for short work, workers for long work, and the account of both.

    `lock` guards all of it and may be held by who uses the queue; everything that is kept in a dictionary here is
    bounded. counts: what has been done, for the metrics.
    """

    def __init__(self, cores: int | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.lock = threading.RLock()
        self.clock, self.cores = clock, cores or settings.CORES
        self.counts: defaultdict[str, float] = defaultdict(float)
        self._ready = threading.Condition(self.lock)
        self._waiting: list[Run] = []
        self._running: list[Run] = []
        self._asking: list[_Turn] = []
        self._turns: list[_Turn] = []
        self._long, self._short, self._hours = Shares(LATELY), Shares(LATELY / 30), Hours()
        self._workers = self._number = 0
        self._closed = ""
        self._calm = threading.Event()
        self._calm.set()
        self._forecast: tuple[float, dict[Run, Place]] = (-math.inf, {})

    # ------------------------------------------------------------------------------------------------- short work

    @contextmanager
    def turn(self, visitor: str, payer: str = "", idle: Callable[[], object] = lambda: None) -> Iterator[None]:
        """A turn to compute in this thread. `idle` is called now and then while it waits, and may raise to give up.

        Work that turns out to be long gives its turn away and goes on beside the others, giving way to them.

        Raises:
            Full: the visitor's hour is used up.
        """
        if _serving.get():
            yield
            return
        turn = _Turn({visitor: 0.0}, payer or visitor, self.clock())
        with self.lock:
            self._refuse_account(turn.payer)
            if self._asking or len(self._turns) >= self.cores:
                self._asking.append(turn)
            else:
                self._grant(turn)
        try:
            while not turn.granted.wait(0.05):
                idle()
            token = _serving.set(True)
            try:
                with watch(pause=lambda: self._breathe_turn(turn)):
                    yield
            finally:
                _serving.reset(token)
        finally:
            self._give_back(turn)

    def _grant(self, turn: _Turn) -> None:
        turn.started = turn.breathed = self.clock()
        self._turns.append(turn)
        self._calm.clear()
        turn.granted.set()

    def _give_back(self, turn: _Turn) -> None:
        with self.lock:
            now = self.clock()
            if turn in self._asking:  # gave up
                self._asking.remove(turn)
            elif turn.granted.is_set():
                worked = now - turn.started - turn.napped
                self._short.add(turn.wanted, worked, now)
                self._hours.add(turn.payer, worked, now)
                self.counts["seconds_cheap"] += worked
            self._pass_on(turn)

    def _pass_on(self, turn: _Turn) -> None:
        if turn in self._turns:
            self._turns.remove(turn)
        while self._asking and len(self._turns) < self.cores:
            now = self.clock()
            best = min(self._asking, key=lambda each: self._score(self._short, each.wanted, each.since, {}, now))
            self._asking.remove(best)
            self._grant(best)
        if not self._turns:
            self._calm.set()

    def _breathe_turn(self, turn: _Turn) -> None:
        now = self.clock()
        if not turn.late and now - turn.started > OVERDUE:
            with self.lock:
                turn.late, turn.breathed = True, now
                self._pass_on(turn)
        if turn.late:
            self._breathe(turn, now)

    def _breathe(self, work: Run | _Turn, now: float) -> None:
        worked = now - work.breathed
        if worked < BREATH:
            return
        work.breathed = now
        if self._turns and len(self._turns) + len(self._running) > self.cores:
            self._calm.wait(min(NAP * worked, LONGEST_NAP))
            work.breathed = self.clock()
            work.napped += work.breathed - now

    # -------------------------------------------------------------------------------------------------- long work

    def put(self, run: Run, visitor: str, payer: str = "") -> None:
        """Wait for a worker.

        Raises:
            Full: no place in the queue, none of this visitor's, their hour is used up, or the server is closing.
        """
        limits = settings.SETTINGS
        with self.lock:
            now = self.clock()
            self.sweep()
            if self._closed:
                raise self._full("closing", self._closed)
            self._refuse_account(payer or visitor)
            own = sum(visitor in each.wanted for each in self._waiting)
            if limits.visitor_waiting and own >= limits.visitor_waiting:
                raise self._full(
                    "share",
                    f"You have {own} long run{'s'[: own != 1]} waiting, as many as one visitor may have here; "
                    f"try again in {spoken(self._next(now, visitor))}. Nothing is lost.",
                )
            if limits.waiting and len(self._waiting) >= limits.waiting:
                they = f"{len(self._waiting)} long run{'s wait' if len(self._waiting) > 1 else ' waits'}"
                raise self._full(
                    "queue",
                    f"The queue is full: {they}; try again in {spoken(self._next(now))}. Nothing is lost.",
                )
            self._number += 1
            run.number, run.since = self._number, now
            self.want(run, visitor, payer)
            self._waiting.append(run)
            self._forecast = (-math.inf, {})
            self._ready.notify()
            if self._workers < max(1, limits.heavy):
                self._workers += 1
                threading.Thread(target=self._worker, name="long run", daemon=True).start()

    def want(self, run: Run, visitor: str, payer: str = "") -> None:
        """Say that a visitor wants it, and still does."""
        with self.lock:
            if visitor not in run.wanted:
                self._forecast = (-math.inf, {})
            run.wanted[visitor] = self.clock()
            run.payers[visitor] = payer or visitor

    def leave(self, run: Run, visitor: str) -> None:
        """A visitor no longer wants it; it ends within a second unless another does."""
        with self.lock:
            run.last = visitor
            self._forecast = (-math.inf, {})
            if run.wanted.pop(visitor, None) is not None and run.wanted:
                run.payers.pop(visitor, None)  # the last to leave pays for what it took until then
            if not run.wanted:
                self._stop(run)

    def place(self, run: Run) -> Place | None:
        """How far it is from its turn; None where it does not wait."""
        with self.lock:
            if run not in self._waiting:
                return None
            now = self.clock()
            at, places = self._forecast
            if now - at > 0.5 or run not in places:
                self.sweep()
                self._forecast = at, places = now, self._places(now)
            found = places.get(run)
            return found and Place(found.before, max(0.0, found.seconds - (now - at)))

    def sweep(self) -> None:
        """Stop what nobody wants any more."""
        with self.lock:
            now = self.clock()
            for run in [*self._waiting, *self._running]:
                if all(now - last > SILENT for last in run.wanted.values()):
                    self._stop(run)

    def stop_dearest(self, reason: str) -> bool:
        """Stop the running long work that is expected to take the longest, with a sentence why; false if none runs."""
        with self.lock:
            running = [each for each in self._running if not each.cancel.is_set()]
            if not running:
                return False
            run = max(running, key=lambda each: each.cost)
            run.reason = reason
            run.cancel.set()
            return True

    def close(self, sentence: str, seconds: float = 0.0) -> None:
        """Refuse what is new with this sentence, drop what waits; what runs gets some seconds."""
        with self.lock:
            self._closed = sentence
            for run in list(self._waiting):
                run.reason = sentence
                self._stop(run)
            self._ready.notify_all()
        end = time.monotonic() + seconds
        while self._running and time.monotonic() < end:
            time.sleep(0.02)
        with self.lock:
            for run in self._running:
                run.reason = run.reason or sentence
                run.cancel.set()

    def state(self) -> dict[str, float]:
        """How much waits and runs now."""
        with self.lock:
            return {
                "waiting": len(self._waiting), "running": len(self._running), "waiting_cheap": len(self._asking),
                "running_cheap": len(self._turns),
            }  # fmt: skip

    def _stop(self, run: Run) -> None:
        run.cancel.set()
        if run in self._waiting:
            self._waiting.remove(run)
            self._forecast = (-math.inf, {})
            self.counts["left"] += 1
            run.dropped()

    def _worker(self) -> None:
        # of the same priority as all: a thread of a lower one is put aside while it holds the interpreter's lock, and
        # those it should give way to wait for it
        while (run := self._take()) is not None:
            try:
                Context().run(self._serve, run)
            except BaseException:
                _log.exception("A long run failed.")
            finally:
                self._ended(run)
                run = None  # an idle worker holds nothing

    def _take(self) -> Run | None:
        """The run that goes first; None where a worker has been idle for long or is one too many."""
        with self.lock:
            while True:
                if self._workers > max(1, settings.SETTINGS.heavy):
                    break
                self.sweep()
                if self._waiting:
                    now = self.clock()
                    run = self._first(self._waiting, self._long, self._loads(self._running, now), now)
                    self._waiting.remove(run)
                    self._running.append(run)
                    run.started = run.breathed = self.clock()
                    self._forecast = (-math.inf, {})
                    return run
                if self._closed or (not self._ready.wait(IDLE) and not self._waiting):
                    break
            self._workers -= 1
            return None

    def _serve(self, run: Run) -> None:
        _serving.set(True)

        def pause() -> None:
            now = self.clock()
            if now - run.breathed >= BREATH:
                if all(now - last > SILENT for last in run.wanted.copy().values()):
                    run.cancel.set()
                self._breathe(run, now)

        with watch(pause=pause, cancel=run.cancel):
            run.work()

    def _ended(self, run: Run) -> None:
        with self.lock:
            now = self.clock()
            self._running.remove(run)
            worked = now - (run.started or now) - run.napped
            self._long.add(run.wanted or [run.last], worked, now)
            accounts = set(run.payers.values())
            for each in accounts:
                self._hours.add(each, worked / len(accounts), now)
            self.counts["seconds_heavy"] += worked
            self.counts["seconds_napped"] += run.napped
            self._forecast = (-math.inf, {})

    # ---------------------------------------------------------------------------------------------------- the rule

    @staticmethod
    def _loads(running: Iterable[Run | _Planned], now: float) -> dict[str, float]:
        """Seconds that what runs counts for, by visitor."""
        loads = dict[str, float]()
        for run in running:
            for each in run.wanted:
                loads[each] = loads.get(each, 0.0) + max(run.cost, now - (run.started or now)) / len(run.wanted)
        return loads

    def _score(
        self, shares: Shares, wanted: dict[str, float], since: float, loads: dict[str, float], now: float
    ) -> float:
        """The least goes first."""
        return min(
            (
                shares.used(each, now) + loads[each]
                if each in loads
                else shares.used(each, now) - CREDIT * (now - max(since, shares.served(each)))
                for each in wanted
            ),
            default=math.inf,
        )

    def _first(self, runs: list[Run], shares: Shares, loads: dict[str, float], now: float) -> Run:
        return min(runs, key=lambda run: (self._score(shares, run.wanted, run.since, loads, now), run.number))

    def _places(self, now: float) -> dict[Run, Place]:
        """When each that waits would begin if all took what they are expected to, and nobody else came."""
        shares, rest, at = self._long.copy(), list(self._waiting), now
        running = [
            _Planned(now + max(self._rest(run, now), 0.0), run.number, run.cost, run.wanted, run.started or now)
            for run in self._running
        ]
        places = dict[Run, Place]()
        while rest:
            while running and (len(running) >= max(1, settings.SETTINGS.heavy) or min(running).ends <= at):
                first = min(running)
                running.remove(first)
                at = max(at, first.ends)
                shares.add(first.wanted, first.ends - first.started, first.ends)
            run = self._first(rest, shares, self._loads(running, at), at)
            rest.remove(run)
            places[run] = Place(len(places), at - now)
            running.append(_Planned(at + run.cost, run.number, run.cost, run.wanted, at))
        return places

    def _rest(self, run: Run, now: float) -> float:
        return run.left if run.left is not None else run.cost - (now - (run.started or now))

    def _next(self, now: float, visitor: str = "") -> float:
        """Seconds until a place (of a visitor) gets free."""
        places = self._places(now)
        return min((each.seconds for run, each in places.items() if not visitor or visitor in run.wanted), default=0.0)

    def _refuse_account(self, account: str) -> None:
        most = settings.SETTINGS.visitor_seconds
        wait = self._hours.wait(account, most, self.clock()) if most else 0.0
        if wait > 0:
            raise self._full(
                "hour",
                f"You have used the {spoken(most)} of computing that a visitor gets here in an hour; there is more in "
                f"{spoken(wait)}. Nothing is lost, and what has been computed before opens as ever.",
            )

    def _full(self, reason: str, text: str) -> Full:
        self.counts[f"refused_{reason}"] += 1
        return Full(reason, text)


def spoken(seconds: float) -> str:
    """A time as one says it."""
    if seconds < 90:
        return f"{max(1, math.ceil(seconds))} s"
    return f"{math.ceil(seconds / 60)} minutes"
