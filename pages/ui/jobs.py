"""Running experiments: results kept for everyone, long ones in the background with progress and cancel."""

from __future__ import annotations

import contextvars
import logging
import os
import threading
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import streamlit as st

from interp import Unsuitable, store, zoo
from interp.experiment import Call, Experiment
from interp.methods import METHODS
from interp.progress import Cancelled, Progress, watch
from interp.results import Result, Text
from interp.samples import Contrast, ImageSet, TextSet

KEEP = 600
"""How many results stay in memory."""
QUICK = 0.7
"""Seconds up to which an experiment runs while the page waits."""
SILENT = 6.0
"""Seconds after which a page that no longer asks for a job counts as gone."""
LONGEST = float(os.environ.get("ACTISCOPE_SECONDS", "600"))

_log = logging.getLogger("actiscope")
_lock = threading.Lock()
_results: OrderedDict[str, tuple[Result, float]] = OrderedDict()
_jobs: dict[str, Job] = {}
_pace: dict[str, float] = {}
_pool = ThreadPoolExecutor(max(1, (os.cpu_count() or 2) // 2), thread_name_prefix="job")


@dataclass(frozen=True)
class Fit:
    """A fit as a job: its model, its data, its settings. What it returns, a name, is the text of its result."""

    model: str
    sample: TextSet | ImageSet | Contrast
    lens: Call

    @cached_property
    def digest(self) -> str:
        data: Any = self.sample.texts if isinstance(self.sample, TextSet) else None
        if isinstance(self.sample, Contrast):
            data = (self.sample.positive, self.sample.negative)
        elif isinstance(self.sample, ImageSet):
            data = [each.sha256 for each in self.sample.images]
        return store.key_of(self.model, data, str(self.lens), self.lens.version)

    def run(self) -> Text:
        return Text(METHODS[self.lens.method](zoo.load(self.model), self.sample, **self.lens.settings))


@dataclass
class Job:
    """One long experiment, or fit. It runs as long as some page asks for it."""

    experiment: Experiment | Fit
    wanted: dict[str, float] = field(default_factory=dict)
    cancel: threading.Event = field(default_factory=threading.Event)
    progress: Progress | None = None
    error: str = ""

    def report(self, progress: Progress) -> None:
        self.progress = progress
        self.look_around()

    def look_around(self) -> None:
        """Stop when every page that wanted it has gone silent."""
        if all(time.monotonic() - last > SILENT for last in self.wanted.values()):
            self.cancel.set()


def _visitor() -> str:
    context = st.runtime.scriptrunner.get_script_run_ctx()
    return context.session_id if context else "nobody"


def key_of(experiment: Experiment | Fit) -> str:
    """What a result is kept under: the experiment and the weights it ran on."""
    return experiment.digest + zoo.load(experiment.model).digest[:16]


def known(experiment: Experiment | Fit) -> Result | None:
    """The result, if someone has run this experiment before."""
    with _lock:
        found = _results.get(key_of(experiment))
        if found:
            _results.move_to_end(key_of(experiment))
        return found[0] if found else None


def seconds(experiment: Experiment | Fit) -> float | None:
    """How long the run took that made the kept result."""
    with _lock:
        found = _results.get(key_of(experiment))
        return found[1] if found else None


def passes(experiment: Experiment | Fit) -> tuple[float, float]:
    """Forwards and backwards it will take."""
    method = METHODS[experiment.lens.method]
    return method.estimate(zoo.load(experiment.model), experiment.lens.settings, experiment.sample) or (3.0, 0.0)


def estimate(experiment: Experiment | Fit) -> float:
    """Seconds it will take, from its count of forwards and the pace of this model so far."""
    model = zoo.load(experiment.model)
    forwards, backwards = passes(experiment)
    return (forwards + 2 * backwards) * _pace.get(model.digest, 0.05)


def run(experiment: Experiment | Fit) -> Result:
    """The result, run here and now unless it is kept.

    Raises:
        Unsuitable: the experiment can't be done; the text says why.
    """
    found = known(experiment)
    if found is not None:
        return found
    start = time.monotonic()
    with watch(seconds=LONGEST):
        result = experiment.run()
    taken = time.monotonic() - start
    _keep(experiment, result, taken)
    return result


def later(experiment: Experiment | Fit) -> Result | Job:
    """The result if it is there; otherwise the job that makes it, started if need be, and told that it is wanted."""
    found = known(experiment)
    if found is not None:
        return found
    key = key_of(experiment)
    with _lock:
        job = _jobs.get(key)
        if job is None or (job.cancel.is_set() and not job.error):
            job = _jobs[key] = Job(experiment)
            job.wanted[_visitor()] = time.monotonic()
            _pool.submit(contextvars.Context().run, _work, key, job)
        job.wanted[_visitor()] = time.monotonic()
        return job


def stop(experiment: Experiment | Fit) -> None:
    """This visitor no longer wants it; it ends within a second unless another does."""
    with _lock:
        job = _jobs.get(key_of(experiment))
        if job:
            job.wanted.pop(_visitor(), None)
            if not job.wanted:
                job.cancel.set()


def begin() -> None:
    """A page begins: note the time, so that `end` knows what it asked for."""
    st.session_state["page-began"] = time.monotonic()


def end() -> None:
    """A page has been shown in full: this visitor no longer wants the jobs that it did not ask for."""
    began = st.session_state["page-began"]
    with _lock:
        for job in _jobs.values():
            if job.wanted.get(_visitor(), began) < began:
                del job.wanted[_visitor()]
                if not job.wanted:
                    job.cancel.set()


def _work(key: str, job: Job) -> None:
    start = time.monotonic()
    try:
        job.look_around()
        with watch(job.report, job.cancel, LONGEST):
            result = job.experiment.run()
        _keep(job.experiment, result, time.monotonic() - start)
    except Cancelled as reason:
        job.error = "" if job.cancel.is_set() else str(reason)
        job.cancel.set()
    except Unsuitable as reason:
        job.error = str(reason)
    except Exception:
        _log.exception("A job failed: %s", job.experiment.digest)
        job.error = "This failed through a fault of Actiscope's; the log has the details."
    finally:
        with _lock:
            if not job.error and _jobs.get(key) is job:
                del _jobs[key]


def _keep(experiment: Experiment | Fit, result: Result, taken: float) -> None:
    model = zoo.load(experiment.model)
    cost = result.forwards + 2 * result.backwards
    with _lock:
        _results[key_of(experiment)] = (result, taken)
        if cost >= 1:
            old = _pace.get(model.digest)
            _pace[model.digest] = taken / cost if old is None else 0.7 * old + 0.3 * taken / cost
        while len(_results) > KEEP:
            _results.popitem(last=False)
