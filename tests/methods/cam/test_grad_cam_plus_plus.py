import numpy as np
import pytest
import torch

from interp.methods.cam.grad_cam_plus_plus import grad_cam_plus_plus
from interp.methods.cam.smooth_grad_cam_plus_plus import smooth_grad_cam_plus_plus
from tests import tiny
from tests.methods.cam.pooled import classifier
from tests.methods.cam.reference import reference

FAMILIES = ("resnet", "resnet_bottleneck", "regnet", "convnext", "vit", "deit", "swin")


def brute_force(activation: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """Eq. 19 as it is printed, with Y = exp(S): its derivatives are exp(S) g, exp(S) g^2 and exp(S) g^3."""
    values = np.zeros(activation.shape[1:])
    for a, g in zip(activation, gradient, strict=True):
        weight = 0.0
        for i in range(g.shape[0]):
            for j in range(g.shape[1]):
                below = 2 * g[i, j] ** 2 + a.sum() * g[i, j] ** 3
                weight += (g[i, j] ** 2 / below if below else 0.0) * max(g[i, j], 0.0)
        values += weight * a
    return values


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_equation_19_by_brute_force(family, seed):
    model, sample = tiny.vision(family, torch.float64, seed), tiny.image(seed)
    at = reference(family, None, seed, sample, 1)
    expected = brute_force(at.activation, at.gradient)
    found = grad_cam_plus_plus(model, sample, target=1).values
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("family", ["resnet", "regnet", "efficientnet"])
def test_tiny_gradients_keep_the_pattern(family):
    """Where S g is small against 2, alpha is 1/2, whatever the scale: an absolute constant in it would show here."""
    model, sample = tiny.vision(family, torch.float64), tiny.image()
    name = f"{classifier(model)}.weight"
    maps = []
    for scale in (1e-6, 1e-8, 1e-10):
        with model.swap({name: model.weight(name) * scale}):
            maps.append(grad_cam_plus_plus(model, sample, target=1).values / scale)
    with model.record([model.last_spatial]) as recorded:
        model(sample)
    half = (model.weight(name)[1].relu()[:, None, None] * recorded[model.last_spatial][0]).sum(0) / 2
    for found in maps:
        np.testing.assert_allclose(found, half.numpy(), rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("family", ["resnet", "convnext", "vit", "swinv2"])
def test_smooth_with_one_copy_and_no_noise_is_the_same(family, dtype):
    model, sample = tiny.vision(family, dtype), tiny.image()
    plain = grad_cam_plus_plus(model, sample, target="cat").values
    smooth = smooth_grad_cam_plus_plus(model, sample, target="cat", n=1, sigma=0).values
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    np.testing.assert_allclose(smooth, plain, rtol=0, atol=tolerance * np.abs(plain).max())
