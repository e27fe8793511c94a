"""SECURITY.md names tests and files that exist, one of each at least for every threat."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROWS = [
    line.strip("| ").split(" | ") for line in (ROOT / "SECURITY.md").read_text().splitlines() if line.startswith("| ")
][1:]


def functions(path: Path) -> set[str]:
    """The names of the test functions of a file."""
    return {each.name for each in ast.walk(ast.parse(path.read_text())) if isinstance(each, ast.FunctionDef)}


def test_every_threat_has_a_defence_in_a_file_and_a_test() -> None:
    assert len(ROWS) >= 20
    for threat, _, where, tests in ROWS:
        files = re.findall(r"`([^`]+)`", where)
        assert files, threat
        for each in files:
            assert (ROOT / each).exists(), f"{each} ({threat})"
        named = re.findall(r"`([^`:]+)::([^`]+)`", tests)
        assert named, threat
        for path, name in named:
            assert (ROOT / path).exists() and name in functions(ROOT / path), f"{path}::{name} ({threat})"
