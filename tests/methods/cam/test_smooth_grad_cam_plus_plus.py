import sys

import numpy as np
import pytest
import torch

from interp import Unsuitable
from interp.methods.cam.smooth_grad_cam_plus_plus import smooth_grad_cam_plus_plus as smooth
from interp.methods.change.hide_region import hide_region
from interp.sites import Site
from tests import tiny

MODULE = sys.modules[smooth.__module__]


@pytest.mark.parametrize("family", ["resnet", "vit"])
def test_the_formula_over_the_same_noise(family):
    model, sample = tiny.vision(family, torch.float64), tiny.image()
    site, maps = model.last_spatial, model.grid(model.last_spatial)
    generator = torch.Generator().manual_seed(5)
    pixels = model.inputs(sample)
    gradients = []
    for _ in range(3):
        noise = 0.2 * torch.randn(pixels.shape[1:], generator=generator, dtype=torch.float64)
        with model.record([site], grad=True) as recorded:
            logits = model(pixels + noise)
        gradients.append(maps(torch.autograd.grad(logits[0, 1], recorded[site])[0])[0].numpy())
    with model.record([site]) as recorded:
        model(sample)
    activation = maps(recorded[site])[0].numpy()
    d1, d2, d3 = (np.mean([g**power for g in gradients], 0) for power in (1, 2, 3))
    alpha = d2 / (2 * d2 + activation.sum((1, 2), keepdims=True) * d3)
    weights = (alpha * np.maximum(d1, 0)).sum((1, 2))
    expected = np.einsum("k,kij->ij", weights, activation)
    found = smooth(model, sample, target=1, n=3, sigma=0.2, seed=5)
    np.testing.assert_allclose(found.values, expected, atol=1e-9 * np.abs(expected).max())


def test_batches_do_not_change_the_numbers_and_seeds_do(monkeypatch):
    model, sample = tiny.vision("convnext"), tiny.image()
    found = {}
    for batch in (1, 3, 16):
        monkeypatch.setattr(MODULE, "BATCH", batch)
        model.forget()
        found[batch] = smooth(model, sample, target=1, n=7, seed=1).values
    scale = np.abs(found[1]).max()
    np.testing.assert_allclose(found[3], found[1], atol=1e-4 * scale)
    np.testing.assert_allclose(found[16], found[1], atol=1e-4 * scale)
    assert np.abs(smooth(model, sample, target=1, n=7, seed=2).values - found[1]).max() > 1e-2 * scale


def test_channels_add_up_and_neurons_bound_the_map():
    model, sample = tiny.vision("resnet", torch.float64), tiny.image()
    whole = smooth(model, sample, target=1)
    parts = [smooth(model, sample, target=1, channels=each) for each in ((0, 1, 2), tuple(range(3, 16)))]
    np.testing.assert_allclose(parts[0].values + parts[1].values, whole.values, atol=1e-12)
    assert parts[1].forwards == 0, "another choice of channels needs no new noise"
    left = smooth(model, sample, target=1, neurons=(0, 0, 0.5, 1)).values
    assert np.abs(left[:, 2:]).max() == 0 and np.abs(left[:, :2]).max() > 0
    # a neuron's weight comes from the chosen neurons alone, its activation is as it was
    assert np.abs(left[:, :2] - whole.values[:, :2]).max() > 0


def test_the_noise_comes_after_the_interventions_in_force():
    model, sample = tiny.vision("resnet", torch.float64), tiny.image()
    with hide_region(model, sample, box=(0, 0, 0.5, 1), by="mean"):
        hidden = smooth(model, sample, target=1, n=2)
        with model.record([Site("input")]) as recorded:
            model(sample)
    with model.edit({Site("input"): lambda x: recorded[Site("input")] + (x - model.inputs(sample))}):
        same = smooth(model, sample, target=1, n=2)
    np.testing.assert_allclose(hidden.values, same.values, atol=1e-12)


def test_a_box_without_a_cell_and_an_unknown_channel_are_refused():
    model, sample = tiny.vision("resnet"), tiny.image()
    with pytest.raises(Unsuitable, match="larger"):
        smooth(model, sample, neurons=(0.4, 0.4, 0.41, 0.41))
    with pytest.raises(Unsuitable, match="channels 0 to 15"):
        smooth(model, sample, channels=(16,))
