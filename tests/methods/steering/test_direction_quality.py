"""Where a prompt lies along a direction, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from interp import directions
from interp.methods import METHODS
from interp.methods.steering.difference_of_means import difference_of_means
from interp.methods.steering.direction_quality import direction_quality
from interp.samples import Prompt
from tests import tiny
from tests.methods.change import pushed

SAMPLE = Prompt("The cat sat on the")


def test_scores_and_facts_are_those_of_each_layer() -> None:
    model = tiny.language("llama")
    found = directions.load(difference_of_means(model, tiny.two_sides()), model)
    table = direction_quality(model, SAMPLE, direction=found.key)
    for layer in range(3):
        with model.record([found.site(layer)]) as seen:
            model(SAMPLE)
        h = seen[found.site(layer)][0].double().numpy()
        v = found.at(layer).double().numpy()
        low, high = found.fact("low", layer), found.fact("high", layer)
        scores = (h @ v / (v @ v) - low) / (high - low)
        expected = [found.fact(name, layer) for name in ("accuracy", "cosine", "agreement")]
        expected += [np.linalg.norm(v) / found.fact("norm", layer), scores[-1], scores.mean()]
        np.testing.assert_allclose(table.values[layer], expected, rtol=1e-4, atol=1e-5)


def test_a_push_of_one_shift_adds_one_to_the_score_of_its_layer_and_none_below() -> None:
    model = tiny.language("gpt2")
    key = difference_of_means(model, tiny.two_sides())
    plain = direction_quality(model, SAMPLE, direction=key).values[:, 4:]
    with METHODS["steer"](model, SAMPLE, direction=key, layer=1, strength=1.0):
        changed = direction_quality(model, SAMPLE, direction=key).values[:, 4:]
    np.testing.assert_allclose((changed - plain)[:2], [[0, 0], [1, 1]], atol=1e-4)


def test_what_a_file_does_not_say_is_left_open() -> None:
    model = tiny.language("gpt2")
    table = direction_quality(model, SAMPLE, direction=pushed.random_direction(model))
    assert np.isnan(table.values).all() and table.values.shape == (3, 6)
    with pytest.raises(Exception, match="not kept here"):
        direction_quality(model, SAMPLE, direction="0" * 64)
