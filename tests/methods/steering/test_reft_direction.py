"""A trained direction: margins against a loop, that it learns, and that it is the same each time."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from interp import Unsuitable, directions, zoo
from interp.methods.change.steer import steer
from interp.methods.steering._answers import answered
from interp.methods.steering.reft_direction import margins, reft_direction
from interp.model import LanguageModel, gradient
from interp.samples import Contrast, Prompt
from tests import tiny

sys.path.insert(0, str(Path(__file__).parents[3] / "assets" / "recipes"))
import grammar

PROMPTS = ("the cat", "a dog sat", "so it", "my hat", "on it", "and a mat", "not so")
# the longer answer is far less likely to begin with
DATA = Contrast(tuple(f"{text} no, no" for text in PROMPTS), tuple(f"{text} yes" for text in PROMPTS))


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACTISCOPE_STORE", str(tmp_path))


def by_hand(model: LanguageModel, texts: tuple[str, str], shared: int, layer: int, v: torch.Tensor) -> float:
    """log p of one answer less that of the other, each text alone."""
    out = []
    for text in texts:
        ids = model.inputs(text)
        with torch.no_grad(), model.edit({f"resid_post.{layer}": lambda h: h + v}):
            logp = model(ids)[0].double().log_softmax(-1)
        out.append(sum(float(logp[at - 1, ids[0, at]]) for at in range(shared, ids.shape[1])))
    return out[0] - out[1]


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_margins_are_those_of_each_text_alone(family: str) -> None:
    model = tiny.language(family)
    pairs = answered(model, DATA)
    for layer in (0, 2):
        v = torch.randn(16, generator=torch.Generator().manual_seed(layer))
        with torch.no_grad():
            together = margins(model, pairs, layer, v)
        sides = zip(DATA.positive, DATA.negative, pairs, strict=True)
        alone = [by_hand(model, (yes, no), pair.shared, layer, v) for yes, no, pair in sides]
        assert together.numpy() == pytest.approx(alone, rel=1e-3, abs=1e-3)


def test_the_gradient_of_a_margin_is_that_of_small_steps() -> None:
    model = tiny.language("llama")
    pairs = answered(model, DATA)[:2]
    v = (0.1 * torch.randn(16, generator=torch.Generator().manual_seed(0))).requires_grad_()
    (slope,) = gradient(margins(model, pairs, 1, v).sum(), [v])
    for axis in (0, 7):
        step = torch.zeros(16)
        step[axis] = 1e-2
        with torch.no_grad():
            ends = [float(margins(model, pairs, 1, v.detach() + sign * step).double().sum()) for sign in (1, -1)]
        assert float(slope[axis]) == pytest.approx((ends[0] - ends[1]) / 2e-2, rel=0.02, abs=0.02)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_the_loss_falls_and_the_vector_is_kept_at_its_layer_alone(family: str) -> None:
    model = tiny.language(family)
    found = directions.load(reft_direction(model, DATA, layer=1, steps=60), model)
    assert found.layers == (1,) and found.vectors.shape == (1, 16)
    assert found.about["loss"]["last"] < 0.7 * found.about["loss"]["first"]


def test_a_stronger_penalty_keeps_it_shorter() -> None:
    model = tiny.language("gpt2")
    lengths = [
        float(directions.load(reft_direction(model, DATA, steps=150, penalty=penalty), model).vectors.norm())
        for penalty in (0.0, 10.0, 1000.0)
    ]
    assert lengths[0] > lengths[1] > 2 * lengths[2]


def test_the_same_fit_is_bit_for_bit_the_same_and_another_seed_is_another() -> None:
    model = tiny.language("gpt2")
    key = reft_direction(model, DATA, steps=10)
    first = directions.load(key, model).vectors
    (directions.folder() / f"{key}.safetensors").unlink()
    torch.manual_seed(5)
    assert reft_direction(model, DATA, steps=10) == key and torch.equal(directions.load(key, model).vectors, first)
    other = directions.load(reft_direction(model, DATA, steps=10, seed=1), model)
    assert not torch.equal(other.vectors, first)


def test_a_layer_the_model_has_not_gets_a_sentence() -> None:
    with pytest.raises(Unsuitable, match="from 0"):
        reft_direction(tiny.language("gpt2"), DATA, layer=3)


def test_on_stories_it_makes_held_out_requests_refused() -> None:
    model = zoo.load("stories")
    assert isinstance(model, LanguageModel)
    cases = grammar.cases("refusal", 30, 1, held=False)
    data = Contrast(tuple(each.prompt + " Sorry" for each in cases), tuple(each.prompt + " Sure" for each in cases))
    found = directions.load(key := reft_direction(model, data, steps=60), model)
    margin = found.about["margin"]
    assert margin["after"] > margin["before"] + 3, "on pairs held out of the training"
    good = [each.prompt for each in grammar.cases("refusal", 40, 2, held=True) if each.answer == " Sure"]
    with torch.no_grad(), steer(model, Prompt("x"), direction=key, strength=1.0):
        said = [model.token_text(int(model(each, keep=1)[0, -1].argmax())) for each in good]
    assert np.mean([each == " Sorry" for each in said]) > 0.8
    model.forget()
