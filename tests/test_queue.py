"""The fair queue: who goes first, what is said before, what is refused, what ends. The clock is moved by the work."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from interp import progress, queue, settings
from interp.queue import Full, Hours, Queue, Run, Shares


class Clock:
    def __init__(self) -> None:
        self.now = 10_000.0

    def __call__(self) -> float:
        return self.now


@dataclasses.dataclass(eq=False, kw_only=True)
class Work(Run):
    """Takes `takes` seconds of the clock, and calls `then` when it is over."""

    clock: Clock
    log: list[Any]
    name: Any
    takes: float = 1.0
    then: Callable[[], object] = lambda: None

    def work(self) -> None:
        self.log.append((self.name, self.clock.now))
        self.clock.now += self.takes
        for each in list(self.wanted):  # the page still asks
            self.wanted[each] = self.clock.now
        self.then()


class World:
    """A queue of one worker whose clock moves only by work, and what it did in which order."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.queue = Queue(2, self.clock)
        self.log: list[tuple[Any, float]] = []
        self.gate = threading.Event()
        self.begun = threading.Event()
        self.runs: list[Work] = []

    def ask(self, visitor: str, name: Any = None, takes: float = 1.0, cost: float | None = None, **more: Any) -> Work:
        run = Work(
            clock=self.clock, log=self.log, name=visitor if name is None else name, takes=takes,
            cost=takes if cost is None else cost, **more,
        )  # fmt: skip
        self.runs.append(run)
        self.queue.put(run, visitor)
        return run

    def hold(self) -> None:
        """Keep the worker busy until `go`, without any time passing, on nobody's account."""

        def stay() -> None:
            self.begun.set()
            self.gate.wait(10)

        self.ask("gate", takes=0.0, then=stay)
        assert self.begun.wait(10)

    def go(self, until: int = 0) -> list[Any]:
        """Let it work until all is done (or so many are), and give the names in their order."""
        self.gate.set()
        end = time.monotonic() + 20
        while time.monotonic() < end:
            state = self.queue.state()
            if not state["waiting"] + state["running"] or (until and len(self.log) >= until):
                break
            for each in self.runs:
                for visitor in list(each.wanted):
                    each.wanted[visitor] = self.clock.now
            time.sleep(0.001)
        else:
            raise AssertionError("the queue does not get done")
        return [name for name, _ in self.log if name != "gate"]


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def put(**values: Any) -> None:
        monkeypatch.setattr(settings, "SETTINGS", dataclasses.replace(settings.SETTINGS, **values))

    return put


@pytest.fixture
def world(limits: Any, monkeypatch: pytest.MonkeyPatch) -> World:
    limits(heavy=1, waiting=0, visitor_waiting=0, visitor_seconds=0.0)
    monkeypatch.setattr(queue, "SILENT", 1e9)
    return World()


@pytest.mark.parametrize("cost", [10.0, 0.1])
def test_a_flood_of_one_delays_another_by_the_run_under_way_alone(world: World, cost: float) -> None:
    """Whatever was expected of the runs."""
    world.hold()
    world.ask("flood", 0, 10, cost, then=lambda: None)
    first = world.runs[-1]
    for number in range(1, 30):
        world.ask("flood", number, 10, cost)
    first.then = lambda: world.ask("other", "other", 10, cost)
    assert world.go()[:3] == [0, "other", 1]


def test_shares_of_visitors_who_always_want_more_become_equal(world: World) -> None:
    sizes = {"large": 30.0, "middle": 7.0, "small": 1.0}
    spent = dict.fromkeys(sizes, 0.0)

    def again(name: str) -> None:
        spent[name] += sizes[name]
        if sum(spent.values()) < 2000:
            world.ask(name, name, sizes[name], then=lambda: again(name))

    world.hold()
    for name, size in sizes.items():
        for _ in range(2):
            world.ask(name, name, size, then=lambda name=name: again(name))
    world.go()
    assert max(spent.values()) < 1.35 * min(spent.values()), spent


def test_nobody_waits_for_ever_behind_newcomers(world: World) -> None:
    """Who used 100 s goes before those who come 500 s later."""
    world.hold()
    world.ask("old", "old", 100)
    count = 0

    def next_one() -> None:
        nonlocal count
        count += 1
        if count < 200:
            world.ask(f"new {count}", count, 5, then=next_one)

    def begin() -> None:
        world.ask("old", "again", 5)
        next_one()
        next_one()

    world.runs[-1].then = begin
    order = world.go()
    assert 2 < order.index("again") < 100, order.index("again")


def test_ones_own_work_goes_in_the_order_of_asking(world: World) -> None:
    world.hold()
    for number in range(12):
        world.ask("one", number, random.Random(number).uniform(0.1, 9))
    assert world.go() == list(range(12))


def test_what_several_want_is_done_once_has_the_best_place_and_counts_for_each(world: World) -> None:
    world.hold()
    world.ask("flood", "before", 10)
    world.ask("flood", "mine", 10)
    shared = world.ask("flood", "shared", 10)
    world.queue.want(shared, "other")
    assert world.queue.place(shared).before == 1  # type: ignore[union-attr]
    assert world.go() == ["before", "shared", "mine"]
    shares = world.queue._long
    assert shares.used("other", world.clock.now) == pytest.approx(5, rel=0.1)
    assert shares.used("flood", world.clock.now) == pytest.approx(25, rel=0.1)


@pytest.mark.parametrize("seed", range(6))
def test_the_place_that_is_told_is_the_one_it_gets(world: World, seed: int) -> None:
    chance = random.Random(seed)
    world.hold()
    for number in range(15):
        world.ask(chance.choice("abcd"), number, chance.uniform(1, 9))
    waiting = world.runs[1:]
    told = {run.name: world.queue.place(run) for run in waiting}
    began = world.clock.now
    order = world.go()
    assert order == sorted(told, key=lambda name: told[name].before)  # type: ignore[union-attr]
    for name, at in world.log[1:]:
        assert at - began == pytest.approx(told[name].seconds, abs=1e-6)  # type: ignore[union-attr]
    assert all(world.queue.place(run) is None for run in waiting)


def test_two_workers_halve_the_time_that_is_told(world: World, limits: Any) -> None:
    limits(heavy=2)
    held = World()
    held.hold()
    held.begun.clear()
    held.hold()
    for number in range(4):
        held.ask(f"visitor {number}", number, 10)
    assert [held.queue.place(run).seconds for run in held.runs[2:]] == [0, 0, 10, 10]  # type: ignore[union-attr]
    held.go()


def test_a_full_queue_says_when_to_try_again(world: World, limits: Any) -> None:
    limits(waiting=3, visitor_waiting=2)
    world.hold()
    world.ask("one", takes=40)
    world.ask("one", takes=40)
    with pytest.raises(Full, match=r"You have 2 long runs waiting, .* try again in .* Nothing is lost") as share:
        world.ask("one")
    world.ask("two", takes=40)
    with pytest.raises(Full, match=r"The queue is full: 3 .* Nothing is lost") as full:
        world.ask("three")
    assert (share.value.reason, full.value.reason) == ("share", "queue")
    assert world.queue.counts["refused_share"] == world.queue.counts["refused_queue"] == 1
    world.queue.leave(world.runs[1], "one")  # a place is free at once
    world.ask("three")
    world.go()


def test_an_hour_of_computing_is_used_up_and_comes_back(world: World, limits: Any) -> None:
    limits(visitor_seconds=100.0)
    world.ask("one", takes=60)
    world.go()
    world.clock.now += 600
    world.ask("one", takes=60)
    world.go()
    with pytest.raises(Full, match=r"used the 2 minutes .* more in 4[0-9] minutes.* opens as ever") as refused:
        world.ask("one")
    assert refused.value.reason == "hour"
    with pytest.raises(Full), world.queue.turn("one"):
        raise AssertionError("short work counts too")
    world.ask("two")  # others are not touched
    world.clock.now += 3600 - 600
    world.ask("one")  # the first 60 s lie more than an hour back
    assert len(world.go()) == 4


def test_two_sessions_on_one_account_share_its_hour(world: World, limits: Any) -> None:
    limits(visitor_seconds=50.0)
    run = Work(clock=world.clock, log=world.log, name="a", takes=60)
    world.queue.put(run, "session 1", "address")
    world.go()
    with pytest.raises(Full):
        world.queue.put(Work(clock=world.clock, log=world.log, name="b"), "session 2", "address")
    with world.queue.turn("session 3", "another address"):
        pass


def test_who_leaves_still_pays_for_what_was_computed(world: World) -> None:
    world.ask("one", takes=60)
    world.runs[0].then = lambda: world.queue.leave(world.runs[0], "one")
    world.go()
    assert world.queue._long.used("one", world.clock.now) == pytest.approx(60)
    assert world.queue._hours.wait("one", 50, world.clock.now) > 0


def test_an_hour_slides_by_minutes() -> None:
    hours = Hours()
    for minute in range(10):
        hours.add("a", 10, 60 * minute + 30)
    assert hours.wait("a", 101, 600) == 0
    assert hours.wait("a", 100, 600) == 3600 - 600  # the first minute has to go
    assert hours.wait("a", 60, 600) == 3600 + 4 * 60 - 600
    assert hours.wait("a", 100, 3600) == 0
    assert hours.wait("b", 1, 600) == 0


def test_nothing_grows_with_the_number_of_visitors() -> None:
    shares, hours = Shares(300), Hours()
    for number in range(20_000):
        shares.add([f"visitor {number}"], 0.5, 10.0 * number)
        hours.add(f"visitor {number}", 0.5, 10.0 * number)
    assert len(shares._used) == len(shares._served) <= 600 and len(hours._minutes) <= 600


def test_lately_means_lately() -> None:
    shares = Shares(300)
    shares.add(["a", "b"], 10, 0)
    shares.add(["a"], 10, 300)
    assert shares.used("a", 300) == pytest.approx(12.5) and shares.used("b", 600) == pytest.approx(1.25)


# ------------------------------------------------------------------------------------------------------------- leaving


def test_who_goes_silent_frees_place_and_worker(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "SILENT", 6.0)
    ended: list[str] = []

    class Endless(Work):
        def work(self) -> None:
            self.log.append((self.name, 0.0))
            try:
                while True:
                    progress.check()
                    time.sleep(0.002)
            except progress.Cancelled:
                ended.append(self.name)

        def dropped(self) -> None:
            ended.append(self.name)

    running, waiting = (Endless(clock=world.clock, log=world.log, name=name) for name in ("running", "waiting"))
    world.queue.put(running, "one")
    while not world.log:
        time.sleep(0.001)
    world.queue.put(waiting, "two")
    world.clock.now += 5.9
    world.queue.want(running, "one")
    world.queue.sweep()
    assert ended == [] and world.queue.place(waiting) is not None
    world.clock.now += 0.2
    world.queue.sweep()
    assert world.queue.place(waiting) is None and ended == ["waiting"]
    world.clock.now += 6
    end = time.monotonic() + 5
    while world.queue.state()["running"] and time.monotonic() < end:
        time.sleep(0.002)
    assert ended == ["waiting", "running"] and not running.wanted.keys() - {"one"}


def test_cancel_ends_a_run_within_a_second_and_a_wait_at_once(world: World) -> None:
    begun = threading.Event()

    class Endless(Work):
        def work(self) -> None:
            begun.set()
            while True:
                progress.check()
                time.sleep(0.002)

    runs = [Endless(clock=world.clock, log=world.log, name=name) for name in "ab"]
    for run in runs:
        world.queue.put(run, "one")
        world.queue.want(run, "two")
    assert begun.wait(5)
    for run in runs:
        world.queue.leave(run, "one")
    assert world.queue.state()["waiting"] == 1 and not runs[0].cancel.is_set()  # another wants it
    start = time.monotonic()
    for run in reversed(runs):
        world.queue.leave(run, "two")
    assert world.queue.state()["waiting"] == 0
    while world.queue.state()["running"]:
        time.sleep(0.002)
    assert time.monotonic() - start < 1


def test_the_dearest_is_stopped_with_a_sentence_and_closing_tells_all(world: World, limits: Any) -> None:
    limits(heavy=2)

    class Endless(Work):
        def work(self) -> None:
            self.log.append((self.name, 0.0))
            with contextlib.suppress(progress.Cancelled):
                while True:
                    progress.check()
                    time.sleep(0.002)

    assert not world.queue.stop_dearest("none runs")
    runs = [Endless(clock=world.clock, log=world.log, name=str(cost), cost=cost) for cost in (5.0, 50.0, 1.0)]
    for run in runs:
        world.queue.put(run, "one")
    while len(world.log) < 2:
        time.sleep(0.001)
    dear = max((run for run in runs if run.started is not None), key=lambda run: run.cost)
    assert world.queue.stop_dearest("Short of memory.") and dear.reason == "Short of memory." and dear.cancel.is_set()
    world.queue.close("Closing.")
    assert {run.reason for run in runs} == {"Short of memory.", "Closing."}
    with pytest.raises(Full, match=r"Closing\.") as refused:
        world.queue.put(Work(clock=world.clock, log=world.log, name="late"), "two")
    assert refused.value.reason == "closing"
    world.go()


def test_a_run_that_fails_costs_no_worker(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.ask("one", "fails", then=lambda: 1 / 0)
    assert world.go() == ["fails"] and "A long run failed" in caplog.text
    world.ask("one", "next")
    assert world.go() == ["fails", "next"]


def test_workers_come_and_go(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "IDLE", 0.01)
    for number in range(5):
        world.ask("one", number)
        world.go()
        end = time.monotonic() + 5
        while world.queue._workers and time.monotonic() < end:
            time.sleep(0.005)
        assert world.queue._workers == 0
    for number in range(80):  # asked while workers are about to end: none is forgotten
        world.ask("one", number)
        time.sleep(0.0004 * (number % 40))
    assert len(world.go()) == 85


# ---------------------------------------------------------------------------------------------------------- short work


def test_no_more_turns_at_once_than_cores_and_all_get_theirs() -> None:
    turns, now, most = Queue(3), 0, 0
    lock = threading.Lock()

    def work(visitor: str) -> None:
        nonlocal now, most
        for _ in range(5):
            with turns.turn(visitor):
                with lock:
                    now += 1
                    most = max(most, now)
                time.sleep(0.001)
                with lock:
                    now -= 1

    threads = [threading.Thread(target=work, args=(f"visitor {number % 7}",)) for number in range(20)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(20)
    assert most == 3 and now == 0
    assert turns.state() == {"waiting": 0, "running": 0, "waiting_cheap": 0, "running_cheap": 0}


def test_turns_go_by_the_same_rule_and_one_may_give_up() -> None:
    clock, order = Clock(), list[str]()
    turns = Queue(1, clock)
    asked: list[threading.Thread] = []

    def take(visitor: str, name: str) -> None:
        with turns.turn(visitor):
            order.append(name)
            clock.now += 1

    def wait_for(number: int) -> None:
        while turns.state()["waiting_cheap"] < number:
            time.sleep(0.001)

    class Moved(BaseException):
        pass

    def give_up() -> None:
        raise Moved

    with turns.turn("gate"):
        for number in range(3):
            asked.append(threading.Thread(target=take, args=("flood", f"flood {number}")))
            asked[-1].start()
            wait_for(number + 1)
        asked.append(threading.Thread(target=take, args=("other", "other")))
        asked[-1].start()
        wait_for(4)
        with turns.turn("gate", idle=give_up):  # inside its own turn it does not wait for another
            order.append("inside")
        leaver = threading.Thread(target=lambda: gone.append(_raises(Moved, turns, give_up)))
        gone: list[bool] = []
        leaver.start()
        leaver.join(5)
        assert gone == [True] and turns.state()["waiting_cheap"] == 4
    for each in asked:
        each.join(10)
    assert order == ["inside", "flood 0", "other", "flood 1", "flood 2"]


def _raises(kind: type[BaseException], turns: Queue, idle: Callable[[], None]) -> bool:
    try:
        with turns.turn("leaver", idle=idle):
            return False
    except kind:
        return True


def test_short_work_that_turns_out_long_gives_its_turn_away() -> None:
    clock = Clock()
    turns, got = Queue(1, clock), threading.Event()

    def other() -> None:
        with turns.turn("other"):
            got.set()

    with turns.turn("one"):
        thread = threading.Thread(target=other)
        thread.start()
        progress.check()
        assert not got.wait(0.02)
        clock.now += queue.OVERDUE + 0.1
        progress.check()
        assert got.wait(5)
        thread.join()
    assert turns.state()["running_cheap"] == 0
    with turns.turn("one"):  # and it was given back once
        assert turns.state()["running_cheap"] == 1


def test_long_work_gives_way_to_short_but_gets_a_quarter_of_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "LONGEST_NAP", 1.0)
    turns, parts = Queue(1), list[tuple[float, float]]()
    quiet, busy, over = threading.Event(), threading.Event(), threading.Event()

    class Long(Run):
        def work(self) -> None:
            for event in (quiet, busy):
                start = time.monotonic()
                before = self.napped
                while time.monotonic() - start < 0.2:
                    progress.check()
                    time.sleep(0.0005)
                parts.append((time.monotonic() - start, self.napped - before))
                event.set()
                if event is quiet:
                    over.wait(5)

    run = Long()
    turns.put(run, "one")
    assert quiet.wait(5)
    with turns.turn("two"):
        over.set()
        assert busy.wait(5)
    (_, none), (whole, napped) = parts
    assert none == 0 and 0.4 < napped / whole <= 0.85, parts
