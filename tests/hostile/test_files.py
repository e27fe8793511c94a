"""The whole corpus but the bombs, in a process whose every file, connection and program is watched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.hostile import files, images, texts

ESCAPED = Path("/tmp/actiscope-escaped"), Path("/tmp/actiscope-was-run")


def go_through(place: Path, step: int) -> None:
    """Every `step`th case."""
    for name in ("store", "tmp", "hf", "home"):
        (place / name).mkdir()
    own = {"ACTISCOPE_STORE": place / "store", "TMPDIR": place / "tmp", "HF_HOME": place / "hf", "HOME": place / "home"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.hostile.reads", str(step)], capture_output=True, text=True,
        timeout=900, check=False,
        env=os.environ | {key: str(each) for key, each in own.items()} | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found["cases"] > 700 // step
    assert found["wrong"] == [], "each is read, or refused by a sentence"
    assert found["slow"] == [], "nothing takes longer than two seconds"
    assert found["tried"] >= 5, "the hook has to see what is tried on purpose"
    assert found["seen"] == [], "no file outside the store, no connection, no program, no pickle"
    assert not any(each.exists() for each in ESCAPED)
    assert list((place / "tmp").iterdir()) == [], "no temporary file is left"


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_the_whole_corpus_touches_nothing_but_the_store(tmp_path: Path) -> None:
    go_through(tmp_path, 1)


def test_a_quarter_of_the_corpus_touches_nothing_but_the_store(tmp_path: Path) -> None:
    go_through(tmp_path, 4)


def test_the_corpus_is_as_large_as_it_says() -> None:
    tables = (files.DIRECTIONS, files.SAES, files.NUMBERS, files.SNAPSHOTS, files.TEXTS, files.LABELS, files.PACKED)
    many = sum(map(len, (*tables, texts.PROMPTS, texts.LINKS, texts.SPECS, images.IMAGES)))
    assert many >= 700
