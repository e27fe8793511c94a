"""The log, the metrics, readiness and the headers: what each says of itself."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import signal
import sys
import threading
import time
import types
from typing import Any

import pytest
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from interp import settings
from pages.server import headers, logs, metrics, ready


def line(**given: Any) -> dict[str, Any]:
    record = logging.LogRecord("elsewhere", logging.ERROR, logs.__file__, 7, "SECRET", (), None)
    record.__dict__.update(given)
    found: dict[str, Any] = json.loads(logs.Json().format(record))
    return found


def test_of_a_foreign_line_only_its_place_or_its_template_is_kept() -> None:
    assert line() | {"at": ""} == {
        "at": "",
        "level": "error",
        "log": "elsewhere",
        "from": "pages/server/logs.py:7 None",
    }
    assert line(msg="tried %s", args=("SECRET",))["event"] == "tried %s"
    assert (
        line(name="actiscope", msg="A run failed", fields={"id": "1"}).items()
        >= {"event": "A run failed", "id": "1"}.items()
    )


def test_an_exception_keeps_its_type_its_way_and_its_causes_and_no_word() -> None:
    try:
        try:
            int("SECRET")
        except ValueError as error:
            raise KeyError("SECRET") from error
    except KeyError:
        found = line(exc_info=sys.exc_info())
    assert found["error"] == "KeyError" and found["causes"] == ["ValueError"]
    assert found["frames"][0].startswith("tests/server/test_logs.py:")
    assert "SECRET" not in json.dumps(found)


def test_a_line_is_one_line_whatever_stands_in_it() -> None:
    text = logs.Json().format(logging.LogRecord("actiscope", 20, "x", 1, "a\nb\u2028c", (), None))
    assert len(text.splitlines()) == 1 and json.loads(text)["event"] == "a\nb\u2028c"


def test_an_address_is_told_apart_for_a_day_and_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    one = logs.hashed("203.0.113.7")
    assert one == logs.hashed("203.0.113.7") != logs.hashed("203.0.113.8")
    assert len(one) == 12 and logs.hashed("") == ""
    logs._salt.cache_clear()  # as the next day does
    assert logs.hashed("203.0.113.7") != one


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "/"), ("/heatmaps", "/heatmaps"), ("/s/secret", "/s"), ("/s/secret.png", "/s"), ("/media/a", "/media"),
        ("/_stcore/upload_file/session/file", "/_stcore/upload_file"), ("/_stcore/secret", "/_stcore"),
        ("/secret", "other"), ("//secret", "other"), ("/heatmaps/secret", "/heatmaps"), ("", "/"),
    ],
)  # fmt: skip
def test_of_a_path_only_its_kind_is_told(path: str, kind: str) -> None:
    assert logs.kind(path) == kind


def test_metrics_are_what_was_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_counts", "_times"):
        monkeypatch.setattr(metrics, name, type(getattr(metrics, name))())
    jobs = types.SimpleNamespace(counts=lambda: {"waiting": 3.0, "refused_queue": 4.0, "hits": 5.0, "done": 6.0})
    monkeypatch.setitem(sys.modules, "pages.ui.jobs", jobs)
    metrics.count("refused", reason="full")
    metrics.count("refused", 2, reason="rate")
    for seconds in (0.01, 0.05, 0.2, 7.0, 1000.0):
        metrics.observe("page", seconds, page="home")
    metrics.opened()
    metrics.opened()
    metrics.closed(3.0)
    families = text_string_to_metric_families(generate_latest(metrics.Families()).decode())
    found = {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}
    assert found["actiscope_refused_total", "full"] == 1 and found["actiscope_refused_total", "rate"] == 2
    assert found["actiscope_page_seconds_count", "home"] == 5
    assert found["actiscope_page_seconds_sum", "home"] == pytest.approx(1007.26)
    buckets = {key[1:]: value for key, value in found.items() if key[0] == "actiscope_page_seconds_bucket"}
    by_bound = {next(each for each in key if each != "home"): value for key, value in buckets.items()}
    assert [by_bound[each] for each in ("0.05", "0.1", "0.25", "10.0", "300.0", "+Inf")] == [2, 2, 3, 4, 4, 5]
    assert found["actiscope_sessions",] == 1
    assert found["actiscope_waiting",] == 3 and found["actiscope_refused_total", "queue"] == 4
    assert found["actiscope_results_asked_total", "hits"] == 5 and found["actiscope_runs_total", "done"] == 6
    metrics.closed(1.0)


def test_counts_of_many_threads_are_all_there() -> None:
    key = "refused", (("reason", "test"),)
    before = metrics._counts[key]
    work = [lambda: [metrics.count("refused", reason="test") for _ in range(2000)]] * 4
    threads = [threading.Thread(target=each) for each in work]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert metrics._counts[key] - before == 8000


def test_a_module_that_is_half_imported_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    half = types.SimpleNamespace(__spec__=types.SimpleNamespace(_initializing=True))
    for name in ("pages.ui.jobs", "interp.memory", "interp.zoo", "interp.storage"):
        monkeypatch.setitem(sys.modules, name, half)
    assert generate_latest(metrics.Families()) and not ready._busy()
    assert metrics.imported("json") is json and metrics.imported("no.such.module") is None


def test_who_may_frame_this_is_what_the_settings_say() -> None:
    assert headers.policy("*").endswith("frame-ancestors *")
    assert headers.policy("none").endswith("frame-ancestors 'none'")
    assert headers.policy("https://a.org https://*.b.edu").endswith("frame-ancestors https://a.org https://*.b.edu")
    assert headers.policy("x;script-src *").endswith("frame-ancestors *"), "a directive can't be added"
    assert "script-src *" not in headers.policy("x;script-src *").replace("frame-ancestors *", "")
    assert dict(headers.headers("none", False))[b"x-frame-options"] == b"DENY"
    assert b"strict-transport-security" not in dict(headers.headers("*", False))
    assert b"strict-transport-security" in dict(headers.headers("*", True))


def test_not_ready_while_cold_closing_short_of_memory_or_without_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    from interp import storage

    class Shared:
        waits, fails = 0.0, False

        def get(self, key: str) -> None:
            time.sleep(self.waits)
            if self.fails:
                raise storage.Away("SECRET")

    shared = Shared()
    monkeypatch.setattr(storage, "shared", lambda: shared)
    monkeypatch.setattr(settings, "SETTINGS", dataclasses.replace(settings.SETTINGS, hosted=True))
    monkeypatch.setattr(ready, "FRESH", 0.0)
    monkeypatch.setattr(ready, "STORE", 0.2)
    monkeypatch.setitem(sys.modules, "interp.memory", types.SimpleNamespace(refusing=lambda: False))

    async def run() -> None:
        assert await ready.reasons() == ["still warming up"]
        monkeypatch.setattr(ready, "_warm", True)
        assert await ready.reasons() == []
        shared.fails = True
        assert await ready.reasons() == ["the shared store does not answer"]
        shared.fails, shared.waits = False, 0.6
        begun = time.monotonic()
        assert await ready.reasons() == ["the shared store is slow"]
        assert time.monotonic() - begun < 0.5, "whoever asks does not wait for a slow store"
        shared.waits = 0.0
        await asyncio.sleep(0.6)
        monkeypatch.setattr(ready, "_closing", True)
        monkeypatch.setitem(sys.modules, "interp.memory", types.SimpleNamespace(refusing=lambda: True))
        assert await ready.reasons() == ["closing", "short of memory"]

    asyncio.run(run())


def test_the_end_lets_work_end_and_the_balancer_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[float] = []

    def close(seconds: float) -> None:
        closed.append(seconds)
        time.sleep(0.3)

    monkeypatch.setitem(sys.modules, "pages.ui.jobs", types.SimpleNamespace(close=close))
    monkeypatch.setattr(settings, "SETTINGS", dataclasses.replace(settings.SETTINGS, drain=5.0))
    ended: list[float] = []
    server = types.SimpleNamespace(handle_exit=lambda *_: ended.append(time.monotonic()))
    before = signal.getsignal(signal.SIGTERM)

    async def run(notice: float) -> float:
        ended.clear()
        monkeypatch.setattr(ready, "_closing", False)
        monkeypatch.setattr(ready, "NOTICE", notice)
        ready._end_gently(server)
        begun = time.monotonic()
        signal.raise_signal(signal.SIGTERM)
        await asyncio.sleep(0.1)
        assert not ended and ready.closing()
        while not ended:
            await asyncio.sleep(0.01)
        return ended[0] - begun

    try:
        assert 0.3 <= asyncio.run(run(0.0)) < 0.6
        assert 0.6 <= asyncio.run(run(0.6)) < 0.85
    finally:
        signal.signal(signal.SIGTERM, before)
    assert closed == [5.0, 5.0]


def test_a_job_is_logged_by_method_and_a_model_that_all_may_know(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = dataclasses.replace(settings.SETTINGS, logs="json", hub="someone/listed@abc")
    monkeypatch.setattr(settings, "SETTINGS", chosen)
    caplog.set_level(logging.INFO, "actiscope")
    lens = types.SimpleNamespace(method="grad_cam")
    for model in ("photos", "someone/listed@abc", "SECRET/model"):
        logs.job(types.SimpleNamespace(model=model, lens=lens), "done", 1.234)
    fields = [record.fields for record in caplog.records]  # type: ignore[attr-defined]
    assert [each["model"] for each in fields] == ["photos", "someone/listed@abc", "other"]
    assert fields[0] == {"method": "grad_cam", "model": "photos", "outcome": "done", "seconds": 1.23}
