"""What this process has done, in OpenMetrics: numbers only, no visitor's name, address, text or link."""

from __future__ import annotations

import hmac
import sys
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from interp import settings
from pages.server import address

BOUNDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Upper bounds of the histograms, in seconds."""
HELP = {
    "refused": "Requests, sessions and runs that were refused or delayed, by reason",
    "errors": "Faults of the app, by where they were and the type of the exception",
    "requests": "HTTP requests, by kind and status",
    "computing": "Seconds from asking for a run until it ended, short ones (cheap) and long ones (heavy)",
    "page": "Seconds that a run of a page took",
    "session": "Seconds that a session was open",
    "sessions": "Open sessions",
    "waiting": "Long runs that wait for their turn",
    "running": "Long runs under way",
    "waiting_cheap": "Short runs that wait for their turn",
    "running_cheap": "Short runs under way",
    "runs": "Runs, by how they ended",
    "seconds": "Seconds of computing, by kind",
    "drops": "How often memory was short: 1 caches were dropped, 2 models, 3 runs",
    "results": "Results kept in memory",
    "result_bytes": "Their bytes",
    "results_asked": "Results that were asked for, by whether they were there",
    "memory_used": "Bytes of memory that this process takes",
    "memory_limit": "Bytes of memory that it may take",
    "memory_level": "How short memory is, 0 to 3",
    "models": "Models in memory",
    "model_bytes": "Bytes of their weights",
    "store": "What went wrong with the store of shared links, and what was swept from it",
}
LABELS = {"refused": "reason", "seconds": "kind", "drops": "level"}
"""Counters of `pages.ui.jobs` whose name goes on with the value of a label."""

_lock = threading.Lock()
_counts: Counter[tuple[str, tuple[tuple[str, str], ...]]] = Counter()
_times: dict[tuple[str, tuple[tuple[str, str], ...]], tuple[list[int], list[float]]] = {}
_sessions = 0


def count(name: str, amount: float = 1, **labels: str) -> None:
    """Add to a counter. Labels come from the code, never from a visitor: each value is kept for good."""
    with _lock:
        _counts[name, tuple(sorted(labels.items()))] += amount  # type: ignore[assignment]


def observe(name: str, seconds: float, **labels: str) -> None:
    """Add to a histogram of seconds."""
    with _lock:
        buckets, total = _times.setdefault((name, tuple(sorted(labels.items()))), ([0] * (len(BOUNDS) + 1), [0.0]))
        buckets[bisect_left(BOUNDS, seconds)] += 1
        total[0] += seconds


@contextmanager
def timed(name: str, **labels: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        observe(name, time.perf_counter() - start, **labels)


def opened() -> None:
    global _sessions
    with _lock:
        _sessions += 1


def closed(seconds: float) -> None:
    global _sessions
    with _lock:
        _sessions -= 1
    observe("session", seconds)


def imported(name: str) -> Any:
    """A module that somebody has needed by now, all of it; None otherwise, or while it is being imported."""
    module = sys.modules.get(name)
    return None if getattr(getattr(module, "__spec__", None), "_initializing", False) else module


async def answer(request: Request) -> Response:
    """`/metrics`: for this machine and its private network, or for whoever has the token."""
    token, said = settings.SETTINGS.metrics_token, request.headers.get("authorization", "")
    known = token and hmac.compare_digest(said.encode(), f"Bearer {token}".encode())
    if not known and not address.is_near(request.scope):
        return PlainTextResponse("Metrics are for this server's own network.\n", 403)
    from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST, generate_latest

    return Response(generate_latest(Families()), media_type=CONTENT_TYPE_LATEST)


class Families:
    """All of it for Prometheus's client, which is imported where somebody asks, so that no start waits for it."""

    def collect(self) -> Iterator[Any]:
        from prometheus_client import ProcessCollector
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        with _lock:
            counts, sessions = Counter(_counts), _sessions
            times = {key: (list(buckets), total[0]) for key, (buckets, total) in _times.items()}
        gauges: dict[str, float] = {"sessions": sessions}
        _of_others(counts, gauges)
        for name in sorted({name for name, _ in counts}):
            rows = {labels: value for (own, labels), value in counts.items() if own == name}
            family = CounterMetricFamily(f"actiscope_{name}", HELP[name], labels=[key for key, _ in next(iter(rows))])
            for labels, value in rows.items():
                family.add_metric([text for _, text in labels], value)
            yield family
        for name in sorted({name for name, _ in times}):
            spans = {labels: value for (own, labels), value in times.items() if own == name}
            family = HistogramMetricFamily(
                f"actiscope_{name}_seconds", HELP[name], labels=[key for key, _ in next(iter(spans))], unit="seconds"
            )
            bounds = [*map(str, BOUNDS), "+Inf"]
            for labels, (buckets, total) in spans.items():
                steps = list(zip(bounds, accumulate(buckets), strict=True))
                family.add_metric([text for _, text in labels], steps, total)
            yield family
        for name, value in gauges.items():
            yield GaugeMetricFamily(f"actiscope_{name}", HELP[name], value)
        yield from ProcessCollector(registry=None).collect()


def _of_others(counts: Counter[Any], gauges: dict[str, float]) -> None:
    """Add what other modules count, of those that somebody has needed yet: asking imports nothing."""
    if jobs := imported("pages.ui.jobs"):
        for name, value in jobs.counts().items():
            first, _, rest = name.partition("_")
            if name in HELP:
                gauges[name] = value
            elif first in LABELS and rest:
                counts[first, ((LABELS[first], rest),)] += value
            elif name in ("hits", "misses"):
                counts["results_asked", (("found", name),)] += value
            else:
                counts["runs", (("outcome", name),)] += value
    if zoo := imported("interp.zoo"):
        sizes = zoo.in_memory()
        gauges |= {"models": len(sizes), "model_bytes": sum(sizes.values())}
    if storage := imported("interp.storage"):
        for why, value in storage.counts.items():
            counts["store", (("what", why),)] += value
