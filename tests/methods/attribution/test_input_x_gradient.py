import numpy as np
import pytest
import torch

from interp.methods.attribution._pixels import references
from interp.methods.attribution.input_x_gradient import input_x_gradient
from tests import tiny
from tests.methods.attribution.by_hand import FAMILIES, SOME, along, differences_of, flat, linear, normalised, score


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_pixel_by_finite_differences(family, seed):
    model, sample = tiny.vision(family, torch.float64, seed), tiny.image(seed)
    pixels, index, gradient = model.inputs(sample), seed + 1, differences_of(family, seed)
    for reference, start in (("zeros", torch.zeros_like(pixels)), ("white", normalised(model, 1.0))):
        expected = (pixels - start)[0].flatten(1)[:, SOME].numpy() * gradient
        found = input_x_gradient(model, sample, target=index, reference=reference)
        values = found.values.flatten()[SOME]
        np.testing.assert_allclose(values, expected.sum(0), rtol=0, atol=1e-6 * np.abs(expected).max())
        total = along(model, pixels, pixels - start, index)
        assert found.values.sum() == pytest.approx(total, rel=1e-4)
        difference = float(score(model, pixels, index) - score(model, start, index))
        assert found.residual.value == pytest.approx(abs(total - difference) / abs(difference), rel=1e-3)


@pytest.mark.parametrize("reference", ["zeros", "black", "white", "blur", "image mean", "uniform"])
@pytest.mark.parametrize("seed", [0, 1])
def test_it_is_complete_where_the_network_is_linear(reference, seed):
    model, sample = linear(seed), tiny.image(seed)
    pixels = model.inputs(sample)
    start = references(model, pixels, reference, seed=3)
    found = input_x_gradient(model, sample, target=1, reference=reference, seed=3)
    assert found.residual.value < 1e-10
    difference = float(score(model, pixels, 1) - score(model, start, 1))
    assert found.values.sum() == pytest.approx(difference, rel=1e-10) and abs(difference) > 1e-6


def test_an_image_that_is_its_own_reference_gets_nothing_and_says_so():
    model = tiny.vision("vit", torch.float64)
    found = input_x_gradient(model, flat(), reference="image mean")
    assert np.abs(found.values).max() < 1e-12
    white = flat((255, 255, 255))
    assert "zero everywhere" in input_x_gradient(tiny.vision("vit"), white, reference="white").note


def test_only_the_uniform_reference_is_drawn():
    model, sample = tiny.vision("convnext"), tiny.image()
    one, same, other = (input_x_gradient(model, sample, reference="uniform", seed=seed) for seed in (0, 0, 1))
    assert one == same and one != other
    assert input_x_gradient(model, sample, seed=0) == input_x_gradient(model, sample, seed=1)
