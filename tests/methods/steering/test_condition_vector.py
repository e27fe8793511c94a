"""Condition vectors against one prompt at a time and numpy; thresholds against every cut there is."""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, precision_score, recall_score

from interp import Unsuitable, directions
from interp.methods.steering._conditions import best_layer, judged_conditions, similarity, threshold_of, told
from interp.methods.steering.condition_vector import condition_vector
from interp.methods.steering.pca_direction import by_all, by_pairs
from interp.methods.steering.probe_direction import logistic
from interp.model import LanguageModel
from interp.samples import Contrast
from interp.sites import Site
from tests import tiny

STORE = tempfile.mkdtemp(prefix="actiscope-test-")
WORDS = Contrast(
    ("the cat sat", "on a mat", "and so did i", "a dog ran to me", "we met", "so it goes", "not a word", "all is well"),
    ("12 + 30 = 42", "7 8 9", "3.14159", "1 2 4 8 16", "100 - 1", "2026", "0 0 0 1", "55 66 77"),
)
"""Letters against digits: what no model that reads bytes takes for the same."""


@pytest.fixture(autouse=True)
def one_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACTISCOPE_STORE", STORE)


def means(model: LanguageModel, texts: tuple[str, ...]) -> np.ndarray:
    """[text, layer, d], one text at a time, over tokens that are not special."""
    out = []
    for text in texts:
        sites = [Site("resid_post", layer) for layer in range(model.layers)]
        ids = model.inputs(text)
        with model.record(sites) as found:
            model(ids)
        plain = [at for at, each in enumerate(ids[0].tolist()) if each < 256]
        out.append([found[site][0, plain].double().mean(0).numpy() for site in sites])
    return np.array(out)


@pytest.mark.parametrize(("family", "seed"), [("gpt2", 0), ("llama", 1), ("gemma2", 0)])
@pytest.mark.parametrize("centre", ["pairs", "all"])
def test_the_vector_is_the_first_component_of_rows_of_both_signs(family: str, seed: int, centre: Any) -> None:
    model = tiny.language(family, seed)
    data = Contrast(("<bos>" + WORDS.positive[0], *WORDS.positive[1:]), WORDS.negative)
    found = directions.load(condition_vector(model, data, centre=centre), model)
    p, n = means(model, data.positive), means(model, data.negative)
    for layer in range(model.layers):
        middle = (p[:, layer] + n[:, layer]) / 2
        if centre == "all":
            middle = middle.mean(0, keepdims=True)
        c = np.linalg.svd(np.concatenate([p[:, layer] - middle, n[:, layer] - middle]))[2][0]
        shift = p[:, layer].mean(0) - n[:, layer].mean(0)
        c = c * (c @ shift)
        assert np.abs(found.at(layer).numpy() - c).max() < 1e-4 * np.abs(c).max()
        s = [
            [
                np.dot(h, t) / np.linalg.norm(h) / np.linalg.norm(t)
                for h in side
                for t in [np.tanh(c * (c @ h) / (c @ c))]
            ]
            for side in (p[:, layer], n[:, layer])
        ]
        level, above = found.fact("threshold", layer), found.fact("fires above", layer) == 1
        fired = [[(each > level) == above for each in side] for side in s]
        best = max(
            f1_score([1] * 8 + [0] * 8, [(each > cut) == side for each in s[0] + s[1]])
            for cut in s[0] + s[1]
            for side in (True, False)
        )
        assert f1_score([1] * 8 + [0] * 8, fired[0] + fired[1]) == pytest.approx(best)


@pytest.mark.parametrize("kind", ["cosine of tanh", "projection"])
def test_on_data_that_can_be_told_apart_f1_is_one_and_the_other_side_gives_the_complement(kind: str) -> None:
    """What meets the condition lies along one direction, and all else does not, but after the first layer."""
    generator = torch.Generator().manual_seed(0)
    positive, negative = (torch.randn(40, 3, 12, generator=generator) * 0.3 for _ in range(2))
    positive[:, 1:, 0] += 4
    for make in (by_pairs, by_all):
        facts = judged_conditions(make, kind, 0)(positive, negative)
        assert facts["f1"][1] == facts["f1"][2] == 1 and facts["f1"][0] < 0.85
        c, level, above = make(positive, negative)[1], facts["threshold"][1], bool(facts["fires above"][1])
        p, n = (similarity(each[:, 1], c, kind).numpy() for each in (positive, negative))
        right, wrong = (told(p, n, np.array(level), side) for side in (above, not above))
        assert (right.hits, right.false_alarms, right.misses, right.rejections) == (40, 0, 0, 40)
        assert (wrong.hits, wrong.false_alarms, wrong.misses, wrong.rejections) == (0, 40, 40, 0)


def test_a_probe_leaves_out_what_varies_within_both_sides() -> None:
    generator = torch.Generator().manual_seed(0)
    positive, negative = (torch.randn(60, 1, 12, generator=generator) for _ in range(2))
    for side in (positive, negative):
        side[:, 0, 3] *= 9
    positive[:, 0, 0] += 5
    f1 = [
        float(judged_conditions(make, "projection", 0)(positive, negative)["f1"][0])
        for make in (by_pairs, lambda p, n: logistic(p, n, 1.0))
    ]
    assert f1[0] < 0.8 and f1[1] > 0.95


def test_the_cosine_of_the_paper_can_not_tell_a_stream_from_its_opposite_and_the_projection_can() -> None:
    generator = torch.Generator().manual_seed(0)
    positive = torch.randn(40, 1, 12, generator=generator) * 0.3
    positive[:, 0, 0] += 4
    f1 = {
        kind: float(judged_conditions(by_pairs, kind, 0)(positive, -positive)["f1"][0])
        for kind in ("cosine of tanh", "projection")
    }
    assert f1["projection"] == 1 and f1["cosine of tanh"] < 0.7


@pytest.mark.parametrize("seed", range(5))
def test_the_threshold_is_the_best_of_all_cuts_and_its_numbers_are_scikit_learns(seed: int) -> None:
    generator = np.random.default_rng(seed)
    p, n = generator.normal(0.3, 1, 23).round(1), generator.normal(0, 1, 31).round(1)  # with ties
    truth, s = np.r_[np.ones(23), np.zeros(31)], np.r_[p, n]
    level, _, f1 = threshold_of(p, n)
    best = max(f1_score(truth, (s > cut) == side) for cut in np.unique(s)[:-1] for side in (True, False))
    assert f1 == pytest.approx(best)
    for side in (True, False):
        fired = s > level if side else s < level
        one = told(p, n, np.array([level, 99.0]), side)
        assert one.f1[0] == pytest.approx(f1_score(truth, fired))
        assert one.precision[0] == pytest.approx(precision_score(truth, fired))
        assert one.recall[0] == pytest.approx(recall_score(truth, fired))
        assert one.recall[1] == (not side) and one.hits[1] + one.misses[1] == 23


def test_the_kept_f1_is_of_examples_that_had_no_part_in_the_threshold() -> None:
    generator = torch.Generator().manual_seed(3)
    positive, negative = (torch.randn(30, 4, 8, generator=generator) for _ in range(2))
    facts = judged_conditions(by_pairs, "projection", 5)(positive, negative)
    part = np.random.default_rng(5).permutation(30) % 5
    for layer in range(4):
        sums = np.zeros(3)
        for fold in range(5):
            kept, held = (torch.from_numpy(each) for each in (part != fold, part == fold))
            c = by_pairs(positive[kept], negative[kept])[layer].double()
            score = lambda x, c=c, layer=layer: ((x[:, layer].double() @ c) / (c @ c)).numpy()  # noqa: E731
            level, above, _ = threshold_of(score(positive[kept]), score(negative[kept]))
            fired = [(score(each[held]) > level) == above for each in (positive, negative)]
            sums += fired[0].sum(), fired[1].sum(), (~fired[0]).sum()
        assert facts["f1"][layer] == pytest.approx(2 * sums[0] / (2 * sums[0] + sums[1] + sums[2]))
    # of noise, the F1 of the examples that chose the threshold is the larger one
    whole = by_pairs(positive, negative).double()
    seen = [
        threshold_of(
            *(((x[:, at].double() @ whole[at]) / whole[at].square().sum()).numpy() for x in (positive, negative))
        )[2]
        for at in range(4)
    ]
    assert np.mean(seen) > facts["f1"].mean() + 0.05


def test_likeness_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    h, c = torch.randn(5, 7, generator=generator), torch.randn(7, generator=generator)
    for row in h:
        p = c * (c @ row) / (c @ c)
        cosine = row @ torch.tanh(p) / row.norm() / torch.tanh(p).norm()
        assert float(similarity(row, c, "cosine of tanh")) == pytest.approx(float(cosine), abs=1e-5)
        assert float(similarity(row, -3 * c, "cosine of tanh")) == pytest.approx(float(cosine), abs=1e-5)
        assert float(similarity(row, c, "projection")) == pytest.approx(float(c @ row / (c @ c)), abs=1e-5)
    assert float(similarity(h[0], c, "projection")) == -float(similarity(-h[0], c, "projection"))
    assert float(similarity(torch.zeros(7), c, "cosine of tanh")) == 0


def test_the_layer_is_the_lowest_of_the_best_up_to_the_one_that_is_steered() -> None:
    facts = {"f1": np.array([0.7, 0.9, 0.8, 0.9]), "accuracy": np.array([1.0, 0, 0, 0])}
    found = directions.Direction("x", "", "", "", (0, 1, 2, 4), torch.ones(4, 2), facts)
    assert [best_layer(found, last) for last in (0, 1, 2, 3, 4)] == [0, 1, 1, 1, 1]
    facts["f1"][:2] = np.nan
    assert [best_layer(found, last) for last in (1, 2, 4)] == [0, 2, 4]
    del facts["accuracy"], facts["f1"]
    assert [best_layer(found, last) for last in (0, 2, 4)] == [0, 1, 2]


def test_the_key_names_what_was_fitted_and_what_can_not_be_fitted_gets_a_sentence() -> None:
    model = tiny.language("llama")
    key = condition_vector(model, WORDS)
    assert condition_vector(model, WORDS) == key
    others = {
        condition_vector(model, WORDS, **each)
        for each in ({"centre": "all"}, {"similarity": "projection"}, {"by": "probe"}, {"seed": 1})
    }  # type: ignore[arg-type]
    assert len(others | {key}) == 5
    assert directions.load(key, model).about["similarity"] == "cosine of tanh"
    for data, hint in (
        (Contrast(WORDS.positive, WORDS.negative[:3]), "not 8 and 3"),
        (Contrast((), ()), "no positive"),
        (Contrast(("a", "b"), ("a", "b")), "both sides"),
    ):
        with pytest.raises(Unsuitable, match=hint):
            condition_vector(model, data)
    condition_vector(model, Contrast(WORDS.positive, WORDS.negative[:3]), centre="all")
