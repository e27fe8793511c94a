"""Hostile images: opened or refused by a sentence, within bounded time and memory, each in a process of its own."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from interp import Unsuitable, settings
from interp.samples import MAX_SIDE, Image
from tests.hostile import fuzz
from tests.hostile.images import IMAGES, OPENS, seeds

SECONDS = 2.0
"""Of computing, for any one file."""


# the dearest of each format for `make test`; all of them for `make slow`
DEAREST = (
    "png/bomb/RGBA", "png/bomb/interlaced/RGBA16", "jpeg/bomb/progressive CMYK", "gif/bomb/saved", "tiff/bomb/F",
    "webp/the largest canvas with a small frame", "tiff/bomb/the smallest tiles", "tiff/tiles of one pixel",
)  # fmt: skip


def look(names: tuple[str, ...], **environment: str) -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("peaks of memory are read as Linux tells them")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.hostile.measure", *names], env=os.environ | environment,
        capture_output=True, text=True, timeout=1500, check=False,
    )  # fmt: skip
    lines = [line.split("|", 3) for line in done.stdout.splitlines() if line.count("|") >= 3]
    assert [line[2] for line in lines] == list(names), done.stderr[-2000:]
    most = 10 * settings.read(os.environ | environment).pixels + 64 * 2**20
    for peak, seconds, name, said in lines:
        assert not said.startswith("died"), f"{name}: {said}"
        assert int(peak) < most, f"{name}: {int(peak) / 2**20:.0f} MB of {most / 2**20:.0f}"
        assert float(seconds) < SECONDS, f"{name}: {seconds} s"
        assert said.startswith("opened") or name not in OPENS, f"{name}: {said}"
        if said.startswith("opened"):
            assert int(said.removeprefix("opened ")) <= MAX_SIDE
        else:
            assert 20 < len(said) < 200, said


def test_the_dearest_files_of_every_format() -> None:
    look(DEAREST, HOSTED="1")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("hosted", ["0", "1"])
def test_every_hostile_image(hosted: str) -> None:
    look(tuple(IMAGES), HOSTED=hosted)


def damage(seed: int, cases: int) -> int:
    """Damage good files at random; how many of them still opened."""
    draw = random.Random(seed)
    files = list(seeds().values())
    opened = 0
    for number in range(cases):
        data = fuzz.damaged(draw, files[number % len(files)])
        begun = time.process_time()
        try:
            assert max(Image.open(data).size) <= MAX_SIDE
            opened += 1
        except Unsuitable as reason:
            assert 20 < len(str(reason)) < 200
        except Exception as problem:
            raise AssertionError(f"case {number} of seed {seed}") from problem
        assert time.process_time() - begun < SECONDS, f"case {number} of seed {seed}"
    return opened


@pytest.mark.filterwarnings("ignore")
def test_a_sample_of_damaged_images() -> None:
    assert 0.05 * 400 < damage(0, 400) < 0.95 * 400


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(1, 6))
def test_fifty_thousand_damaged_images(seed: int) -> None:
    damage(seed, 10_000)
