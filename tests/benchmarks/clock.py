"""Times of several things as ratios to the first: taken in turns, so that other load on the machine hits all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def ratios(things: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The median over rounds of each thing's time divided by that of the first thing in the same round.

    Needs only the standard library: the peers are timed by it in an environment without ours.
    """
    taken: dict[str, list[float]] = {name: [] for name in things}
    for thing in things.values():
        thing()  # what is only slow the first time
    for _ in range(rounds):
        for name, thing in things.items():
            start = time.perf_counter()
            thing()
            taken[name].append(time.perf_counter() - start)
    first = next(iter(taken.values()))
    return {
        name: statistics.median(mine / base for mine, base in zip(times, first, strict=True))
        for name, times in taken.items()
    }


def long_ratio(unit: Callable[[], object], thing: Callable[[], object], around: int = 20) -> float:
    """The time of something that takes minutes, run once, over the median of short runs before and after it."""

    def took(run: Callable[[], object]) -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    before = [took(unit) for _ in range(around)]
    long = took(thing)
    return long / statistics.median(before + [took(unit) for _ in range(around)])
