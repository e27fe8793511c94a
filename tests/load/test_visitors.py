"""Many visitors at once over the app's own protocol: each sees what each would see alone; nothing is left behind."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import numpy as np
import psutil
import pytest

from tests.browser.harness import Server
from tests.load.client import Gone, Visitor, differences
from tests.load.journeys import HEAVY, JOURNEYS, PAIRS, Step, call, link

HOSTED = {
    "HOSTED": "1", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "ACTISCOPE_MODELS": "8",
    # all visitors come from one address
    "ACTISCOPE_ADDRESS_VISITORS": "0", "ACTISCOPE_ADDRESS_RATE": "0", "ACTISCOPE_VISITOR_SECONDS": "0",
}  # fmt: skip
PAUSE = 10.0
"""Seconds between two actions of a visitor, on average."""
PATIENCE = 40.0
"""Seconds after which a visitor gives up on something long, on average."""


LAPTOP = {"HOSTED": "0"}
"""The quick forms do without the warm start of a hosted server."""


@contextmanager
def hosted(**more: str) -> Iterator[Server]:
    """A server as strangers get it, once it is warm."""
    with Server(env=HOSTED | more, timeout=120) as server:
        for _ in range(600 if more.get("HOSTED") != "0" else 0):
            try:
                with urllib.request.urlopen(f"{server.address}/readyz", timeout=10):
                    break
            except OSError:  # 503 while it gets ready
                time.sleep(0.5)
        yield server


Reading = dict[str, str]


async def alone(server: Server, journeys: list[tuple[Step, ...]]) -> list[list[Reading]]:
    """What one visitor reads after each step of each journey, with nobody else there."""
    found = []
    for journey in journeys:
        visitor, readings = Visitor(), []
        for step in journey:
            await step.act(visitor, server.address)
            await visitor.settled(600)
            readings.append(visitor.reading())
        await visitor.leave()
        found.append(readings)
    return found


@dataclass
class Tally:
    """What became of the actions of a crowd."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    """How long the answers took, by kind of action."""
    wrong: list[str] = field(default_factory=list)
    given_up: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)
    """Seconds since the beginning, and bytes of the server."""
    server_seconds: float = 0.0
    client_seconds: float = 0.0

    def table(self) -> str:
        lines = ["kind        actions   p50 s   p95 s   max s"]
        rows = dict(self.seconds) | {"all but heavy": self.cheap}
        for kind, taken in sorted(rows.items()):
            quantiles = [float(np.quantile(taken, share)) for share in (0.5, 0.95, 1.0)] if taken else [0.0] * 3
            lines.append(f"{kind:14}{len(taken):5}" + "".join(f"{each:8.2f}" for each in quantiles))
        lines.append(f"wrong {len(self.wrong)}, failed {len(self.failed)}")
        lines.append(f"refused {dict(self.refused)}, given up {dict(self.given_up)}")
        lines.append(f"CPU seconds: server {self.server_seconds:.0f}, client {self.client_seconds:.1f}")
        marks = " ".join(f"{each / 2**20:.0f}" for at, each in self.memory[::3])
        return "\n".join([*lines, f"memory every 30 s, MB: {marks}"])

    @property
    def cheap(self) -> list[float]:
        return [each for kind, taken in self.seconds.items() if kind != HEAVY for each in taken]

    def growth(self, after: float) -> float:
        """Bytes a minute by which the server grows after so many seconds."""
        at, size = np.array([each for each in self.memory if each[0] >= after]).T
        return float(np.polyfit(at / 60, size, 1)[0])


async def crowd(
    server: Server, truth: list[list[Reading]], journeys: list[tuple[Step, ...]], visitors: int, seconds: float,
    seed: int = 0, pause: float = PAUSE, arriving: float = 0.0,
) -> Tally:  # fmt: skip
    """So many visitors for so long; every answer is compared with the one that a visitor gets alone.

    Args:
        arriving: seconds over which they come.
    """
    tally, begin = Tally(), time.monotonic()
    process = psutil.Process(server.process.pid)
    used, own = sum(process.cpu_times()[:2]), time.process_time()
    heavy = [at for at, each in enumerate(journeys) if each[0].kind == HEAVY]
    cheap = [at for at, each in enumerate(journeys) if each[0].kind != HEAVY]
    length = sum(len(journeys[at]) for at in cheap) / len(cheap)

    async def visit(number: int) -> None:
        chance = random.Random(f"{seed}:{number}")
        await asyncio.sleep(chance.uniform(0, arriving))
        while time.monotonic() - begin < seconds:
            # heavy journeys are one action long; so many of them that one action in ten is heavy, where there are any
            among = heavy if heavy and chance.random() < length / (length + 9) else cheap
            at = chance.choice(among)
            visitor = Visitor()
            try:
                for step, right in zip(journeys[at], truth[at], strict=True):
                    if not await answered(visitor, step, right, chance):
                        break
                    await asyncio.sleep(chance.expovariate(1 / pause))
                    if time.monotonic() - begin > seconds:
                        break
            except (Gone, LookupError, TimeoutError) as problem:
                tally.failed.append(f"{step}: {type(problem).__name__}: {problem}")
            finally:
                # some close the tab politely, some are gone
                await visitor.leave(politely=chance.random() < 0.5)

    async def answered(visitor: Visitor, step: Step, right: Reading, chance: random.Random) -> bool:
        began = time.monotonic()
        await step.act(visitor, server.address)
        patience = max(chance.expovariate(1 / PATIENCE), 5.0) if step.kind == HEAVY else 120.0
        try:
            ended = await visitor.settled(patience)
        except TimeoutError:
            if step.kind != HEAVY:
                raise
            if chance.random() < 0.5:  # the others close the tab
                with suppress(LookupError, TimeoutError):
                    visitor.click("stop")
                    await visitor.settled(60)
            tally.given_up[step.kind] += 1
            return False
        seen = visitor.reading()
        if wrong := differences(right, seen):
            if any("alert" in each for each in seen if each not in right):
                tally.refused[next(each for each in seen if "alert" in each and each not in right)[:90]] += 1
            else:
                tally.wrong.append(f"{step}\n    " + "\n    ".join(wrong[:4]))
            return False
        tally.seconds.setdefault(step.kind, []).append(ended - began)
        return True

    async def watch() -> None:
        while True:
            tally.memory.append((time.monotonic() - begin, float(process.memory_info().rss)))
            await asyncio.sleep(10)

    watching = asyncio.create_task(watch())
    await asyncio.gather(*(visit(number) for number in range(visitors)))
    watching.cancel()
    tally.server_seconds = sum(process.cpu_times()[:2]) - used
    tally.client_seconds = time.process_time() - own
    return tally


@pytest.mark.load
@pytest.mark.timeout(3600)
def test_a_crowd_reads_what_each_would_read_alone() -> None:
    visitors, seconds = (int(os.environ.get(f"ACTISCOPE_LOAD_{name}", least)) for name, least in
                         (("VISITORS", "50"), ("SECONDS", "600")))  # fmt: skip

    async def all_of_it() -> tuple[Tally, str]:
        with hosted(ACTISCOPE_SECONDS="600") as server:
            truth = await alone(server, JOURNEYS)
        with hosted() as server:
            await alone(server, [next(each for each in JOURNEYS if each[0].kind == kind) for kind in
                                 dict.fromkeys(each[0].kind for each in JOURNEYS) if kind != HEAVY])  # fmt: skip
            tally = await crowd(server, truth, JOURNEYS, visitors, seconds, arriving=min(60.0, seconds / 5))
            assert server.process.poll() is None, server.log()[-4000:]
            return tally, server.log()

    tally, log = asyncio.run(all_of_it())
    print(f"\n{visitors} visitors, {seconds} s\n{tally.table()}")
    assert not tally.wrong, "\n".join(tally.wrong[:5])
    assert not tally.failed, "\n".join(tally.failed[:5])
    assert "Traceback" not in log
    assert len(tally.cheap) > 0.5 * visitors * seconds / PAUSE
    assert np.quantile(tally.cheap, 0.95) < 3
    if seconds >= 300:
        assert tally.growth(after=120) < 2**20 * 8


def _of(*models: str) -> list[tuple[Step, ...]]:
    """The journeys on these models that are not heavy."""
    names = [f"model={each}&" for each in models]
    return [each for each in JOURNEYS if each[0].kind != HEAVY and any(name in each[0].at[0] for name in names)]


def _crowd_of(journeys: list[tuple[Step, ...]], visitors: int, seconds: float, pause: float, **more: str) -> Tally:
    async def both() -> Tally:
        with hosted(**more | {"ACTISCOPE_SECONDS": "600", "ACTISCOPE_MODELS": "8"}) as server:
            truth = await alone(server, journeys)
        with hosted(**more) as server:
            await alone(server, [journeys[0][:1]])
            tally = await crowd(server, truth, journeys, visitors, seconds, pause=pause, arriving=pause)
            assert "Traceback" not in server.log()
            return tally

    return asyncio.run(both())


@pytest.mark.load
@pytest.mark.timeout(600)
def test_a_few_visitors_on_models_that_push_each_other_out_of_memory() -> None:
    journeys = _of("stories-gpt2", "induction", "stories-moe", "scenes-shortcut")
    tally = _crowd_of(journeys, visitors=6, seconds=12, pause=1, ACTISCOPE_MODELS="1", **LAPTOP)
    assert not tally.wrong and not tally.failed, "\n".join([*tally.wrong, *tally.failed][:5])
    assert len(tally.cheap) >= 12


@pytest.mark.load
@pytest.mark.timeout(1800)
def test_a_crowd_on_all_models_with_room_for_one() -> None:
    tally = _crowd_of(_of("photos", "scenes", "stories", "stories-gpt2", "induction"), 12, 90, 4, ACTISCOPE_MODELS="1")
    print(f"\n{tally.table()}")
    assert not tally.wrong and not tally.failed, "\n".join([*tally.wrong, *tally.failed][:5])


# ------------------------------------------------------------------------------------------------- tabs that are closed


def _lenses() -> dict[str, str]:
    """A link to each lens on its page."""
    from interp.methods import METHODS
    from pages.ui.bench import page_of

    clean, name, answer, foil = PAIRS[0]
    pair = json.dumps([clean, name.join(clean.rsplit(foil.strip(), 1)), answer, foil])
    samples = {
        "cam": ("photos", {"image": "chelsea"}), "attribution": ("photos", {"image": "chelsea"}),
        "circuits": ("stories", {"pair": pair}),
    }  # fmt: skip
    found = {}
    for method in METHODS.values():
        page = page_of(method) if method.kind == "lens" else None
        if page is not None:
            family = "cam" if "heatmaps" in page else method.family
            model, sample = samples.get(family, ("stories", {"prompt": "The capital of France is"}))
            push = [call("steer", direction="stories/sentiment", strength=0.5)] if family == "steering" else []
            place = page.removeprefix("pages/").removesuffix(".py")
            found[method.key] = link(place, model, sample, method.key, *push)
    return found


def _now(server: Server) -> dict[str, float]:
    """What is open, under way or waiting on the server, by its own metrics and by the system's."""
    with urllib.request.urlopen(f"{server.address}/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    gauges = {name: float(value) for name, value in (each.rsplit(" ", 1) for each in lines if each[:1] != "#")}
    found = {name: gauges.get(f"actiscope_{name}", 0.0) for name in ("sessions", "running", "waiting", "waiting_cheap")}
    process = psutil.Process(server.process.pid)
    open_now = [each for each in process.net_connections() if each.status == psutil.CONN_ESTABLISHED]
    return found | {"threads": process.num_threads(), "sockets": len(open_now)}


async def _all_left(server: Server, most: dict[str, float], patience: float) -> dict[str, float]:
    """Wait until nothing is more than that; what it is then, or what it has come to."""
    end = time.monotonic() + patience
    while True:
        now = await asyncio.to_thread(_now, server)
        if all(now[name] <= value for name, value in most.items()) or time.monotonic() > end:
            return now
        await asyncio.sleep(0.5)


def _closed_in_the_middle(keys: list[str], rounds: int) -> list[float]:
    """Close the tab in the middle of each lens, over and over; the memory after each round, once all has ended."""
    links = _lenses()
    short = LAPTOP | {"STREAMLIT_SERVER_DISCONNECTED_SESSION_TTL": "1"}

    async def close(server: Server, key: str, chance: random.Random) -> None:
        visitor = Visitor()
        await visitor.open(server.address, links[key])
        while not (visitor.running or visitor.failure):
            await asyncio.sleep(0.01)
        await asyncio.sleep(chance.uniform(0.05, 0.8))
        assert not visitor.failure, visitor.failure
        await visitor.leave(politely=chance.random() < 0.5)

    async def all_of_it() -> list[float]:
        memory, chance = [], random.Random(0)
        with hosted(**short) as server:
            for place in dict.fromkeys(links[each].split("?")[0] for each in keys):
                visitor = Visitor()
                await visitor.open(server.address, place)
                await visitor.settled()
                await visitor.leave()
            idle = {"sessions": 0, "running": 0, "waiting": 0, "waiting_cheap": 0, "sockets": 1}
            before = await _all_left(server, idle, 60)
            most = idle | {"threads": before["threads"] + 4, "sockets": before["sockets"]}
            for _ in range(rounds):
                for key in keys:
                    await close(server, key, chance)
                now = await _all_left(server, most, 60)
                assert all(now[name] <= value for name, value in most.items()), (now, most)
                memory.append(float(psutil.Process(server.process.pid).memory_info().rss))
            assert server.process.poll() is None and "Traceback" not in server.log()
        return memory

    return asyncio.run(all_of_it())


@pytest.mark.load
@pytest.mark.timeout(3600)
def test_a_tab_closed_in_the_middle_of_any_lens_leaves_nothing() -> None:
    memory = _closed_in_the_middle(sorted(_lenses()), rounds=4)
    print("\nMB after each round: " + " ".join(f"{each / 2**20:.0f}" for each in memory))
    assert memory[-1] - memory[1] < 40 * 2**20
