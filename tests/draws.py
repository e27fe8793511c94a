"""A job for tests of `interp.batch`, in a module that a worker has loaded at once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from interp import Unsuitable, store


@dataclass(frozen=True)
class Draws:
    """Random matrices; each shard says in a file that it was begun, by whom, and does what `odd` says in shard 2."""

    folder: str
    odd: str = ""
    seconds: float = 0.0
    count: int = 6

    @property
    def key(self) -> str:
        return store.key_of("draws", self.folder, self.odd)

    @property
    def name(self) -> str:
        return "draws"

    def shards(self) -> int:
        return self.count

    def shard(self, number: int) -> dict[str, np.ndarray]:
        with open(Path(self.folder) / "begun", "a") as file:
            file.write(f"{number} {os.getpid()}\n")
        time.sleep(self.seconds)
        if number == 2:
            first = [each for each, _ in begun(self.folder)].count(2) == 1
            if self.odd == "always" or (self.odd == "once" and first):
                os.kill(os.getpid(), signal.SIGKILL)
            if self.odd == "unsuitable":
                raise Unsuitable("Take another one.")
            if self.odd == "wrong":
                raise ZeroDivisionError("by zero")
        x = np.random.default_rng((5, number)).normal(size=(20, 30)).astype(np.float32)
        return {"x": x.T, "n": np.array(number), "none": np.zeros((0, 3)), "torch": torch.ones(2).numpy()[::2]}

    def joined(self, parts: Iterator[dict[str, np.ndarray]]) -> list[np.ndarray]:
        return [part["x"] * int(part["n"]) for part in parts]


class Locked(Draws):
    """The same, which can't be read by a worker while there is a file called locked."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        if (Path(state["folder"]) / "locked").exists():
            raise PermissionError("locked")
        self.__dict__.update(state)


def begun(folder: Any) -> list[tuple[int, int]]:
    path = Path(folder) / "begun"
    return [tuple(map(int, line.split())) for line in path.read_text().splitlines()] if path.exists() else []  # type: ignore[misc]
