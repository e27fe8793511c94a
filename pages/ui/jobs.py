"""Running experiments: results kept for everyone, one fair queue for all visitors, long runs in the background.

What is short runs while the page waits (`run`), what is long in a worker (`later`); pages choose by `estimate`. Both
are done in the order of `interp.queue`, within the limits of `interp.settings`. `counts` has the numbers for metrics.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import time
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import streamlit as st

from interp import Unsuitable, circuit, memory, settings, store, zoo
from interp.experiment import Call, Experiment
from interp.methods import METHODS
from interp.model import LanguageModel, _bytes
from interp.progress import Cancelled, Progress, watch
from interp.queue import Full, Place, Queue, Run
from interp.results import Result, Text
from interp.samples import Contrast, ImageSet, Prompt, PromptPair, TextSet
from pages.server import address, logs, metrics

KEEP = 5000
"""How many results stay in memory."""
QUICK = 0.7
"""Seconds up to which an experiment runs while the page waits."""
REMEMBER = 300.0
"""Seconds for which it is told what went wrong with a run that nobody asks for any more."""
FLOPS = 1e11
"""Operations that a core is taken to do in a second, until the pace of a model is known."""

T = TypeVar("T")
_log = logging.getLogger("actiscope")
_queue = Queue()
_lock = _queue.lock
_results: OrderedDict[str, tuple[Result, float]] = OrderedDict()
_jobs: dict[str, Job] = {}
_pace: dict[str, float] = {}
_counts: defaultdict[str, float] = defaultdict(float)


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


@dataclass(eq=False, kw_only=True)
class Job(Run):
    """One long experiment, or fit. It runs as long as some page asks for it."""

    experiment: Experiment | Fit
    key: str
    progress: Progress | None = None
    error: str = ""
    again: bool = False
    """Whether it may go better when it is tried again: it was stopped, or there was a fault."""

    def report(self, progress: Progress) -> None:
        self.progress, self.left = progress, progress.left

    @property
    def place(self) -> Place | None:
        """How far it is from its turn; None where it does not wait."""
        return _queue.place(self)

    def work(self) -> None:
        outcome = "failed"
        try:
            memory.WATCHDOG.start()
            _refuse_large(self.experiment)
            worked = time.thread_time()
            with watch(self.report, self.cancel, settings.SETTINGS.seconds or None):
                result = self.experiment.run()
            _keep(self.experiment, result, self._taken(), time.thread_time() - worked)
            outcome = "done"
        except Cancelled as reason:
            outcome = "stopped" if self.reason else "cancelled" if self.cancel.is_set() else "deadline"
            self.again = bool(self.reason)
            self.error = self.reason if self.cancel.is_set() else str(reason)
            self.cancel.set()
        except Unsuitable as reason:
            self.again, self.error, outcome = isinstance(reason, Full), str(reason), "unsuitable"
        except (Exception, MemoryError) as error:
            metrics.count("errors", where="job", type=type(error).__name__)
            _log.exception("A job failed: %s", self.experiment.digest)
            self.again, self.error = True, "This failed through a fault of Actiscope's; the log has the details."
        finally:
            metrics.observe("computing", _queue.clock() - self.since, kind="heavy")
            logs.job(self.experiment, outcome, _queue.clock() - self.since)
            with _lock:
                _count(outcome)
                if not self.error and _jobs.get(self.key) is self:
                    del _jobs[self.key]

    def _taken(self) -> float:
        return _queue.clock() - (self.started or 0.0) - self.napped

    def dropped(self) -> None:
        self.again, self.error = True, self.reason
        if not self.error and _jobs.get(self.key) is self:
            del _jobs[self.key]


def _visitor() -> str:
    context = st.runtime.scriptrunner.get_script_run_ctx()
    return context.session_id if context else "nobody"


def _payer() -> str:
    """On whose account it goes: all visits from one address share an hour."""
    return address.of_visit() if st.runtime.scriptrunner.get_script_run_ctx() else "nobody"


def key_of(experiment: Experiment | Fit) -> str:
    """What a result is kept under: the experiment and the weights it ran on."""
    return experiment.digest + zoo.load(experiment.model).digest[:16]


def known(experiment: Experiment | Fit) -> Result | None:
    """The result, if someone has run this experiment before."""
    key = key_of(experiment)
    with _lock:
        found = _results.get(key)
        if found:
            _results.move_to_end(key)
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
    pace = _pace.get(model.digest)
    if pace is None:  # each weight of a layer is used at every token, or at about so many places of a photo
        weights = sum(each.numel() for each in model.network.parameters())
        pace = max(0.05, 2 * weights * (64 if isinstance(model, LanguageModel) else 200) / FLOPS)
    return (forwards + 2 * backwards) * pace * _length(experiment)


def _length(experiment: Experiment | Fit) -> float:
    """How much longer a forward takes than one of a usual prompt: up to 64 tokens, the time is that of the layers."""
    sample = experiment.sample
    text = sample.text if isinstance(sample, Prompt) else sample.clean if isinstance(sample, PromptPair) else ""
    return max(1.0, len(text) / 256)


def needed(experiment: Experiment | Fit) -> float:
    """Bytes of memory it will take at most, about."""
    model, method = zoo.load(experiment.model), METHODS[experiment.lens.method]
    if method.family == "circuits" and isinstance(experiment, Experiment):
        return circuit.memory(experiment)
    return memory.needed(model, method, experiment.sample, *passes(experiment))


@contextlib.contextmanager
def turn() -> Iterator[None]:
    """A turn for the short computing of a page that is no experiment. Nothing of Streamlit's is called inside.

    Raises:
        Full: this visitor's hour is used up.
    """
    # looking anything up in the session ends this run of the page where the visitor has moved on or gone
    with _queue.turn(_visitor(), _payer(), lambda: "page-began" in st.session_state):
        yield


def paced(stream: Iterator[T]) -> Iterator[T]:
    """The same, each step in a turn of its own: for texts that are written token by token."""
    while True:
        with turn():
            step = next(stream, None)
        if step is None:
            return
        yield step


def run(experiment: Experiment | Fit) -> Result:
    """The result, run here and now unless it is kept; here and now is after those whose turn is first.

    Raises:
        Unsuitable: the experiment can't be done; the text says why. Full: not now.
    """
    found = known(experiment)
    if found is not None:
        _count("hits")
        return found
    asked = _queue.clock()
    _refuse_fit(experiment)
    memory.WATCHDOG.start()
    with turn():
        found = known(experiment)  # someone else may have made it meanwhile
        if found is not None:
            return found
        start, worked = time.monotonic(), time.thread_time()
        try:
            with watch(seconds=settings.SETTINGS.seconds or None):
                result = experiment.run()
        except Cancelled as reason:
            raise Unsuitable(str(reason)) from None
        _keep(experiment, result, time.monotonic() - start, time.thread_time() - worked)
    _count("misses")
    _count("done_cheap")
    metrics.observe("computing", _queue.clock() - asked, kind="cheap")
    return result


def later(experiment: Experiment | Fit) -> Result | Job:
    """The result if it is there; otherwise the job that makes it, started if need be, and told that it is wanted.

    Raises:
        Unsuitable: the experiment can't be done, or takes more memory than there is. Full: not now; nothing is lost.
    """
    found = known(experiment)
    if found is not None:
        _count("hits")
        return found
    key, visitor, payer = key_of(experiment), _visitor(), _payer()
    if (job := _wanted(key, visitor, payer)) is not None:
        return job
    _refuse_fit(experiment)
    cost = estimate(experiment)
    with turn():
        _refuse_large(experiment)
    with _lock:
        job = _wanted(key, visitor, payer)
        if job is None and key in _results:  # it has just ended
            return _results[key][0]
        if job is None:
            _forget()
            job = Job(experiment=experiment, key=key, cost=cost)
            _queue.put(job, visitor, payer)
            _jobs[key] = job
            _count("misses")
        return job


def _wanted(key: str, visitor: str, payer: str) -> Job | None:
    """The job of that key, told that it is wanted; a run that was cancelled is none."""
    with _lock:
        job = _jobs.get(key)
        if job is None or (job.cancel.is_set() and not job.error):
            return None
        _queue.want(job, visitor, payer)
        return job


def _refuse_fit(experiment: Experiment | Fit) -> None:
    if experiment.lens.method in ("train_sae", "build_index") and not settings.SETTINGS.fits:
        raise Unsuitable(
            "This server trains no SAEs and builds no indexes; run Actiscope on your own machine for that."
        )


def _refuse_large(experiment: Experiment | Fit) -> None:
    """Before anything is run: is there room for it?"""
    if memory.refusing():
        _count("refused_memory")
        raise Full("memory", "This server is short of memory; try again in a minute. Nothing is lost.")
    bytes = needed(experiment)
    if bytes > memory.room():
        _halve()
        if bytes > memory.room():
            _count("refused_large")
            raise Full(
                "large",
                f"This takes about {_spoken(bytes)} of memory, and {_spoken(max(memory.room(), 0))} are free here; "
                "choose a shorter input, a smaller model, or try again later.",
            )


def _spoken(bytes: float) -> str:
    return f"{bytes / 2**30:.1f} GB" if bytes >= 2**30 else f"{bytes / 2**20:.0f} MB"


def _forget() -> None:
    """Of runs that failed, those that nobody has asked about for a while."""
    now = _queue.clock()
    for key, job in list(_jobs.items()):
        if job.error and all(now - last > REMEMBER for last in job.wanted.values()):
            del _jobs[key]


def stop(experiment: Experiment | Fit) -> None:
    """This visitor no longer wants it; it ends within a second unless another does."""
    with _lock:
        job = _jobs.get(key_of(experiment))
        if job:
            _leave(job)


def _leave(job: Job) -> None:
    _queue.leave(job, _visitor())
    if job.error and not job.wanted and _jobs.get(job.key) is job:
        del _jobs[job.key]  # asked for again, it is tried again


def again(experiment: Experiment | Fit) -> None:
    """Forget that it failed: the next who asks for it has it tried again."""
    with _lock:
        key = key_of(experiment)
        if key in _jobs and _jobs[key].error:
            del _jobs[key]


def begin() -> None:
    """A page begins: note the time, so that `end` knows what it asked for."""
    st.session_state["page-began"] = time.monotonic()


def end() -> None:
    """A page has been shown in full: this visitor no longer wants the jobs that it did not ask for."""
    began = st.session_state["page-began"]
    with _lock:
        for job in list(_jobs.values()):
            if job.wanted.get(_visitor(), began) < began:
                _leave(job)


def close(sentence: str = "This server is about to be restarted; try again in a minute.", seconds: float = 0.0) -> None:
    """Take nothing new, drop what waits with this sentence; what runs gets some seconds."""
    _queue.close(sentence, seconds)


def counts() -> dict[str, float]:
    """What the queue, the results and memory are like now, and what has been done since the start, for metrics.

    Now: waiting, running (long runs), waiting_cheap, running_cheap (short ones), results, result_bytes, memory_used,
    memory_limit, memory_level (0 to 3).

    Since the start: done, cancelled (nobody wanted it any more, while it ran), left (the same, while it waited),
    stopped (by the server), deadline, unsuitable, failed: how long runs ended. done_cheap: short ones that gave a
    result. hits, misses: of the kept results. refused_queue, refused_share, refused_hour, refused_closing,
    refused_memory, refused_large: what was not taken. seconds_heavy, seconds_cheap: of computing; seconds_napped: that
    long runs gave way. drops_1 (caches), drops_2 (models), drops_3 (runs): how often memory was short.

    The time from asking to having, of short and long runs, is the histogram `computing` of `pages.server.metrics`.
    """
    with _lock:
        sizes = {"results": float(len(_results)), "result_bytes": float(_kept_bytes)}
        return {**_queue.state(), **sizes, **_queue.counts, **_counts, **memory.counts()}


def _count(what: str) -> None:
    with _lock:
        _counts[what] += 1


_kept_bytes = 0


def _keep(experiment: Experiment | Fit, result: Result, taken: float, worked: float = float("inf")) -> None:
    """Keep a result; the pace is that of the processor's time, or all would seem long on a busy server."""
    global _kept_bytes
    model, key = zoo.load(experiment.model), key_of(experiment)
    cost = result.forwards + 2 * result.backwards
    with _lock:
        _drop(key)
        _results[key] = (result, taken)
        _kept_bytes += _bytes(result)
        if cost >= 1:
            old, new = _pace.get(model.digest), min(taken, worked) / cost / _length(experiment)
            _pace[model.digest] = new if old is None else 0.7 * old + 0.3 * new
        while len(_results) > KEEP or (_kept_bytes > settings.SETTINGS.result_bytes and len(_results) > 1):
            _drop(next(iter(_results)))


def _drop(key: str) -> None:
    global _kept_bytes
    if found := _results.pop(key, None):
        _kept_bytes -= _bytes(found[0])


# ------------------------------------------------------------------------------------------- when memory gets short


def _halve() -> None:
    """Drop the older half of the results, the captures of models, and all pictures."""
    with _lock:
        for key in list(_results)[: (len(_results) + 1) // 2]:
            _drop(key)
    for model in list(zoo._loaded.values()):
        model.forget()
    st.cache_data.clear()


memory.WATCHDOG.on_pressure(_halve, 1)
memory.WATCHDOG.on_pressure(memory.forget_modules, 2)
memory.WATCHDOG.on_pressure(lambda: zoo.drop_unused(), 2)
memory.WATCHDOG.on_pressure(lambda: _queue.stop_dearest("This server ran short of memory; try again in a minute."), 3)


@atexit.register
def _last() -> None:
    """At the end of the process, threads that compute have to be told, or they crash it."""
    close(seconds=0.0)
    end = time.monotonic() + 2.0
    while _queue.state()["running"] and time.monotonic() < end:
        time.sleep(0.02)
