import numpy as np
import pytest
import torch

from interp.methods.attribution.saliency import saliency
from interp.methods.change.hide_region import hide_region
from interp.sites import Site
from tests import tiny
from tests.methods.attribution.by_hand import FAMILIES, SOME, differences, differences_of, flat, linear


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_slope_by_finite_differences(family, seed):
    model, sample, expected = tiny.vision(family, torch.float64, seed), tiny.image(seed), differences_of(family, seed)
    signed = saliency(model, sample, target=1 + seed)
    tolerance = 1e-6 * np.abs(expected).max()
    np.testing.assert_allclose(signed.values.flatten()[SOME], expected.sum(0), rtol=0, atol=tolerance)
    largest = saliency(model, sample, target=1 + seed, magnitude=True)
    np.testing.assert_allclose(largest.values.flatten()[SOME], np.abs(expected).max(0), rtol=0, atol=tolerance)
    assert signed.signed and not largest.signed and signed.values.min() < 0 < largest.values.min() + 1e-300
    assert signed.score == float(model(sample)[0, 1 + seed]) and signed.units == "logit per unit of input"


def test_the_slope_of_a_linear_network_is_the_same_at_every_image():
    model = linear()
    one, other = (saliency(model, each, target=0).values for each in (tiny.image(0), flat()))
    np.testing.assert_allclose(one, other, atol=1e-12 * np.abs(one).max())
    assert np.abs(one).max() > 1e-3


def test_it_is_taken_at_the_pixels_that_the_interventions_leave():
    model, sample = tiny.vision("vit", torch.float64), tiny.image()
    with hide_region(model, sample, box=(0, 0, 0.5, 1), by="noise"):
        with model.record([Site("input")]) as recorded:
            model(sample)
        found = saliency(model, sample, target=1)
    expected = differences(model, recorded["input"], 1)
    np.testing.assert_allclose(found.values.flatten()[SOME], expected.sum(0), atol=1e-6 * np.abs(expected).max())
    assert np.abs(found.values - saliency(model, sample, target=1).values).max() > 1e-3


def test_magnitude_costs_no_second_backward():
    model, sample = tiny.vision("resnet"), tiny.image()
    model.forget()
    first = saliency(model, sample, target=1)
    assert (first.forwards, first.backwards) == saliency.estimate(model, {}) == (2, 1)
    again = saliency(model, sample, target=1, magnitude=True)
    assert again.forwards == again.backwards == 0
