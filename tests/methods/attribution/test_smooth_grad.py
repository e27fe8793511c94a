import sys

import numpy as np
import pytest
import torch

from interp.methods.attribution.saliency import saliency
from interp.methods.attribution.smooth_grad import smooth_grad
from tests import tiny
from tests.methods.attribution.by_hand import FAMILIES, linear, slope

MODULE = sys.modules[smooth_grad.__module__]


def slow(model, sample, index, samples, sigma, seed):
    """Copy by copy, on the network itself."""
    pixels, generator = model.inputs(sample), torch.Generator().manual_seed(seed)
    found = []
    for _ in range(samples):
        noise = torch.randn(3, *pixels.shape[2:], generator=generator, dtype=torch.float64)
        found.append(slope(model, pixels + sigma * (pixels.max() - pixels.min()) * noise, index)[0].numpy())
    return np.mean(found, 0)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_mean_of_the_slopes_copy_by_copy(family, seed):
    model, sample = tiny.vision(family, torch.float64, seed), tiny.image(seed)
    expected = slow(model, sample, 1, 7, 0.2, seed + 5)
    found = smooth_grad(model, sample, target=1, samples=7, sigma=0.2, seed=seed + 5)
    np.testing.assert_allclose(found.values, expected.sum(0), atol=1e-10 * np.abs(expected).max())
    times = smooth_grad(model, sample, target=1, samples=7, sigma=0.2, seed=seed + 5, times_input=True)
    by_input = (model.inputs(sample)[0].numpy() * expected).sum(0)
    np.testing.assert_allclose(times.values, by_input, atol=1e-10 * np.abs(by_input).max())
    assert times.units == "logit per pixel" and times.forwards == times.backwards == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("family", FAMILIES)
def test_without_noise_it_is_the_gradient_bit_for_bit(family, dtype):
    model, sample = tiny.vision(family, dtype), tiny.image()
    plain = saliency(model, sample, target=2)
    assert np.array_equal(smooth_grad(model, sample, target=2, sigma=0).values, plain.values)
    near = smooth_grad(model, sample, target=2, sigma=1e-6, samples=3).values
    if dtype == torch.float64 and family != "resnet":  # a ReLU's slope jumps, however small the step
        np.testing.assert_allclose(near, plain.values, atol=1e-3 * np.abs(plain.values).max())


def test_noise_changes_no_slope_of_a_linear_network():
    model, sample = linear(), tiny.image()
    plain = saliency(model, sample, target=1).values
    found = smooth_grad(model, sample, target=1, sigma=1.0, samples=5).values
    np.testing.assert_allclose(found, plain, atol=1e-12 * np.abs(plain).max())


def test_neither_batches_nor_the_number_change_the_noise(monkeypatch):
    model, sample = tiny.vision("vit", torch.float64), tiny.image()
    found = []
    for batch in (1, 3, 8):
        monkeypatch.setattr(MODULE, "BATCH", batch)
        model.forget()
        found.append(smooth_grad(model, sample, target=1, samples=7).values)
    for each in found[1:]:
        np.testing.assert_allclose(each, found[0], atol=1e-12 * np.abs(found[0]).max())
    six, seventh = (smooth_grad(model, sample, target=1, samples=n).values for n in (6, 7))
    last = slow(model, sample, 1, 7, 0.15, 0) * 7 - slow(model, sample, 1, 6, 0.15, 0) * 6
    np.testing.assert_allclose(7 * seventh - 6 * six, last.sum(0), atol=1e-10)


def test_the_seed_and_nothing_else_fixes_the_noise():
    model, sample = tiny.vision("resnet"), tiny.image()
    first = smooth_grad(model, sample, seed=3, samples=4)
    model.forget()
    torch.manual_seed(99)
    assert smooth_grad(model, sample, seed=3, samples=4) == first != smooth_grad(model, sample, seed=4, samples=4)
