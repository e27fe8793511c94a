"""Each point of a sweep against the intervention alone, and what a linear network must do."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from torch import nn

from interp import Unsuitable, directions, hooks, progress
from interp.methods import METHODS
from interp.methods.steering import dose_response as dose
from interp.methods.steering._meters import judge, mean_divergence, perplexity, random_like, repetition, written
from interp.methods.steering.difference_of_means import difference_of_means
from interp.methods.steering.dose_response import dose_response
from interp.model import LanguageModel
from interp.results import Curve
from interp.samples import Prompt, TextSet
from tests import tiny
from tests.methods.change import pushed

SAMPLE = Prompt("The cat sat on the")
TEXTS = TextSet(("The cat sat on the mat.", "A dog ran."))


def series(curve: Curve, name: str) -> np.ndarray:
    return curve.y[curve.series.index(name)]


def one(model: LanguageModel, name: str, layer: int, strength: float, where: str, measure: str, seed: int) -> float:
    """A single point by the intervention, one text at a time."""
    with METHODS["steer"](model, SAMPLE, direction=name, layer=layer, strength=strength, where=where):
        if measure == "perplexity":
            return perplexity(model, TEXTS)
        text = written(model, [SAMPLE], 5, 1.0, [seed], "continuation")
        if measure == "repetition":
            return repetition(text.tokens(0))
        if measure == "KL":
            return float(mean_divergence(model, text)[0])
        by = judge(model, name, None)
        assert by is not None
        return float(by.scores(model, SAMPLE, text)[0])


@pytest.mark.parametrize("measure", ["behaviour", "perplexity", "KL", "repetition"])
@pytest.mark.parametrize("token", ["last", "mean"])
def test_every_point_is_that_of_the_intervention_alone(measure: str, token: str) -> None:
    model = tiny.language("llama", 2)
    key = difference_of_means(model, tiny.two_sides(), token=token)
    curve = dose_response(
        model, SAMPLE, direction=key, layer=1, measure=measure, largest=3.0, steps=3, where="generated", n=5, seeds=2,
        texts=TEXTS, seed=4,
    )  # fmt: skip
    assert curve.x.tolist() == [-3.0, 0.0, 3.0] and curve.y.shape == (6, 3)
    found = directions.load(key, model)
    names = []
    for number, r in enumerate(random_like(found.at(1), 2, 4)):
        vectors = found.vectors.clone()
        vectors[1] = r
        names.append(directions.keep(dataclasses.replace(found, name=f"random {number}", vectors=vectors)))
    for column, strength in enumerate(curve.x):
        own = [one(model, key, 1, float(strength), "generated", measure, seed) for seed in (4, 5)]
        # a random direction is scored by the one that is looked at
        others = []
        for name, seed in zip(names, (4, 5), strict=True):
            with METHODS["steer"](model, SAMPLE, direction=name, layer=1, strength=strength, where="generated"):
                others.append(one(model, key, 1, 0.0, "generated", measure, seed))
        for part, values in (("direction", own), ("random", others)):
            for end, summary in (("", np.mean), (", lowest", min), (", highest", max)):
                expected = float(summary(values))
                assert series(curve, part + end)[column] == pytest.approx(expected, rel=1e-4, abs=1e-6), part + end


def test_without_a_push_all_directions_are_alike() -> None:
    model = tiny.language("gemma2")
    key = difference_of_means(model, tiny.two_sides())
    for measure in ("behaviour", "perplexity", "KL", "repetition"):
        curve = dose_response(model, SAMPLE, direction=key, measure=measure, steps=3, n=4, seeds=2, texts=TEXTS)
        assert series(curve, "direction")[1] == pytest.approx(series(curve, "random")[1], rel=1e-6, abs=1e-10)
        if measure == "KL":  # and nothing is in force, so nothing has changed
            assert abs(series(curve, "random, highest")[1]) < 1e-9


def linear() -> LanguageModel:
    """A tiny Llama without its final norm: from the last layer on everything is linear up to the softmax."""
    network = tiny.untouched("llama")
    network.model.norm = nn.Identity()
    return LanguageModel(network, tiny.tokenizer(), "linear at the end")


def test_behind_the_last_layer_of_a_linear_network_kl_is_convex_in_the_strength() -> None:
    """KL(p || p tilted by s w) = log E_p exp(s w) - s E_p w, a cumulant function: 0 and least at s = 0."""
    model = linear()
    key = difference_of_means(model, tiny.two_sides())
    curve = dose_response(
        model, SAMPLE, direction=key, layer=2, measure="KL", largest=2.0, steps=9, where="generated", n=1, seeds=1
    )
    p = model(SAMPLE)[0, -1].double().softmax(0)
    w = (model.weight("lm_head.weight") @ directions.load(key, model).at(2)).double()
    expected = [float((p * (s * w).exp()).sum().log() - s * (p * w).sum()) for s in curve.x]
    for name in ("direction", "random"):
        y = series(curve, name)
        assert (np.diff(y)[:4] < 0).all() and (np.diff(y)[4:] > 0).all() and (np.diff(y, 2) > -1e-9).all()
    np.testing.assert_allclose(series(curve, "direction"), expected, rtol=1e-4, atol=1e-7)


def test_units_of_the_stream_are_those_of_the_intervention() -> None:
    model = tiny.language("llama", 2)
    key = difference_of_means(model, tiny.two_sides())
    curve = dose_response(
        model, SAMPLE, direction=key, layer=1, measure="perplexity", unit="norm", largest=0.5, steps=3, texts=TEXTS
    )
    with METHODS["steer"](model, SAMPLE, direction=key, layer=1, strength=0.5, unit="norm"):
        assert series(curve, "direction")[2] == pytest.approx(perplexity(model, TEXTS), rel=1e-5)
    with pytest.raises(Unsuitable, match="count in shifts"):
        dose_response(model, SAMPLE, direction=pushed.random_direction(model), measure="KL", unit="norm")


def test_the_sweep_is_on_top_of_what_is_in_force() -> None:
    model = tiny.language("llama", 2)
    key = difference_of_means(model, tiny.two_sides())
    settings: dict[str, Any] = {"direction": key, "layer": 1, "measure": "perplexity", "seeds": 1, "texts": TEXTS}
    with METHODS["steer"](model, SAMPLE, direction=key, layer=1, strength=1.0):
        curve = dose_response(model, SAMPLE, largest=1.0, steps=3, **settings)
    plain = dose_response(model, SAMPLE, largest=2.0, steps=5, **settings)
    np.testing.assert_allclose(series(curve, "direction"), series(plain, "direction")[[2, 3, 4]], rtol=1e-5)


def test_what_can_not_be_swept_gets_a_sentence_and_a_cancel_stops_it() -> None:
    model = tiny.language("gpt2")
    name = pushed.random_direction(model)
    with pytest.raises(Unsuitable, match="no examples"):
        dose_response(model, SAMPLE, direction=name)
    huge = pushed.random_direction(model, 3e37)
    with pytest.raises(Unsuitable, match="overflow"):
        dose_response(model, SAMPLE, direction=huge, measure="KL", largest=100.0)
    seen: list[progress.Progress] = []

    def stop(each: progress.Progress) -> None:
        seen.append(each)
        if each.done:
            raise progress.Cancelled

    with progress.watch(stop), pytest.raises(progress.Cancelled):
        dose_response(model, SAMPLE, direction=name, measure="KL", n=2)
    assert [each.done for each in seen] == [0, 1] and seen[0].total == 54 // dose.BATCH
    assert hooks.in_force() == ()
