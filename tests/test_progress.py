"""Progress, cancellation and deadlines."""

from __future__ import annotations

import contextvars
import threading
import time

import pytest

from interp.progress import Cancelled, Progress, check, meter, spent, track, watch


def test_each_step_is_reported_before_it_and_the_end() -> None:
    seen: list[Progress] = []
    with watch(seen.append):
        assert list(track([10, 20, 30], "steps")) == [10, 20, 30]
        assert list(track((each for each in "ab"), "letters", total=2)) == ["a", "b"]
    assert [(each.label, each.done, each.total) for each in seen] == [
        ("steps", 0, 3), ("steps", 1, 3), ("steps", 2, 3), ("steps", 3, 3),
        ("letters", 0, 2), ("letters", 1, 2), ("letters", 2, 2),
    ]  # fmt: skip
    assert list(track([1], "unwatched")) == [1] and len(seen) == 7


def test_the_estimate_is_what_the_steps_so_far_took() -> None:
    assert Progress("x", 0, 4, 1.0).left is None
    assert Progress("x", 1, 4, 2.0).left == 6.0 and Progress("x", 4, 4, 8.0).left == 0
    seen: list[Progress] = []
    with watch(seen.append):
        for _ in track(range(5), "sleep"):
            time.sleep(0.02)
    assert seen[2].left == pytest.approx(0.06, abs=0.05)


def test_a_cancel_stops_before_the_next_step() -> None:
    cancel, done = threading.Event(), []
    with watch(cancel=cancel), pytest.raises(Cancelled):
        for step in track(range(10), "steps"):
            done.append(step)
            if step == 3:
                cancel.set()
    assert done == [0, 1, 2, 3]
    check()


def test_a_deadline_stops_and_says_so() -> None:
    with watch(seconds=0.03):
        check()
        time.sleep(0.05)
        with pytest.raises(Cancelled, match="longer"):
            check()
    check()


def test_watches_nest_and_an_outer_one_holds_inside() -> None:
    outer, inner = list[Progress](), list[Progress]()
    cancel = threading.Event()
    with watch(outer.append, cancel), watch(inner.append, seconds=100):
        list(track([1], "both"))
        cancel.set()
        with pytest.raises(Cancelled):
            check()
    assert len(outer) == len(inner) == 2
    with watch(seconds=-1), watch(cancel=threading.Event()), pytest.raises(Cancelled):
        check()


def test_a_report_may_raise_to_stop_the_work() -> None:
    class Moved(BaseException):
        pass

    def report(progress: Progress) -> None:
        if progress.done == 2:
            raise Moved

    done = []
    with pytest.raises(Moved), watch(report):
        for step in track(range(5), "steps"):
            done.append(step)
    assert done == [0, 1]
    list(track(range(2), "afterwards"))


def test_meters_nest_and_belong_to_their_context() -> None:
    with meter() as outer:
        spent(forwards=2)
        with meter() as inner:
            spent(forwards=3, backwards=1)
        thread = threading.Thread(target=spent, kwargs={"forwards": 100})
        thread.start()
        thread.join()
        contextvars.copy_context().run(spent, backwards=5)
    assert (outer.forwards, outer.backwards, inner.forwards, inner.backwards) == (5, 6, 3, 1)
    spent(forwards=1)
    assert outer.forwards == 5
