"""Gradient CAMs against maps made of finite differences through a tail that is written out, in double precision."""

from functools import cache

import numpy as np
import pytest
import torch

from interp.methods.cam.grad_cam import grad_cam
from interp.methods.cam.hires_cam import hires_cam
from interp.methods.cam.layer_cam import layer_cam
from interp.methods.cam.xgrad_cam import xgrad_cam
from tests import tiny
from tests.methods.cam.reference import CASES, Reference, reference

cached = cache(reference)


def grad(at: Reference) -> np.ndarray:
    return sum(at.gradient[k].mean() * at.activation[k] for k in range(len(at.activation)))


def xgrad(at: Reference) -> np.ndarray:
    return sum(
        (at.gradient[k] * at.activation[k] / at.activation[k].sum()).sum() * at.activation[k]
        for k in range(len(at.activation))
        if at.activation[k].any()
    )


def hires(at: Reference) -> np.ndarray:
    return sum(at.gradient[k] * at.activation[k] for k in range(len(at.activation)))


def layer(at: Reference) -> np.ndarray:
    return sum(np.maximum(at.gradient[k], 0) * at.activation[k] for k in range(len(at.activation)))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("family", "site"), CASES)
@pytest.mark.parametrize(
    ("method", "slow"), [(grad_cam, grad), (xgrad_cam, xgrad), (hires_cam, hires), (layer_cam, layer)], ids=lambda x: ""
)
def test_maps_agree_with_the_slow_reference(method, slow, family, site, seed):
    model, sample = tiny.vision(family, torch.float64, seed), tiny.image(seed)
    index = seed + 1
    expected = cached(family, site, seed, sample, index)
    found = method(model, sample, target=index, site=site)
    scale = np.abs(expected.gradient * expected.activation).sum(0).max()
    assert found.values.shape == expected.activation.shape[1:]
    np.testing.assert_allclose(found.values, slow(expected), rtol=0, atol=1e-6 * scale)
    assert found.score == pytest.approx(expected.score, abs=1e-9)
