"""Clamped, the stream has the behaviour score that was asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from interp import Unsuitable
from interp.methods.change.clamp_direction import clamp_direction
from interp.samples import Prompt
from tests import tiny
from tests.methods.change.pushed import FAMILIES, PADDED, TEXT, direction, random_direction, seen
from tests.test_hooks import near

PROMPT = Prompt(TEXT)


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACTISCOPE_STORE", str(tmp_path))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("value", [-1.5, 0.0, 1.0])
def test_every_token_gets_the_score_and_keeps_what_lies_across(family: str, value: float) -> None:
    model = tiny.language(family)
    known = direction(model)
    ((before, after),) = seen(model, clamp_direction(model, PROMPT, layer=1, value=value), 1, lambda: model(PADDED))
    real = PADDED >= 0
    assert known.score(after, 1)[real].numpy() == pytest.approx(value, abs=1e-4)
    assert known.score(before, 1)[real].std() > 0.01
    u = known.at(1) / known.at(1).norm()
    rest = [h - (h @ u)[..., None] * u for h in (before, after)]
    near(rest[1], rest[0], 1e-4)
    assert torch.equal(after[~real], before[~real])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cap_takes_down_what_lies_above_and_leaves_what_lies_below(family: str) -> None:
    model = tiny.language(family)
    known = direction(model)
    with model.record(["resid_post.1"]) as found:
        model(TEXT)
    value = float(known.score(found["resid_post.1"], 1).median())
    block = clamp_direction(model, PROMPT, layer=1, value=value, only=True)
    ((before, after),) = seen(model, block, 1, lambda: model(TEXT))
    scores = [known.score(h, 1)[0] for h in (before, after)]
    above = scores[0] > value + 1e-4
    assert above.any() and not above.all()
    assert scores[1][above].numpy() == pytest.approx(value, abs=1e-4)
    near(after[0, ~above], before[0, ~above], 1e-5)


def test_a_direction_without_examples_has_no_scores_to_hold() -> None:
    model = tiny.language("gpt2")
    with pytest.raises(Unsuitable, match="knows no examples"):
        clamp_direction(model, PROMPT, direction=random_direction(model), layer=0, value=1.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_clamped_text_is_the_same_with_a_cache_or_without(family: str) -> None:
    model = tiny.language(family)
    for where in ("all", "generated"):
        with clamp_direction(model, PROMPT, direction=direction(model).key, layer=1, value=2.0, where=where):
            assert list(model.generate(TEXT, 6)) == list(model.generate(TEXT, 6, cache=False))
