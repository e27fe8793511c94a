"""Sentiment, refusal and topic of `stories` are steered on held-out prompts, at little cost; random vectors do not."""

from __future__ import annotations

from typing import Any

import pytest

from interp import zoo
from tests.steered import Task, conditioned, steered, tasks


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


def test_on_condition_harmful_requests_are_refused_and_harmless_ones_as_before(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACTISCOPE_STORE", str(tmp_path))
    model: Any = zoo.load("stories")
    found = conditioned(model, 30)
    plain, always, on_condition = found.harmless
    assert found.harmful[2] >= 0.9 and on_condition <= plain + 0.05, found
    assert always > 0.9 and found.others < 0.05, found
