"""How much memory this process may take and takes, what is dropped before it runs out, and what a run will need."""

from __future__ import annotations

import ctypes
import functools
import gc
import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from interp import hooks, settings
from interp.method import Method
from interp.model import LanguageModel, Model
from interp.samples import Contrast, ImageSet, Prompt, PromptPair, TextSet

LINES = (0.75, 0.85, 0.92)
"""Shares of the limit at which caches are dropped, then models that nobody uses, and at which new long runs are refused
and the dearest is stopped."""
BACK = 0.05
"""How far below its line use has to fall until that is over."""
AGAIN = (10.0, 10.0, 5.0)
"""Seconds after which the same is done once more, if it was not enough."""
EVERY = 0.5
"""Seconds between two looks."""

BESIDE = 2**23
"""Bytes that a run takes beside its activations: results, weights in another form."""

_log = logging.getLogger("actiscope")
Drop = Callable[[], object]


def limit() -> int:
    """Bytes that this process may take: as set, or what its container has, or the machine."""
    return settings.SETTINGS.memory or _given()


@functools.cache
def _given() -> int:
    return min(container(Path("/")) or sys.maxsize, psutil.virtual_memory().total)


def container(root: Path) -> int | None:
    """Bytes that the control group of this process may take, version 2 or 1, or None where there is no limit."""
    try:
        groups = [line.split(":", 2) for line in (root / "proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return None
    found = []
    for _, controllers, path in (each for each in groups if len(each) == 3):
        if controllers and "memory" not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        name = "memory.limit_in_bytes" if controllers else "memory.max"
        inside = base / path.lstrip("/")
        # inside a container its own group is often mounted as the root, whatever the path says
        for folder in (inside, *(each for each in inside.parents if each.is_relative_to(base))):
            try:
                found.append(int((folder / name).read_text()))
            except (OSError, ValueError):  # not there, or "max"
                continue
    return min((each for each in found if 0 < each < 2**60), default=None)


def used() -> int:
    """Bytes that this process takes now."""
    return psutil.Process().memory_info().rss


class Watchdog:
    """Looks at the memory in use, and has what was registered dropped before it runs out.

    Args:
        used, limit, clock: where the numbers come from.
    """

    def __init__(
        self, used: Callable[[], int], limit: Callable[[], int], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.used, self.limit, self.clock = used, limit, clock
        self.level = 0
        self.counts: Counter[str] = Counter()
        self._drops: tuple[list[Drop], ...] = ([], [], [])
        self._done = [float("-inf")] * len(LINES)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def on_pressure(self, drop: Drop, order: int) -> Drop:
        """Have `drop` called when memory gets short: order 1 for caches, 2 for models, 3 to stop work."""
        self._drops[order - 1].append(drop)
        return drop

    def look(self) -> int:
        """Look once, drop what has to be dropped, and say how short memory is: 0 (not at all) to 3."""
        with self._lock:
            for order, line in enumerate(LINES, 1):
                share, now = self.used() / self.limit(), self.clock()
                if share < line:
                    break
                if now - self._done[order - 1] >= AGAIN[order - 1]:
                    self._done[order - 1] = now
                    self._drop(order, share)
            share = self.used() / self.limit()
            over = sum(share >= line for line in LINES)
            if over < self.level:  # only well below a line it is over
                over = sum(share >= line - BACK for line in LINES[: self.level])
            if (over == len(LINES)) != (self.level == len(LINES)):
                _log.warning(
                    "Long runs are %s: memory at %.0f %%.", "refused" if over == 3 else "taken again", 100 * share
                )
            self.level = over
            return over

    def _drop(self, order: int, share: float) -> None:
        self.counts[f"drops_{order}"] += 1
        for drop in self._drops[order - 1]:
            try:
                drop()
            except Exception:
                _log.exception("A cache could not be dropped.")
        gc.collect()
        _trim()
        _log.warning(
            "Memory at %.0f %% of %.0f MB; after dropping (%d) at %.0f %%.",
            100 * share, self.limit() / 2**20, order, 100 * self.used() / self.limit(),
        )  # fmt: skip

    def start(self) -> None:
        """Look by itself from now on; a second call changes nothing."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="memory", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            time.sleep(EVERY)
            try:
                self.look()
            except Exception:  # it has to go on
                _log.exception("Memory could not be looked at.")


WATCHDOG = Watchdog(used, limit)


def refusing() -> bool:
    """Whether memory is so short that no new long run is taken."""
    return WATCHDOG.level >= len(LINES)


def room() -> float:
    """Bytes that may be taken until long runs are refused."""
    return LINES[-1] * limit() - used()


def counts() -> dict[str, float]:
    """memory_used, memory_limit (bytes), memory_level (0 to 3), drops_1 to drops_3 (how often)."""
    return {"memory_used": used(), "memory_limit": limit(), "memory_level": WATCHDOG.level, **WATCHDOG.counts}


def forget_modules() -> None:
    """Empty what functions of `interp` and `kernels` keep of their results (lru_cache)."""
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] in ("interp", "kernels"):
            for value in list(vars(module).values()):
                if isinstance(value, functools._lru_cache_wrapper) and value.__module__ == name:
                    value.cache_clear()


def _trim() -> None:
    """Give freed memory back to the system, which glibc does not do by itself."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


# ------------------------------------------------------------------------------------------------------- what runs need


class _Sum(TorchDispatchMode):
    """Bytes of all that the operations inside make."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self._seen = 0, set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, tuple | list) else (out,):
            if isinstance(each, torch.Tensor) and each._base is None and not func.is_view:
                self.bytes += each.untyped_storage().nbytes()
        return out


def made(model: Model) -> tuple[float, float, float]:
    """Bytes that one forward makes in all its operations, for how many tokens that was (1 for images), its input's."""
    with hooks.alone():
        found: tuple[float, float, float] = model.cached("bytes made", lambda: _made(model))
    return found


def _made(model: Model) -> tuple[float, float, float]:
    sample = model._random_input()
    with torch.no_grad(), _Sum() as total:
        model(sample)
    return total.bytes, sample.shape[1] if isinstance(model, LanguageModel) else 1, sample.nbytes


def needed(model: Model, method: Method, sample: Any, forwards: float, backwards: float) -> float:
    """Bytes that a run will take at most, about: those of one batch of examples.

    A batch is as large as BATCH in the method's file says. For gradients everything that a forward makes is kept;
    without, an operation's inputs and output, which are taken for a fourth of it at most, or eight times the image.
    """
    forward, tokens, given = made(model)
    rows = max(1.0, min(forwards, getattr(sys.modules[method.function.__module__], "BATCH", 8)))
    if isinstance(model, LanguageModel):
        length = min(_length(sample), model.limit)
        # attention's patterns, scores and their softmax grow with the square
        squares = 3 * 4 * model.layers * (model.parts.heads or 1) * length**2
        forward = forward / tokens * length + squares
    plain, kept = rows * max(forward / 4, 8 * given), min(rows, 2 * backwards) * 1.5 * forward
    return BESIDE + max(plain, kept) + forward


def _length(sample: Any) -> int:
    """Tokens of the longest text, about: no tokenizer makes more of common text than one of three characters."""
    if isinstance(sample, Prompt):
        texts: tuple[str, ...] = (sample.text,)
    elif isinstance(sample, PromptPair):
        texts = (sample.clean, sample.corrupted)
    elif isinstance(sample, TextSet):
        return min(256, max(len(each) // 3 for each in sample.texts) or 1)  # many texts are cut into windows
    elif isinstance(sample, Contrast):
        texts = (*sample.positive, *sample.negative)
    else:
        assert not isinstance(sample, ImageSet)
        texts = ()
    return max(1, *(len(each) // 3 for each in texts), 1)
