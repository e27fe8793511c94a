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
}

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
            counts, sessions = dict(_counts), _sessions
            times = {key: (list(buckets), total[0]) for key, (buckets, total) in _times.items()}
        for name in sorted({name for name, _ in counts}):
            each = {labels: value for (own, labels), value in counts.items() if own == name}
            family = CounterMetricFamily(f"actiscope_{name}", HELP[name], labels=[key for key, _ in next(iter(each))])
            for labels, value in each.items():
                family.add_metric([text for _, text in labels], value)
            yield family
        for name in sorted({name for name, _ in times}):
            rows = {labels: value for (own, labels), value in times.items() if own == name}
            family = HistogramMetricFamily(
                f"actiscope_{name}_seconds", HELP[name], labels=[key for key, _ in next(iter(rows))], unit="seconds"
            )
            for labels, (buckets, total) in rows.items():
                bounds = [*map(str, BOUNDS), "+Inf"]
                family.add_metric(
                    [text for _, text in labels], list(zip(bounds, accumulate(buckets), strict=True)), total
                )
            yield family
        yield GaugeMetricFamily("actiscope_sessions", "Open sessions", sessions)
        yield from _jobs()
        yield from ProcessCollector(registry=None).collect()


def _jobs() -> Iterator[Any]:
    """What `pages.ui.jobs` counts, once somebody has come and it is there."""
    from prometheus_client.core import GaugeMetricFamily

    jobs = sys.modules.get("pages.ui.jobs")
    counts = jobs.counts() if jobs is not None and hasattr(jobs, "counts") else {}
    for name, value in sorted(counts.items()):
        yield GaugeMetricFamily(f"actiscope_{name}", "", value)
