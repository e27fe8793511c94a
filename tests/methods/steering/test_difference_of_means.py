"""The difference of means against a loop over texts, and what is kept with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from interp import Unsuitable, directions
from interp.directions import Direction
from interp.methods.steering import _contrast
from interp.methods.steering.difference_of_means import difference_of_means
from interp.model import LanguageModel
from interp.samples import Contrast
from tests import tiny
from tests.test_hooks import near

DATA = Contrast(
    ("I am glad?", "a cat sat on", "so good, so good", "yes", "warm and dry", "on the mat", "oh well"),
    ("you were sad", "it rained on and on", "no", "my old hat!", "not now"),
)


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACTISCOPE_STORE", str(tmp_path))


def fitted(model: LanguageModel, **settings: object) -> Direction:
    return directions.load(difference_of_means(model, DATA, **settings), model)


def one_by_one(model: LanguageModel, texts: tuple[str, ...], token: str) -> np.ndarray:
    """[text, layer, d] of each text alone."""
    sites = [f"resid_post.{layer}" for layer in range(model.layers)]
    out = []
    for text in texts:
        with model.record(sites) as found:
            model(text)
        h = torch.stack([found[site][0] for site in sites]).double()
        ids = model.tokenizer(text)["input_ids"]
        plain = [at for at, each in enumerate(ids) if each not in model.tokenizer.all_special_ids]
        out.append({"last": h[:, -1], "second to last": h[:, -2], "mean": h[:, plain].mean(1)}[token])
    return torch.stack(out).numpy()


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("token", ["last", "second to last", "mean"])
def test_it_is_the_mean_of_one_side_less_that_of_the_other(family: str, token: str) -> None:
    model = tiny.language(family)
    positive, negative = (one_by_one(model, side, token) for side in (DATA.positive, DATA.negative))
    near(fitted(model, token=token).vectors.double(), torch.from_numpy(positive.mean(0) - negative.mean(0)))


@pytest.mark.parametrize("seed", [0, 1])
def test_the_held_out_accuracy_is_that_of_a_loop_over_folds(seed: int) -> None:
    model = tiny.language("llama")
    sides = [one_by_one(model, side, "last") for side in (DATA.positive, DATA.negative)]
    generator = np.random.default_rng(seed)
    parts = [generator.permutation(len(side)) % 5 for side in sides]
    for layer in range(model.layers):
        shares = []
        for fold in range(5):
            means = [side[part != fold, layer].mean(0) for side, part in zip(sides, parts, strict=True)]
            v = means[0] - means[1]
            middle = (means[0] @ v + means[1] @ v) / 2
            above = [
                [h @ v > middle for h in side[part == fold, layer]] for side, part in zip(sides, parts, strict=True)
            ]
            shares.append((np.mean(above[0]) + 1 - np.mean(above[1])) / 2)
        assert fitted(model, seed=seed).fact("accuracy", layer) == pytest.approx(np.mean(shares))


def test_facts_say_where_the_two_sides_lie_and_how_long_the_stream_is() -> None:
    model = tiny.language("gpt2")
    direction = fitted(model)
    positive, negative = (torch.from_numpy(one_by_one(model, s, "last")) for s in (DATA.positive, DATA.negative))
    for layer in range(model.layers):
        assert float(direction.score(negative[:, layer].mean(0), layer)) == pytest.approx(0, abs=1e-4)
        assert float(direction.score(positive[:, layer].mean(0), layer)) == pytest.approx(1, abs=1e-4)
        assert direction.fact("high", layer) - direction.fact("low", layer) == pytest.approx(1, abs=1e-4)
        assert direction.fact("cosine", layer) == pytest.approx(1, abs=1e-6)
        length = np.linalg.norm(np.concatenate([positive[:, layer], negative[:, layer]]), axis=1).mean()
        assert direction.fact("norm", layer) == pytest.approx(length, rel=1e-4)
        v = direction.at(layer).double().numpy()
        differences = (positive[:5, layer] - negative[:, layer]).numpy()
        cosines = differences @ v / np.linalg.norm(differences, axis=1) / np.linalg.norm(v)
        assert direction.fact("agreement", layer) == pytest.approx(cosines.mean(), rel=1e-4)


def test_batches_and_changes_in_force_make_no_difference(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = tiny.language("gemma2")
    whole = fitted(model)
    monkeypatch.setattr(_contrast, "BATCH", 2)
    monkeypatch.setenv("ACTISCOPE_STORE", str(tmp_path / "another"))
    with model.edit({"resid_post.0": lambda h: h * -3}):
        again = fitted(model)
    near(whole.vectors, again.vectors, 1e-5)


def test_the_same_fit_has_the_same_key_and_is_not_run_again() -> None:
    model = tiny.language("gpt2")
    key = difference_of_means(model, DATA)
    model.network.forward, forward = None, model.network.forward  # type: ignore[assignment]
    try:
        assert difference_of_means(model, DATA) == key
    finally:
        model.network.forward = forward  # type: ignore[method-assign]
    others = [difference_of_means(model, DATA, seed=1), difference_of_means(model, DATA, token="mean"),
              difference_of_means(model, Contrast(DATA.negative, DATA.positive))]  # fmt: skip
    assert len({key, *others}) == 4


def test_a_single_pair_has_no_held_out_accuracy() -> None:
    model = tiny.language("gpt2")
    direction = directions.load(difference_of_means(model, Contrast(("a cat",), ("a dog",))), model)
    assert np.isnan(direction.facts["accuracy"]).all() and direction.best == 1


def test_what_can_not_be_fitted_gets_a_sentence() -> None:
    model = tiny.language("gpt2")
    for data, token, says in (
        (Contrast((), ("a",)), "last", "no positive examples"),
        (Contrast(("a",), ()), "last", "no negative examples"),
        (Contrast(("the cat",), ("the cat",)), "last", "both sides of its examples are the same"),
        (Contrast(("a",), ("the cat",)), "second to last", "has only one token"),
    ):
        with pytest.raises(Unsuitable, match=says):
            difference_of_means(model, data, token=token)
    assert directions.available(model) == []
