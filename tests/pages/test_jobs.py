"""What visitors are told of long runs, and that the queue changes nothing about results."""

from __future__ import annotations

import dataclasses
import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from interp import Unsuitable, memory, progress, queue, settings
from interp.experiment import Call, Experiment
from interp.queue import Full, Run
from interp.results import Text
from interp.samples import Image, Prompt
from pages.server import address
from pages.ui import jobs, show

ADDRESS = "203.0.113.7"
PROMPT, LENS = Prompt("a b c a"), Call("next_tokens")


@dataclasses.dataclass(frozen=True)
class Work:
    """In place of an experiment: what it does is given."""

    digest: str
    does: Callable[[], Any] = lambda: Text("done")
    model: str = "induction"
    sample: Prompt = PROMPT
    lens: Call = LENS

    def run(self) -> Any:
        return self.does()


class Gate(Run):
    """Another visitor's run, which stays until it is let go."""

    def __init__(self, cost: float = 20.0) -> None:
        super().__init__(cost=cost)
        self.begun, self.over = threading.Event(), threading.Event()

    def work(self) -> None:
        self.begun.set()
        self.over.wait(20)


@pytest.fixture(autouse=True)
def limits(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    def put(**values: Any) -> None:
        monkeypatch.setattr(settings, "SETTINGS", dataclasses.replace(settings.SETTINGS, **values))

    put(heavy=1)
    monkeypatch.setattr(address, "of_visit", lambda: ADDRESS)
    monkeypatch.setattr(queue, "SILENT", 60.0)
    fresh = queue.Queue()
    monkeypatch.setattr(jobs, "_queue", fresh)
    monkeypatch.setattr(jobs, "_lock", fresh.lock)
    monkeypatch.setattr(jobs, "_jobs", {})
    monkeypatch.setattr(jobs, "_results", type(jobs._results)())
    monkeypatch.setattr(jobs, "_kept_bytes", 0)
    monkeypatch.setattr(jobs, "_counts", type(jobs._counts)(float))
    monkeypatch.setattr(jobs, "estimate", lambda experiment: 5.0)
    yield put
    fresh.close("The test is over.")


@pytest.fixture
def gate() -> Iterator[Gate]:
    first = Gate()
    jobs._queue.put(first, "another visitor")
    assert first.begun.wait(10)
    yield first
    first.over.set()


def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def endless() -> None:
    while True:
        progress.check()
        time.sleep(0.002)


# ----------------------------------------------------------------------------------------------------------- sentences


def page() -> None:
    """A page that shows one experiment."""
    import streamlit as st

    from pages.ui import jobs, show

    jobs.begin()
    running: list[Any] = []
    work = st.session_state["work"]
    found = show.found(work, running)
    if found is not None:
        st.write(f"Result: {found.text}")
    if running:
        show.waiting(running, lambda: st.session_state.update({show.stopped(work): True}))
    jobs.end()


def opened(work: Work) -> AppTest:
    at = AppTest.from_function(page, default_timeout=60)
    at.session_state["work"] = work
    return at.run()


def told(at: AppTest) -> str:
    return str(at.get("progress")[0].proto.text)


def test_a_run_that_waits_tells_its_place_and_can_be_cancelled(gate: Gate) -> None:
    other = Gate(7.0)
    jobs._queue.put(other, "a third")
    at = opened(Work("waits"))
    assert told(at).startswith("Second in line, about 2")  # 20 s of the run under way, and 7
    assert [each.label for each in at.button] == ["Cancel"]
    (job,) = jobs._jobs.values()
    at.button[0].click().run()
    assert not jobs._jobs and job.cancel.is_set() and jobs._queue.state()["waiting"] == 1
    assert at.button[0].label.endswith(": about 5 s")
    at.button[0].click().run()  # asked for again
    assert told(at).startswith("Second in line")
    gate.over.set()
    other.over.set()
    until(lambda: not jobs._jobs)
    assert "Result: done" in at.run().markdown[0].value


def test_a_full_house_says_when_to_try_again_and_what_is_kept_still_opens(gate: Gate, limits: Any) -> None:
    limits(waiting=1, visitor_waiting=1)
    jobs._queue.put(Gate(), "a third")
    kept = Work("kept")
    jobs._keep(kept, Text("from before"), 1.0)
    warning = opened(Work("too many")).warning[0].value
    assert warning.startswith("The queue is full\\: 1 long run waits; try again in ") and "Nothing is lost" in warning
    assert opened(kept).markdown[0].value == "Result: from before"
    limits(waiting=0, visitor_waiting=0, visitor_seconds=1.0)
    jobs._queue._hours.add(ADDRESS, 100, jobs._queue.clock())
    warning = opened(Work("another")).warning[0].value
    assert "in an hour; there is more in" in warning
    assert opened(kept).markdown[0].value == "Result: from before"
    assert jobs.counts()["refused_queue"] == jobs.counts()["refused_hour"] == 1


def test_short_of_memory_it_says_so_and_tries_again_when_asked(monkeypatch: pytest.MonkeyPatch, limits: Any) -> None:
    short = True
    monkeypatch.setattr(memory, "refusing", lambda: short)
    assert "short of memory; try again in a minute" in opened(Work("any")).warning[0].value
    short = False
    begun = threading.Event()
    tries: list[int] = []

    def does() -> Text:
        tries.append(1)
        begun.set()
        if len(tries) == 1:
            endless()
        return Text("at last")

    at = opened(Work("dear", does))
    assert begun.wait(10)
    memory.WATCHDOG._drops[2][-1]()  # what is done at 92 %
    until(lambda: next(iter(jobs._jobs.values())).error)
    at.run()
    assert "ran short of memory" in at.warning[0].value and at.button[0].label == "Try again"
    at.run()
    assert tries == [1]  # not by itself
    at.button[0].click().run()
    until(lambda: not jobs._jobs)
    assert at.run().markdown[0].value == "Result: at last"


def test_what_takes_too_much_memory_is_refused_before_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "room", lambda: 1.5 * 2**30)
    monkeypatch.setattr(jobs, "needed", lambda experiment: 3 * 2**30)
    warning = opened(Work("huge", lambda: pytest.fail("it ran"))).warning[0].value
    assert warning.startswith("This takes about 3\\.0 GB of memory, and 1\\.5 GB are free here") and not jobs._jobs


@pytest.mark.parametrize("long", [True, False])
def test_a_server_for_strangers_trains_nothing(limits: Any, monkeypatch: pytest.MonkeyPatch, long: bool) -> None:
    limits(fits=False)
    monkeypatch.setattr(jobs, "estimate", lambda experiment: 5.0 if long else 0.1)
    fit = Work("fit", lambda: pytest.fail("it ran"), lens=Call("build_index", name="x"))
    assert opened(fit).warning[0].value.startswith("This server trains no SAEs")


def test_a_deadline_is_told_for_long_and_for_short_runs(limits: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    limits(seconds=0.05)
    opened(Work("long", endless))
    until(lambda: next(iter(jobs._jobs.values())).error)
    at = opened(Work("long", endless))
    assert "took longer than allowed here; choose a cheaper setting" in at.warning[0].value and not at.button
    monkeypatch.setattr(jobs, "estimate", lambda experiment: 0.1)
    assert "took longer than allowed" in opened(Work("short", endless)).warning[0].value
    assert jobs.counts()["deadline"] == 1


def test_a_page_that_moved_on_cancels_what_it_asked_before_and_only_that() -> None:
    begun = threading.Event()

    def works() -> None:
        begun.set()
        endless()

    at = opened(Work("first", works))
    assert begun.wait(10)
    (first,) = jobs._jobs.values()
    for name in ("second", "third", "fourth"):
        at.session_state["work"] = Work(name, endless)
        start = time.monotonic()
        at.run()
    until(lambda: jobs._queue.state() == jobs._queue.state() | {"running": 1, "waiting": 0})
    assert first.cancel.is_set() and time.monotonic() - start < 5
    assert [job.experiment.digest for job in jobs._jobs.values()] == ["fourth"]


def test_a_run_that_another_wants_goes_on(gate: Gate) -> None:
    at = opened(Work("shared"))
    (job,) = jobs._jobs.values()
    jobs._queue.want(job, "another session")
    at.button[0].click().run()
    assert not job.cancel.is_set() and list(job.wanted) == ["another session"]


@pytest.mark.parametrize(
    ("before", "text"),
    [(0, "Next in line"), (2, "Third in line"), (10, "11th in line"), (20, "21st in line"), (111, "112th in line")],
)
def test_places_in_words(monkeypatch: pytest.MonkeyPatch, before: int, text: str) -> None:
    monkeypatch.setattr(jobs.Job, "place", queue.Place(before, 200.0))
    job = jobs.Job(experiment=Work("x"), key="x")  # type: ignore[arg-type]
    assert show.place_of(job) == f"{text}, about 4 minutes"


# ------------------------------------------------------------------------------------------------------------- results


def test_results_under_the_queue_are_those_of_direct_runs(monkeypatch: pytest.MonkeyPatch, limits: Any) -> None:
    """Bit for bit, with short and long runs of several visitors at once."""
    limits(heavy=2)
    photo = Image.gallery("scene_ring")
    wanted = [Experiment("scenes", photo, Call(key)) for key in ("grad_cam", "deeplift", "eigen_cam")]
    wanted += [Experiment("induction", Prompt("a b c d a b"), Call("next_tokens", top=top)) for top in (3, 5)]
    alone = [each.run() for each in wanted]
    found: dict[int, Any] = {}

    def long(number: int) -> None:
        until(
            lambda: (
                isinstance(state := jobs.later(wanted[number]), type(alone[number]))
                and not found.update({number: state})
            )
        )

    def short(number: int) -> None:
        found[number] = jobs.run(wanted[number])

    threads = [threading.Thread(target=(long, short)[number % 2], args=(number,)) for number in range(len(wanted))]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    assert [found[number] for number in range(len(wanted))] == alone
    assert not jobs._jobs
    counts = jobs.counts()
    assert counts["done"] == 3 and counts["done_cheap"] == 2 and counts["misses"] == 5 and counts["memory_used"] > 0


def test_results_are_bounded_by_bytes_and_a_large_one_is_still_kept(limits: Any) -> None:
    limits(result_bytes=10_000)
    for number in range(30):
        jobs._keep(Work(f"{number}"), Large(np.zeros(250)), 0.1)  # type: ignore[arg-type]
    assert len(jobs._results) == 4 and jobs.counts()["result_bytes"] <= 10_000
    jobs._keep(Work("large"), Large(np.zeros(10_000)), 0.1)  # type: ignore[arg-type]
    assert len(jobs._results) == 1 and jobs.known(Work("large")) is not None  # type: ignore[arg-type]
    jobs._halve()
    assert jobs.counts()["results"] == jobs.counts()["result_bytes"] == 0


@dataclasses.dataclass(frozen=True, eq=False)
class Large(Text):
    text: np.ndarray  # type: ignore[assignment]


def test_nothing_is_left_of_runs_that_failed_were_left_or_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "SILENT", 0.05)

    def fails() -> None:
        raise Unsuitable("Not this.")

    for number in range(5):
        jobs.later(Work(f"fails {number}", fails))  # type: ignore[arg-type]
        jobs.later(Work(f"bug {number}", lambda: 1 / 0))  # type: ignore[arg-type]
        jobs.later(Work(f"endless {number}", endless))  # type: ignore[arg-type]
        time.sleep(0.01)
    held = [weakref.ref(job) for job in jobs._jobs.values() if "bug" not in job.experiment.digest]
    until(lambda: jobs._queue.sweep() or not sum(jobs._queue.state().values()))
    assert all(job.error for job in jobs._jobs.values())
    monkeypatch.setattr(jobs, "REMEMBER", 0.0)
    time.sleep(0.01)
    jobs._forget()
    assert not jobs._jobs
    gc.collect()
    assert not any(each() for each in held)


def test_text_written_token_by_token_takes_a_turn_for_each_and_is_the_same(limits: Any) -> None:
    experiment = Experiment("induction", Prompt("a b c a"), Call("next_tokens"))
    seen: list[float] = []
    pieces = []
    for piece in jobs.paced(experiment.stream(6)):
        seen.append(jobs._queue.state()["running_cheap"])
        pieces.append(piece)
    assert pieces == list(experiment.stream(6)) and len(pieces) > 2 and set(seen) == {0}
    limits(visitor_seconds=1.0)
    jobs._queue._hours.add("nobody", 5, jobs._queue.clock())
    with pytest.raises(Full):
        next(jobs.paced(experiment.stream(6)))
