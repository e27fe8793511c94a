"""Memory: what there is, what is dropped when it gets short, what a run will need, and a real process at its limit."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import weakref
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from interp import memory, settings
from interp.memory import Watchdog, container
from interp.methods import METHODS
from interp.samples import Prompt
from tests import tiny


class World:
    """A fake reading: `level` per cent in use of 1000 bytes, and what each drop frees."""

    def __init__(self, frees: tuple[int, int, int] = (0, 0, 0)) -> None:
        self.used, self.now, self.log = 0, 0.0, list[int]()
        self.watchdog = Watchdog(lambda: self.used, lambda: 1000, lambda: self.now)
        for order, bytes in enumerate(frees, 1):
            self.watchdog.on_pressure(lambda order=order, bytes=bytes: self._drop(order, bytes), order)

    def _drop(self, order: int, bytes: int) -> None:
        self.log.append(order)
        self.used -= bytes

    def at(self, used: int, after: float = 1.0) -> int:
        self.used, self.now = used, self.now + after
        return self.watchdog.look()


def test_first_caches_go_then_models_then_work() -> None:
    world = World()
    assert world.at(740) == 0 and world.log == []
    assert world.at(760) == 1 and world.log == [1]
    assert world.at(860, 20) == 2 and world.log == [1, 1, 2]
    assert world.at(930, 20) == 3 and world.log == [1, 1, 2, 1, 2, 3]
    assert world.watchdog.counts == {"drops_1": 3, "drops_2": 2, "drops_3": 1}


def test_what_helps_is_enough() -> None:
    world = World((300, 0, 0))
    assert world.at(950) == 0 and world.log == [1] and world.used == 650
    world = World((50, 200, 0))
    assert world.at(950) == 0 and world.log == [1, 2]


def test_it_is_not_over_before_it_is_well_over_and_not_done_all_the_time() -> None:
    world = World()
    assert world.at(930) == 3
    assert [world.at(used, 0.5) for used in (915, 890, 871)] == [3, 3, 3]
    assert world.at(869, 0.5) == 2 and world.at(801, 0.5) == 2 and world.at(760, 0.5) == 1
    assert world.log == [1, 2, 3]  # all of it within ten seconds
    assert world.at(701, 0.5) == 1 and world.at(699, 0.5) == 0
    assert world.at(760, 20) == 1 and world.log[3:] == [1]
    assert world.at(760, 20) == 1 and world.log[3:] == [1, 1]  # still short: once more


def test_a_drop_that_fails_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.watchdog.on_pressure(lambda: 1 / 0, 1)
    world.watchdog.on_pressure(lambda: world.log.append(9), 1)
    assert world.at(800) == 1 and world.log == [1, 9] and "could not be dropped" in caplog.text


@pytest.mark.parametrize(
    ("groups", "files", "found"),
    [
        ("0::/a/b", {"a/b/memory.max": "max", "a/memory.max": "3000", "memory.max": "5000"}, 3000),
        ("0::/", {"memory.max": "4000"}, 4000),
        ("0::/kubepods/pod/x", {"memory.max": "4000"}, 4000),  # mounted as the root
        ("0::/a", {"a/memory.max": "max"}, None),
        ("5:cpu:/a\n7:cpu,memory:/a", {"memory/a/memory.limit_in_bytes": "2000"}, 2000),
        ("7:memory:/a", {"memory/memory.limit_in_bytes": "9223372036854771712"}, None),  # "none" in version 1
        ("7:memory:/../..", {"memory/memory.limit_in_bytes": "2000"}, 2000),
        ("nonsense", {}, None),
    ],
)
def test_the_limit_of_a_container(tmp_path: Path, groups: str, files: dict[str, str], found: int | None) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(groups + "\n")
    for name, text in files.items():
        (tmp_path / "sys/fs/cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "sys/fs/cgroup" / name).write_text(text)
    assert container(tmp_path) == found
    assert container(tmp_path / "nowhere") is None


def test_what_is_set_goes_before_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 2**26 < memory.used() < memory.limit() <= memory.psutil.virtual_memory().total
    monkeypatch.setattr(settings, "SETTINGS", dataclasses.replace(settings.SETTINGS, memory=2**26))
    assert memory.limit() == 2**26 and memory.room() < 0


@lru_cache(4)
def _kept(number: int) -> bytes:
    return bytes(number)


def test_what_functions_keep_is_forgotten() -> None:
    module = sys.modules["interp.store"]
    module._kept_here = _kept  # type: ignore[attr-defined]  # imported from elsewhere: not that module's own
    _kept(5)
    from interp.samples import gallery

    gallery()
    assert gallery.cache_info().currsize == 1
    memory.forget_modules()
    assert gallery.cache_info().currsize == 0 and _kept.cache_info().currsize == 1


# ------------------------------------------------------------------------------------------------------------ estimates


class Peak(TorchDispatchMode):
    """The most bytes that tensors made inside took at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._held: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, tuple | list) else (out,):
            if isinstance(each, torch.Tensor):
                storage = each.untyped_storage()
                if storage._cdata not in self._held:
                    self._held.add(storage._cdata)
                    self.now += storage.nbytes()
                    self.most = max(self.most, self.now)
                    weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())
        return out

    def _free(self, key: int, bytes: int) -> None:
        self._held.discard(key)
        self.now -= bytes


def measured(model: Any, sample: Any, key: str, **given: Any) -> tuple[float, float]:
    """Bytes that are expected, and that were taken."""
    method = METHODS[key]
    forwards, backwards = method.estimate(model, given, sample) or (3, 0)
    expected = memory.needed(model, method, sample, forwards, backwards)
    model.forget()
    with Peak() as peak:
        method(model, sample, **given)
    model.forget()
    return expected, peak.most


FAST = [("resnet", "score_cam", 8), ("vit", "integrated_gradients", 3)]
SLOW = [
    ("resnet", "grad_cam", 8), ("resnet", "integrated_gradients", 3), ("resnet", "deeplift", 4), ("resnet", "rise", 8),
    ("resnet", "smooth_grad", 3), ("vit", "rise", 8), ("vit", "occlusion", 20),
]  # fmt: skip
CASES = [*FAST, *(pytest.param(*each, marks=pytest.mark.slow) for each in SLOW)]


@pytest.mark.parametrize(("family", "key", "most"), CASES)
def test_the_estimate_for_images_is_an_upper_bound(family: str, key: str, most: float) -> None:
    expected, taken = measured(tiny.vision(family), tiny.image(), key)
    expected -= memory.BESIDE
    assert taken <= expected <= most * taken, (taken, expected)


@pytest.mark.slow
@pytest.mark.parametrize("key", ["logit_lens", "attention_pattern", "token_attribution"])
def test_the_estimate_for_texts_is_an_upper_bound(key: str) -> None:
    from interp import zoo

    expected, taken = measured(zoo.load("stories"), Prompt("Once upon a time there was a girl. " * 20), key)
    assert taken <= expected <= 10 * taken, (taken, expected)


def test_a_longer_prompt_and_more_examples_need_more() -> None:
    model = tiny.language("gpt2")
    method = METHODS["token_attribution"]
    short, long = (memory.needed(model, method, Prompt("a " * many), 100, 100) for many in (10, 1000))
    few, many = (memory.needed(model, method, Prompt("a " * 10), number, 0) for number in (1, 100))
    assert long > short and many > few


CHILD = """
import json, threading, time
import numpy as np
from interp import memory, settings
import dataclasses
import json
from pages.ui import jobs
from interp.experiment import Call, Experiment
from interp.results import Curve
from interp.samples import Prompt

def experiment(number):
    return Experiment("induction", Prompt(f"text {number}"), Call("next_tokens"))

jobs.key_of(experiment(0))
first = memory.used()
limit = int(first / 0.65)
settings.SETTINGS = dataclasses.replace(settings.SETTINGS, memory=limit)
memory.EVERY, memory.AGAIN = 0.02, (0.1, 0.1, 0.1)
memory.WATCHDOG.start()
most, size = 0, 16 * 2**20
rounds = int(1.5 * (limit - first) / size)
for number in range(rounds):
    values = np.ones((1, size // 8))
    jobs._keep(experiment(number), Curve(x=values, y=values[:, :1], series=("a",)), 0.1)
    most = max(most, memory.used())
    time.sleep(0.02)
print(json.dumps({"counts": jobs.counts(), "most": most, "limit": limit, "rounds": rounds, "size": size,
                  "last": jobs.known(experiment(rounds - 1)) is not None}))
"""


@pytest.mark.slow
def test_a_process_at_its_limit_drops_what_it_keeps_and_lives() -> None:
    """More is computed than there is room for."""
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["counts"]["drops_1"] >= 2 and report["counts"].get("drops_3", 0) == 0, report
    assert report["most"] < memory.LINES[2] * report["limit"], report
    assert report["last"] and report["counts"]["results"] < report["rounds"], report
