"""Steering adds exactly what it says, where it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from interp import Unsuitable, directions
from interp.methods.change.steer import steer
from interp.samples import Prompt
from tests import tiny
from tests.methods.change.pushed import FAMILIES, PADDED, TEXT, direction, random_direction, seen
from tests.test_hooks import near

PROMPT = Prompt(TEXT)


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACTISCOPE_STORE", str(tmp_path))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("settings", "at"),
    [
        ({}, [[2, 3, 4], [0, 1, 2, 3, 4], [1, 2, 3, 4]]),
        ({"where": "prompt"}, [[2, 3], [0, 1, 2, 3], [1, 2, 3]]),
        ({"where": "generated"}, [[4], [4], [4]]),
        ({"positions": (0, 2)}, [[2, 4], [0, 2], [1, 3]]),
        ({"positions": (2,), "where": "generated"}, [[4], [], []]),
        ({"positions": (9,)}, [[], [], []]),
    ],
)
def test_it_adds_the_vector_at_the_tokens_asked_for_and_nowhere_else(
    family: str, settings: dict[str, Any], at: list[list[int]]
) -> None:
    model = tiny.language(family)
    v = direction(model).at(1)
    block = steer(model, PROMPT, layer=1, strength=-2.5, **settings)
    ((before, after),) = seen(model, block, 1, lambda: model(PADDED))
    for row, places in enumerate(at):
        for place in range(5):
            if place in places:
                torch.testing.assert_close(after[row, place], before[row, place] - 2.5 * v, rtol=1e-5, atol=1e-5)
            else:
                assert torch.equal(after[row, place], before[row, place]), (row, place)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("where", ["all", "prompt", "generated"])
@pytest.mark.parametrize("cache", [True, False])
def test_while_text_is_generated_each_token_is_pushed_once_with_a_cache_or_without(
    family: str, where: str, cache: bool
) -> None:
    model = tiny.language(family)
    v, length = direction(model).at(0), model.inputs(TEXT).shape[1]
    block = steer(model, PROMPT, layer=0, strength=3.0, where=where)
    passes = seen(model, block, 0, lambda: list(model.generate(TEXT, 4, cache=cache)))
    assert len(passes) > 1
    first = 0
    for number, (before, after) in enumerate(passes):
        start = first if cache else 0
        pushed = [(after[0, at] - before[0, at]).abs().max() > 1e-6 for at in range(before.shape[1])]
        behind = [at + start >= length - 1 for at in range(before.shape[1])]
        assert pushed == [{"all": True, "prompt": not each, "generated": each}[where] for each in behind], number
        for at in range(before.shape[1]):
            if pushed[at]:
                near(after[0, at], before[0, at] + 3 * v, 1e-4)
        first += before.shape[1]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("settings", [{}, {"where": "prompt"}, {"where": "generated"}, {"positions": (1,)}])
def test_steered_text_is_the_same_with_a_cache_or_without(family: str, settings: dict[str, Any]) -> None:
    model = tiny.language(family)
    with steer(model, PROMPT, direction=direction(model).key, layer=0, strength=2.0, **settings):
        assert list(model.generate(TEXT, 6)) == list(model.generate(TEXT, 6, cache=False))


@pytest.mark.parametrize("family", FAMILIES)
def test_units_are_shifts_or_mean_lengths_of_the_stream(family: str) -> None:
    model = tiny.language(family)
    known = direction(model)
    for unit, length in (("shift", float(known.at(2).norm())), ("norm", known.fact("norm", 2))):
        block = steer(model, PROMPT, layer=2, strength=1.5, unit=unit)
        ((before, after),) = seen(model, block, 2, lambda: model(TEXT))
        assert (after - before).norm(dim=-1).numpy() == pytest.approx(1.5 * length, rel=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_norm_of_each_token_is_kept_where_that_is_asked_for(family: str) -> None:
    model = tiny.language(family)
    v = direction(model).at(1)
    block = steer(model, PROMPT, layer=1, strength=4.0, keep_norm=True)
    ((before, after),) = seen(model, block, 1, lambda: model(PADDED))
    near(after.norm(dim=-1), before.norm(dim=-1))
    plain = before + 4 * v
    cosine = torch.nn.functional.cosine_similarity(plain, after, dim=-1)
    assert cosine[PADDED >= 0].numpy() == pytest.approx(1, abs=1e-5)


def test_it_acts_after_the_layer_that_tells_best_unless_one_is_given() -> None:
    model = tiny.language("gpt2")
    known = direction(model)
    with steer(model, PROMPT, strength=1.0):
        mine = model(TEXT)
    with steer(model, PROMPT, direction=known.key, layer=known.best, strength=1.0):
        assert torch.equal(model(TEXT), mine)


def test_what_can_not_be_pushed_gets_a_sentence() -> None:
    model, other = tiny.language("gpt2"), tiny.language("llama")
    key, huge = direction(model).key, random_direction(model, 1e37)
    for settings, says in (
        ({"direction": key, "layer": 7}, "known after layers 0 to 2"),
        ({"direction": "0" * 64}, "not kept here"),
        ({"direction": "nothing"}, "the name of a direction"),
        ({"direction": "../x/y"}, "the name of a direction"),
        ({"strength": 101.0}, "from -100 to 100"),
    ):
        with pytest.raises(Unsuitable, match=says), steer(model, PROMPT, **{"strength": 1.0, **settings}):
            model(TEXT)
    with pytest.raises(Unsuitable, match="made for other weights"):
        steer(other, PROMPT, direction=key, strength=1.0)
    with (
        pytest.raises(Unsuitable, match="overflow; choose a smaller"),
        steer(model, PROMPT, direction=huge, layer=0, strength=100.0),
    ):
        model(TEXT)


def test_a_strength_in_lengths_of_a_stream_that_is_not_known_gets_a_sentence() -> None:
    model = tiny.language("gpt2")
    found = directions.Direction("mine", "own", model.name, model.digest, (1,), torch.ones(1, 16))
    with (
        pytest.raises(Unsuitable, match="in shifts"),
        steer(model, Prompt("The cat"), direction=directions.keep(found), strength=1.0, unit="norm"),
    ):
        pass
