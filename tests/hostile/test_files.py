"""The whole corpus but the bombs, in a process whose every file, connection and program is watched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from tests.hostile import files, images, texts

ESCAPED = Path("/tmp/actiscope-escaped"), Path("/tmp/actiscope-was-run")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return _run(tmp_path_factory.mktemp("hostile"))


@lru_cache(1)
def _run(place: Path) -> dict[str, Any]:
    for name in ("store", "tmp", "hf", "home"):
        (place / name).mkdir()
    own = {"ACTISCOPE_STORE": place / "store", "TMPDIR": place / "tmp", "HF_HOME": place / "hf", "HOME": place / "home"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.hostile.reads"], capture_output=True, text=True, timeout=280,
        check=False, env=os.environ | {key: str(each) for key, each in own.items()} | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found | {"left": sorted(str(each) for each in (place / "tmp").iterdir())}


def test_the_corpus_is_as_large_as_it_says() -> None:
    tables = (files.DIRECTIONS, files.SAES, files.NUMBERS, files.SNAPSHOTS, files.TEXTS, files.LABELS, files.PACKED)
    many = sum(map(len, (*tables, texts.PROMPTS, texts.LINKS, texts.SPECS, images.IMAGES)))
    assert many >= 700


def test_everything_is_read_or_refused_by_a_sentence(run: dict[str, Any]) -> None:
    assert run["cases"] > 500
    assert run["wrong"] == []


def test_nothing_takes_longer_than_two_seconds(run: dict[str, Any]) -> None:
    assert run["slow"] == []


def test_no_file_outside_the_store_is_touched_and_nothing_is_connected_run_or_unpickled(run: dict[str, Any]) -> None:
    assert run["tried"] >= 5, "the hook has to see what is tried on purpose"
    assert run["seen"] == []
    assert not any(each.exists() for each in ESCAPED)


def test_no_temporary_file_is_left(run: dict[str, Any]) -> None:
    assert run["left"] == []
