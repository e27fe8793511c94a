"""Where examples lie and what thresholds make of them, against one text at a time and scikit-learn."""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, f1_score, precision_score, recall_score

from interp import Unsuitable, directions
from interp.methods.change.steer import steer
from interp.methods.steering._conditions import similarity
from interp.methods.steering.condition_scores import condition_scores
from interp.methods.steering.condition_vector import condition_vector
from interp.methods.steering.difference_of_means import difference_of_means
from interp.model import LanguageModel
from interp.samples import Contrast, Prompt
from interp.sites import Site
from tests import tiny
from tests.methods.steering.test_condition_vector import WORDS, means

STORE = tempfile.mkdtemp(prefix="actiscope-test-")


@pytest.fixture(autouse=True)
def one_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACTISCOPE_STORE", STORE)


def alone(model: LanguageModel, texts: Any, found: Any, layer: int, kind: str) -> np.ndarray:
    return similarity(torch.from_numpy(means(model, texts)[:, layer]), found.at(layer), kind).numpy()


@pytest.mark.parametrize(("family", "kind"), [("gpt2", "cosine of tanh"), ("llama", "projection")])
@pytest.mark.parametrize("fires", ["as fitted", "above", "below"])
def test_histograms_count_every_example_and_the_numbers_are_scikit_learns(family: str, kind: Any, fires: Any) -> None:
    model = tiny.language(family)
    found = directions.load(condition_vector(model, WORDS, similarity=kind), model)
    for layer in range(model.layers):
        p, n = (alone(model, each, found, layer, kind) for each in (WORDS.positive, WORDS.negative))
        result = condition_scores(model, WORDS, condition=found.key, layer=layer, fires=fires, bins=9)
        y, level = dict(zip(result.series, result.y, strict=True)), found.fact("threshold", layer)
        assert y["positive"].sum() == y["negative"].sum() == 8 and len(result.x) <= 13
        step = result.x[1] - result.x[0]
        assert np.allclose(np.diff(result.x), step) and np.abs(result.x - level).min() < 1e-9 * step
        for centre, count in zip(result.x, y["positive"], strict=True):
            assert ((p > centre - step * 0.499) & (p < centre + step * 0.499)).sum() <= count
            assert ((p > centre - step * 0.501) & (p < centre + step * 0.501)).sum() >= count
        truth, s = [1] * 8 + [0] * 8, np.r_[p, n]
        above = found.fact("fires above", layer) == 1 if fires == "as fitted" else fires == "above"
        for at, cut in enumerate(result.x):
            if np.abs(s - cut).min() < 1e-5:  # rounding decides
                continue
            fired = s > cut if above else s < cut
            assert y["F1"][at] == pytest.approx(f1_score(truth, fired, zero_division=0))
            assert y["precision"][at] == pytest.approx(precision_score(truth, fired, zero_division=0))
            assert y["recall"][at] == pytest.approx(recall_score(truth, fired))
            numbers = [y[each][at] for each in ("rejections", "false alarms", "misses", "hits")]
            assert numbers == confusion_matrix(truth, fired).ravel().tolist()
        at = int(np.abs(result.x - level).argmin())
        assert f"F1 {y['F1'][at]:.2f}" in result.note and f"{y['hits'][at]:.0f} of 8 examples" in result.note


def test_a_threshold_that_is_asked_for_lies_on_the_axis_and_one_far_away_does_not_stretch_it() -> None:
    model = tiny.language("gpt2")
    key = condition_vector(model, WORDS)
    plain = condition_scores(model, WORDS, condition=key)
    middle = float((plain.x[3] + plain.x[7]) / 2 + 0.123 * (plain.x[1] - plain.x[0]))
    assert np.abs(condition_scores(model, WORDS, condition=key, threshold=middle).x - middle).min() < 1e-9
    far = condition_scores(model, WORDS, condition=key, threshold=1e9, fires="above")
    assert len(far.x) < 40 and "met by 0 of 8 examples and 0 of 8" in far.note and "F1 0.00" in far.note


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_a_prompt_is_shown_at_every_layer_with_the_thresholds(family: str) -> None:
    model = tiny.language(family)
    found = directions.load(condition_vector(model, WORDS), model)
    for text in ("seven hats", "77 88", "<bos>x"):
        result = condition_scores(model, Prompt(text), condition=found.key)
        assert result.series == ("similarity", "threshold") and result.x.tolist() == [0, 1, 2]
        for layer in range(3):
            want = alone(model, (text,), found, layer, "cosine of tanh")[0]
            assert result.y[0, layer] == pytest.approx(want, abs=1e-5)
            assert result.y[1, layer] == found.fact("threshold", layer)
            one = condition_scores(model, Prompt(text), condition=found.key, layer=layer)
            met = (want > found.fact("threshold", layer)) == (found.fact("fires above", layer) == 1)
            assert one.y[0].tolist() == [result.y[0, layer]] and ("not met" in one.note) == (not met)


def test_a_condition_of_last_tokens_is_read_there() -> None:
    model = tiny.language("llama")
    found = directions.load(condition_vector(model, WORDS, tokens="last", similarity="projection"), model)
    for text in ("seven hats", "7", "x<bos>"):
        with model.record([Site("resid_post", 2)]) as seen:
            model(text)
        want = float(similarity(seen[Site("resid_post", 2)][0, -1], found.at(2), "projection"))
        result = condition_scores(model, Prompt(text), condition=found.key)
        assert result.y[0, 2] == pytest.approx(want, abs=1e-4)
        # of examples that are all this text every one lies there
        both = condition_scores(model, Contrast((text, text), (text,)), condition=found.key, layer=2)
        held = both.x[both.y[0] == 2]
        assert len(held) == 1 and held[0] == pytest.approx(want, abs=1e-5)


def test_a_direction_that_is_no_condition_has_similarities_and_no_threshold() -> None:
    model = tiny.language("gpt2")
    key = difference_of_means(model, WORDS)
    assert condition_scores(model, Prompt("x"), condition=key).series == ("similarity",)
    assert condition_scores(model, WORDS, condition=key).note == ""
    assert "F1" in condition_scores(model, WORDS, condition=key, threshold=0.2).note


def test_examples_are_read_under_the_changes_in_force() -> None:
    model = tiny.language("llama")
    key = condition_vector(model, WORDS, similarity="projection")
    found, site = directions.load(key, model), Site("resid_post", 0)
    plain = condition_scores(model, WORDS, condition=key, layer=0)
    with steer(model, Prompt("x"), direction=key, layer=0, strength=5.0):
        moved = condition_scores(model, WORDS, condition=key, layer=0)
        prompt = condition_scores(model, Prompt("we met"), condition=key, layer=0)
    assert moved.x.mean() == pytest.approx(plain.x.mean() + 5, abs=2 * (plain.x[1] - plain.x[0]))
    with model.record([site]) as read:
        model("we met")
    want = float(similarity(read[site][0].mean(0), found.at(0), "projection")) + 5
    assert prompt.y[0, 0] == pytest.approx(want, abs=1e-4)


def test_what_can_not_be_shown_gets_a_sentence() -> None:
    model = tiny.language("gpt2")
    key = condition_vector(model, WORDS)
    for sample, settings, hint in (
        (Contrast((), ("a",)), {}, "no texts"),
        (WORDS, {"layer": 7}, "not after layer 7"),
        (Prompt("x"), {"layer": 7}, "not after layer 7"),
        (WORDS, {"condition": "0" * 64}, "not kept here"),
    ):
        with pytest.raises(Unsuitable, match=hint):
            condition_scores(model, sample, **({"condition": key} | settings))
