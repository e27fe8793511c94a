"""Sentiment, refusal and topic of `stories` are steered on held-out prompts, at little cost, and random vectors do not."""

from __future__ import annotations

from typing import Any

import pytest

from interp import zoo
from tests.steered import Task, steered, tasks


@pytest.mark.timeout(600)
@pytest.mark.parametrize("task", tasks(), ids=lambda task: task.direction)
def test_a_direction_turns_nine_of_ten_held_out_prompts_at_little_cost(
    task: Task, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACTISCOPE_STORE", str(tmp_path))
    model: Any = zoo.load("stories")
    found = steered(model, task, draws=3, texts=60)
    assert found.before < 0.1 and found.after > 0.9, found
    assert found.ratio < 1.3, found
    assert found.after >= 3 * found.random, found
