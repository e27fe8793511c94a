import sys

import numpy as np
import pytest
import torch

from interp.methods.attribution._pixels import references
from interp.methods.attribution.expected_gradients import expected_gradients
from interp.methods.attribution.input_x_gradient import input_x_gradient
from interp.methods.attribution.integrated_gradients import integrated_gradients
from interp.samples import ImageSet
from tests import tiny
from tests.methods.attribution.by_hand import FAMILIES, flat, linear, normalised, score, slope

MODULE = sys.modules[expected_gradients.__module__]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_formula_sample_by_sample(family, seed):
    model, sample, n = tiny.vision(family, torch.float64, seed), tiny.image(seed), 6
    pixels, generator = model.inputs(sample), torch.Generator().manual_seed(seed)
    alphas = torch.rand(n, generator=generator, dtype=torch.float64)
    seeds = torch.randint(2**63 - 1, (n,), generator=generator)
    expected, scores = [], []
    for alpha, own in zip(alphas, seeds, strict=True):
        start = references(model, pixels, "uniform", seed=int(own))
        expected.append(((pixels - start) * slope(model, start + alpha * (pixels - start), 1))[0].numpy())
        scores.append(float(score(model, start, 1)))
    found = expected_gradients(model, sample, target=1, samples=n, seed=seed)
    mean = np.mean(expected, 0)
    np.testing.assert_allclose(found.values, mean.sum(0), atol=1e-10 * np.abs(mean).max())
    difference = float(score(model, pixels, 1)) - np.mean(scores)
    assert found.residual.value == pytest.approx(abs(mean.sum() / difference - 1), rel=1e-6)
    assert len(set(scores)) == n


@pytest.mark.parametrize("family", ["vit", "efficientnet"])
def test_with_one_reference_it_scatters_around_integrated_gradients(family):
    model, sample, runs = tiny.vision(family, torch.float64), tiny.image(), 20
    settings = {"target": 1, "reference": "white"}
    limit = integrated_gradients(model, sample, steps=100, **settings)
    found = [expected_gradients(model, sample, samples=50, seed=seed, **settings) for seed in range(runs)]
    values = np.array([each.values for each in found])
    error = values.std(0, ddof=1) / np.sqrt(runs)
    # Student's t with 19 degrees of freedom: beyond 6 once in 100,000 pixels, and there are 1024
    assert np.abs((values.mean(0) - limit.values) / error).max() < 6
    assert np.median(np.abs(values.mean(0) - limit.values) / error) < 2
    # enough to tell it from another map of the same units
    other = input_x_gradient(model, sample, **settings).values
    assert np.median(np.abs(values.mean(0) - other) / error) > 3
    # and each sum is as far from complete as its residual says
    difference = score(model, model.inputs(sample), 1) - score(model, normalised(model, 1.0), 1)
    for each in found:
        assert each.residual.value == pytest.approx(abs(each.values.sum() / float(difference) - 1), abs=1e-9)


def test_a_linear_network_leaves_only_the_draw_of_references():
    model, sample = linear(), tiny.image()
    pixels = model.inputs(sample)
    gradient = slope(model, pixels, 2)
    one = expected_gradients(model, sample, target=2, reference="black", samples=3)
    expected = ((pixels - normalised(model, 0.0)) * gradient)[0].sum(0).numpy()
    np.testing.assert_allclose(one.values, expected, atol=1e-10 * np.abs(expected).max())
    assert expected_gradients(model, sample, target=2, samples=7, seed=1).residual.value < 1e-10

    others = (tiny.image(1), flat())
    drawn = expected_gradients(model, sample, target=2, images=ImageSet(others), samples=9)
    corners = [((pixels - model.inputs(each)) * gradient)[0].sum(0).numpy() for each in others]
    share = ((drawn.values - corners[1]) / (corners[0] - corners[1])).round(6)
    assert len(np.unique(share)) == 1 and share[0, 0] * 9 == pytest.approx(round(share[0, 0] * 9), abs=1e-4)
    assert 0 < share[0, 0] < 1 and drawn.residual.value < 1e-10


def test_what_it_costs():
    model, sample = tiny.vision("vit"), tiny.image()
    for settings in ({"samples": 9}, {"samples": 9, "reference": "blur"}, {"images": ImageSet((flat(),) * 3)}):
        model.forget()
        found = expected_gradients(model, sample, **settings)
        assert (found.forwards, found.backwards) == expected_gradients.estimate(model, settings)


def test_batches_do_not_change_the_numbers(monkeypatch):
    model, sample = tiny.vision("convnext", torch.float64), tiny.image()
    for settings in ({}, {"images": ImageSet((flat(), tiny.image(3)))}):
        found = []
        for batch in (1, 4, 32):
            monkeypatch.setattr(MODULE, "BATCH", batch)
            found.append(expected_gradients(model, sample, target=1, samples=10, **settings).values)
        for each in found[1:]:
            np.testing.assert_allclose(each, found[0], atol=1e-12 * np.abs(found[0]).max())


def test_the_seed_and_nothing_else_fixes_the_draw():
    model, sample = tiny.vision("resnet"), tiny.image()
    first = expected_gradients(model, sample, seed=3, samples=4)
    torch.manual_seed(99)
    assert expected_gradients(model, sample, seed=3, samples=4) == first
    assert expected_gradients(model, sample, seed=4, samples=4) != first
